"""Phases: what goes on keeps its moments, what begins has its own count, a stopped run goes on in the right phase."""

import itertools

import jax
import numpy as np
import pytest

from adapt import tree as t
from adapt.cli import finetune
from adapt.errors import RuleError
from adapt.options import OptimizerOptions
from adapt.pretrained import hub
from adapt.training import optim, phases
from adapt.training.losses import cross_entropy
from adapt.training.step import State, advance, init_state, make_step
from adapt.training.strategies import label_phase, strategy
from tests.helpers import tiny
from tests.helpers.runs import assert_same_run, stored_digest
from tests.helpers.small import batch, bits, classifier, copy, params

pytestmark = pytest.mark.usefixtures("own_cache")


def taken(name: str, epochs: int, steps: int = 3):
    """(phases, labels, optimizers, frozen, state, step) after some steps of the first phase."""
    model = classifier()
    found = strategy(name, 2, epochs).phases
    labels = [label_phase(phase, params(model), 2)[0] for phase in found]
    made = []
    for phase, tree in zip(found, labels, strict=True):
        groups = label_phase(phase, params(model), 2)[1]
        made.append(optim.by_label({group: optim.adamw(1e-2) for group in groups}, tree, 1.0))
    frozen, state = init_state(params(model), labels[0], made[0], jax.random.key(0))
    step = make_step(model, cross_entropy, made[0])
    for seed in range(steps):
        state, _ = step(frozen, state, batch(seed=seed))
    return model, labels, made, frozen, state


def moments(state: State, group: str) -> dict[str, np.ndarray]:
    """``{path of the state: leaf}`` of one group, by the words that optax and JAX make of it."""
    leaves = jax.tree_util.tree_leaves_with_path(optim.drop_settings(state.opt_state))
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if f"['{group}']" in name}


@pytest.mark.parametrize("name", ["lp-ft", "gradual"])
def test_what_goes_on_keeps_its_moments_and_what_begins_has_none(name):
    _, labels, made, frozen, state = taken(name, 4)
    before, whole = copy(state), t.merge(frozen, state.params)
    still, after = advance(frozen, state, labels[0], labels[1], made[1])
    assert t.digest(t.merge(still, after.params)) == t.digest(whole)
    assert int(after.step) == 3 and bits(after.key) == bits(before.key)
    old, new = moments(before, "head"), moments(after, "head")
    assert old and {name: leaf.tobytes() for name, leaf in old.items()} == {
        n: leaf.tobytes() for n, leaf in new.items()
    }
    assert any(np.any(leaf) for leaf in old.values())
    (group,) = set(t.paths(labels[1]).values()) - {"head", optim.FROZEN}
    begun = moments(after, group)
    assert begun and not any(np.any(leaf) for leaf in begun.values())


def test_the_next_phase_takes_steps_and_moves_what_it_trains():
    model, labels, made, frozen, state = taken("gradual", 4)
    still, state = advance(frozen, state, labels[0], labels[1], made[1])
    digest, before = t.digest(still), copy(state)
    state, metrics = make_step(model, cross_entropy, made[1])(still, state, batch(seed=9))
    assert (
        np.isfinite(float(metrics["loss"])) and int(state.step) == 4 and t.digest(still) == digest
    )
    moved = {
        path
        for path, leaf in t.paths(state.params).items()
        if not np.array_equal(leaf, t.get(before.params, path))
    }
    assert {path.split("/")[0] for path in moved} == {"encoder", "head"}


def test_a_group_that_goes_on_may_not_gain_leaves():
    model, _, _, frozen, state = taken("top:1", 1)
    labels = [
        t.label(params(model), strategy(name, 2).phases[0].rules) for name in ("top:1", "top:2")
    ]
    tx = optim.by_label({group: optim.adamw(1e-2) for group in ("encoder", "head")}, labels[1])
    with pytest.raises(RuleError, match="group 'encoder' goes on and gains encoder/block_00/"):
        advance(frozen, state, *labels, tx)


@pytest.fixture
def flags(inputs) -> dict:
    """4 steps an epoch, of one block."""
    data = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", blocks=1),
        "train": inputs.train,
        "test": inputs.test,
    }
    return data | {"batch_size": 8, "save_every": 1, "validation": inputs.test, "patience": 0}


@pytest.mark.parametrize(
    ("name", "epochs", "stops"),
    [("lp-ft+decay:0.5", 3, (4, 6)), ("gradual", 3, (5, 9)), ("lp-ft+lora:2", 2, (3,))],
)
def test_stopped_in_any_phase_and_resumed_is_the_same_run(
    flags, inputs, tmp_path, name, epochs, stops
):
    flags |= {"strategy": name, "epochs": epochs}
    if name == "gradual":  # a phase for the head, and one for each block
        flags |= {"checkpoint": inputs.checkpoint("bert_mlm_tied")}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune.main(finetune.Config(**flags, out=whole))
    for number, at in enumerate(stops):
        assert (
            finetune.main(finetune.Config(**flags, out=parts, stop_after=at, resume=number > 0))
            == {}
        )
    finetune.main(finetune.Config(**flags, out=parts, resume=True))
    assert_same_run(whole, parts)
    assert stored_digest(whole) == stored_digest(parts)


def test_each_phase_has_its_rates_and_only_its_groups_train(flags, tmp_path):
    result = finetune.main(
        finetune.Config(**flags, strategy="lp-ft", epochs=3, out=tmp_path / "run")
    )
    assert [phase["epochs"] for phase in result["phases"]] == [1, 2]
    assert [optim.FROZEN in phase["parameters"] for phase in result["phases"]] == [True, False]
    records = [
        record for record in tiny.lines(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in record
    ]
    assert all(("rate_encoder" in record) == (record["step"] > 4) for record in records)
    head = {record["step"]: record["rate_head"] for record in records}
    peaks = [
        max(value for step, value in head.items() if (step > 4) == later) for later in (False, True)
    ]
    assert (
        peaks == pytest.approx([1e-2, 1e-3], rel=1e-5)
        and head[4] < peaks[0]
        and head[12] < peaks[1]
    )


def test_a_schedule_over_all_phases_goes_on_where_a_group_begins():
    """ULMFiT's one schedule: the optimizer of a group that begins late sees the rate of that step of the run."""
    options = OptimizerOptions(epochs=3, warmup=0.25, decay="linear")
    compiled = phases.build_phases(
        strategy("gradual", 2, 3),
        "gradual",
        classifier(),
        params(classifier()),
        cross_entropy,
        options,
        steps_per_epoch=4,
    )
    rates = [[phase.rates(step)["head"] for step in range(12)] for phase in compiled]
    assert rates[0] == rates[1] == rates[2]
    assert rates[0][2] == max(rates[0]) and rates[0][-1] < rates[0][3]

    first = compiled[0]
    frozen, state = init_state(params(classifier()), first.labels, first.tx, jax.random.key(0))
    for before, phase in itertools.pairwise(compiled):
        frozen, state = advance(frozen, state, before.labels, phase.labels, phase.tx)
        ones = jax.tree.map(np.ones_like, state.params)
        updates, _ = phase.tx.update(ones, state.opt_state, state.params)
        # Adam's first update is the rate itself: that of a group which begins in this phase.
        for group in set(phase.groups) - set(before.groups):
            biases = [
                path
                for path, name in t.paths(phase.labels).items()
                if name == group and path.endswith("bias")
            ]
            update = -float(np.ravel(t.get(updates, biases[0]))[0])
            assert update == pytest.approx(phase.rates(phase.epochs.start * 4)[group], rel=1e-3)


def test_every_strategy_runs_on_every_family(inputs, tmp_path):
    names = [
        "bitfit",
        "lora:2",
        "adapters:3",
        "prefix:2",
        "surgical:0-0",
        "top:1+reinit:1",
        "full+l2sp:0.1",
        "full+mixout:0.3",
    ]
    cases = ["bert_mlm_tied", "gpt2_lm_tied", "vit_classifier"]
    for number, name in enumerate(names):
        case = cases[number % 3]
        data = inputs.images if case.startswith("vit") else inputs.texts
        out = tmp_path / f"run{number}"
        config = {
            "checkpoint": inputs.checkpoint(case, blocks=1),
            "strategy": name,
            "epochs": 1,
            "batch_size": 4,
            "out": out,
        }
        result = finetune.main(finetune.Config(**config | data))
        assert (
            np.isfinite(result["loss"])
            and result["frozen_digest_before"] == result["frozen_digest_after"]
        )
        run = hub.load(out)
        t.check_like(run.params, run.model.shapes())
        assert run.config.family == case.split("_")[0] and run.config.layers == 1
