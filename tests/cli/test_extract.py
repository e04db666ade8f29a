"""extract: the features of every row, in the order of rows, whatever packs them; in constant memory."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from adapt import features
from adapt.cli import extract, finetune
from adapt.data import tables
from adapt.errors import DataError, OutputError, StrategyError
from adapt.features import encode
from adapt.pretrained import hub
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = [text for text, _ in tiny.sentences(40)] + [
    "good",
    "a " * 60,
    "the",
    "Ж unknown words",
    "film " * 17,
]


@pytest.fixture
def run(inputs, tmp_path):
    """`run("bert_mlm_tied", pooling="max")` is features.npy of TEXTS."""
    tiny.write_table(tmp_path / "texts.csv", [[text] for text in TEXTS], ["text"])

    def extracted(case: str, **flags) -> np.ndarray:
        flags = {"data": str(tmp_path / "texts.csv"), "checkpoint": inputs.checkpoint(case)} | flags
        extract.main(extract.Config(**flags, out=tmp_path / "out", overwrite=True))
        out = np.load(tmp_path / "out/features.npy", mmap_mode="r")
        assert out.dtype == np.float32 and out.flags.c_contiguous
        return np.array(out)

    return extracted


def alone(loaded: hub.Pretrained, text: str, layer: int) -> np.ndarray:
    """The hidden states [tokens, D] of one text by itself in a row: nothing is packed."""
    tokens, _ = loaded.tokenizer.encode([text])
    count, longest = len(tokens[0]), loaded.tokenizer.max_length
    row = {name: np.zeros((1, longest), np.int32) for name in ("tokens", "positions")}
    row["tokens"][0, :count], row["positions"][0] = tokens[0], np.arange(longest)
    row["segments"] = np.where(np.arange(longest) < count, 0, 1)[None].astype(np.int32)
    states = STATES(loaded)(
        loaded.params, row | {"first": np.zeros(1, np.int32), "length": np.full(1, count, np.int32)}
    )
    return np.asarray(states[layer])[0, :count]


def STATES(loaded: hub.Pretrained):
    """One compiled function a checkpoint."""
    if loaded.source not in COMPILED:
        COMPILED[loaded.source] = jax.jit(loaded.model.hidden_states)
    return COMPILED[loaded.source]


COMPILED: dict = {}
POOLED = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "last": lambda x: x[-1],
}


@pytest.mark.parametrize(
    ("case", "layer"), [("bert_mlm_tied", None), ("bert_mlm_tied", 0), ("gpt2_lm_tied", 1)]
)
@pytest.mark.parametrize("pooling", list(POOLED))
def test_features_are_those_of_each_text_alone(run, inputs, case, layer, pooling):
    loaded = hub.load(inputs.checkpoint(case))
    out = run(case, pooling=pooling, layer=layer)
    assert out.shape == (len(TEXTS), loaded.config.width)
    for row, text in enumerate(TEXTS):
        expected = POOLED[pooling](
            alone(loaded, text, loaded.config.layers if layer is None else layer)
        )
        np.testing.assert_allclose(out[row], expected, atol=5e-6, rtol=0)
    np.testing.assert_array_equal(out, encode(loaded, TEXTS, pooling, layer=layer))


def test_the_pooler_and_unit_length(run, inputs):
    loaded = hub.load(inputs.checkpoint("bert_pretraining"))
    pooler = loaded.params["head"]["pooler"]
    out = run("bert_pretraining", pooling="pooler")
    for row in (0, 41, 44):
        expected = np.tanh(
            alone(loaded, TEXTS[row], loaded.config.layers)[0] @ pooler["kernel"] + pooler["bias"]
        )
        np.testing.assert_allclose(out[row], expected, atol=5e-6, rtol=0)
    plain, unit = run("bert_pretraining"), run("bert_pretraining", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6
    )


def test_the_order_of_rows_is_kept_across_windows(run, inputs, tmp_path, monkeypatch):
    forth = run("bert_mlm_tied")
    tiny.write_table(tmp_path / "back.csv", [[text] for text in TEXTS[::-1]], ["text"])
    back = run("bert_mlm_tied", data=str(tmp_path / "back.csv"))
    np.testing.assert_allclose(back[::-1], forth, atol=2e-6, rtol=0)
    monkeypatch.setattr(features, "WINDOW", 7)
    few = encode(hub.load(inputs.checkpoint("bert_mlm_tied")), TEXTS)
    np.testing.assert_allclose(few, forth, atol=2e-6, rtol=0)


def test_images(run, inputs):
    loaded = hub.load(inputs.checkpoint("vit_classifier"))
    out = run("vit_classifier", data=inputs.images["train"], image_column="image", pooling="cls")
    files = sorted((inputs.folder / "pictures").glob("*/*.png"))
    states = jax.jit(loaded.model.hidden_states)
    for row, file in enumerate(files):
        pixels = np.asarray(tiny.picture(int(file.stem)), np.float32)[None] / 127.5 - 1
        batch = {
            "pixels": pixels,
            "first": np.zeros(1, np.int32),
            "length": np.full(1, 17, np.int32),
        }
        batch["segments"] = np.zeros((1, 17), np.int32)
        np.testing.assert_allclose(
            out[row], np.asarray(states(loaded.params, batch)[-1])[0, 0], atol=2e-5, rtol=0
        )


def test_images_of_another_size(run, inputs, tmp_path):
    """As an encoder whose positions are interpolated makes them."""
    data = inputs.images["train"]
    out = run("vit_classifier", data=data, image_column="image", pooling="cls", image_size=16)
    loaded = hub.load(inputs.checkpoint("vit_classifier"))
    assert loaded.config.image_size == 32
    smaller = hub.with_image_size(loaded, 16)
    extracted = features.extract(
        smaller, tables.read(data), tmp_path / "mine", image_column="image", pooling="cls"
    )
    np.testing.assert_array_equal(np.load(extracted.path), out)


def test_a_finished_run_is_a_checkpoint_without_its_classifier(run, inputs, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "epochs": 1,
        "batch_size": 4,
        "max_length": 12,
    }
    finetune.main(finetune.Config(**flags, **inputs.texts, out=tmp_path / "run"))
    loaded = hub.load(tmp_path / "run")
    out = run("", checkpoint=str(tmp_path / "run"))
    np.testing.assert_array_equal(out, encode(loaded, TEXTS))
    assert loaded.tokenizer.max_length == 12  # texts are cut as they were in training
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["truncated"] == sum(len(text.split()) > 10 for text in TEXTS)


def test_what_extract_writes_and_says(run, inputs, tmp_path, capsys):
    run("bert_mlm_tied")
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["examples"], result["width"], result["truncated"]) == (45, 24, 1)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json",
        "features.npy",
        "result.json",
    }
    said = capsys.readouterr()
    assert (
        said.err
        == f"note: {tmp_path / 'texts.csv'}: 1 text is longer than 20 tokens and truncated: "
        "42 tokens are left out\n"
    )
    *_, last = said.out.splitlines()
    assert last.startswith(f"{tmp_path / 'out/features.npy'}: 45 x 24 float32, ")


def test_bfloat16_is_near(run):
    exact, short = run("bert_mlm_tied"), run("bert_mlm_tied", dtype="bfloat16")
    assert 0 < np.abs(exact - short).max() < 0.05 * np.abs(exact).max()


def test_what_fails_leaves_what_was_there(run, inputs, tmp_path, monkeypatch):
    before = run("bert_mlm_tied")
    pictures = tiny.image_folder(tmp_path / "pictures", 6)
    (pictures / "dark/003.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    for flags, error in (
        ({"layer": 3}, StrategyError),
        ({"pooling": "pooler"}, StrategyError),
        ({"data": str(tmp_path / "none.csv")}, DataError),
        (
            {
                "data": str(pictures),
                "image_column": "image",
                "checkpoint": inputs.checkpoint("vit_classifier"),
            },
            DataError,
        ),
    ):
        with pytest.raises(error):
            run("bert_mlm_tied", **flags)
        np.testing.assert_array_equal(np.load(tmp_path / "out/features.npy"), before)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"texts.csv", "pictures", "out"}
    # In a new place, nothing is left at all.
    broken = extract.Config(
        checkpoint=inputs.checkpoint("vit_classifier"),
        data=str(pictures),
        image_column="image",
        out=tmp_path / "new",
    )
    with pytest.raises(DataError, match="rows 1 to 6"):
        extract.main(broken)
    assert not (tmp_path / "new").exists()


def test_only_folders_of_runs_are_overwritten(run, inputs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("all of it")
    config = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "data": inputs.test,
        "out": tmp_path / "mine",
    }
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            extract.main(extract.Config(**config, overwrite=overwrite))
    assert (tmp_path / "mine/thesis.tex").read_text() == "all of it"


MEMORY = """
import sys
from pathlib import Path
from adapt.cli import extract

checkpoint, folder = sys.argv[1], Path(sys.argv[2])

def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

for name in ("few", "few", "many"):  # the first one compiles, imports and warms up the allocator
    extract.main(extract.Config(checkpoint=checkpoint, data=str(folder / f"{name}.csv"), out=folder / "out", overwrite=True))
    print("RssAnon", anonymous(), file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status is Linux's")
def test_memory_does_not_grow_with_the_number_of_examples(inputs, tmp_path, scratch_cache):
    few = [[text] for text, _ in tiny.sentences(9000)]
    tiny.write_table(tmp_path / "few.csv", few, ["text"])
    tiny.write_table(tmp_path / "many.csv", few * 4, ["text"])
    argv = [sys.executable, "-c", MEMORY, inputs.checkpoint("bert_mlm_tied"), str(tmp_path)]
    done = subprocess.run(
        argv, env=tiny.environment(scratch_cache), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    kilobytes = [
        int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("RssAnon")
    ]
    # 27,000 more rows of 24 floats alone would be 2.6 MB; their texts and tokens, some 10 MB more.
    assert kilobytes[2] - kilobytes[1] < 4000, kilobytes


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_kernels_in_fewer_bytes_make_nearly_the_same_features_and_the_error_is_said(
    run, inputs, tmp_path, capsys, stored
):
    exact = run("bert_mlm_tied")
    capsys.readouterr()
    found = run("bert_mlm_tied", frozen_dtype=stored)
    assert f"kernels in {stored}" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/result.json").read_text())
    error = result["frozen"]["output_error"]
    assert result["frozen"]["dtype"] == stored and 1e-4 < error < 0.1
    difference = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
    assert 0.1 * error < difference < 10 * error
    loaded = hub.load(inputs.checkpoint("bert_mlm_tied"))
    again = encode(loaded, TEXTS, frozen_dtype=stored)
    np.testing.assert_allclose(again, found, atol=1e-5)
