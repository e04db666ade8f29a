"""What goes wrong after a good start: a full disk, a loss that is not finite; and what is odd but works."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.cli import extract, finetune, launch, predict, pretrain
from adapt.errors import DataError, OutputError, TrainingError
from adapt.pretrained import hub
from adapt.training import checkpoint
from tests.helpers import runs, tiny

pytestmark = pytest.mark.usefixtures("own_cache")

FAST = {"epochs": 1, "batch_size": 4}


@pytest.fixture
def disk(tmp_path):
    """`disk(70)` is an empty disk of 70 MB."""
    mounted = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(argv, capture_output=True).returncode:
            pytest.skip("only root can mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no byte free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    return folder / "filler"


def test_a_disk_that_is_full_at_the_start(inputs, disk, command, tmp_path):
    small = disk(8)
    flags = {"checkpoint": inputs.checkpoint("bert_mlm_tied", 1), **inputs.texts}
    with pytest.raises(OutputError, match="make room"):
        finetune.main(finetune.Config(**flags, **FAST, out=small / "run"))
    (tmp_path / "text.txt").write_text("the film\nthe plot\n" * 9)
    with pytest.raises(OutputError, match="make room"):
        pretrain.main(
            pretrain.Config(
                text=str(tmp_path / "text.txt"),
                checkpoint=flags["checkpoint"],
                steps=1,
                out=small / "run",
            )
        )
    assert not list(small.iterdir())
    fill(small)
    for name, more in (
        ("finetune", ("--train", inputs.train, "--test", inputs.test)),
        ("extract", ("--data", inputs.test)),
    ):
        done = command(name, "--checkpoint", flags["checkpoint"], *more, "--out", small / "run")
        assert done.returncode == 2
        assert (
            done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1
            and "No space left" in done.stderr
        )
    assert [path.name for path in small.iterdir()] == ["filler"]


def test_a_disk_that_is_too_small_for_the_features(inputs, disk, tmp_path):
    small = disk(1)
    tiny.write_table(tmp_path / "many.csv", [["good"]] * 12_000, ["text"])  # 1.15 MB of features
    with pytest.raises(OutputError, match="no room for 1 MB of features: No space left on device"):
        extract.main(
            extract.Config(
                checkpoint=inputs.checkpoint("bert_mlm_tied", 1),
                data=str(tmp_path / "many.csv"),
                out=small / "out",
            )
        )
    assert not list(small.iterdir())


def test_a_disk_that_fills_up_in_mid_run(inputs, disk, tmp_path, monkeypatch):
    place, flags = (
        disk(72),
        {"checkpoint": inputs.checkpoint("bert_mlm_tied", blocks=1), **inputs.texts, "patience": 0},
    )
    flags |= {"epochs": 1, "batch_size": 4, "save_every": 1}
    finetune.main(finetune.Config(**flags, out=tmp_path / "whole"))

    save, fillers = checkpoint.save, []

    def full_at_the_fifth(folder, state, *others):
        if int(state.step) == 5:
            fillers.append(fill(place))
        save(folder, state, *others)

    monkeypatch.setattr(checkpoint, "save", full_at_the_fifth)
    with pytest.raises(OutputError, match="make room"):
        finetune.main(finetune.Config(**flags, out=place / "run"))
    assert hub.load(place / "run").labels == ("negative", "positive")
    assert checkpoint.read_index(place / "run/checkpoints")["last"]["folder"] == "step_00000004"
    # Where the free space was not seen to be short, the writing itself fails, and leaves as much.
    monkeypatch.setattr(checkpoint, "need_space", lambda *_: None)
    with pytest.raises(OutputError, match="cannot write"):
        finetune.main(finetune.Config(**flags, out=place / "run", resume=True))
    assert checkpoint.read_index(place / "run/checkpoints")["last"]["folder"] == "step_00000004"
    fillers[0].unlink()
    monkeypatch.undo()
    monkeypatch.setenv("ADAPT_CACHE", os.environ.get("ADAPT_CACHE", str(tmp_path)))
    finetune.main(finetune.Config(**flags, out=place / "run", resume=True))
    runs.assert_same_run(tmp_path / "whole", place / "run")


def test_a_disk_that_is_full_for_the_predictions(inputs, disk, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        **inputs.texts,
        "strategy": "frozen",
    }
    finetune.main(finetune.Config(**flags, **FAST, out=tmp_path / "run"))
    small = disk(1)
    fill(small)
    with pytest.raises(OSError, match="No space left"):
        predict.main(
            predict.Config(run=(tmp_path / "run",), data=inputs.test, out=small / "out.csv")
        )
    assert [path.name for path in small.iterdir()] == ["filler"]


@pytest.fixture
def rated(tmp_path):
    """A regression file of 24 rows, the given ones of which have a rating whose square is no float32."""

    def write(*bad: int) -> str:
        rows = [
            (text, 1e30 if row in bad else row % 3)
            for row, (text, _) in enumerate(tiny.sentences(24))
        ]
        return str(tiny.write_table(tmp_path / "rated.csv", rows))

    return write


def test_a_loss_that_is_not_finite_stops_at_its_step(inputs, rated, tmp_path):
    good = rated()
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "task": "regression",
        "test": good,
        "validation": good,
    }
    flags |= {"epochs": 2, "batch_size": 4, "save_every": 1, "seed": 3}
    first = np.random.default_rng([3, 0]).permutation(24)  # the order of the first epoch
    flags["train"] = rated(first[13])  # in its fourth batch
    (tmp_path / "good.csv").write_text(Path(good).read_text().replace("1e+30", "1"))
    flags |= {"test": str(tmp_path / "good.csv"), "validation": str(tmp_path / "good.csv")}
    with pytest.raises(
        TrainingError, match="the loss is not finite at step 4: training stopped, the last good"
    ):
        finetune.main(finetune.Config(**flags, out=tmp_path / "run"))
    assert checkpoint.read_index(tmp_path / "run/checkpoints")["last"]["folder"] == "step_00000003"
    assert all(
        np.isfinite(leaf).all() for leaf in tree.paths(hub.load(tmp_path / "run").params).values()
    )
    run = adapt.load_run(tmp_path / "run")
    assert (run.outcome, run.steps, run.total_steps) == ("diverged", 3, 12)
    assert "diverged" in {entry["check"] for entry in run.result["findings"]}
    assert repr(run).endswith("diverged after step 3 of 12)") and run.scores == {}
    (row,) = adapt.runs(tmp_path / "run").rows
    assert row["outcome"] == "diverged"
    predict.main(
        predict.Config(
            run=(tmp_path / "run",), data=str(tmp_path / "good.csv"), out=tmp_path / "out.csv"
        )
    )
    # As the same run it would stop at the same step: it is refused, and has lost nothing.
    with pytest.raises(
        TrainingError, match=r"`resume`: .*at step 4\) and would end at the same step"
    ):
        finetune.main(finetune.Config(**flags, out=tmp_path / "run", resume=True))
    assert [r["step"] for r in tiny.lines(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


def test_a_rate_that_is_much_too_high(inputs, tmp_path, command):
    """Before any epoch is over: the checkpoint of step 0, which was good, is kept."""
    flags = ("--train", inputs.train, "--test", inputs.test, "--batch-size", 4, "--clip-norm", 0)
    done = command(
        "finetune",
        "--checkpoint",
        inputs.checkpoint("bert_mlm_tied", 1),
        *flags,
        "--learning-rate",
        1e30,
        "--out",
        tmp_path / "run",
    )
    note, error = done.stderr.splitlines()
    assert note.startswith("note: a single step at the peak rate 1e+30 of group encoder changes")
    assert done.returncode == 2
    assert error.startswith("error: the loss is not finite at step 2: training stopped")
    source, kept = hub.load(inputs.checkpoint("bert_mlm_tied", 1)), hub.load(tmp_path / "run")
    assert tree.digest(kept.params["encoder"]) == tree.digest(source.params["encoder"])


def test_a_validation_loss_that_is_not_finite(inputs, rated, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "task": "regression",
        "batch_size": 4,
    }
    text = Path(rated()).read_text()
    (tmp_path / "good.csv").write_text(text)
    good, bad = str(tmp_path / "good.csv"), rated(3)
    with pytest.raises(TrainingError, match="the validation loss is not finite after step 6"):
        finetune.main(
            finetune.Config(**flags, train=good, validation=bad, test=good, out=tmp_path / "run")
        )
    assert checkpoint.read_index(tmp_path / "run/checkpoints")["last"]["folder"] == "step_00000000"


def test_pre_training_that_diverges(inputs, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in tiny.sentences(30)))
    flags = {
        "text": str(tmp_path / "text.txt"),
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "steps": 9,
    }
    with pytest.raises(TrainingError, match="not finite"):
        pretrain.main(
            pretrain.Config(**flags, batch_size=4, learning_rate=1e30, out=tmp_path / "run")
        )
    source, kept = hub.load(flags["checkpoint"]), hub.load(tmp_path / "run")
    assert tree.digest(kept.params) == tree.digest(source.params)


def test_long_texts_are_counted_and_reported(inputs, tmp_path, capsys):
    rows = [*tiny.sentences(20), ("good " * 30, "positive"), ("bad " * 19, "negative")]
    table = str(tiny.write_table(tmp_path / "long.csv", rows))
    flags = {"checkpoint": inputs.checkpoint("bert_mlm_tied", 1), "strategy": "frozen", **FAST}
    finetune.main(finetune.Config(**flags, train=table, test=inputs.test, out=tmp_path / "run"))
    assert (
        capsys.readouterr().err.splitlines()[0]
        == "note: train: 2 texts are longer than 20 tokens and truncated: 13 tokens are left out"
    )
    predict.main(predict.Config(run=(tmp_path / "run",), data=table, out=tmp_path / "out.csv"))
    assert (
        capsys.readouterr().err
        == f"note: {table}: 2 texts are longer than 20 tokens and truncated: "
        "13 tokens are left out\n"
    )


def test_a_batch_larger_than_the_data(inputs, tmp_path):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "strategy": "frozen",
        **inputs.texts,
    }
    result = finetune.main(finetune.Config(**flags, epochs=2, batch_size=500, out=tmp_path / "run"))
    assert result["steps"] == 2
    # Every step is in its own shape's first, so nothing but compilation could be timed in the first epoch.
    assert result["examples_per_second"] > 0


def test_one_row_of_training_and_a_validation_file(inputs, tmp_path):
    one = str(tiny.write_table(tmp_path / "one.csv", [("a good film", 2.5)]))
    flags = {"checkpoint": inputs.checkpoint("bert_mlm_tied", 1), "task": "regression", "epochs": 1}
    result = finetune.main(
        finetune.Config(**flags, train=one, validation=one, test=one, out=tmp_path / "run")
    )
    assert result["steps"] == 1 and result["mse"] > 0
    assert (
        result["pearson"] is None and result["spearman"] is None
    )  # not defined, and JSON has no NaN
    assert json.loads((tmp_path / "run/result.json").read_text()) == result


def test_a_picture_that_is_none_is_told_before_the_run_or_in_one_line(inputs, tmp_path):
    pictures = tiny.image_folder(tmp_path / "pictures", 12)
    (pictures / "dark/003.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    flags = {"checkpoint": inputs.checkpoint("vit_classifier"), "image_column": "image", **FAST}
    with pytest.raises(DataError, match=r"row \d+ .*003\.png\) holds no image that can be decoded"):
        finetune.main(
            finetune.Config(
                **flags, train=str(pictures), test=inputs.images["test"], out=tmp_path / "run"
            )
        )


def test_ctrl_c(inputs, tmp_path, scratch_cache, forks):
    """An interrupted run says so in one line, and goes on."""
    run = tmp_path / "run"
    words = (
        "--checkpoint",
        inputs.checkpoint("bert_mlm_tied", 1),
        "--train",
        inputs.train,
        "--test",
        inputs.test,
    )
    argv = [
        forks.python,
        "-m",
        "adapt",
        "finetune",
        *words,
        "--batch-size",
        "4",
        "--epochs",
        "900",
        "--out",
        str(run),
    ]
    home = tiny.environment(scratch_cache)
    process = subprocess.Popen(
        argv, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(6000):
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.startswith("loaded ")
    assert (
        err == "interrupted; what was saved stays, go on with --resume where the command has it\n"
    )
    assert hub.load(run).labels == ("negative", "positive")


def test_ctrl_c_while_jax_collects_garbage_is_not_lost():
    """What is raised in a callback of the collector, Python drops: one Ctrl-C in fourteen was lost to JAX's."""
    assert any(
        "gc_callback" in callback.__name__ for callback in gc.callbacks
    )  # the name that is looked for

    def gc_callback():
        launch.interrupt(signal.SIGINT, sys._getframe())

    before = signal.signal(signal.SIGALRM, launch.interrupt)
    try:
        gc_callback()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
