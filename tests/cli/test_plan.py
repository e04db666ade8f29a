"""The estimate before a run: counts are exact, seconds are there, and nothing is said to pay that does not."""

import dataclasses
import json

import pytest

from adapt import planning, tree
from adapt.cli import console, finetune, plan
from adapt.cli.flags import changed_flags
from adapt.errors import StrategyError
from adapt.pretrained import hub
from adapt.tasks import TASKS
from adapt.tasks.classification import Classification
from tests.helpers import tiny


@pytest.mark.usefixtures("own_cache", "forked_python")
def test_the_plan_of_a_small_checkpoint(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "step_bytes", lambda *step: 2**20)  # tested with planning
    table = str(tiny.write_table(tmp_path / "data.csv", tiny.sentences(40)))
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "data": table,
        "batch_size": 4,
        "steps": 2,
        "epochs": 1,
    }
    flags |= {"also": ("bitfit", "lora:2"), "memory": 1.0}
    result = plan.main(plan.Config(**flags, measure=("frozen",), test=table, out=tmp_path / "plan"))
    assert result["fit"]["accumulate"] == 1 and result["fit"]["remat"] == "none"
    rows = {row["strategy"]: row for row in result["strategies"]}
    source = hub.load(flags["checkpoint"])
    layers, width = source.config.layers, source.config.width
    assert list(rows) == [
        "full",
        *(f"top:{k}" for k in range(layers, 0, -1)),
        "frozen",
        "bitfit",
        "lora:2",
    ]
    biases = sum(
        leaf.size
        for path, leaf in tree.paths(source.params["encoder"]).items()
        if path.endswith("bias")
    )
    assert rows["bitfit"]["parameters_trained"] == biases + 2 * width + 2
    assert rows["lora:2"]["parameters_trained"] == layers * 2 * 2 * 2 * width + 2 * width + 2

    head = 2 * width + 2
    assert rows["frozen"]["parameters_trained"] == head
    assert rows["full"]["parameters_trained"] == tree.count(source.params["encoder"]) + head
    for row in rows.values():
        moments = 2 * 4 * row["parameters_trained"]
        # and of each group the settings, such as rates: a few numbers
        assert moments <= row["optimizer_bytes"] <= moments + 128
        assert (
            0 < row["flops_per_example_cached"] <= row["flops_per_example"]
            or row["strategy"] == "frozen"
        )
        assert row["seconds"] > 0 and row["peak_bytes"] > moments
    assert rows["full"]["cache_bytes"] == 0 and rows["full"]["seconds_cached"] is None
    assert rows["frozen"]["cache_bytes"] == 40 * width * 4  # one file, train and test alike
    assert rows["frozen"]["flops_per_example_cached"] == 0

    said = capsys.readouterr().out
    assert "flags     --batch-size 4 --accumulate 1 --remat none" in said
    assert "costs the most" in said and "predicted" in said
    run = json.loads((tmp_path / "plan/frozen/result.json").read_text())
    assert result["measured"]["frozen"] == run["seconds"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top:9", "top:9"),
        ("surgical:0", "`measure` surgical:0: it is not planned; name it in `also`"),
    ],
)
def test_what_can_not_be_measured_is_told_at_once(inputs, tmp_path, name, message):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "data": inputs.train,
        "measure": (name,),
    }
    config = plan.Config(**flags, out=tmp_path / "plan")
    with pytest.raises(StrategyError, match=message):
        plan.main(config)
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("task", ["tags", "contrastive", "clasification"])
def test_a_task_that_can_not_be_planned_is_refused_by_name(task, tmp_path):
    with pytest.raises(StrategyError, match=rf"`task` '?{task}.* give one of .*regression"):
        plan.main(plan.Config(task=task, out=tmp_path / "plan"))
    assert not (tmp_path / "plan").exists()


def test_a_task_of_ones_own_is_planned(monkeypatch):
    monkeypatch.setitem(TASKS, "stars", Classification())
    planning.check_task("stars")


def test_no_line_of_the_table_is_longer_than_a_terminal_or_breaks_a_number():
    large = planning.Estimate(
        strategy="surgical:0-11+reinit:2",
        cut=12,
        parameters_trained=123_456_789,
        optimizer_bytes=987_654_321,
        flops_per_example=1.2345e11,
        flops_per_example_cached=1.1e11,
        cache_bytes=12_345_000_000,
        peak_bytes=23_456_000_000,
        seconds=123_456.0,
        seconds_cached=98_765.0,
    )
    rows = [plan.cells(large), plan.cells(dataclasses.replace(large, seconds_cached=None))]
    for width in (80, 60):
        lines = console.table_lines(plan.COLUMNS, rows, width)
        assert max(map(len, lines)) <= width
        words = " ".join(lines).split()
        for cell in rows[0][1:]:
            assert cell in words


def test_a_measured_run_gets_the_flags_of_the_plan():
    config = plan.Config(epochs=5, task="regression", label_column="rating", max_length=64)
    run = dataclasses.replace(plan.finetune_config(config), strategy="top:1")
    words = changed_flags(run)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert pairs == {
        "--checkpoint": "minilm",
        "--epochs": "5",
        "--label-column": "rating",
        "--max-length": "64",
        "--patience": "0",
        "--strategy": "top:1",
        "--task": "regression",
    }


def test_a_run_on_its_own_reports_where_its_seconds_went(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        **inputs.texts,
        "strategy": "frozen",
        "cache": "on",
    }
    result = finetune.main(finetune.Config(**flags, epochs=1, batch_size=4, out=tmp_path / "run"))
    parts = result["seconds"]
    assert parts["total"] == pytest.approx(
        sum(parts[name] for name in ("set_up", "encode", "train", "evaluate", "save"))
    )
    assert result["cache"]["bytes"] > 0 and result["cache"]["relative_error"] == 0
