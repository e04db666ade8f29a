"""What strategies cost at the shapes of MiniLM's blocks, pinned by the compiler: the dead backward pass can't come back unseen.

Nothing runs here: programs are compiled from shapes. Clipping and every logged metric are on, dropout is off.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from adapt import tree
from adapt.cost.flops import block_flops, prefix_flops, step_flops
from adapt.models import Classifier, Encoder, EncoderConfig, Model
from adapt.training import frozen_prefix, optim
from adapt.training.losses import cross_entropy
from adapt.training.step import State, make_step
from adapt.training.strategies import strategy
from experiments.benchmark.aot.hlo import dot_flops, read
from tests.helpers import small
from tests.helpers.small import GROUPED

ROWS, TOKENS, EXAMPLES, LAYERS, WIDTH, MLP = 12, 80, 32, 2, 384, 1536
CONFIG = EncoderConfig("bert", LAYERS, WIDTH, 12, MLP, 512, vocabulary=30522, types=2)
MODEL = Model(Encoder(CONFIG), Classifier(2, "mean", dropout=0.1))
TOPS = [f"top:{k}" for k in range(1, LAYERS + 1)]
MIB = 2**20
TEMPORARY = {"full": 270, "bias": 120, "frozen": 0.01} | {
    f"top:{k}": 61 * k for k in range(1, LAYERS + 1)
}

every = ROWS * TOKENS
LINEAR = (
    2 * every * WIDTH * (4 * WIDTH + 2 * MLP)
)  # query, key, value, output and MLP of one block, forward
ATTENTION = 2 * every * WIDTH * 2 * TOKENS  # scores and mixture of one block, forward
FORWARD = LINEAR + ATTENTION
INPUT = 2 * every * WIDTH * 3 * WIDTH  # the gradient of a block's input: query, key and value
HEAD = 2 * EXAMPLES * WIDTH * 2


def array(*shape: int, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


BATCH = {name: array(ROWS, TOKENS, dtype=jnp.int32) for name in ("tokens", "segments", "positions")}
BATCH |= {name: array(EXAMPLES, dtype=jnp.int32) for name in ("first", "length", "label")} | {
    "weight": array(EXAMPLES)
}


@functools.cache
def programs(name: str, parts: int = 0):
    """(compiled programs, cut, labels, optimizer, state) of a strategy; with ``parts``, of so many micro-batches."""
    params = MODEL.shapes()
    bias = [("head/.*", "head"), (".*/bias", "encoder"), (".*", optim.FROZEN)]
    labels = tree.label(params, bias if name == "bias" else strategy(name, LAYERS).phases[0].rules)
    groups = ("head",) if name == "frozen" else ("encoder", "head")
    tx = optim.by_label(
        {group: optim.adamw(optim.schedule(1e-3, 100)) for group in groups}, labels, 1.0
    )
    cut = frozen_prefix.cut(labels, LAYERS)
    moving = optim.trainable(params, labels)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = State(
        array(dtype=jnp.int32), moving, jax.eval_shape(tx.init, moving), key, array(dtype=jnp.bool_)
    )
    batch = {
        name: array(*(parts,) * bool(parts), *leaf.shape, dtype=leaf.dtype)
        for name, leaf in BATCH.items()
    }
    step = make_step(MODEL, cross_entropy, tx, cut, dropout=False)
    return step.programs(optim.frozen(params, labels), state, batch), cut, labels, tx, state


def products(name: str, parts: int = 0) -> int:
    compiled = programs(name, parts)[0].values()
    return sum(dot_flops(read(program.as_text())) for program in compiled)


def by_hand(name: str) -> int:
    """Matrix products of a step: a forward pass; twice that for what trains; no gradient below the cut."""
    if name == "frozen":
        return LAYERS * FORWARD + 2 * HEAD
    if name == "bias":  # no gradient of a kernel; but of both factors of an attention
        return LAYERS * (2 * LINEAR + 3 * ATTENTION) + 3 * HEAD
    trained = LAYERS if name == "full" else int(name[4:])
    return (LAYERS + 2 * trained) * FORWARD - (name != "full") * INPUT + 3 * HEAD


@pytest.mark.parametrize("name", ["frozen", *TOPS, "full", "bias"])
def test_a_step_multiplies_no_more_than_it_has_to(name):
    assert 0.98 * by_hand(name) <= products(name) <= 1.02 * by_hand(name)


def test_the_count_by_hand_of_the_cost_model_is_that_of_the_compiler():
    assert block_flops(CONFIG, every, TOKENS) == FORWARD
    prefix = read(programs("top:1")[0]["prefix"].as_text())
    by_model = prefix_flops(CONFIG, LAYERS, every, TOKENS)
    assert by_model == dot_flops(prefix) == (LAYERS - 1) * FORWARD


def test_a_gated_block_has_a_product_more():
    config = dataclasses.replace(CONFIG, layers=1, width=48, mlp_width=96, gated_mlp=True)
    model = Model(Encoder(config), Classifier(0))
    program = jax.jit(model.prefix, static_argnums=2).lower(model.shapes(), BATCH, 2).compile()
    assert prefix_flops(config, 2, every, TOKENS) == dot_flops(read(program.as_text()))
    plain = dataclasses.replace(config, gated_mlp=False)
    more = block_flops(config, every, TOKENS) - block_flops(plain, every, TOKENS)
    assert more == 2 * every * 48 * 96


def test_heads_of_another_width_and_shared_keys_are_counted():
    model = Model(Encoder(GROUPED), Classifier(0, "last"))
    rows, tokens = small.SHAPE[:2]
    batch = small.inputs("grouped")
    program = jax.jit(model.apply).lower(model.shapes(), batch).compile()
    counted = block_flops(GROUPED, rows * tokens, tokens)
    assert counted == dot_flops(read(program.as_text()))


def test_scores_of_differences_are_counted():
    """All but what becomes of the table, which is the same for any number of rows."""
    config = dataclasses.replace(
        small.SMALL, relative_buckets=4, relative_distance=9, relative_terms=("c2p", "p2c")
    )
    model = Model(Encoder(config), Classifier(0, "last"))
    rows, tokens = small.SHAPE[:2]
    program = jax.jit(model.apply).lower(model.shapes(), small.inputs("bert")).compile()
    table = 2 * 2 * 8 * config.width**2
    counted = block_flops(config, rows * tokens, tokens) + table
    assert counted == dot_flops(read(program.as_text()))


def test_a_local_block_attends_within_its_window():
    config = dataclasses.replace(CONFIG, layers=3, local_layers=(1,), window=10)
    whole = block_flops(config, every, 80)
    assert prefix_flops(config, 2, every, 80) == whole
    assert prefix_flops(config, 4, every, 80) == 2 * whole + block_flops(config, every, 21)
    assert prefix_flops(config, 4, every, 15) == 3 * block_flops(config, every, 15)


def test_a_full_step_costs_three_forward_passes():
    forward = prefix_flops(CONFIG, LAYERS + 1, 960, 80)
    assert step_flops(CONFIG, 0, 960, 80) == 3 * forward
    assert step_flops(CONFIG, LAYERS + 1, 960, 80) == 0
    assert prefix_flops(CONFIG, 1, 960, 80) == 0


@pytest.mark.parametrize("name", ["frozen", *TOPS, "full", "bias"])
def test_a_step_costs_its_prefix_a_gradient_and_an_update_and_nothing_else(name):
    """Against functions compiled alone: the prefix, the gradient of a suffix without frozen parameters, the update."""
    found, cut, _, tx, state = programs(name)
    params = frozen_prefix.suffix_params(MODEL.shapes(), MODEL, cut)
    hidden = (
        {
            "hidden": array(EXAMPLES, WIDTH)
            if MODEL.prefix_pools(cut)
            else array(ROWS, TOKENS, WIDTH)
        }
        if cut
        else {}
    )

    def loss(params, batch):
        output = MODEL.suffix(params, batch.get("hidden"), batch, cut)
        return (cross_entropy(output, batch["label"]) * batch["weight"]).sum()

    def update(grads, opt_state, params):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(grads)

    gradient = jax.jit(jax.value_and_grad(loss)).lower(params, BATCH | hidden).compile()
    updated = jax.jit(update).lower(state.params, state.opt_state, state.params).compile()
    before = (
        jax.jit(lambda params, batch: MODEL.prefix(params, batch, cut))
        .lower(MODEL.shapes(), BATCH)
        .compile()
    )
    alone = sum(flops(program) for program in (gradient, updated, *([before] if cut else [])))
    # A head alone costs so little that the few operations on the key and the counter show.
    assert sum(map(flops, found.values())) <= 1.02 * alone


def flops(program) -> float:
    return program.cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["frozen", *TOPS, "full", "bias"])
def test_temporary_memory_is_that_of_what_trains(name):
    found = programs(name)[0]
    assert found["suffix"].memory_analysis().temp_size_in_bytes <= 1.1 * TEMPORARY[name] * MIB
    if (
        "prefix" in found
    ):  # nothing is kept for a backward pass: a block's worth, whatever the depth
        assert found["prefix"].memory_analysis().temp_size_in_bytes <= 28 * MIB


@pytest.mark.parametrize("name", ["frozen", "top:1", "full"])
def test_the_optimizer_has_no_byte_of_what_is_frozen(name):
    _, _, labels, tx, state = programs(name)
    moving = tree.nbytes(optim.trainable(MODEL.shapes(), labels))
    scalars = (9 * 2 + 1) * 4  # counts and settings of two groups, the norm of clipping
    assert 2 * moving <= tree.nbytes(jax.eval_shape(tx.init, state.params)) <= 2 * moving + scalars
    assert (
        tree.nbytes(jax.eval_shape(tx.init, MODEL.shapes())) <= 2 * moving + scalars
    )  # whole trees too


@pytest.mark.parametrize("name", ["frozen", "top:2"])
def test_accumulation_costs_its_parts_and_stores_nothing_for_what_is_frozen(name):
    """The sums of gradients are of what trains; the prefix of four parts works in the memory of one."""
    assert products(name, parts=4) <= 1.02 * 4 * by_hand(name)
    once, four = programs(name)[0], programs(name, parts=4)[0]
    moving = tree.nbytes(programs(name)[4].params)
    more = (
        four["suffix"].memory_analysis().temp_size_in_bytes
        - once["suffix"].memory_analysis().temp_size_in_bytes
    )
    hidden = 4 * 4 * WIDTH * (EXAMPLES if name == "frozen" else every)
    assert more <= 1.1 * moving + hidden + MIB
    assert four["prefix"].memory_analysis().temp_size_in_bytes <= 28 * MIB + hidden
