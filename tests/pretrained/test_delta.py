"""A delta checkpoint stores what trained and refers to the encoder by digest; several runs on one
encoder share a pass.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapt import tree
from adapt.cli import finetune, predict
from adapt.errors import CheckpointError, ExportError, OutputError, StrategyError
from adapt.export.exporting import export
from adapt.features import encode
from adapt.pretrained import hub
from adapt.training import checkpoint
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def run(inputs, tmp_path):
    """`run("name", strategy="frozen")` is (folder, result)."""

    def finetuned(name: str, **flags) -> tuple[Path, dict]:
        defaults = {
            "checkpoint": inputs.checkpoint("bert_mlm_tied"),
            "epochs": 1,
            "batch_size": 4,
        }
        folder = tmp_path / name
        config = finetune.Config(**(defaults | inputs.texts | flags), out=folder)
        return folder, finetune.main(config)

    return finetuned


def encoder_paths(params: tree.Tree) -> set[str]:
    return {path for path in tree.paths(params) if path.startswith("encoder/")}


def stored_encoder_paths(folder: Path) -> set[str]:
    """The paths of the encoder's parameters that a run's checkpoints hold."""
    checkpoints = folder / "checkpoints"
    best = checkpoint.read_index(checkpoints)["best"]
    stored = encoder_paths(checkpoint.read_tree(checkpoints / best["folder"], None)["params"])
    frozen = checkpoints / best.get("frozen", "frozen")
    if frozen.exists():
        stored |= encoder_paths(checkpoint.read_tree(frozen, None))
    return stored


@pytest.mark.parametrize("strategy", ["frozen", "bitfit", "lora:2"])
def test_what_is_frozen_is_not_stored_where_most_of_the_encoder_is(run, inputs, strategy):
    folder, result = run("run", strategy=strategy, epochs=2)
    assert result["saved"] == "delta"
    source = tree.paths(hub.load(inputs.checkpoint("bert_mlm_tied")).params)
    trained = tree.paths(hub.load(folder).params)
    stored = stored_encoder_paths(folder)
    assert len(stored) < len(source) / 2
    for path in stored & source.keys():
        assert not np.array_equal(source[path], trained[path]), path


@pytest.mark.parametrize("strategy", ["lp-ft", "full"])
def test_the_encoder_is_stored_whole_where_most_of_it_trains(run, strategy):
    folder, result = run("run", strategy=strategy, epochs=2)
    assert result["saved"] == "full"
    assert stored_encoder_paths(folder) == encoder_paths(hub.load(folder).params)


def digest_of(folder: Path) -> str:
    """The digest of a run's parameters."""
    return tree.digest(hub.load(folder).params)


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("strategy", ["frozen", "top:1", "lora:2", "top:1+reinit:1"])
def test_a_delta_loads_as_the_whole(run, strategy):
    folders = {}
    for save in ("full", "delta"):
        folders[save], result = run(save, strategy=strategy, save=save)
        assert result["saved"] == save
    assert digest_of(folders["delta"]) == digest_of(folders["full"])
    assert size_of(folders["delta"] / "checkpoints") < size_of(folders["full"] / "checkpoints")


def test_a_delta_upon_a_run_chains(run):
    first, _ = run("first", strategy="full")
    second, _ = run("second", checkpoint=str(first), strategy="frozen")
    encoder = hub.load(second).params["encoder"]
    assert tree.digest(encoder) == tree.digest(hub.load(first).params["encoder"])


def test_another_encoder_is_refused_by_its_digest(run, inputs, tmp_path):
    copy = tiny.checkpoint(tmp_path / "copy", "bert_mlm_tied")
    folder, _ = run("run", checkpoint=str(copy), strategy="frozen")
    hub.load(folder)
    shutil.rmtree(copy)
    with pytest.raises(CheckpointError, match=r"trained on the encoder of .*copy, put it back, or"):
        hub.load(folder)
    tiny.checkpoint(copy, "bert_mlm_relu")
    message = r"the encoder of .*copy has the digest [0-9a-f]{12}, and .* was trained on"
    with pytest.raises(CheckpointError, match=message) as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)
    # The mend that the message names.
    content = json.loads((folder / "model.json").read_text())
    content["base"]["source"] = inputs.checkpoint("bert_mlm_tied")
    (folder / "model.json").write_text(json.dumps(content))
    hub.load(folder)


def test_a_delta_of_nothing_that_can_be_referred_to_is_refused(run, tmp_path):
    with pytest.raises(StrategyError, match="`save` delta: `random_weights` has no encoder"):
        run("run", strategy="frozen", save="delta", random_weights=True)
    assert not (tmp_path / "run").exists()
    folder, result = run("run", strategy="frozen", random_weights=True)
    assert result["saved"] == "full"
    # The checkpoint is what the output replaces.
    _, result = run("run", checkpoint=str(folder), strategy="frozen", overwrite=True)
    assert result["saved"] == "full"
    hub.load(folder)


def test_lora_exports_merged(run, tmp_path):
    folder, _ = run("lora", strategy="lora:2", learning_rate=0.1, pooling="cls")
    adapted = hub.load(folder)
    export(adapted, tmp_path / "exported")
    exported = hub.load(tmp_path / "exported")
    assert exported.config.lora_rank == 0
    texts = ["a good film", "the plot was dull"]
    expected = encode(adapted, texts, "cls")
    np.testing.assert_allclose(encode(exported, texts, "cls"), expected, rtol=1e-5, atol=1e-5)


def test_adapters_do_not_export(run, tmp_path):
    folder, _ = run("adapters", strategy="adapters:2", pooling="cls")
    with pytest.raises(
        ExportError,
        match="trained with adapters, which no class of transformers has: train with lora",
    ):
        export(hub.load(folder), tmp_path / "exported")


@pytest.fixture
def predicted(inputs, tmp_path):
    """`predicted(folder, ...)` are the rows that runs predict for the test set."""

    def rows(*folders: Path) -> list[dict[str, str]]:
        out = tmp_path / "predicted.csv"
        predict.main(predict.Config(run=folders, data=inputs.test, out=out, overwrite=True))
        with out.open(newline="") as file:
            return list(csv.DictReader(file))

    return rows


def test_several_runs_on_one_encoder_predict_as_each_by_itself(run, predicted, monkeypatch):
    one, _ = run("one", strategy="frozen")
    two, _ = run("two", strategy="frozen", pooling="max", seed=1)
    passes = []
    hidden_states = hub.Model.hidden_states

    def counted(*arguments):
        passes.append(1)
        return hidden_states(*arguments)

    monkeypatch.setattr(hub.Model, "hidden_states", counted)
    of_both = predicted(one, two)
    assert len(passes) == 1  # traced once: one pass for both heads
    for folder in (one, two):
        for both, alone in zip(of_both, predicted(folder), strict=True):
            assert both[f"{folder.name}:prediction"] == alone["prediction"]
            probability = float(both[f"{folder.name}:probability:positive"])
            assert probability == pytest.approx(float(alone["probability:positive"]), abs=1e-5)


def test_runs_that_do_not_share_an_encoder_are_refused(run, predicted, tmp_path):
    one, _ = run("one", strategy="frozen")
    other, _ = run("two", strategy="full")
    cut, _ = run("cut", strategy="frozen", max_length=6)
    with pytest.raises(StrategyError, match=r"one and .*two do not share one encoder"):
        predicted(one, other)
    with pytest.raises(StrategyError, match="do not share one way of reading inputs"):
        predicted(one, cut)
    with pytest.raises(StrategyError, match="two runs are called one"):
        predicted(one, one)
    assert not (tmp_path / "predicted.csv").exists()


def test_the_run_that_another_refers_to_is_not_replaced_by_what_was_trained_on_that(run):
    """A is the encoder of B's delta: a run on B may not overwrite A, whose weights are nowhere
    else.
    """
    first, _ = run("a", strategy="top:1")
    second, result = run("b", checkpoint=str(first), strategy="frozen")
    assert result["saved"] == "delta"
    before = digest_of(second)
    with pytest.raises(OutputError, match=r"a holds the encoder that .*b refers to"):
        run("a", checkpoint=str(second), strategy="frozen", overwrite=True)
    assert digest_of(second) == before


def test_deltas_in_a_circle_are_one_line(run):
    first, _ = run("a", strategy="frozen")
    second, _ = run("b", checkpoint=str(first), strategy="frozen")
    content = json.loads((first / "model.json").read_text())
    content["base"]["source"] = str(second)
    (first / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="refers to itself for its encoder"):
        hub.load(first)


def test_an_entry_of_model_json_that_is_damaged_is_one_line(run):
    """A base that is no base, and special tokens that are none."""
    folder, _ = run("a", strategy="frozen")
    content = json.loads((folder / "model.json").read_text())
    damaged = [{"base": base} for base in ("x", {"source": "y"}, {"source": 1, "digest": "2"})]
    for named in (["[CLS]"], "[CLS]", {"cls_token": 101}, {"no_token": "[CLS]"}):
        damaged.append({"special_tokens": named})
    for entry in damaged:
        (folder / "model.json").write_text(json.dumps(content | entry))
        with pytest.raises(CheckpointError, match="was not written by this version of adapt"):
            hub.load(folder)
