"""The estimate before a run: counts are exact, seconds are there, and nothing is said to pay that does not."""

import json

import numpy as np
import pytest

from adapt import tree
from adapt.cli import finetune, plan
from adapt.cost import flops
from adapt.errors import StrategyError
from adapt.models import EncoderConfig
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from tests.helpers import tiny

MINILM = EncoderConfig("bert", 6, 384, 12, 1536, 512, vocabulary=30522, types=2)


@pytest.mark.usefixtures("own_cache")
def test_the_plan_of_a_small_checkpoint(inputs, tmp_path, capsys):
    table = str(tiny.write_table(tmp_path / "data.csv", tiny.sentences(40)))
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "data": table,
        "batch_size": 4,
        "steps": 2,
        "epochs": 1,
    }
    flags |= {"also": ("bitfit", "lora:2")}
    result = plan.main(plan.Config(**flags, measure=("frozen",), test=table, out=tmp_path / "plan"))
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
        assert moments <= row["optimizer_bytes"] <= moments + 64
        assert (
            0 < row["flops_per_example_cached"] <= row["flops_per_example"]
            or row["strategy"] == "frozen"
        )
        assert row["seconds"] > 0 and row["peak_bytes"] > moments
    assert rows["full"]["cache_bytes"] == 0 and rows["full"]["seconds_cached"] is None
    assert rows["frozen"]["cache_bytes"] == 40 * width * 4  # one file, train and test alike
    assert rows["frozen"]["flops_per_example_cached"] == 0

    said = capsys.readouterr().out
    assert "costs the most" in said and "predicted" in said
    run = json.loads((tmp_path / "plan/frozen/result.json").read_text())
    assert result["measured"]["frozen"] == run["seconds"]


def test_a_file_without_a_test_part_is_planned_for_all_the_same(inputs):
    config = plan.Config(checkpoint=inputs.checkpoint("bert_mlm_tied"), data=inputs.train)
    run = plan.finetune_config(config)
    sets, names = plan.read(config, run, hub.load(config.checkpoint))
    assert set(sets) == {"train", "validation"} and len(names) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top:9", "top:9"),
        ("surgical:0", "`measure` surgical:0: it is not planned; name it in `also`"),
        ("frozen", "has no test part, so name one with `test`"),
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


def test_a_cache_pays_from_the_second_pass_on_and_one_that_is_there_from_the_first():
    lengths = np.full(1000, 27)
    pooled, states = 1000 * 384 * 4, 27_000 * 384 * 4

    def saves(cut, passes, nbytes, filled=False):
        return policy.prefix_seconds_saved(
            MINILM, cut, lengths, passes, nbytes, filled, matmul_rate=200e9
        )

    assert saves(7, 1, pooled) < 0 < saves(7, 1, pooled, filled=True)
    assert saves(7, 2, pooled) > 0 and saves(7, 10, pooled) > 8 * saves(7, 2, pooled)
    assert saves(1, 10, states) < 0  # an embedding is looked up faster than its states are read
    assert 0 < saves(6, 5, states) < saves(7, 5, pooled)


def test_what_a_full_step_costs_is_three_forward_passes():
    forward = flops.prefix_flops(MINILM, 7, 960, 80)
    assert flops.step_flops(MINILM, 0, 960, 80) == 3 * forward
    assert flops.step_flops(MINILM, 7, 960, 80) == 0
    assert flops.prefix_flops(MINILM, 1, 960, 80) == 0


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
