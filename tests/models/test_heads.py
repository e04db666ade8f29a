"""Every head: what it says of an example is the example's own affair, and all of its weights learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data import packing
from adapt.errors import StrategyError
from adapt.models import Classifier, Encoder, Model, Span, Tagger
from adapt.models.heads import attention_pooling, mean
from adapt.ragged import Ragged, ragged
from adapt.tasks import TASKS
from adapt.training import frozen_prefix
from adapt.tree import paths
from tests.helpers.small import CONFIGS, SHAPE, batch, params, texts

HEADS = {
    "attention": (Classifier(3, "attention"), "classification"),
    "layers": (Classifier(3, "mean", layers=(0, 2)), "classification"),
    "mix": (Classifier(3, "max", layers=(0, 1, 2), mix="learned"), "classification"),
    "attention over layers": (
        Classifier(3, "attention", layers=(1, 2), mix="learned"),
        "classification",
    ),
    "columns": (Classifier(5, "cls", columns=(3, 2)), "multitask"),
    "tags": (Tagger(4), "tags"),
    "span": (Span(12), "span"),
    "choice": (Classifier(1, "last", bias=False), "choice"),
    "contrastive": (Classifier(0, "pooler"), "contrastive"),
    "setfit": (Classifier(0, "attention"), "setfit"),
}
EXAMPLES = 6  # sequences


def labels_of(task: str, lengths: np.ndarray):
    """Labels of EXAMPLES sequences: of choices of three, and pairs, fewer examples."""
    rng = np.random.default_rng(1)
    if task == "tags":
        return ragged_places(lengths)
    made = {
        "classification": rng.integers(0, 3, EXAMPLES),
        "multitask": np.stack([rng.integers(0, 3, EXAMPLES), rng.integers(0, 2, EXAMPLES)], 1),
        "span": np.stack([lengths * 0, lengths - 1], 1),
        "choice": np.array([2, 0]),
        "contrastive": np.ones(3),
        "setfit": np.array([1, 0, 1]),
    }
    return made[task].astype(np.int32)


def ragged_places(lengths: np.ndarray) -> Ragged:
    """Words at every second token, with classes."""
    places = [np.stack([np.arange(0, n, 2), np.arange(0, n, 2) % 4], 1) for n in lengths]
    counts = np.array([len(each) for each in places])
    return Ragged(np.concatenate(places).astype(np.int32), np.cumsum(counts) - counts, counts)


def made(name: str, packed: bool = True, slots: int = EXAMPLES):
    """A batch with labels of six sequences, packed or one a row, in so many slots."""
    task = HEADS[name][1]
    tokens = texts(EXAMPLES, longest=12)
    lengths, index = tokens.lengths, np.arange(EXAMPLES)
    rows, starts = packing.pack(lengths, SHAPE[1])[:2] if packed else (index, index * 0)
    inputs = packing.assemble(
        tokens, index, rows, starts, (SHAPE[0] if packed else EXAMPLES, SHAPE[1], slots)
    )
    labels = labels_of(task, lengths)
    if task == "tags":
        return inputs | packing.pad_word_labels(labels, inputs)
    return inputs | packing.pad_labels(labels, slots * len(labels) // EXAMPLES)


@functools.cache
def program(name: str):
    """Jitted: params, batch -> (outputs, weighted sum of losses, its gradient in the head)."""
    head, task = HEADS[name]
    model = Model(Encoder(CONFIGS["bert"]), head)

    def total(own, tree, made):
        outputs = model.apply(tree | {"head": own}, made)
        return (TASKS[task].loss(outputs, made["label"]) * made["weight"]).sum(), outputs

    return model, jax.jit(
        lambda tree, made: jax.value_and_grad(total, has_aux=True)(tree["head"], tree, made)
    )


def outcome(name: str, batch):
    model, run = program(name)
    (loss, outputs), gradient = run(params(model), batch)
    return np.asarray(outputs), float(loss), paths(jax.device_get(gradient))


@pytest.mark.parametrize("name", HEADS)
def test_packed_examples_and_one_a_row_are_the_same(name):
    (one, loss, gradient), (other, same, again) = (
        outcome(name, made(name, packed)) for packed in (True, False)
    )
    words = int(made(name)["weight"].sum())  # of tags; the rest of their outputs is nobody's
    count = words if name == "tags" else len(one)
    np.testing.assert_allclose(one[:count], other[:count], atol=2e-6)
    assert loss == pytest.approx(same, rel=1e-5)
    for path in gradient:
        np.testing.assert_allclose(gradient[path], again[path], atol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_of_a_head_gets_a_gradient(name):
    gradient = outcome(name, made(name))[2]
    assert set(gradient) == set(paths(params(program(name)[0])["head"]))
    for path, leaf in gradient.items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, path


@pytest.mark.parametrize("name", HEADS)
def test_empty_slots_count_nothing(name):
    (_, loss, gradient), (_, same, again) = (
        outcome(name, made(name, slots=slots)) for slots in (EXAMPLES, 12)
    )
    assert np.isfinite(loss) and loss == pytest.approx(same, rel=1e-6)
    for path in gradient:
        np.testing.assert_allclose(gradient[path], again[path], atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_an_output_depends_on_its_own_sequence_alone(name):
    batch = made(name)
    before = outcome(name, batch)[0]
    for keep in (0, 3, 5):
        mine = batch["segments"] == keep
        other = batch | {
            "tokens": np.where(mine, batch["tokens"], 39 - batch["tokens"] % 39).astype(np.int32)
        }
        after = outcome(name, other)[0]
        if name == "tags":
            slots = np.flatnonzero(mine.reshape(-1)[batch["targets"]] & (batch["weight"] > 0))
        else:
            slots = [keep]
        np.testing.assert_array_equal(after[slots], before[slots])
        assert not np.array_equal(after, before)


# Attention pooling


@settings(max_examples=10)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(0, 99))
def test_attention_is_a_softmax_over_the_tokens_of_one_example(lengths, seed):
    rng = np.random.default_rng(seed)
    tokens = ragged([np.ones(n, int) for n in lengths])
    rows, starts, _ = packing.pack(tokens.lengths, 16)
    made = packing.assemble(tokens, np.arange(len(lengths)), rows, starts, (3, 16, 6))
    x, query = (rng.standard_normal(shape).astype(np.float32) * 3 for shape in ((48, 4), 4))
    got = np.asarray(attention_pooling(jnp.asarray(x), made, jnp.asarray(query)))
    for slot in range(6):
        own = x[made["segments"].reshape(-1) == slot].astype(np.float64)
        weights = np.exp(own @ query / 2)
        expected = weights @ own / weights.sum() if len(own) else np.zeros(4)
        np.testing.assert_allclose(got[slot], expected, atol=1e-5)


def test_attention_begins_as_the_mean_and_large_scores_do_not_overflow():
    made = batch(examples=5)
    x = 100 * jax.random.normal(jax.random.key(0), (made["segments"].size, 16))
    zeros = jnp.zeros(16)
    np.testing.assert_allclose(
        attention_pooling(x, made, zeros), mean(x, made), rtol=1e-5, atol=1e-4
    )
    gradient = jax.grad(lambda query: jnp.square(attention_pooling(x, made, query)).sum())(
        100 * jnp.ones(16)
    )
    assert np.isfinite(gradient).all()


# Layers


def test_a_mix_of_layers_is_that_of_their_pooled_states():
    """Concatenation, and ELMo's mix with softmax weights, by hand from what every stage puts out."""
    made = batch()
    for head in (
        Classifier(3, "mean", layers=(0, 2)),
        Classifier(3, "mean", layers=(0, 2), mix="learned"),
    ):
        model = Model(Encoder(CONFIGS["bert"]), head)
        tree = params(model)
        states = [
            np.asarray(mean(x.reshape(-1, 16), made)) for x in model.hidden_states(tree, made)
        ]
        if head.mix == "learned":
            shares = np.exp(tree["head"]["mix"]) / np.exp(tree["head"]["mix"]).sum()
            x = tree["head"]["scale"] * (shares[0] * states[0] + shares[1] * states[2])
        else:
            x = np.concatenate([states[0], states[2]], 1)
        own = tree["head"]["classifier"]
        np.testing.assert_allclose(
            model.apply(tree, made), x @ own["kernel"] + own["bias"], atol=1e-5
        )


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_a_mix_of_layers_can_be_cut_where_its_lowest_layer_is_put_out(family):
    model, made = (
        Model(Encoder(CONFIGS[family]), Classifier(3, "mean", layers=(1, 2), mix="learned")),
        batch(family),
    )
    tree = params(model)
    whole = model.apply(tree, made)
    for cut in (1, 2, 3):
        np.testing.assert_allclose(model.apply(tree, made, depth=cut), whole, atol=1e-6)
    assert model.prefix(tree, made, 3).shape == (
        8,
        2 * 16,
    )  # pooled: the cache keeps a vector a layer
    with pytest.raises(StrategyError, match="reads layers 0, 2 and 2 of 3 stages are frozen"):
        frozen_prefix.cut_at(
            Model(Encoder(CONFIGS[family]), Classifier(3, "mean", layers=(0, 2))), 2
        )


def test_a_head_that_reads_the_last_layer_alone_is_the_plain_head():
    plain, named = (
        Model(Encoder(CONFIGS["bert"]), Classifier(3, "cls", layers=layers))
        for layers in ((), (2,))
    )
    np.testing.assert_array_equal(
        plain.apply(params(plain), batch()), named.apply(params(plain), batch())
    )


# Columns and spans


def test_columns_share_one_dense_layer_and_a_short_one_ends_in_minus_infinity():
    model = program("columns")[0]
    outputs = outcome("columns", made("columns"))[0]
    flat = Model(model.encoder, Classifier(5, "cls")).apply(params(model), made("columns"))
    np.testing.assert_allclose(outputs[:, 0], flat[:, :3], atol=1e-6)
    np.testing.assert_allclose(outputs[:, 1, :2], flat[:, 3:], atol=1e-6)
    assert np.all(outputs[:, 1, 2] == -np.inf)


def test_a_span_lies_within_its_own_tokens():
    batch = made("span")
    outputs = outcome("span", batch)[0]
    for example, length in enumerate(batch["length"]):
        assert np.isfinite(outputs[example, :, :length]).all() and np.all(
            outputs[example, :, length:] == -np.inf
        )
