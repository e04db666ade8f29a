"""Faults of training are named by the log and the weights, each planted in two ways."""

import dataclasses

import numpy as np
import pytest

import adapt
from adapt.doctor.cases import TrainingCase
from adapt.doctor.checks import CHECKS, run_checks

PRIOR = float(np.log(2))


def log(losses, rate=1e-3, steps=20, **more):
    """Records of an epoch each, with a validation after it."""
    history = []
    for epoch, loss in enumerate(losses):
        step = (epoch + 1) * steps
        record = {"epoch": epoch, "step": step, "loss": loss, "rate_head": rate, **more}
        history += [record, {"epoch": epoch, "step": step, "validation_loss": loss}]
    return history


def found(history, prior=PRIOR, **more):
    case = TrainingCase(history=history, prior_loss=prior, **more)
    return {finding.check: finding for finding in run_checks(CHECKS["training"], case)}


@pytest.mark.parametrize(
    "losses", [[0.6, 0.4, 0.2], [0.70, 0.66], [0.70, 0.684], [0.69, 0.69, 0.5], [0.3, 0.2, 0.25]]
)
def test_a_loss_that_falls_is_well(losses):
    assert found(log(losses)) == {}
    assert found(log(losses), prior=None) == {}


def test_a_short_run_says_nothing():
    assert found(log([0.7], steps=4)) == {}


@pytest.mark.parametrize("losses", [[0.9, 1.5, 2.0], [0.69, 0.8, 0.8]])
def test_a_loss_above_that_of_the_labels_shares(losses):
    finding = found(log(losses))["loss_above_prior"]
    assert finding.evidence["losses"] == losses
    assert finding.severity == "error"


def test_a_head_that_is_kept_may_begin_above_the_labels_shares():
    """It falls from there, and a rate of the encoder's is no fault of it."""
    kept = {"has_new_head": False}
    assert found(log([1.5, 0.9]), **kept) == {}
    assert "loss_above_prior" in found(log([0.9, 1.5]), **kept)
    (finding,) = found(log([0.695, 0.693], rate=1e-4), **kept).values()
    assert finding.check == "nothing_learned" and finding.certainty == "possible"


def test_a_loss_that_rises_where_its_prior_is_unknown():
    assert "loss_above_prior" in found(log([1.0, 1.2]), prior=None)
    assert "loss_above_prior" in found(log([0.2, 0.1, 0.5]), prior=None)


@pytest.mark.parametrize("rate", [1e-6, 1e-4])
def test_a_loss_that_stays_because_the_rate_is_too_low(rate):
    finding = found(log([0.695, 0.693], rate=rate))["nothing_learned"]
    assert finding.certainty == "likely"
    assert finding.evidence["reach"] == pytest.approx(40 * rate)


@pytest.mark.parametrize("losses", [[0.70, 0.69], [0.72, 0.70, 0.695]])
def test_a_loss_that_stays_whatever_the_rate(losses):
    """As with labels that were shuffled."""
    finding = found(log(losses))["nothing_learned"]
    assert finding.certainty == "possible" and "shuffled" in finding.cause


@pytest.mark.parametrize("best", [0.70, 0.95])
def test_rows_that_were_memorised(best):
    """A training loss that falls, and a validation that is never better than no look at the input."""
    history = log([0.68, 0.3, 0.1])
    for record in history:
        if "validation_loss" in record:
            record["validation_loss"] = best
    finding = found(history)["memorised"]
    assert finding.evidence["validation_loss"] == best and finding.certainty == "possible"


@pytest.mark.parametrize("share", [0.6, 0.97])
def test_updates_that_the_dtype_swallows(share):
    assert found(log([0.6, 0.5], rounded_away=share))["updates_rounded_away"].evidence[
        "share"
    ] == pytest.approx(share)
    assert found(log([0.6, 0.5], rounded_away=0.2)) == {}


def leaves(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"head/kernel": (4, 2), "head/bias": (2,), "encoder/block_00/kernel": (4, 4)}
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_a_leaf_that_no_gradient_reached(decay):
    """A second head that nothing reads: it stays, or only decays."""
    before = leaves() | {"head/old/kernel": np.ones((4, 3), np.float32)}
    after = {path: leaf + 0.01 * leaves(1).get(path, 0) for path, leaf in before.items()}
    after["head/old/kernel"] = decay * before["head/old/kernel"]
    finding = found(log([0.6, 0.5]), before=before, after=after, best_step=40)[
        "leaves_without_gradient"
    ]
    assert finding.evidence == {"leaves": ["head/old/kernel"], "parameters": 12}
    after["encoder/block_00/bias"] = before["encoder/block_00/bias"] = np.ones(4, np.float32)
    del before["head/old/kernel"], after["head/old/kernel"]
    assert found(log([0.6, 0.5]), before=before, after=after, best_step=40) == {}


def test_training_that_changes_nothing():
    finding = found(log([0.6, 0.5]), before=leaves(), after=leaves(), best_step=40)[
        "leaves_without_gradient"
    ]
    assert finding.severity == "error"


@pytest.mark.parametrize("history", [[], log([0.6, 3.0])])
def test_a_run_that_diverged(history):
    assert found(history, outcome="diverged")["diverged"].severity == "error"


@pytest.mark.parametrize("planted", ["every record", "half of them"])
def test_steps_that_go_on_compiling(planted):
    history = []
    for number in range(40):
        compiles = planted == "every record" or number % 2
        seconds = {"seconds": 1.0, "compile_seconds": 2.0 if compiles else 0.0}
        history.append({"epoch": 0, "step": number + 1, "loss": 0.6, **seconds})
    finding = found(history, prior=None)["recompilation"]
    assert finding.evidence["records"] == (40 if planted == "every record" else 20)
    assert found(history, prior=None, programs=3)["recompilation"].evidence["programs"] == 3
    assert "recompilation" not in found(history[:9], programs=9)
    quick = [record | {"compile_seconds": 0.001} for record in history]
    assert "recompilation" not in found(quick)


def test_a_loop_of_ones_own_with_ever_new_shapes():
    import jax
    import jax.numpy as jnp

    from adapt.training.loop import run_steps

    @dataclasses.dataclass
    class State:
        step: int
        halted: bool = False

    def step(frozen, state, batch):
        loss = jax.jit(lambda x: jnp.tanh(x).mean())(batch["x"])
        metrics = {"loss": loss, "grad_norm": loss, "weight": jnp.ones(())}
        return State(state.step + 1), metrics

    def records(lengths):
        batches = [{"x": np.ones(length, np.float32)} for length in lengths]
        return [record for _, record in run_steps(step, {}, State(0), batches, log_every=1)]

    assert {one.check for one in adapt.diagnose(records(range(1, 25)))} == {"recompilation"}
    assert not len(adapt.diagnose(records([4] * 24)))
