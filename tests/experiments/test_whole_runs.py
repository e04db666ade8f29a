"""The long measurements on a tiny checkpoint: every figure is there, and every choice computes."""

import json
from pathlib import Path

import pytest

from adapt.errors import StrategyError
from experiments.benchmark import finetune_runs, growth, sides, tuning, whole_runs
from tests.helpers import small, tiny


@pytest.fixture
def bare(tmp_path) -> Path:
    return tiny.bare_python(tmp_path / "python")


@pytest.fixture
def flags(tmp_path, own_cache, inputs, forked_python) -> dict:
    data = str(tiny.write_table(tmp_path / "data.csv", tiny.sentences(60)))
    return {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", blocks=1),
        "data": data,
        "out": tmp_path / "out",
    }


@pytest.mark.usefixtures("drawn")
def test_whole_runs_of_what_is_installed(flags, bare, capsys, monkeypatch):
    monkeypatch.setattr(sides, "SIZES", [128, 256])
    command = with_test(finetune_runs.command, flags["data"])
    monkeypatch.setattr(finetune_runs, "command", command)
    grid = {"strategies": ("frozen",), "epochs": 2, "batch_size": 4, "rounds": 1, "steps": 1}
    result = whole_runs.main(whole_runs.Config(**flags, **grid, peers=bare, keras=bare))
    assert set(result["skipped"]) == {"torch", "keras"} and result["table"] == []
    runs = result["adapt"]["frozen"]
    assert runs["first"]["seconds"]["encode"] > 0 and runs["first"]["steps"] == 28
    assert runs["first"]["wall"] > runs["first"]["seconds"]["total"] > 0
    assert {entry["job"] for entry in result["rounds"]} == {"frozen", "rate", "encode"}
    assert len(result["runs"]["frozen"]["second"]) == 1 and result["encoding_share"] > 0
    assert json.loads((flags["out"] / "whole_runs.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert (flags["out"] / "whole_runs.png").stat().st_size > 0


def test_the_first_round_warms_up_and_every_other_counts(monkeypatch):
    def runs_of_round(config, strategy, number):
        return {"first": {"number": number}}

    monkeypatch.setattr(whole_runs, "runs_of_round", runs_of_round)
    monkeypatch.setattr(whole_runs, "measure", lambda *others: [{"job": "rate"}])
    config = whole_runs.Config(strategies=("full",), rounds=2)
    runs, rounds = whole_runs.take_rounds(config, {}, small.BERT, {})
    assert runs == {"full": {"first": [{"number": 1}, {"number": 2}]}}
    assert rounds == [{"round": 1, "job": "rate"}, {"round": 2, "job": "rate"}]


def with_test(command, data: str):
    """A file has no test part of its own: name it."""
    return lambda config, out, **words: command(config, out, **{"test": data, **words})


def test_growth_goes_through_sizes_and_epochs(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "EPOCHS", (2,))
    tables = tmp_path / "tables"
    found = whole_runs.main(
        whole_runs.Config(**flags, growth=True, sizes=(20, 40), batch_size=4, tables=tables)
    )
    (table,) = tables.iterdir()
    assert table.name == "growth.md" and "| 40 | 2 | " in table.read_text("utf-8")
    assert [(run["examples"], run["epochs"]) for run in found["examples"]] == [(20, 1), (40, 1)]
    assert [(run["examples"], run["epochs"]) for run in found["epochs"]] == [(40, 2)]
    assert all(run["memory_mb"] > 0 and run["seconds"]["encode"] > 0 for run in found["examples"])


def test_the_run_that_counts_is_the_median_one():
    runs = [{"wall": wall, "steps": number} for number, wall in enumerate([5.0, 1.0, 9.0])]
    assert whole_runs.middle(runs) == {"wall": 5.0, "steps": 0, "wall_least": 1.0, "wall_most": 9.0}


def test_the_ratio_is_the_median_of_rounds_and_not_of_sides():
    assert tuning.ratio([2.0, 6.0, 3.0], [1.0, 2.0, 1.5]) == 2.0


def test_a_choice_that_there_is_not_is_refused(tmp_path):
    config = tuning.Config(only=("packed row",), out=tmp_path / "out")
    with pytest.raises(StrategyError, match="--only 'packed row': give one of 'packed rows', "):
        tuning.main(config)
    assert not config.out.exists()


def test_every_choice_that_is_compared_takes_steps(flags, tmp_path):
    tables = tmp_path / "tables"
    found = tuning.main(tuning.Config(**flags, batch_size=4, steps=1, rounds=1, tables=tables))
    assert set(found) == {"as it is", *tuning.CHOICES}
    assert all(len(one["seconds"]) == 1 and one["ratio"] > 0 for one in found.values())
    text = (tables / "tuning.md").read_text("utf-8")
    assert all(
        f"| {name} | {choice.replacement} | " in text for name, choice in tuning.CHOICES.items()
    )
