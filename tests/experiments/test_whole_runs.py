"""The long measurements on a tiny checkpoint: every figure is there, and every choice computes."""

import json
import sys
from pathlib import Path

import pytest

from experiments.benchmark import finetune_runs, tuning, whole_runs
from tests.helpers import tiny


@pytest.fixture
def bare(tmp_path) -> Path:
    """An interpreter without any package: a peer that is not installed."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def flags(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    data = str(tiny.write_table(tmp_path / "data.csv", tiny.sentences(60)))
    return {
        "checkpoint": str(tiny.checkpoint(tmp_path / "bert", "bert_mlm_tied")),
        "data": data,
        "out": tmp_path / "out",
    }


def test_whole_runs_of_what_is_installed(flags, bare, capsys, monkeypatch):
    command = with_test(finetune_runs.command, flags["data"])
    monkeypatch.setattr(finetune_runs, "command", command)
    small = {"strategies": ("frozen",), "epochs": 3, "batch_size": 4, "rounds": 2, "steps": 1}
    result = whole_runs.main(whole_runs.Config(**flags, **small, peers=bare, keras=bare))
    assert set(result["skipped"]) == {"torch", "keras"} and result["table"] == []
    runs = result["adapt"]["frozen"]
    assert runs["first"]["seconds"]["encode"] > 0 and runs["first"]["steps"] == 42
    assert runs["first"]["wall"] > runs["first"]["seconds"]["total"] > 0
    assert {entry["job"] for entry in result["rounds"]} == {"frozen", "rate", "encode"}
    assert len(result["runs"]["frozen"]["second"]) == 2 and result["encoding_share"] > 0
    assert json.loads((flags["out"] / "whole_runs.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert (flags["out"] / "whole_runs.png").stat().st_size > 0


def with_test(command, data: str):
    """A file has no test part of its own: name it."""
    return lambda config, out, **words: command(config, out, **{"test": data, **words})


def test_growth_goes_through_sizes_and_epochs(flags):
    found = whole_runs.main(whole_runs.Config(**flags, growth=True, sizes=(20, 40), batch_size=4))
    assert [(run["examples"], run["epochs"]) for run in found["examples"]] == [(20, 1), (40, 1)]
    assert [(run["examples"], run["epochs"]) for run in found["epochs"]] == [
        (40, 1),
        (40, 2),
        (40, 4),
        (40, 8),
    ]
    assert all(run["memory_mb"] > 0 and run["seconds"]["encode"] > 0 for run in found["examples"])


def test_the_run_that_counts_is_the_median_one():
    runs = [{"wall": wall, "steps": number} for number, wall in enumerate([5.0, 1.0, 9.0])]
    assert whole_runs.middle(runs) == {"wall": 5.0, "steps": 0, "wall_least": 1.0, "wall_most": 9.0}


def test_the_ratio_is_the_median_of_rounds_and_not_of_sides():
    assert tuning.ratio([2.0, 6.0, 3.0], [1.0, 2.0, 1.5]) == 2.0


def test_every_choice_that_is_compared_takes_steps(flags):
    found = tuning.main(tuning.Config(**flags, batch_size=4, steps=1, rounds=1))
    assert set(found) == {"as it is", *tuning.CHOICES}
    assert all(len(one["seconds"]) == 1 and one["ratio"] > 0 for one in found.values())
