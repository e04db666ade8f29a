"""The benchmark on a tiny checkpoint: every figure is there, what is not installed is skipped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from adapt.errors import StrategyError, TrainingError
from adapt.models import EncoderConfig
from experiments.benchmark import benchmark, sides
from experiments.benchmark.workers import Worker, peak_memory
from tests.helpers import tiny


@pytest.fixture
def bare(tmp_path) -> Path:
    return tiny.bare_python(tmp_path / "python")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.usefixtures("drawn")
def test_without_peers_it_measures_itself_and_says_what_it_skips(
    bare, inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sides, "SIZES", [128, 256])
    config = benchmark.Config(
        checkpoint=inputs.checkpoint("bert_mlm_tied", blocks=1),
        data=str(tiny.write_table(tmp_path / "data.csv", tiny.sentences(60))),
        peers=bare,
        keras=tmp_path / "absent",
        onnx=bare,
        openvino=bare,
        rounds=1,
        steps=2,
        batch_size=8,
        sentences=32,
        memory=0,
        out=tmp_path / "out",
        tables=tmp_path / "tables",
    )
    benchmark.main(config)
    said = " ".join(capsys.readouterr().err.split())
    missing = "torch failed: ModuleNotFoundError: No module named 'torch'"
    assert f"note: skipped transformers + torch: {missing}" in said
    assert "note: skipped keras-hub on JAX" in said and "absent" in said
    found = json.loads((config.out / "benchmark.json").read_text())
    backends = {"onnx", "onnx_int8", "openvino", "openvino_float32"}
    assert set(found["skipped"]) == {"torch", "keras", *backends}
    missing = "onnx_int8 failed: ModuleNotFoundError: No module named 'sentence_transformers'"
    assert f"note: skipped sentence-transformers on ONNX Runtime, int8: {missing}" in said
    assert [(row["job"], row["side"]) for row in found["summary"]] == [
        (job, "adapt") for job in sides.JOBS
    ]
    assert all(row["median"] > 0 for row in found["summary"])
    assert [entry["examples"] for entry in found["rounds"] if entry["job"] != "rate"] == [16, 32]
    assert (config.out / "benchmark.png").stat().st_size > 0
    assert {path.name for path in config.tables.iterdir()} == {"steps.md", "extraction.md"}
    assert "| extraction of 32 sentences, a second | " in (
        config.tables / "extraction.md"
    ).read_text("utf-8")


def test_a_side_that_ends_is_quoted(tmp_path):
    words = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    worker = Worker("it", words, tmp_path / "log")
    with pytest.raises(TrainingError, match="it failed: the process ended: no such device"):
        worker.ask("start")
    worker.close()
    worker = Worker("it", [sys.executable, "-c", "print('hello')"], tmp_path / "log")
    with pytest.raises(TrainingError, match="it failed: it answered 'hello'"):
        worker.ask("start")
    worker.close()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
        ({"steps": 1}, "--steps 1 must be at least 2"),
    ],
)
def test_flags_that_are_too_small_are_refused(tmp_path, flags, says):
    with pytest.raises(StrategyError, match=says):
        benchmark.main(benchmark.Config(**flags, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_peak_memory_counts_what_was_allocated_and_freed(tmp_path):
    program = "import time; held = bytearray({}); time.sleep(0.2); del held; time.sleep(0.1)"
    none, some = (
        peak_memory([sys.executable, "-S", "-c", program.format(size)], tmp_path / "log")
        for size in (1, 10**8)
    )
    assert some - none == pytest.approx(100, rel=0.1)


def test_ratios_are_taken_round_by_round():
    speeds = {"adapt": [10.0, 20.0, 60.0], "torch": [5.0, 5.0, 30.0]}
    rounds = [
        {"round": number, "job": "train", "side": side, "speed": speed, "gflops": speed}
        for side, values in speeds.items()
        for number, speed in enumerate(values)
    ]
    rounds += [{"round": 0, "job": "rate", "side": "adapt", "speed": 100.0}]
    ours, theirs, _ = benchmark.summary(rounds)
    assert (ours["median"], ours["share"]) == (20.0, 0.2)
    assert (theirs["ratio"], theirs["ratio_least"], theirs["ratio_most"]) == (2.0, 2.0, 4.0)


def test_flops_are_those_of_the_weights_and_of_the_pairs_of_tokens():
    c = EncoderConfig("bert", layers=6, width=384, heads=12, mlp_width=1536, positions=512)
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    tokens, pairs = 3 + 5, 9 + 25
    assert (
        sides.forward_flops(c, np.array([3, 5])) == 2 * weights * tokens + 6 * 2 * 2 * 384 * pairs
    )
