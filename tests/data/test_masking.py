"""Masked-LM and causal-LM targets of packed batches: which tokens, by what, and that nothing is lost."""

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


def packed(lengths, seed=0):
    """Sentences of given numbers of words, as one packed batch."""
    rng = np.random.default_rng(seed)
    tokens = ragged([[2, *rng.integers(5, 25, length), 3] for length in lengths])
    shapes = packing.batch_shapes(tokens.lengths, len(tokens), 0, 1)
    return next(from_sequences(tokens).batches(shapes, 0, 0)), tokens


@given(
    some.lists(some.integers(1, 18), min_size=1, max_size=12),
    some.integers(0, 2**31),
    some.floats(0.01, 0.9),
)
def test_masked_targets(bert, lengths, seed, rate):
    batch, _ = packed(lengths)
    out = masking.masked_lm(bert, rate)(batch, np.random.default_rng(seed))
    count = int(out["weight"].sum())
    chosen, slots = out["targets"][:count], len(batch["first"])
    before, after = batch["tokens"].reshape(-1), out["tokens"].reshape(-1)
    assert (
        len(out["targets"])
        == len(out["label"])
        == len(out["weight"])
        == max(round(rate * before.size), 1)
    )
    assert count == min(max(round(rate * sum(lengths)), 1), len(out["targets"]))
    assert set(out["weight"][:count]) == {1.0} and not out["weight"][count:].any()
    assert len(set(chosen)) == count
    np.testing.assert_array_equal(out["label"][:count], before[chosen])
    assert (before[chosen] >= 5).all()  # neither [CLS] nor [SEP], nor padding
    assert (batch["segments"].reshape(-1)[chosen] < slots).all()
    elsewhere = np.ones(before.size, bool)
    elsewhere[chosen] = False
    np.testing.assert_array_equal(before[elsewhere], after[elsewhere])


def test_causal_targets_are_the_next_tokens():
    batch, tokens = packed([3, 7, 1])
    out = masking.causal_lm(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(out["tokens"], batch["tokens"])
    count = int(out["weight"].sum())
    assert count == sum(len(tokens[i]) - 1 for i in range(len(tokens)))
    flat, owner = batch["tokens"].reshape(-1), batch["segments"].reshape(-1)
    for place, label in zip(out["targets"][:count], out["label"][:count], strict=True):
        assert label == flat[place + 1] and owner[place] == owner[place + 1]


def test_only_masked_positions_go_through_the_vocabulary_product(bert):
    batch = masking.masked_lm(bert, 0.15)(packed([9, 4, 12, 7, 16, 3])[0], np.random.default_rng(0))
    rows, targets = batch["tokens"].size, len(batch["targets"])
    assert (rows, targets) == (64, 10)
    labels = tree.label(bert.params, [(".*", "all")])
    tx = optim.by_label({"all": optim.adamw(1e-3)}, labels)
    frozen, state = init_state(bert.params, labels, tx, jax.random.key(0))
    program = (
        make_step(bert.model, losses.cross_entropy, tx).suffix.lower(frozen, state, batch).as_text()
    )
    assert f"tensor<{targets}x{bert.config.vocabulary}xf32>" in program
    assert f"tensor<{rows}x{bert.config.vocabulary}xf32>" not in program


def test_long_lines_become_several_examples_and_nothing_is_lost(bert):
    words = " ".join(str(word) for word in np.random.default_rng(0).choice(tiny.PLAIN, 50))
    pieces = masking.split_into_pieces(bert.tokenizer.cut_to(12), [words, "good"])
    assert max(map(len, pieces)) <= 12 and all(piece[0] == 2 and piece[-1] == 3 for piece in pieces)
    whole = [bert.tokenizer.backend.token_to_id(word) for word in words.split()]
    assert [token for piece in pieces[:-1] for token in piece[1:-1]] == whole
