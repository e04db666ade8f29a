"""Many runs as one table: found wherever they lie, flattened, and nothing else taken for one."""

import json

import pytest

import adapt
from adapt.errors import OutputError
from tests.helpers import tiny

RESULT = {
    "primary_metric": "accuracy",
    "scores": {"validation": {"accuracy": 0.7, "loss": 0.6}, "test": {"accuracy": 0.8}},
    "seconds": {"total": 3.0},
    "discarded": {"parameters": 3, "shapes": {"head/kernel": [2, 3]}},
}


@pytest.fixture
def folder(tmp_path):
    """Two finished runs, one in a folder of the other's sweep, one that was stopped, and none."""
    for name, seed, result in (
        ("sweep/a", 0, RESULT),
        ("sweep/b", 1, {**RESULT, "outcome": "early"}),
        ("stopped", 2, None),
    ):
        run = tmp_path / name
        write(run / "config.json", {"experiment": "finetune", "strategy": "full", "seed": seed})
        write(run / "model.json", {})
        write(run / "lineage.json", {"created": "today", "versions": {"jax": "0.10"}})
        write(run / "checkpoints/step/model.json", {})
        if result:
            write(run / "result.json", result)
    write(tmp_path / "probe/config.json", {"experiment": "probe"})
    write(tmp_path / ".sweep.before/config.json", {})
    write(tmp_path / ".sweep.before/model.json", {})
    return tmp_path


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_every_run_below_a_folder_is_a_row(folder):
    table = adapt.runs(folder)
    frame = table.to_pandas().set_index("run")
    names = [str(folder / name) for name in ("stopped", "sweep/a", "sweep/b")]
    assert list(frame.index) == names and list(frame["seed"]) == [2, 0, 1]
    assert list(frame["outcome"]) == ["stopped", "complete", "early"]
    assert (
        list(frame["test.accuracy"].iloc[1:]) == [0.8, 0.8]
        and frame["test.accuracy"].isna().iloc[0]
    )
    row = table.rows[1]
    assert row["validation.loss"] == 0.6 and row["result.seconds.total"] == 3.0
    assert row["lineage.versions.jax"] == "0.10" and row["lineage.created"] == "today"
    assert not [name for name in row if "discarded" in name or "scores" in name]
    assert repr(table) == "RunTable(3 runs: 3 finetune)"


def test_runs_are_named_one_by_one_and_each_is_there_once(folder):
    some = adapt.runs([folder / "sweep/b", str(folder / "sweep")])
    assert [row["seed"] for row in some.rows] == [1, 0]
    assert len(adapt.runs(folder / "stopped")) == 1


def test_a_run_that_can_not_be_read_is_passed_over_with_a_warning(folder, caplog):
    (folder / "sweep/a/result.json").write_text("{")
    assert len(adapt.runs(folder)) == 2
    (said,) = caplog.messages
    assert "sweep/a/result.json" in said
    with pytest.raises(OutputError, match=r"`paths`.*sweep/a"):
        adapt.runs(folder / "sweep/a")


@pytest.mark.parametrize("paths", ["nowhere", "probe", [], 3, [3]])
def test_where_there_is_no_run_is_said(folder, monkeypatch, paths):
    monkeypatch.chdir(folder)
    with pytest.raises(OutputError, match="`paths`"):
        adapt.runs(paths)


@pytest.mark.usefixtures("own_cache")
def test_a_real_run_is_a_row(inputs, tmp_path):
    texts, labels = zip(*tiny.sentences(16), strict=True)
    checkpoint = inputs.checkpoint("bert_mlm_tied", blocks=1)
    options = {"strategy": "frozen", "epochs": 1, "batch_size": 8, "out": tmp_path / "run"}
    run = adapt.finetune(checkpoint, list(texts), list(labels), **options)
    (row,) = adapt.runs(tmp_path).rows
    assert row["validation.accuracy"] == run.scores["validation"]["accuracy"]
    assert row["used.learning_rates"] == [{"head": 1e-2}]
    assert row["result.checkpoint"] == checkpoint and row["result.truncated.train"] == 0
