"""What accelerators ask of a step: half precision only where it does no harm, nothing of the host in it, no second copy."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.training import loop, optim
from adapt.training import step as train
from adapt.training.losses import cross_entropy
from adapt.tree import nbytes, paths
from tests.helpers.small import batch, bits, classifier, params, setup

STEPS = [
    ("full", {}),
    ("frozen", {}),
    ("top:1", {}),
    ("full", {"remat": "block", "scan": True}),
    ("full", {"remat": "dots"}),
]


def made(name="full", family="bert", dtype=None, frozen_dtype=None, dropout=True, **options):
    model = dataclasses.replace(classifier(family), **options)
    model = model.cast(dtype) if dtype else model
    labels, tx = setup(classifier(family), name)
    layers = model.encoder.config.layers
    cut = {"full": 0, "frozen": layers + 1, "top:1": layers}[name]
    frozen, state = train.init_state(
        params(classifier(family)), labels, tx, jax.random.key(0), frozen_dtype=frozen_dtype
    )
    return frozen, state, train.make_step(model, cross_entropy, tx, cut, dropout)


def compiled(name, **options):
    frozen, state, step = made(name, **options)
    return state, step.programs(frozen, state, batch(options.get("family", "bert")))


def host_calls(text):
    return re.findall(
        r"callback|infeed|outfeed|SendToHost|RecvFromHost|\bsend\(|\brecv\(", text, re.IGNORECASE
    )


@pytest.mark.parametrize(("name", "options"), STEPS)
def test_nothing_of_the_host_is_in_a_step(name, options):  # a program names its caller
    for program in compiled(name, dtype="bfloat16", **options)[1].values():
        assert host_calls(program.as_text()) == []


def test_a_callback_in_a_program_would_be_found():
    def talks(x):
        jax.debug.print("{}", x)
        return x + 1

    assert host_calls(jax.jit(talks).lower(1.0).compile().as_text())


@pytest.mark.parametrize(("name", "options"), STEPS)
def test_the_state_is_donated_and_no_byte_of_it_is_there_twice(name, options):
    state, found = compiled(name, **options)
    memory = found["suffix"].memory_analysis()
    assert memory.alias_size_in_bytes >= nbytes((state.params, state.opt_state))
    outputs = len(jax.tree.leaves(state)) + 3  # the metrics; each output has a pointer too
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 16 * outputs


def test_the_host_reads_the_device_only_for_a_record(monkeypatch):
    """Every read of an array's value on the host is counted, and where it happens."""
    array_type = type(jnp.zeros(()))
    frozen, state, step = made()
    value = array_type._value
    reads = []
    reporting = []

    def counted(array):
        reads.append(bool(reporting))
        return value.fget(array)

    monkeypatch.setattr(array_type, "_value", property(counted))
    record = loop.record

    def reported(*arguments):
        reporting.append(1)
        try:
            return record(*arguments)
        finally:
            reporting.pop()

    monkeypatch.setattr(loop, "record", reported)
    records = list(
        loop.run_steps(step, frozen, state, [batch(seed=seed) for seed in range(12)], log_every=6)
    )
    assert len(records) == 2 and reads and all(reads)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_softmax_norms_and_loss_are_in_float32_when_computing_in_bfloat16(family):
    model, inputs = classifier(family).cast("bfloat16"), batch(family)

    def loss(params, key):
        return cross_entropy(model.apply(params, inputs, key), inputs["label"]).mean()

    traced, kinds = jax.make_jaxpr(loss)(params(classifier(family)), jax.random.key(0)), {}
    for equation in equations(traced.jaxpr):
        kinds.setdefault(equation.primitive.name, set()).update(
            str(v.aval.dtype) for v in equation.outvars
        )
    assert "bfloat16" in kinds["dot_general"]
    for name in ("exp", "log", "rsqrt", "reduce_max"):
        assert kinds[name] == {"float32"}, (name, kinds[name])


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("remat", ["none", "block", "dots"])
@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_and_scan_change_no_result(family, remat, scan):
    results = []
    for options in ({}, {"remat": remat, "scan": scan}):
        frozen, state, step = made(family=family, dropout=False, **options)
        state, metrics = step(frozen, state, batch(family))
        results.append(
            (
                float(metrics["loss"]),
                float(metrics["grad_norm"]),
                paths(jax.device_get(state.params)),
            )
        )
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-5)
    for path, leaf in results[0][2].items():
        if not path.endswith(
            "key/bias"
        ):  # its gradient is round-off alone: a softmax does not see it
            np.testing.assert_allclose(
                results[1][2][path], leaf, atol=5e-4
            )  # Adam's first step is a sign


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_keeps_less_and_computes_more(scan):
    """Of a deeper encoder: the residuals that the backward pass is given, and FLOPs before any backend's own choices."""

    wide = dict(
        layers=6, width=64, mlp_width=256, positions=128, dropout=0.0, attention_dropout=0.0
    )
    tokens = {
        name: jax.ShapeDtypeStruct((32, 128), jnp.int32)
        for name in ("tokens", "segments", "positions")
    }
    slots = {name: jax.ShapeDtypeStruct((64,), jnp.int32) for name in ("first", "length", "label")}
    inputs = tokens | slots | {"weight": jax.ShapeDtypeStruct((64,), jnp.float32)}

    def cost(remat):
        model = classifier("bert")
        encoder = model.encoder.clone(config=dataclasses.replace(model.encoder.config, **wide))
        model = dataclasses.replace(model, encoder=encoder, remat=remat, scan=scan)

        def loss(params, inputs):
            return cross_entropy(model.apply(params, inputs, None), inputs["label"]).mean()

        residuals = jax.eval_shape(
            lambda params, inputs: jax.vjp(lambda p: loss(p, inputs), params)[1],
            model.shapes(),
            inputs,
        )
        lowered = jax.jit(jax.grad(loss)).lower(model.shapes(), inputs)
        return nbytes(residuals) - nbytes(model.shapes()), lowered.cost_analysis()["flops"]

    (all_bytes, all_flops), (dots_bytes, dots_flops), (block_bytes, block_flops) = map(
        cost, ("none", "dots", "block")
    )
    assert 15 * block_bytes < 3 * dots_bytes < all_bytes
    assert all_flops < dots_flops < block_flops and (scan or block_flops > 1.2 * all_flops)


def test_an_update_below_the_last_place_of_its_parameter_is_counted():
    ones = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(4, jnp.float32)}
    small = {"a": jnp.full(4, 1e-3, jnp.bfloat16), "b": jnp.full(4, 1e-3)}
    assert (
        float(optim.rounded_away(ones, small)) == 0.5
    )  # bfloat16 has steps of 2^-7 there, float32 of 2^-23
    assert (
        float(
            optim.rounded_away(ones, {"a": jnp.full(4, 0.1, jnp.bfloat16), "b": jnp.full(4, 1e-8)})
        )
        == 0.5
    )
    assert (
        float(optim.rounded_away(ones, jax.tree.map(jnp.zeros_like, ones))) == 0
    )  # nothing was asked for


def test_a_step_on_parameters_in_bfloat16_says_how_many_updates_are_lost():
    model = classifier()
    labels, tx = setup(model, "full", rate=1e-4)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params(model))
    frozen, state = train.init_state(half, labels, tx, jax.random.key(0))
    step = train.make_step(model, cross_entropy, tx)
    [(_, record)] = loop.run_steps(step, frozen, state, [batch()], log_every=1)
    assert 0.2 < record["rounded_away"] < 1
    [(_, record)] = loop.run_steps(
        step,
        *train.init_state(params(model), labels, tx, jax.random.key(0)),
        [batch()],
        log_every=1,
    )
    assert "rounded_away" not in record


def test_frozen_matrices_may_be_stored_in_bfloat16():
    frozen, state, step = made("top:1", frozen_dtype="bfloat16")
    before = bits(frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(frozen) if leaf.ndim > 1} == {"bfloat16"}
    assert {
        str(leaf.dtype) for leaf in jax.tree.leaves((state.params, frozen)) if leaf.ndim == 1
    } == {"float32"}
    exact = made("top:1")
    one, other = step(frozen, state, batch())[1]["loss"], exact[2](*exact[:2], batch())[1]["loss"]
    assert float(one) == pytest.approx(float(other), rel=2e-2) and bits(frozen) == before
