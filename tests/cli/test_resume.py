"""Stopped and resumed is the same run, bit for bit: parameters, optimizer state, losses; also after `kill -9`."""

import json
import os
import signal
import time

import pytest

import adapt
from adapt import fitting, task_data
from adapt.cli import finetune, pretrain
from adapt.cli.flags import read_flags
from adapt.errors import CheckpointError, OutputError, StrategyError
from adapt.training import phases, step
from tests.helpers import tiny
from tests.helpers.runs import assert_same_run, stored_digest

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def flags(inputs) -> dict:
    """4 steps an epoch in batches of several shapes."""
    data = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", blocks=1),
        "train": inputs.train,
        "test": inputs.test,
    }
    rates = {"learning_rate": 0.003, "head_learning_rate": 0.01}
    return (
        data
        | rates
        | {"epochs": 2, "batch_size": 8, "save_every": 1, "validation": inputs.test, "patience": 0}
    )


def head_alone(flags: dict) -> dict:
    """The flags of a run that compiles less."""
    kept = {name: value for name, value in flags.items() if name != "learning_rate"}
    return kept | {"strategy": "frozen"}


@pytest.mark.parametrize("strategy", ["full", "top:1"])
def test_stopped_and_resumed_is_the_same_run(flags, tmp_path, strategy):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags |= {"strategy": strategy}
    finetune.main(finetune.Config(**flags, out=whole))
    assert (
        finetune.main(finetune.Config(**flags, out=parts, stop_after=2)) == {}
    )  # in the first epoch
    assert not (parts / "result.json").exists()
    assert (
        finetune.main(finetune.Config(**flags, out=parts, stop_after=4, resume=True)) == {}
    )  # at its end
    finetune.main(finetune.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)
    # A finished run resumed is that run still.
    finetune.main(finetune.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)


def test_what_was_logged_after_the_checkpoint_is_cut_off(flags, tmp_path):
    flags = head_alone(flags) | {"save_every": 0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune.main(finetune.Config(**flags, out=whole))
    finetune.main(
        finetune.Config(**flags, out=parts, stop_after=6)
    )  # 2 steps after the last checkpoint
    assert tiny.lines(parts / "metrics.jsonl")[-1]["step"] == 6
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')  # as a kill leaves it
    finetune.main(finetune.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)


def test_a_resumed_process_compiles_each_shape_once(flags, tmp_path, monkeypatch):
    phases.shared_suffix.cache_clear()  # of tests before this one
    step.eval_program.cache_clear()
    steps = results_of(monkeypatch, phases, "make_phase_step")
    forwards = results_of(monkeypatch, task_data, "make_eval")
    shapes = []
    run_steps = fitting.run_steps

    def watched(one_step, frozen, state, batches, *others):
        batches = (shapes.append(batch["segments"].shape) or batch for batch in batches)
        return run_steps(one_step, frozen, state, batches, *others)

    monkeypatch.setattr(fitting, "run_steps", watched)
    finetune.main(finetune.Config(**flags, out=tmp_path / "run", stop_after=3))
    assert steps[0].suffix._cache_size() == len(set(shapes))
    finetune.main(finetune.Config(**flags, out=tmp_path / "run", resume=True))
    assert steps[1].suffix._cache_size() == len(set(shapes)) <= 3
    assert forwards[1]._cache_size() == 1


def results_of(monkeypatch, module, name: str) -> list:
    """What a function of a module returns from now on, call by call."""
    results = []
    function = getattr(module, name)

    def recorded(*arguments, **named):
        results.append(function(*arguments, **named))
        return results[-1]

    monkeypatch.setattr(module, name, recorded)
    return results


def test_killed_in_mid_run_and_resumed_is_the_same_run(flags, tmp_path, scratch_cache, forks):
    flags |= {"epochs": 10, "save_every": 3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finetune.main(finetune.Config(**flags, out=whole))
    words = [
        word
        for name, value in flags.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    words = ["adapt", "finetune", *words, "--out", str(killed)]
    process = forks.start(words, tiny.environment(scratch_cache))
    try:
        for _ in range(6000):
            index = killed / "checkpoints/index.json"
            saved = (
                json.loads(index.read_text())["last"]["progress"]
                if index.exists()
                else {"saved": 0}
            )
            if (
                saved["saved"]
                and (killed / "metrics.jsonl").stat().st_size > saved["metrics_bytes"]
            ):
                break
            assert process.is_running()
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (
        0
        < (killed / "metrics.jsonl").read_text().count("\n")
        < len(tiny.lines(whole / "metrics.jsonl"))
    )
    finetune.main(finetune.Config(**flags, out=killed, resume=True))
    assert_same_run(whole, killed)


def test_resuming_with_other_flags_names_the_flag(flags, inputs, tmp_path):
    finetune.main(finetune.Config(**flags, out=tmp_path / "run", stop_after=1))
    before = stored_digest(tmp_path / "run"), (tmp_path / "run/metrics.jsonl").read_bytes()
    changed = {
        "seed": 7,
        "epochs": 1,
        "learning_rate": 0.1,
        "pooling": "max",
        "test": inputs.train,
        "dtype": "bfloat16",
    }
    for name, value in changed.items():
        with pytest.raises(OutputError, match=f"`resume`: `{name}` was .* and is .* now"):
            finetune.main(
                finetune.Config(**flags | {name: value}, out=tmp_path / "run", resume=True)
            )
    assert before == (
        stored_digest(tmp_path / "run"),
        (tmp_path / "run/metrics.jsonl").read_bytes(),
    )


def resumed(out, *words: object) -> finetune.Config:
    """The flags of `adapt finetune --resume --out OUT WORDS`."""
    typed = ["--resume", "--out", str(out), *map(str, words)]
    return read_flags(finetune.Config, "adapt finetune", None, typed)


def test_out_is_all_that_resuming_needs(flags, tmp_path):
    flags = head_alone(flags)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune.main(finetune.Config(**flags, out=whole))
    finetune.main(finetune.Config(**flags, out=parts, mesh="data=1", stop_after=2))
    assert resumed(parts).mesh == ""
    finetune.main(resumed(parts))
    assert_same_run(whole, parts)
    with pytest.raises(OutputError, match=r"`resume`: `seed` was 0 .* and is 7 now"):
        finetune.main(resumed(parts, "--seed", 7))
    with pytest.raises(OutputError, match="there is no run"):
        finetune.main(resumed(tmp_path / "nowhere"))


def test_a_run_of_lists_goes_on_with_the_file_of_them(flags, inputs, tmp_path):
    texts, labels = map(list, zip(*tiny.sentences(32), strict=True))
    options = {"epochs": 1, "batch_size": 8, "strategy": "frozen"}
    whole = adapt.finetune(flags["checkpoint"], texts, labels, out=tmp_path / "whole", **options)
    out = tmp_path / "run"
    adapt.finetune(flags["checkpoint"], texts, labels, out=out, stop_after=2, **options)
    with pytest.raises(StrategyError, match=r"`resume` .*: give `train`"):
        resumed(out)
    finetune.main(resumed(out, "--train", inputs.train))
    assert stored_digest(out) == stored_digest(tmp_path / "whole")
    assert adapt.load_run(out).scores == whole.scores
    with pytest.raises(OutputError, match="the training data changed"):
        finetune.main(resumed(out, "--train", inputs.test))


def test_more_epochs_go_on_where_the_run_ended(flags, tmp_path):
    """With rates that depend on no length, it is the longer run, bit for bit."""
    flags = head_alone(flags)
    flags |= {"decay": "constant", "warmup": 0.0, "batch_size": 4, "save_every": 0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune.main(finetune.Config(**flags | {"epochs": 4}, out=whole))
    finetune.main(finetune.Config(**flags, out=parts))
    assert finetune.main(resumed(parts, "--epochs", 4, "--stop-after", 20)) == {}
    assert not (parts / "result.json").exists() and adapt.load_run(parts).outcome == "stopped"
    finetune.main(resumed(parts))
    assert_same_run(whole, parts)
    assert json.loads((parts / "config.json").read_text())["epochs"] == 4
    with pytest.raises(OutputError, match=r"`epochs` was 4 .* is 3 now: give as many or more"):
        finetune.main(resumed(parts, "--epochs", 3))


def test_a_run_that_stopped_early_has_its_patience_anew(flags, tmp_path):
    flags = head_alone(flags) | {"head_learning_rate": 0.0, "weight_decay": 0.0, "patience": 1}
    result = finetune.main(finetune.Config(**flags | {"epochs": 3}, out=tmp_path / "run"))
    assert result["steps"] == 8
    again = finetune.main(resumed(tmp_path / "run", "--epochs", 5))
    assert again["steps"] == 12 and again["best_step"] == 4


def test_what_refuses_more_epochs_leaves_the_run_as_it_was(flags, inputs, tmp_path):
    flags |= {"strategy": "lp-ft"}
    finetune.main(finetune.Config(**flags, out=tmp_path / "run"))
    before = (tmp_path / "run/result.json").read_bytes()
    with pytest.raises(OutputError, match=r"`epochs` was 2 .* is 4 now: give the same"):
        finetune.main(resumed(tmp_path / "run", "--epochs", 4))
    assert (tmp_path / "run/result.json").read_bytes() == before


def test_nothing_to_resume(flags, tmp_path):
    with pytest.raises(OutputError, match="there is no run"):
        finetune.main(finetune.Config(**flags, out=tmp_path / "nowhere", resume=True))
    assert not (tmp_path / "nowhere").exists()
    finetune.main(finetune.Config(**flags, out=tmp_path / "run", stop_after=1))
    (tmp_path / "run/checkpoints/index.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        finetune.main(finetune.Config(**flags, out=tmp_path / "run", resume=True))
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(OutputError, match="is not what adapt wrote"):
        finetune.main(finetune.Config(**flags, out=tmp_path / "run", resume=True))


@pytest.mark.parametrize("case", ["bert_pretraining", "gpt2_lm_tied"])
def test_pre_training_resumes_too(inputs, tmp_path, case):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(text for text, _ in tiny.sentences(30)))
    flags = {
        "text": str(text),
        "checkpoint": inputs.checkpoint(case, blocks=1),
        "steps": 9,
        "batch_size": 4,
        "validate_every": 3,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain.main(pretrain.Config(**flags, out=whole))
    assert pretrain.main(pretrain.Config(**flags, out=parts, stop_after=5)) == {}
    assert pretrain.main(pretrain.Config(**flags, out=parts, stop_after=6, resume=True)) == {}
    pretrain.main(pretrain.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)
    pretrain.main(pretrain.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)
    with pytest.raises(OutputError, match="`resume`: `steps` was 9"):
        pretrain.main(pretrain.Config(**flags | {"steps": 8}, out=parts, resume=True))
