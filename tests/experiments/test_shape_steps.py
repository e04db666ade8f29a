"""Steps of well-known shapes beside torch's: what is asked of the sides, and what becomes of it."""

import dataclasses
import json

import numpy as np
import pytest

from adapt.errors import CheckpointError, StrategyError
from experiments.benchmark import shape_steps
from experiments.benchmark.accelerator import adapt_steps
from experiments.benchmark.accelerator.steps import torch_settings
from experiments.benchmark.shape_steps import CACHED, PRODUCTS, Config

TINY = Config(models=("bert-tiny",), batch_size=2, tokens=8, rounds=3, steps=2)


class Side:
    """A side that takes so many seconds a step, and less where it is given the frozen states."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.asked: list[dict] = []

    def ask(self, job: str, **request) -> dict:
        self.asked.append({"job": job} | request)
        if job == "rate":
            return {"rates": {"64": [50 / self.seconds] * 3, "32": [1.0]}, "foreign": 0.1}
        seconds = self.seconds / 4 if request.get("has_states") else self.seconds
        return {"seconds": seconds * request["steps"], "foreign": 0.3}


def measured(sides: dict[str, Side]) -> list[dict]:
    entries = []
    for case in shape_steps.make_cases(TINY):
        entries += shape_steps.measure_steps(TINY, sides, case)
    return shape_steps.summary(entries + shape_steps.measure_products(TINY, sides))


def test_the_table_has_seconds_of_a_step_and_their_ratio():
    rows = shape_steps.table_rows(measured({"adapt": Side(0.5), "torch": Side(1.0)}))
    assert rows == [
        ["bert-tiny", "full", "0.50", "1.00", "2.00 (2.00 to 2.00)"],
        ["bert-tiny", "top:1", "0.50", "1.00", "2.00 (2.00 to 2.00)"],
        [
            "bert-tiny",
            "top:1, states of the frozen blocks cached",
            "0.12",
            "1.00",
            "8.00 (8.00 to 8.00)",
        ],
        [PRODUCTS, "", "100", "50", "2.00 (2.00 to 2.00)"],
    ]
    alone = shape_steps.table_rows(measured({"adapt": Side(0.5)}))
    assert [row[3:] for row in alone] == [["", ""]] * 4


def test_the_sides_take_turns_and_the_first_round_is_left_out():
    ours = Side(0.5)
    _, case = shape_steps.make_cases(TINY)
    entries = shape_steps.measure_steps(TINY, {"adapt": ours, "torch": Side(1.0)}, case)
    assert [(entry["round"], entry["side"]) for entry in entries] == [
        (number, side) for number in (1, 2, 3) for side in ("adapt", "torch", CACHED)
    ]
    assert len(ours.asked) == 2 * (1 + TINY.rounds)


@pytest.mark.parametrize(("others", "busy"), [(0.01, False), (0.4, True)])
def test_the_source_says_batch_and_tokens_and_a_busy_machine(others, busy):
    machine = {"cpu": "a CPU", "cores": 2, "date": "2026-11-24T10:00:00Z"}
    libraries = {"adapt": {"jax": "0.10.2"}, "torch": {"torch": "2.13.0"}}
    result = {"machine": machine, "libraries": libraries, "others": others}
    said = shape_steps.source_of(Config(), result)
    assert said.startswith("Source: `python -m experiments.benchmark.shape_steps`. Random weights")
    assert "batches of 8 x 128 = 1,024 tokens; medians of 5 rounds in turn" in said
    assert ("others used 40% of the cores" in said) == busy
    assert said.endswith("; jax 0.10.2, torch 2.13.0.")


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        ({"models": ("bert",)}, CheckpointError, "bert: unknown"),
        ({"tokens": 1000}, StrategyError, "roberta-base takes 1 to 512"),
        ({"steps": 0}, StrategyError, "--steps 0"),
    ],
)
def test_what_can_not_be_measured_is_refused(tmp_path, flags, error, says):
    with pytest.raises(error, match=says):
        shape_steps.main(Config(**flags, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_torch_gets_the_published_sizes():
    config = dataclasses.replace(Config(), strategies=("top:1",))
    roberta, modernbert = (torch_settings(case) for case in shape_steps.make_cases(config))
    assert (roberta["num_frozen"], modernbert["num_frozen"]) == (12, 22)
    assert roberta["dtype"] == "float32"
    shape = json.loads(json.dumps(modernbert["shape"]))
    kinds = shape["layer_types"]
    assert kinds[:4] == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    assert (len(kinds), shape["local_attention"], shape["vocab_size"]) == (22, 128, 50368)
    assert (roberta["shape"]["vocab_size"], roberta["shape"]["max_position_embeddings"]) == (
        50265,
        514,
    )


def test_the_trained_blocks_get_the_same_from_cached_states(monkeypatch):
    monkeypatch.setattr("adapt.cli.launch.prepare_cpu", lambda: None)
    monkeypatch.setattr("adapt.program_cache.keep_programs", lambda: None)
    _, case = shape_steps.make_cases(TINY)
    side = adapt_steps.Steps(dataclasses.asdict(case), cores=2, seed=0)
    prefix = side.training.step.prefix
    assert prefix is not None
    _, computed = prefix(side.training.frozen, side.batches[0])
    with_states = side.batches_with_states[0]
    _, brought = prefix(side.training.frozen, with_states)
    assert "hidden" in with_states and "hidden" not in side.batches[0]
    assert brought.keys() == computed.keys()
    for name, array in computed.items():
        np.testing.assert_array_equal(brought[name], array)
