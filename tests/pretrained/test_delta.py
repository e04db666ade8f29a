"""A delta checkpoint stores what trained and refers to the encoder by digest; several runs on one encoder share a pass."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapt import tree
from adapt.cli import finetune, predict
from adapt.errors import CheckpointError, OutputError, StrategyError
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
        base = {
            "checkpoint": inputs.checkpoint("bert_mlm_tied"),
            "epochs": 1,
            "batch_size": 4,
        } | inputs.texts
        return tmp_path / name, finetune.main(finetune.Config(**base | flags, out=tmp_path / name))

    return finetuned


def stored(folder: Path) -> set[str]:
    """The paths of all parameters that a run's checkpoints hold."""
    index = checkpoint.read_index(folder / "checkpoints")["best"]
    found = set(
        tree.paths(checkpoint.read_tree(folder / "checkpoints" / index["folder"], None)["params"])
    )
    still = folder / "checkpoints" / index.get("frozen", "frozen")
    return found | (set(tree.paths(checkpoint.read_tree(still, None))) if still.exists() else set())


@pytest.mark.parametrize(
    ("strategy", "delta"),
    [("frozen", True), ("bitfit", True), ("lora:2", True), ("lp-ft", False), ("full", False)],
)
def test_what_stands_still_is_not_stored_where_most_of_it_does(run, inputs, strategy, delta):
    folder, result = run("run", strategy=strategy, epochs=2)
    loaded = hub.load(folder)
    moved = {path for path in stored(folder) if path.startswith("encoder/")}
    assert result["saved"] == ("delta" if delta else "full")
    if delta:
        source = tree.paths(hub.load(inputs.checkpoint("bert_mlm_tied")).params)
        assert all(
            path not in source or not np.array_equal(source[path], tree.get(loaded.params, path))
            for path in moved
        )
        assert len(moved) < len(source) / 2
    else:
        assert moved == {path for path in tree.paths(loaded.params) if path.startswith("encoder/")}


@pytest.mark.parametrize("strategy", ["frozen", "top:1", "lora:2", "top:1+reinit:1"])
def test_a_delta_loads_as_the_whole(run, strategy):
    whole, parts = (
        run("whole", strategy=strategy, save="full"),
        run("parts", strategy=strategy, save="delta"),
    )
    assert [result["saved"] for _, result in (whole, parts)] == ["full", "delta"]
    assert tree.digest(hub.load(whole[0]).params) == tree.digest(hub.load(parts[0]).params)
    size = lambda folder: sum(
        f.stat().st_size for f in (folder / "checkpoints").rglob("*") if f.is_file()
    )
    assert size(parts[0]) < size(whole[0])


def test_a_delta_upon_a_run_chains(run, inputs):
    first, _ = run("first", strategy="full")
    second, _ = run("second", checkpoint=str(first), strategy="frozen")
    assert tree.digest(hub.load(second).params["encoder"]) == tree.digest(
        hub.load(first).params["encoder"]
    )


def test_another_encoder_is_refused_by_its_digest(run, inputs, tmp_path):
    copy = tiny.checkpoint(tmp_path / "copy", "bert_mlm_tied")
    folder, _ = run("run", checkpoint=str(copy), strategy="frozen")
    hub.load(folder)
    shutil.rmtree(copy)
    with pytest.raises(
        CheckpointError, match=r"holds what trained on the encoder of .*copy, put it back, or write"
    ):
        hub.load(folder)
    tiny.checkpoint(copy, "bert_mlm_relu")
    with pytest.raises(
        CheckpointError,
        match=r"the encoder of .*copy has the digest [0-9a-f]{12}, and .* was trained on",
    ) as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)
    # The mend that the message names.
    content = json.loads((folder / "model.json").read_text())
    content["base"]["source"] = inputs.checkpoint("bert_mlm_tied")
    (folder / "model.json").write_text(json.dumps(content))
    hub.load(folder)


def test_a_delta_of_nothing_that_can_be_referred_to_is_refused(run, tmp_path):
    with pytest.raises(
        StrategyError, match="`save` delta: `random_weights` has no encoder to refer to"
    ):
        run("run", strategy="frozen", save="delta", random_weights=True)
    assert not (tmp_path / "run").exists()
    assert run("run", strategy="frozen", random_weights=True)[1]["saved"] == "full"
    again = run("run", checkpoint=str(tmp_path / "run"), strategy="frozen", overwrite=True)
    assert again[1]["saved"] == "full"  # the checkpoint is what --out replaces
    hub.load(tmp_path / "run")


def test_lora_exports_merged_and_adapters_do_not(run, tmp_path):
    from adapt.errors import ExportError

    folder, _ = run("lora", strategy="lora:2", learning_rate=0.1, pooling="cls")
    export(hub.load(folder), tmp_path / "exported")
    plain, loaded = hub.load(tmp_path / "exported"), hub.load(folder)
    assert plain.config.lora_rank == 0
    batch = {"texts": ["a good film", "the plot was dull"]}["texts"]
    np.testing.assert_allclose(
        encode(plain, batch, "cls"), encode(loaded, batch, "cls"), rtol=1e-5, atol=1e-5
    )
    folder, _ = run("adapters", strategy="adapters:2", pooling="cls")
    with pytest.raises(ExportError, match="adapter_width 2, which the torch world's classes lack"):
        export(hub.load(folder), tmp_path / "other")


def test_several_runs_on_one_encoder_predict_as_each_by_itself(run, inputs, tmp_path, monkeypatch):
    runs = [
        run("one", strategy="frozen")[0],
        run("two", strategy="frozen", pooling="max", seed=1)[0],
    ]
    passes = []
    hidden_states = hub.Model.hidden_states
    monkeypatch.setattr(
        hub.Model, "hidden_states", lambda *args: passes.append(1) or hidden_states(*args)
    )
    predict.main(predict.Config(run=tuple(runs), data=inputs.test, out=tmp_path / "both.csv"))
    assert len(passes) == 1  # traced once: one pass for both heads
    for folder in runs:
        predict.main(
            predict.Config(run=(folder,), data=inputs.test, out=tmp_path / f"{folder.name}.csv")
        )
        for both, alone in zip(
            rows(tmp_path / "both.csv"), rows(tmp_path / f"{folder.name}.csv"), strict=True
        ):
            assert both[f"{folder.name}:prediction"] == alone["prediction"]
            assert float(both[f"{folder.name}:probability:positive"]) == pytest.approx(
                float(alone["probability:positive"]), abs=1e-5
            )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_that_do_not_share_an_encoder_are_refused(run, inputs, tmp_path):
    one, other = run("one", strategy="frozen")[0], run("two", strategy="full")[0]
    with pytest.raises(StrategyError, match=r"one and .*two do not share one encoder"):
        predict.main(predict.Config(run=(one, other), data=inputs.test, out=tmp_path / "both.csv"))
    cut, _ = run("cut", strategy="frozen", max_length=6)
    with pytest.raises(StrategyError, match="do not share one way of reading inputs"):
        predict.main(predict.Config(run=(one, cut), data=inputs.test, out=tmp_path / "both.csv"))
    with pytest.raises(StrategyError, match="two runs are called one"):
        predict.main(predict.Config(run=(one, one), data=inputs.test, out=tmp_path / "both.csv"))
    assert not (tmp_path / "both.csv").exists()


def test_the_run_that_another_refers_to_is_not_replaced_by_what_was_trained_on_that(run):
    """A is the encoder of B's delta: a run on B may not overwrite A, whose weights are nowhere else."""
    first, _ = run("a", strategy="top:1")
    second, result = run("b", checkpoint=str(first), strategy="frozen")
    assert result["saved"] == "delta"
    before = tree.digest(hub.load(second).params)
    with pytest.raises(
        OutputError, match=r"--out .*a holds the encoder that .*b refers to: give another --out"
    ):
        run("a", checkpoint=str(second), strategy="frozen", overwrite=True)
    assert tree.digest(hub.load(second).params) == before


def test_deltas_in_a_circle_are_one_line(run):
    first, _ = run("a", strategy="frozen")
    second, _ = run("b", checkpoint=str(first), strategy="frozen")
    content = json.loads((first / "model.json").read_text())
    content["base"]["source"] = str(second)
    (first / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="refers to itself for its encoder"):
        hub.load(first)


@pytest.mark.parametrize("base", ["x", {"source": "y"}, {"source": 1, "digest": "2"}])
def test_a_base_that_is_no_base_is_one_line(run, base):
    folder, _ = run("a", strategy="frozen")
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | {"base": base}))
    with pytest.raises(CheckpointError, match="was not written by this version of adapt"):
        hub.load(folder)
