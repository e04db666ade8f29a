"""Every head: an output depends on its own example alone, and all weights of the head learn."""

import functools
from typing import NamedTuple

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

# name: (head, task)
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
SEQUENCES = 6


def labels_of(task: str, lengths: np.ndarray) -> np.ndarray | Ragged:
    """Labels of six sequences. Choices have three of them and pairs two, so there are fewer."""
    rng = np.random.default_rng(1)
    if task == "tags":
        return word_labels(lengths)
    classes = rng.integers(0, 3, SEQUENCES)
    labels = {
        "classification": classes,
        "multitask": np.stack([classes, rng.integers(0, 2, SEQUENCES)], 1),
        "span": np.stack([lengths * 0, lengths - 1], 1),
        "choice": np.array([2, 0]),
        "contrastive": np.ones(3),
        "setfit": np.array([1, 0, 1]),
    }
    return labels[task].astype(np.int32)


def word_labels(lengths: np.ndarray) -> Ragged:
    """(position, class) of words that begin at every second token."""
    labels = []
    for length in lengths:
        positions = np.arange(0, length, 2)
        labels.append(np.stack([positions, positions % 4], 1))
    counts = np.array([len(words) for words in labels])
    return Ragged(np.concatenate(labels).astype(np.int32), np.cumsum(counts) - counts, counts)


def labelled(name: str, packed: bool = True, slots: int = SEQUENCES) -> packing.Arrays:
    """A batch of six sequences with labels, packed or one a row."""
    tokens = texts(SEQUENCES, longest=12)
    index = np.arange(SEQUENCES)
    if packed:
        rows, starts, _ = packing.pack(tokens.lengths, SHAPE[1])
        shape = (SHAPE[0], SHAPE[1], slots)
    else:
        rows, starts = index, np.zeros_like(index)
        shape = (SEQUENCES, SHAPE[1], slots)
    inputs = packing.assemble(tokens, index, rows, starts, shape)
    _, task = HEADS[name]
    labels = labels_of(task, tokens.lengths)
    if isinstance(labels, Ragged):
        return inputs | packing.pad_word_labels(labels, inputs)
    return inputs | packing.pad_labels(labels, slots * len(labels) // SEQUENCES)


class Outcome(NamedTuple):
    outputs: np.ndarray
    loss: float  # the weighted sum
    gradient: dict[str, np.ndarray]  # of the loss, in the head's parameters


def model_of(name: str) -> Model:
    head, _ = HEADS[name]
    return Model(Encoder(CONFIGS["bert"]), head)


@functools.cache
def program(name: str):
    _, task = HEADS[name]
    model = model_of(name)

    def total(head, tree, batch):
        outputs = model.apply(tree | {"head": head}, batch)
        losses = TASKS[task].loss(outputs, batch["label"])
        return (losses * batch["weight"]).sum(), outputs

    value_and_grad = jax.value_and_grad(total, has_aux=True)
    return jax.jit(lambda tree, batch: value_and_grad(tree["head"], tree, batch))


def outcome(name: str, batch: packing.Arrays) -> Outcome:
    (loss, outputs), gradient = program(name)(params(model_of(name)), batch)
    return Outcome(np.asarray(outputs), float(loss), paths(jax.device_get(gradient)))


@pytest.mark.parametrize("name", HEADS)
def test_packed_examples_and_one_a_row_are_the_same(name):
    packed = outcome(name, labelled(name))
    one_a_row = outcome(name, labelled(name, packed=False))
    count = len(packed.outputs)
    if name == "tags":  # outputs beyond the words belong to none
        count = int(labelled(name)["weight"].sum())
    np.testing.assert_allclose(packed.outputs[:count], one_a_row.outputs[:count], atol=2e-6)
    assert packed.loss == pytest.approx(one_a_row.loss, rel=1e-5)
    for path, leaf in packed.gradient.items():
        np.testing.assert_allclose(leaf, one_a_row.gradient[path], atol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_of_a_head_gets_a_gradient(name):
    gradient = outcome(name, labelled(name)).gradient
    assert set(gradient) == set(paths(params(model_of(name))["head"]))
    for path, leaf in gradient.items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, path


@pytest.mark.parametrize("name", HEADS)
def test_empty_slots_count_nothing(name):
    full = outcome(name, labelled(name))
    half_empty = outcome(name, labelled(name, slots=2 * SEQUENCES))
    assert np.isfinite(full.loss)
    assert full.loss == pytest.approx(half_empty.loss, rel=1e-6)
    for path, leaf in full.gradient.items():
        np.testing.assert_allclose(leaf, half_empty.gradient[path], atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_an_output_depends_on_its_own_sequence_alone(name):
    batch = labelled(name)
    before = outcome(name, batch).outputs
    for sequence in (0, 3, 5):
        is_own = batch["segments"] == sequence
        tokens = np.where(is_own, batch["tokens"], 39 - batch["tokens"] % 39).astype(np.int32)
        after = outcome(name, batch | {"tokens": tokens}).outputs
        slots = [sequence]
        if name == "tags":
            is_own_word = is_own.reshape(-1)[batch["targets"]]
            slots = np.flatnonzero(is_own_word & (batch["weight"] > 0))
        np.testing.assert_array_equal(after[slots], before[slots])
        assert not np.array_equal(after, before)


# Attention pooling


@settings(max_examples=10)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(0, 99))
def test_attention_pooling_is_a_softmax_over_the_tokens_of_one_example(lengths, seed):
    rng = np.random.default_rng(seed)
    tokens = ragged([np.ones(length, int) for length in lengths])
    rows, starts, _ = packing.pack(tokens.lengths, 16)
    batch = packing.assemble(tokens, np.arange(len(lengths)), rows, starts, (3, 16, 6))
    x = 3 * rng.standard_normal((48, 4)).astype(np.float32)
    query = 3 * rng.standard_normal(4).astype(np.float32)
    pooled = np.asarray(attention_pooling(jnp.asarray(x), batch, jnp.asarray(query)))
    for example in range(6):
        own = x[batch["segments"].reshape(-1) == example].astype(np.float64)
        expected = np.zeros(4)
        if len(own):
            weights = np.exp(own @ query / 2)
            expected = weights @ own / weights.sum()
        np.testing.assert_allclose(pooled[example], expected, atol=1e-5)


def test_attention_pooling_begins_as_the_mean():
    packed = batch(examples=5)
    x = 100 * jax.random.normal(jax.random.key(0), (packed["segments"].size, 16))
    pooled = attention_pooling(x, packed, jnp.zeros(16))
    np.testing.assert_allclose(pooled, mean(x, packed), rtol=1e-5, atol=1e-4)


def test_attention_pooling_does_not_overflow_at_large_scores():
    packed = batch(examples=5)
    x = 100 * jax.random.normal(jax.random.key(0), (packed["segments"].size, 16))
    loss = lambda query: jnp.square(attention_pooling(x, packed, query)).sum()
    assert np.isfinite(jax.grad(loss)(100 * jnp.ones(16))).all()


# Layers


def pooled_states(model: Model) -> list[np.ndarray]:
    """The means of what every stage puts out."""
    states = model.hidden_states(params(model), batch())
    return [np.asarray(mean(x.reshape(-1, 16), batch())) for x in states]


def logits_of(features: np.ndarray, head) -> np.ndarray:
    return features @ head["classifier"]["kernel"] + head["classifier"]["bias"]


def test_several_layers_come_side_by_side():
    model = Model(Encoder(CONFIGS["bert"]), Classifier(3, "mean", layers=(0, 2)))
    states = pooled_states(model)
    expected = logits_of(np.concatenate([states[0], states[2]], 1), params(model)["head"])
    np.testing.assert_allclose(model.apply(params(model), batch()), expected, atol=1e-5)


def test_a_learned_mix_weights_layers_by_a_softmax():
    model = Model(Encoder(CONFIGS["bert"]), Classifier(3, "mean", layers=(0, 2), mix="learned"))
    states = pooled_states(model)
    head = params(model)["head"]
    shares = np.exp(head["mix"]) / np.exp(head["mix"]).sum()
    features = head["scale"] * (shares[0] * states[0] + shares[1] * states[2])
    expected = logits_of(features, head)
    np.testing.assert_allclose(model.apply(params(model), batch()), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_several_layers_can_be_cut_up_to_the_lowest_or_after_all(family):
    head = Classifier(3, "mean", layers=(1, 2), mix="learned")
    model = Model(Encoder(CONFIGS[family]), head)
    tree = params(model)
    uncut = model.apply(tree, batch(family))
    for depth in (1, 2, 3):
        np.testing.assert_allclose(model.apply(tree, batch(family), depth=depth), uncut, atol=1e-6)
    # Pooled: the cache keeps a vector a layer.
    assert model.prefix(tree, batch(family), 3).shape == (8, 2 * 16)


def test_a_cut_above_the_lowest_layer_that_is_read_is_refused():
    model = Model(Encoder(CONFIGS["bert"]), Classifier(3, "mean", layers=(0, 2)))
    with pytest.raises(StrategyError, match="reads layers 0, 2 and 2 of 3 stages are frozen"):
        frozen_prefix.cut_at(model, 2)


def test_a_head_that_reads_the_last_layer_is_the_plain_head():
    plain = Model(Encoder(CONFIGS["bert"]), Classifier(3, "cls"))
    named = Model(Encoder(CONFIGS["bert"]), Classifier(3, "cls", layers=(2,)))
    tree = params(plain)
    np.testing.assert_array_equal(plain.apply(tree, batch()), named.apply(tree, batch()))


# Columns and spans


def test_columns_share_one_dense_layer_and_a_short_one_ends_in_minus_infinity():
    model = model_of("columns")
    outputs = outcome("columns", labelled("columns")).outputs
    flat = Model(model.encoder, Classifier(5, "cls")).apply(params(model), labelled("columns"))
    np.testing.assert_allclose(outputs[:, 0], flat[:, :3], atol=1e-6)
    np.testing.assert_allclose(outputs[:, 1, :2], flat[:, 3:], atol=1e-6)
    assert np.all(outputs[:, 1, 2] == -np.inf)


def test_a_span_lies_within_its_own_tokens():
    batch = labelled("span")
    outputs = outcome("span", batch).outputs
    for example, length in enumerate(batch["length"]):
        assert np.isfinite(outputs[example, :, :length]).all()
        assert np.all(outputs[example, :, length:] == -np.inf)
