"""Masked-LM and causal-LM targets of packed batches: which tokens, and that nothing is lost."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from adapt import tree
from adapt.data import masking, packing
from adapt.data.examples import from_sequences
from adapt.pretrained import hub
from adapt.ragged import ragged
from adapt.training import losses, optim
from adapt.training.step import init_state, make_step
from tests.helpers import tiny


@pytest.fixture(scope="module")
def bert(inputs):
    return hub.load(inputs.checkpoint("bert_mlm_tied"))


def packed(lengths: list[int]) -> packing.Arrays:
    """Sentences of these numbers of words, between [CLS] and [SEP], as one packed batch."""
    rng = np.random.default_rng(0)
    tokens = ragged([[2, *rng.integers(5, 25, length), 3] for length in lengths])
    shapes = packing.batch_shapes(tokens.lengths, len(tokens), 0, 1)
    return next(from_sequences(tokens).batches(shapes, 0, 0))


@given(
    some.lists(some.integers(1, 18), min_size=1, max_size=12),
    some.integers(0, 2**31),
    some.floats(0.01, 0.9),
)
def test_masked_targets_are_tokens_of_words_and_all_others_stay(bert, lengths, seed, rate):
    batch = packed(lengths)
    corrupted = masking.masked_lm(bert, rate)(batch, np.random.default_rng(seed))
    before = batch["tokens"].reshape(-1)
    after = corrupted["tokens"].reshape(-1)
    capacity = max(round(rate * before.size), 1)
    for name in ("targets", "label", "weight"):
        assert corrupted[name].shape == (capacity,)

    count = min(max(round(rate * sum(lengths)), 1), capacity)
    chosen = corrupted["targets"][:count]
    assert corrupted["weight"].tolist() == [1.0] * count + [0.0] * (capacity - count)
    assert len(set(chosen)) == count
    np.testing.assert_array_equal(corrupted["label"][:count], before[chosen])
    assert (before[chosen] >= 5).all()  # neither [CLS] nor [SEP]
    is_padding = batch["segments"].reshape(-1) == len(batch["first"])
    assert not is_padding[chosen].any()
    is_other = np.ones(before.size, bool)
    is_other[chosen] = False
    np.testing.assert_array_equal(before[is_other], after[is_other])


def test_causal_targets_are_the_next_tokens():
    lengths = [3, 7, 1]
    batch = packed(lengths)
    out = masking.causal_lm(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(out["tokens"], batch["tokens"])
    count = int(out["weight"].sum())
    assert count == sum(length + 2 - 1 for length in lengths)  # with [CLS] and [SEP]
    chosen = out["targets"][:count]
    tokens = batch["tokens"].reshape(-1)
    segments = batch["segments"].reshape(-1)
    np.testing.assert_array_equal(out["label"][:count], tokens[chosen + 1])
    np.testing.assert_array_equal(segments[chosen], segments[chosen + 1])


def test_only_masked_positions_go_through_the_vocabulary_product(bert):
    corrupt = masking.masked_lm(bert, 0.15)
    batch = corrupt(packed([9, 4, 12, 7, 16, 3]), np.random.default_rng(0))
    num_tokens = batch["tokens"].size
    num_targets = len(batch["targets"])
    assert (num_tokens, num_targets) == (64, 10)
    labels = tree.label(bert.params, [(".*", "all")])
    tx = optim.by_label({"all": optim.adamw(1e-3)}, labels)
    frozen, state = init_state(bert.params, labels, tx, jax.random.key(0))
    step = make_step(bert.model, losses.cross_entropy, tx)
    program = step.suffix.lower(frozen, state, batch).as_text()
    assert f"tensor<{num_targets}x{bert.config.vocabulary}xf32>" in program
    assert f"tensor<{num_tokens}x{bert.config.vocabulary}xf32>" not in program


def test_long_lines_become_several_examples_and_nothing_is_lost(bert):
    words = np.random.default_rng(0).choice(tiny.PLAIN, 50).tolist()
    *pieces, last = masking.split_into_pieces(bert.tokenizer.cut_to(12), [" ".join(words), "good"])
    tokens = []
    for piece in pieces:
        assert len(piece) <= 12
        assert (piece[0], piece[-1]) == (2, 3)
        tokens += piece[1:-1]
    token_id = bert.tokenizer.backend.token_to_id
    assert tokens == [token_id(word) for word in words]
    assert last == [2, token_id("good"), 3]
