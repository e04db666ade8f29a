"""A step: frozen leaves cost a forward pass and keep every bit, sums are divided once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapt import pretraining, tree
from adapt.data import packing
from adapt.data.examples import from_sequences
from adapt.errors import TrainingError
from adapt.models import Model
from adapt.objectives import OBJECTIVES
from adapt.training import frozen_prefix, optim
from adapt.training.loop import STEP_BY_STEP, Pace, evaluate, run_steps
from adapt.training.losses import cross_entropy
from adapt.training.step import balance_of_parts, init_state, make_eval, make_step
from adapt.training.strategies import strategy
from experiments.benchmark.aot.hlo import dot_flops, read
from tests.helpers.small import CLASSES, SHAPE, batch, bits, classifier, copy, params, setup, texts

STRATEGIES = ["frozen", "top:1", "full"]


@functools.cache
def prepared(name: str, family: str = "", dtype: str = "float32"):
    """(model, labels, tx, step): one compiled step for all tests of a strategy. Clipping, decay and dropout are on."""
    model = classifier(family or ("small" if name == "full" else "bert"))
    labels, tx = setup(model, name)
    cut = frozen_prefix.cut(labels, model.encoder.config.layers)
    return model, labels, tx, make_step(model.cast(jnp.dtype(dtype)), cross_entropy, tx, cut)


def start(name: str, key: int = 0, **choices):
    """(frozen, state, step) of a fresh run."""
    model, labels, tx, step = prepared(name, **choices)
    return *init_state(params(model), labels, tx, jax.random.key(key)), step


def run(name: str, seeds, **choices):
    """(frozen, state, losses) after a step for each seed of a batch."""
    frozen, state, step = start(name, **choices)
    losses = []
    for seed in seeds:
        state, metrics = step(frozen, state, batch(seed=seed))
        losses.append(float(metrics["loss"]))
    return frozen, state, losses


# Freezing


@pytest.mark.parametrize("name", STRATEGIES)
def test_frozen_leaves_keep_every_bit_and_all_others_change(name):
    """With weight decay, clipping and Adam's momentum on."""
    model, labels, _, _ = prepared(name)
    frozen, state, _ = run(name, range(4))
    assert tree.digest(frozen) == tree.digest(optim.frozen(params(model), labels))
    before = tree.paths(optim.trainable(params(model), labels))
    after = tree.paths(state.params)
    assert before.keys() == after.keys() and before
    assert [path for path in before if np.array_equal(before[path], after[path])] == []


def test_frozen_leaves_keep_every_bit_under_momentum_and_decay_of_sgd():
    model = classifier("small")
    labels = tree.label(params(model), strategy("frozen", 1).phases[0].rules)
    sgd = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9))
    tx = optim.by_label({"head": sgd}, labels, clip_norm=0.1)
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    step = make_step(model, cross_entropy, tx, dropout=False)
    for seed in range(3):
        state, _ = step(frozen, state, batch(seed=seed))
    assert tree.digest(frozen) == tree.digest(optim.frozen(params(model), labels))
    assert int(state.step) == 3


@pytest.mark.parametrize("name", STRATEGIES)
def test_state_has_no_byte_of_what_is_frozen(name):
    """Trained parameters, Adam's two moments of them, and a few scalars."""
    model, labels, _, _ = prepared(name)
    frozen, state, _ = start(name)
    trained = tree.nbytes(optim.trainable(params(model), labels))
    assert tree.nbytes(state.params) == trained
    assert tree.nbytes(frozen) == tree.nbytes(params(model)) - trained
    assert 2 * trained <= tree.nbytes(state.opt_state) <= 2 * trained + 64


def test_frozen_parameters_on_the_device_are_not_copied_and_trained_ones_are():
    model, labels, tx, _ = prepared("top:1")
    on_device = jax.device_put(params(model), jax.devices()[0])
    frozen, state = init_state(on_device, labels, tx, jax.random.key(0))
    where = lambda weights: {
        path: leaf.unsafe_buffer_pointer() for path, leaf in tree.paths(weights).items()
    }
    before, still, moving = where(on_device), where(frozen), where(state.params)
    assert all(still[path] == before[path] for path in still)
    assert all(moving[path] != before[path] for path in moving)


def test_the_step_reuses_the_memory_of_the_state_and_of_nothing_else():
    frozen, state, step = start("top:1")
    eaten = jax.tree.leaves((state.params, state.opt_state))
    step(frozen, state, batch())
    assert all(leaf.is_deleted() for leaf in eaten)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize("on_device", [False, True])
def test_two_runs_from_one_load_agree(on_device):
    model, labels, tx, step = prepared("full")
    loaded = jax.device_put(params(model)) if on_device else params(model)
    before, key, ends = tree.digest(loaded), jax.random.key(7), []
    for _ in range(2):
        frozen, state = init_state(loaded, labels, tx, key)
        for seed in range(2):
            state, _ = step(frozen, state, batch(seed=seed))
        ends.append(bits(state))
        assert tree.digest(loaded) == before
        jax.random.key_data(key)  # raises if the step ate it
    assert ends[0] == ends[1]


def test_nothing_to_train_is_an_error():
    model = classifier()
    labels = tree.label(params(model), [(".*", optim.FROZEN)])
    with pytest.raises(TrainingError, match="every parameter is FROZEN: nothing would train"):
        init_state(params(model), labels, optim.by_label({}, labels), jax.random.key(0))


# What a step costs


def forward_flops(model: Model, blocks: int) -> int:
    """By hand: query, key and value; scores; mixture; output; the two layers of the MLP."""
    c, (rows, tokens, _) = model.encoder.config, SHAPE
    if c.is_image:
        rows, tokens = SHAPE[2], c.positions
    every = rows * tokens
    per_block = every * c.width * (3 * c.width + 2 * tokens + c.width + 2 * c.mlp_width)
    patches = c.is_image * rows * (tokens - 1) * c.patch_size**2 * c.channels * c.width
    return 2 * (blocks * per_block + patches * (blocks == c.layers))


HEAD = 2 * SHAPE[2] * 16 * CLASSES  # the classifier's product


def step_flops(name: str, family: str = "", parts: int = 0, cut: int | None = None) -> int:
    model, labels, tx, step = prepared(name, family)
    family = model.encoder.config.family
    if cut is not None:
        step = make_step(model, cross_entropy, tx, cut)
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    made = batch(family) if not parts else packing.stack([batch(family)] * parts)
    programs = step.programs(frozen, state, made).values()
    return sum(dot_flops(read(program.as_text())) for program in programs)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_a_frozen_step_costs_a_forward_pass(family):
    """Clipping and the logged gradient norm are on: neither brings the dead backward pass back."""
    forward = forward_flops(classifier(family), 2)
    assert 0.98 * forward <= step_flops("frozen", family) <= 1.02 * forward + 2 * HEAD


def test_a_frozen_step_costs_a_forward_pass_even_without_a_cut():
    assert step_flops("frozen", cut=0) <= 1.02 * forward_flops(classifier(), 2) + 2 * HEAD


def test_a_step_of_the_top_block_costs_one_backward_pass_of_that_block():
    expected = forward_flops(classifier(), 2) + 2 * forward_flops(classifier(), 1)
    unneeded = 2 * SHAPE[0] * SHAPE[1] * 16 * 3 * 16  # the gradient of that block's input
    assert (
        0.98 * (expected - unneeded)
        <= step_flops("top:1")
        <= 1.02 * (expected - unneeded) + 3 * HEAD
    )


def test_a_full_step_costs_three_forward_passes():
    expected = 3 * forward_flops(classifier("small"), 1)
    assert 0.98 * expected <= step_flops("full") <= 1.02 * expected + 3 * HEAD


def test_an_accumulated_step_costs_its_micro_batches():
    assert step_flops("frozen", "small", parts=4) <= 4 * (
        1.02 * forward_flops(classifier("small"), 1) + 2 * HEAD
    )


class Bag:
    """The least that a step takes for a model: the mean of token vectors, then one product."""

    layout = None
    allow_fused_attention = staticmethod(lambda function: function)

    def suffix(self, weights, hidden, made, cut, key):
        vectors = weights["encoder"]["token"][made["tokens"].reshape(-1)]
        total = jax.ops.segment_sum(vectors, made["segments"].reshape(-1), len(made["length"]))
        return total / jnp.maximum(made["length"], 1)[:, None] @ weights["head"]["kernel"]


def test_every_shape_of_a_plan_is_traced_once():
    weights = {
        "encoder": {"token": np.ones((40, 4), np.float32)},
        "head": {"kernel": np.ones((4, CLASSES), np.float32)},
    }
    labels = tree.label(weights, [("head/.*", "head"), ("encoder/.*", "encoder")])
    groups = {group: optim.adamw(optim.schedule(1e-2, 24)) for group in ("head", "encoder")}
    tx = optim.by_label(groups, labels, 1.0)
    frozen, state = init_state(weights, labels, tx, jax.random.key(0))
    step, seen = make_step(Bag(), cross_entropy, tx), set()
    tokens = texts(90)
    shapes = packing.batch_shapes(tokens.lengths, 8, 0, 2)
    for epoch in range(2):
        for made in from_sequences(tokens).batches(shapes, 0, epoch):
            state, _ = step(frozen, state, made)
            seen.add(made["tokens"].shape)
    assert 1 < len(seen) <= 3
    assert step.suffix._cache_size() == len(seen)
    assert int(state.step) == 24


# The arithmetic of a step


@functools.cache
def plain():
    """A step whose change of parameters is minus the gradient, without dropout."""
    model = classifier("small")
    labels = tree.label(params(model), strategy("full", 1).phases[0].rules)
    tx = optim.by_label({"encoder": optax.sgd(1.0), "head": optax.sgd(1.0)}, labels)
    return model, labels, tx, make_step(model, cross_entropy, tx, dropout=False)


def one_step(made):
    model, labels, tx, step = plain()
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    state, metrics = step(frozen, state, made)
    return tree.paths(jax.device_get(state.params)), {
        name: float(value) for name, value in metrics.items()
    }


def merged(parts: list[packing.Arrays]) -> packing.Arrays:
    """Batches as one with the rows and slots of all: segments and first positions count on."""
    rows, width, slots = SHAPE
    shift = {"segments": slots, "first": rows * width}
    every = len(parts) * slots
    moved = [
        part
        | {name: part[name] + np.int32(i * by) for name, by in shift.items()}
        | {
            "segments": np.where(
                part["segments"] == slots, every, part["segments"] + i * slots
            ).astype(np.int32)
        }
        for i, part in enumerate(parts)
    ]
    return {name: np.concatenate([part[name] for part in moved]) for name in parts[0]}


def test_micro_batches_of_unequal_weight_give_the_gradient_of_one_large_batch():
    """8, 3, 1 and no examples at all: means of means would weigh them alike."""
    parts = [batch(seed=seed, examples=count) for seed, count in enumerate([8, 3, 1])]
    empty = {name: np.zeros_like(array) for name, array in parts[0].items()} | {
        "segments": np.full_like(parts[0]["segments"], 8)
    }
    parts[1]["weight"] *= 2.5  # weights of examples need not be 1
    parts.append(empty)
    small, metrics = one_step(packing.stack(parts))
    large, expected = one_step(merged(parts))
    assert metrics["weight"] == expected["weight"] == 8 + 3 * 2.5 + 1
    for name in ("loss", "grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5)
    for path in large:
        np.testing.assert_allclose(small[path], large[path], atol=2e-6, rtol=1e-5)


def test_empty_slots_have_no_part_in_loss_and_gradient():
    made = batch(examples=5)
    other = made | {"label": np.where(made["weight"] > 0, made["label"], 2).astype(np.int32)}
    (one, loss), (two, same) = one_step(made), one_step(other)
    assert loss == same and loss["weight"] == 5
    for path in one:
        np.testing.assert_array_equal(one[path], two[path])


def test_loss_and_gradient_norm_are_those_of_the_weighted_mean():
    model, made = plain()[0], batch()
    made["weight"] = np.linspace(0.5, 2, 8, dtype=np.float32)

    @jax.jit
    def mean(weights):
        loss = cross_entropy(model.apply(weights, made), made["label"])
        return (loss * made["weight"]).sum() / made["weight"].sum()

    value, gradient = jax.jit(jax.value_and_grad(mean))(params(model))
    after, metrics = one_step(made)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    for path, leaf in tree.paths(gradient).items():
        np.testing.assert_allclose(tree.get(params(model), path) - after[path], leaf, atol=2e-6)


def test_the_logged_norm_is_that_of_what_trains_before_clipping():
    model, made = classifier(), batch()
    frozen, state, step = start("frozen")

    @jax.jit
    def mean(head):
        return cross_entropy(
            model.apply(params(model) | {"head": head}, made), made["label"]
        ).mean()

    expected = optax.tree.norm(jax.grad(mean)(params(model)["head"]))
    _, metrics = step(frozen, state, made)
    assert float(metrics["grad_norm"]) == pytest.approx(float(expected), rel=1e-5)


def test_bfloat16_computes_in_half_and_keeps_parameters_and_moments_in_full():
    _, full, losses = run("full", range(3))
    _, half, rounded = run("full", range(3), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("float32")}
    kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(half.opt_state)]
    assert kinds == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(full.opt_state)]
    assert losses != rounded and losses == pytest.approx(rounded, rel=0.05)
    assert not all(
        np.array_equal(a, a.astype(jnp.bfloat16)) for a in jax.tree.leaves(half.params)
    )  # not rounded


# Dropout


def test_the_key_decides_the_dropout_and_nothing_else_does():
    def loss(key: int) -> float:
        frozen, state, step = start("full", key=key)
        return float(step(frozen, state, batch())[1]["loss"])

    assert loss(1) == loss(1)
    assert len({loss(key) for key in range(4)}) == 4


def test_every_step_and_every_micro_batch_draws_its_own_dropout():
    """Losses of one batch at the same parameters: by step, and as the mean over two copies of it."""
    frozen, state, step = start("full")
    losses = set()
    for number in (0, 1, 2):
        later = dataclasses.replace(
            copy(state), step=jax.device_put(jnp.int32(number), state.step.sharding)
        )
        losses.add(float(step(frozen, later, batch())[1]["loss"]))
    assert len(losses) == 3
    twice = float(step(frozen, copy(state), packing.stack([batch(), batch()]))[1]["loss"])
    assert min(abs(twice - loss) for loss in losses) > 1e-5


def test_dropout_is_off_in_frozen_stages_and_on_in_the_head():
    wet = classifier("small", dropout=0.5)
    labels, tx = setup(wet, "frozen")
    for model, step, distinct in [
        (wet, make_step(wet, cross_entropy, tx, cut=2), 3),
        (*prepared("frozen")[::3], 1),
    ]:
        labels, tx = setup(model, "frozen")
        losses = set()
        for key in range(3):
            frozen, state = init_state(params(model), labels, tx, jax.random.key(key))
            losses.add(float(step(frozen, state, batch())[1]["loss"]))
        assert len(losses) == distinct


# What is not finite


def poisoned(kind: str) -> packing.Arrays:
    made = batch()
    made["weight"] = made["weight"].copy()
    made["weight"][2] = {"nan": np.nan, "inf": np.inf}[kind]
    return made


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_not_finite_changes_no_bit_and_halts_for_good(kind):
    frozen, state, step = start("full")
    state, _ = step(frozen, state, batch())
    before = bits((state.step, state.params, state.opt_state, state.key))
    assert not state.halted
    for made in (poisoned(kind), batch(seed=1), batch(seed=2)):
        state, _ = step(frozen, state, made)
        assert (
            state.halted and bits((state.step, state.params, state.opt_state, state.key)) == before
        )


def test_a_gradient_that_is_not_finite_halts_too():
    """The loss is 0, its gradient is not a number."""
    model = classifier("small")
    labels, tx = setup(model, "frozen")
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    before = bits((state.params, state.opt_state))
    step = make_step(model, lambda logits, label: jnp.sqrt(0 * logits[:, 0]), tx)
    state, metrics = step(frozen, state, batch())
    assert (
        float(metrics["loss"]) == 0
        and state.halted
        and bits((state.params, state.opt_state)) == before
    )


@pytest.mark.parametrize(("bad", "log_every"), [(0, 1), (3, 1), (3, 2), (3, 100), (5, 3)])
def test_the_loop_stops_with_the_number_of_the_step(bad, log_every):
    frozen, state, step = start("frozen")
    batches = [batch(seed=seed) if seed != bad else poisoned("nan") for seed in range(6)]
    taken = 0
    with pytest.raises(
        TrainingError, match=f"the loss is not finite at step {bad + 1}: training stopped"
    ):
        for _, record in run_steps(step, frozen, state, batches, log_every):
            taken = record["step"]
    assert taken == bad // log_every * log_every


# The loop


def test_the_loop_takes_every_batch_once_and_its_records_are_means_over_examples():
    counts = [8, 8, 3, 8, 5]
    batches = [batch(seed=seed, examples=n) for seed, n in enumerate(counts)]
    frozen, state, step = start("frozen")
    alone, by_hand = copy(state), []
    for made in batches:
        alone, metrics = step(frozen, alone, made)
        by_hand.append({name: float(value) for name, value in metrics.items()})
    records, seen = [], set()
    for now, record in run_steps(step, frozen, state, iter(batches), 2, seen):
        records.append((now, record))
    records, end = [record for _, record in records], records[-1][0]
    assert bits(end) == bits(alone)
    assert [record["step"] for record in records] == [2, 4, 5]
    for record, window in zip(records, [slice(0, 2), slice(2, 4), slice(4, 5)], strict=True):
        part, n = by_hand[window], counts[window]
        assert record["examples"] == sum(n)
        assert record["loss"] == pytest.approx(
            np.average([m["loss"] for m in part], weights=n), rel=1e-6
        )
        assert record["grad_norm"] == pytest.approx(
            np.mean([m["grad_norm"] for m in part]), rel=1e-6
        )
        assert record["seconds"] >= 0 and record["compile_seconds"] >= 0
    assert len(seen) == 1
    # The examples of the first step, which may have compiled, are not timed.
    assert [record["timed_examples"] for record in records] == [8, 11, 5]
    assert records[1]["compile_seconds"] == 0


SEVERAL = Pace(steps=3)
LATE = Pace(steps=1, is_late=True)


@pytest.mark.parametrize("pace", [SEVERAL, LATE, Pace(steps=4, is_late=True)])
@pytest.mark.parametrize("name", ["frozen", "full"])
def test_several_steps_a_call_and_late_records_are_the_same_run(name, pace):
    batches = [batch(seed=seed, examples=n) for seed, n in enumerate([8, 8, 3, 8, 5, 8, 2])]
    if name == "frozen":
        batches = [made | {"hidden": hidden_of(made)} for made in batches]
    alone, paced = (list(paces(name, batches, pace)) for pace in (STEP_BY_STEP, pace))
    assert [record["step"] for _, record in alone] == [2, 4, 6, 7]
    for (_, by_step), (_, by_pace) in zip(alone, paced, strict=True):
        for figure in ("step", "examples", "tokens", "slots"):
            assert by_pace[figure] == by_step[figure]
        for figure in ("loss", "grad_norm"):
            assert by_pace[figure] == pytest.approx(by_step[figure], rel=2e-5)
    (end, _), (paced_end, _) = alone[-1], paced[-1]
    assert int(paced_end.step) == int(end.step) == 7
    for mine, theirs in zip(*map(jax.tree.leaves, (paced_end.params, end.params)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-6)


def hidden_of(made):
    """What the frozen prefix makes of a batch."""
    frozen, _, step = start("frozen")
    _, suffix = step.prefix(frozen, made)
    return np.asarray(suffix["hidden"])


def paces(name, batches, pace, resumed_after=0):
    frozen, state, step = start(name)
    yield from run_steps(step, frozen, state, iter(batches), 2, set(), lambda _: None, pace)


def test_a_run_of_several_steps_a_call_that_stops_goes_on_bit_for_bit():
    """However the steps fall into calls: each is the same pass of one loop."""
    batches = [batch(seed=seed) for seed in range(7)]
    frozen, state, step = start("full")
    ((whole, _),) = run_steps(step, frozen, state, batches, 7, pace=SEVERAL)
    frozen, state, step = start("full")
    for part in (batches[:2], batches[2:]):
        ((state, _),) = run_steps(step, frozen, state, part, 7, pace=SEVERAL)
    assert bits(state) == bits(whole)


def test_several_steps_are_one_program_however_many_they_are():
    batches = [batch(seed=seed) for seed in range(8)]
    frozen, state, step = start("top:1")
    batches = [made | {"hidden": hidden_before(step, frozen, made)} for made in batches]
    before = step.several._cache_size()
    list(run_steps(step, frozen, state, batches, 5, pace=SEVERAL))
    assert step.several._cache_size() == before + 1


def hidden_before(step, frozen, made):
    _, suffix = step.prefix(frozen, made)
    return np.asarray(suffix["hidden"])


@pytest.mark.parametrize(("bad", "log_every"), [(0, 1), (3, 2), (3, 100), (5, 3)])
@pytest.mark.parametrize("pace", [Pace(2, is_late=True), Pace(3), LATE])
def test_a_paced_loop_stops_with_the_number_of_the_step(pace, bad, log_every):
    frozen, state, step = start("full")
    batches = [batch(seed=seed) if seed != bad else poisoned("nan") for seed in range(6)]
    with pytest.raises(TrainingError, match=f"the loss is not finite at step {bad + 1}: "):
        list(run_steps(step, frozen, state, batches, log_every, pace=pace))


def test_no_batch_is_no_record():
    frozen, state, step = start("frozen")
    assert list(run_steps(step, frozen, state, [], 2)) == []


def test_a_loss_of_parts_is_the_sum_of_their_means():
    part = np.array([0, 1, 0, 1, 1], np.int32)
    weight = np.array([1.0, 1.0, 1.0, 0.0, 3.0], np.float32)
    losses = np.array([2.0, 5.0, 4.0, 9.0, 1.0], np.float32)
    factor = np.asarray(balance_of_parts(part, weight))
    total = (losses * factor * weight).sum() / weight.sum()
    assert total == pytest.approx(3.0 + (5.0 + 3.0) / 4)
    # A part without weight counts nothing.
    alone = weight * (part == 0)
    factor = np.asarray(balance_of_parts(part, alone))
    assert (losses * factor * alone).sum() / alone.sum() == pytest.approx(3.0)


# Evaluation


def test_outputs_are_in_the_order_of_the_examples_for_any_packing():
    model = classifier("small")
    tokens = texts(40)
    forward = make_eval(model)
    batches = lambda *shape: list(packing.eval_batches(packing.pack_windows(tokens, *shape)))
    narrow = evaluate(forward, params(model), batches(24, 128), 40)
    wide = evaluate(forward, params(model), batches(96, 512), 40)
    assert narrow.shape == (40, CLASSES) and narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, atol=1e-5)
    backwards = evaluate(forward, params(model), reversed(batches(24, 128)), 40)
    np.testing.assert_array_equal(narrow, backwards)


def test_the_score_of_batches_is_the_weighted_mean_over_all_of_them():
    model = classifier("small")
    score = pretraining.make_score(model, OBJECTIVES["masked"])
    batches = [batch(seed=seed, examples=n) for seed, n in enumerate([8, 3])]
    found = pretraining.mean_score(score, params(model), batches)
    forward = make_eval(model)
    logits = np.concatenate([forward(params(model), b)[: int(b["weight"].sum())] for b in batches])
    label = np.concatenate([b["label"][: int(b["weight"].sum())] for b in batches])
    assert found["loss"] == pytest.approx(
        float(cross_entropy(jnp.asarray(logits), label).mean()), rel=1e-5
    )
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == label).mean())
