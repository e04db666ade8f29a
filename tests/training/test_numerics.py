"""What accelerators ask of a step: half precision only where it does no harm, nothing of the host in
it, no second copy.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import Model
from adapt.training import loop, optim
from adapt.training import step as train
from adapt.training.losses import cross_entropy
from adapt.training.step import State, Step
from adapt.tree import Tree, nbytes, paths
from tests.helpers.small import batch, bits, classifier, params, setup

FAMILIES = ["bert", "gpt2", "vit"]
# (strategy, options of the model)
STEPS = [
    ("full", {}),
    ("frozen", {}),
    ("top:1", {}),
    ("full", {"remat": "block", "scan": True}),
    ("full", {"remat": "dots"}),
]
HOST_CALLS = re.compile(
    r"callback|infeed|outfeed|SendToHost|RecvFromHost|\bsend\(|\brecv\(", re.IGNORECASE
)


def make(
    strategy: str = "full",
    family: str = "bert",
    dtype: str | None = None,
    frozen_dtype: str | None = None,
    dropout: bool = True,
    **options: Any,
) -> tuple[Tree, State, Step]:
    """(frozen, state, step) of a strategy; ``options`` are fields of the model."""
    plain = classifier(family)
    labels, tx = setup(plain, strategy)
    frozen, state = train.init_state(
        params(plain), labels, tx, jax.random.key(0), frozen_dtype=frozen_dtype
    )
    model = dataclasses.replace(plain, **options)
    if dtype is not None:
        model = model.cast(dtype)
    layers = model.encoder.config.layers
    cut = {"full": 0, "frozen": layers + 1, "top:1": layers}[strategy]
    return frozen, state, train.make_step(model, cross_entropy, tx, cut, dropout)


@functools.cache
def state_and_programs(strategy: str, *options: tuple[str, Any]) -> tuple[State, dict[str, Any]]:
    """A state, and the programs of the step that computes in bfloat16."""
    # A program has the names of its callers: that of this function must not match HOST_CALLS.
    frozen, state, step = make(strategy, dtype="bfloat16", **dict(options))
    return state, step.programs(frozen, state, batch())


@pytest.mark.parametrize(("strategy", "options"), STEPS)
def test_nothing_of_the_host_is_in_a_step(strategy, options):
    _, programs = state_and_programs(strategy, *options.items())
    for program in programs.values():
        assert HOST_CALLS.findall(program.as_text()) == []


def test_a_host_call_in_a_program_would_be_found():
    def talk(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return x + 1

    assert HOST_CALLS.findall(jax.jit(talk).lower(1.0).compile().as_text())


@pytest.mark.parametrize(("strategy", "options"), STEPS)
def test_the_state_is_donated_and_no_byte_of_it_is_there_twice(strategy, options):
    state, programs = state_and_programs(strategy, *options.items())
    memory = programs["suffix"].memory_analysis()
    assert memory.alias_size_in_bytes >= nbytes((state.params, state.opt_state))
    num_outputs = len(jax.tree.leaves(state)) + 3  # the metrics; each output has a pointer too
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 16 * num_outputs


def test_the_host_reads_the_device_only_for_a_record(monkeypatch):
    """Every read of an array's value on the host is counted, and where it happens."""
    frozen, state, step = make()
    array_type = type(jnp.zeros(()))
    value = array_type._value
    record = loop.record
    is_recording = False
    reads = []  # whether each was for a record

    def counted(array: Any) -> Any:
        reads.append(is_recording)
        return value.fget(array)

    def watched(*arguments: Any) -> Any:
        nonlocal is_recording
        is_recording = True
        try:
            return record(*arguments)
        finally:
            is_recording = False

    monkeypatch.setattr(array_type, "_value", property(counted))
    monkeypatch.setattr(loop, "record", watched)
    batches = [batch(seed=seed) for seed in range(12)]
    records = list(loop.run_steps(step, frozen, state, batches, log_every=6))
    assert len(records) == 2
    assert reads
    assert all(reads)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of inner ones too."""

    def is_jaxpr(x: Any) -> bool:
        return hasattr(x, "eqns") or hasattr(x, "jaxpr")

    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("family", FAMILIES)
def test_softmax_norms_and_loss_are_in_float32_when_computing_in_bfloat16(family):
    model = classifier(family).cast("bfloat16")
    inputs = batch(family)

    def loss(params: Tree, key: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(params, inputs, key), inputs["label"]).mean()

    traced = jax.make_jaxpr(loss)(params(classifier(family)), jax.random.key(0))
    dtypes: dict[str, set[str]] = {}
    for equation in equations(traced.jaxpr):
        outputs = {str(variable.aval.dtype) for variable in equation.outvars}
        dtypes.setdefault(equation.primitive.name, set()).update(outputs)
    assert "bfloat16" in dtypes["dot_general"]
    for name in ("exp", "log", "rsqrt", "reduce_max"):
        assert dtypes[name] == {"float32"}, (name, dtypes[name])


def loss_and_gradient(family: str, **options: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Of one batch; ``options`` are fields of the model."""
    model = dataclasses.replace(classifier(family), **options)
    inputs = batch(family)

    def loss(params: Tree) -> jax.Array:
        return cross_entropy(model.apply(params, inputs, None), inputs["label"]).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params(model))
    return float(value), paths(jax.device_get(gradient))


@functools.cache
def plain_loss_and_gradient(family: str) -> tuple[float, dict[str, np.ndarray]]:
    """Without rematerialisation, and with every block written out."""
    return loss_and_gradient(family, remat="none", scan=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("remat", "scan"),
    [("block", False), ("dots", False), ("none", True), ("block", True), ("dots", True)],
)
def test_rematerialisation_and_scan_change_no_result(family, remat, scan):
    value, gradient = loss_and_gradient(family, remat=remat, scan=scan)
    expected_value, expected = plain_loss_and_gradient(family)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert gradient.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(gradient[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)


def deep_encoder(**options: Any) -> Model:
    """A classifier on six blocks of width 64."""
    model = classifier("bert")
    config = dataclasses.replace(
        model.encoder.config,
        layers=6,
        width=64,
        mlp_width=256,
        positions=128,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return dataclasses.replace(model, encoder=model.encoder.clone(config=config), **options)


def cost_of_gradient(model: Model) -> tuple[int, float]:
    """(bytes of the residuals that the backward pass is given, FLOPs before any backend's own
    choices) for 32 x 128 tokens.
    """
    tokens = jax.ShapeDtypeStruct((32, 128), jnp.int32)
    slots = jax.ShapeDtypeStruct((64,), jnp.int32)
    inputs = {"tokens": tokens, "segments": tokens, "positions": tokens}
    inputs |= {"first": slots, "length": slots, "label": slots}
    inputs |= {"weight": jax.ShapeDtypeStruct((64,), jnp.float32)}

    def loss(params: Tree, inputs: Any) -> jax.Array:
        return cross_entropy(model.apply(params, inputs, None), inputs["label"]).mean()

    def backward(params: Tree, inputs: Any) -> Any:
        _, vjp = jax.vjp(lambda params: loss(params, inputs), params)
        return vjp

    residuals = jax.eval_shape(backward, model.shapes(), inputs)
    lowered = jax.jit(jax.grad(loss)).lower(model.shapes(), inputs)
    return nbytes(residuals) - nbytes(model.shapes()), lowered.cost_analysis()["flops"]


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_keeps_less_and_computes_more(scan):
    bytes_kept = {}
    flops = {}
    for remat in ("none", "dots", "block"):
        model = deep_encoder(remat=remat, scan=scan)
        bytes_kept[remat], flops[remat] = cost_of_gradient(model)
    assert 15 * bytes_kept["block"] < 3 * bytes_kept["dots"] < bytes_kept["none"]
    assert flops["none"] < flops["dots"] < flops["block"]
    if not scan:
        assert flops["block"] > 1.2 * flops["none"]


@pytest.mark.parametrize(
    ("half", "single", "share"),
    [
        # Near 1, bfloat16 has steps of 2^-7, float32 of 2^-23.
        (1e-3, 1e-3, 0.5),
        (0.1, 1e-8, 0.5),
        (0.0, 0.0, 0.0),  # nothing was asked for
    ],
)
def test_an_update_below_the_last_place_of_its_parameter_is_counted(half, single, share):
    ones = {"half": jnp.ones(4, jnp.bfloat16), "single": jnp.ones(4, jnp.float32)}
    updates = {"half": jnp.full(4, half, jnp.bfloat16), "single": jnp.full(4, single)}
    assert float(optim.rounded_away(ones, updates)) == share


def test_a_step_on_parameters_in_bfloat16_says_how_many_updates_are_lost():
    model = classifier()
    labels, tx = setup(model, "full", rate=1e-4)
    step = train.make_step(model, cross_entropy, tx)

    def first_record(params: Tree) -> dict[str, Any]:
        frozen, state = train.init_state(params, labels, tx, jax.random.key(0))
        ((_, record),) = loop.run_steps(step, frozen, state, [batch()], log_every=1)
        return record

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params(model))
    assert 0.2 < first_record(half)["rounded_away"] < 1
    assert "rounded_away" not in first_record(params(model))


def test_frozen_matrices_may_be_stored_in_bfloat16():
    frozen, state, step = make("top:1", frozen_dtype="bfloat16")
    matrices = [leaf for leaf in jax.tree.leaves(frozen) if leaf.ndim > 1]
    vectors = [leaf for leaf in jax.tree.leaves((state.params, frozen)) if leaf.ndim == 1]
    assert {str(leaf.dtype) for leaf in matrices} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in vectors} == {"float32"}
    before = bits(frozen)
    _, metrics = step(frozen, state, batch())
    assert bits(frozen) == before

    frozen, state, step = make("top:1")
    _, exact_metrics = step(frozen, state, batch())
    assert float(metrics["loss"]) == pytest.approx(float(exact_metrics["loss"]), rel=2e-2)
