"""Hidden states and attention maps of a text are its own, without padding, whatever its neighbours."""

import dataclasses

import jax
import numpy as np
import pytest

import adapt
from adapt.data import packing
from adapt.errors import DataError, StrategyError
from adapt.models import Encoder, Model, peft
from adapt.pretrained import hub
from tests.helpers import tiny

TEXTS = [text for text, _ in tiny.sentences(23, seed=3)]
PAIRS = list(zip(TEXTS[:5], TEXTS[5:10], strict=True))


@pytest.fixture(scope="module", params=["bert_bare_pooler", "gpt2_bare"])
def pretrained(request, inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint(request.param))


@pytest.fixture(scope="module")
def bert(inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint("bert_bare_pooler"))


def alone(pretrained, text) -> packing.Arrays:
    """A batch of one text, without padding."""
    tokens, _ = pretrained.tokenizer.encode([text])
    row = np.zeros(1, int)
    return packing.assemble(tokens, row, row, row, (1, int(tokens.lengths[0]), 1))


def test_states_and_maps_of_many_texts_are_those_of_each_alone(pretrained):
    states = adapt.hidden_states(pretrained, TEXTS)
    maps = adapt.attention_maps(pretrained, TEXTS)
    tokens = pretrained.tokenizer.tokenize(TEXTS)
    config = pretrained.config
    states_of = jax.jit(pretrained.model.hidden_states)
    maps_of = jax.jit(pretrained.model.attention_maps)
    for row in (0, 7, 22):
        count = len(tokens[row])
        assert states[row].shape == (config.layers + 1, count, config.width)
        assert maps[row].shape == (config.layers, config.heads, count, count)
        batch = alone(pretrained, TEXTS[row])
        expected = states_of(pretrained.params, batch)
        np.testing.assert_allclose(states[row], np.concatenate(expected), atol=1e-5)
        expected = maps_of(pretrained.params, batch)
        np.testing.assert_allclose(maps[row], np.concatenate(expected), atol=1e-6)
    assert len(states) == len(maps) == len(TEXTS)


def test_the_mean_of_the_last_states_is_what_encode_gives(pretrained):
    states = adapt.hidden_states(pretrained, TEXTS)
    means = [of_text[-1].mean(0) for of_text in states]
    np.testing.assert_allclose(means, adapt.encode(pretrained, TEXTS), atol=1e-5)


def test_pairs_are_one_example_each(bert):
    tokens = bert.tokenizer.tokenize(PAIRS)
    states = adapt.hidden_states(bert, PAIRS)
    assert [of_pair.shape[1] for of_pair in states] == [len(of_pair) for of_pair in tokens]
    # The second text is another one where its type is another.
    assert not np.allclose(states[0][0][1], adapt.hidden_states(bert, [PAIRS[0][::-1]])[0][0][1])


def test_trained_prefixes_come_first_in_a_map(bert):
    config = peft.with_peft(bert.config, {"prefix_tokens": 3})
    model = Model(Encoder(config), bert.head)
    params = peft.init_peft(bert.params, model, jax.random.key(0))
    changed = dataclasses.replace(bert, config=config, params=params)
    (weights,) = adapt.attention_maps(changed, TEXTS[:1])
    tokens = len(bert.tokenizer.tokenize(TEXTS[:1])[0])
    assert weights.shape == (config.layers, config.heads, tokens, 3 + tokens)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_no_text_is_no_state(bert):
    assert adapt.hidden_states(bert, []) == [] == adapt.attention_maps(bert, [])


def test_long_texts_are_cut_and_a_warning_says_so(bert, caplog):
    (states,) = adapt.hidden_states(bert, [" ".join(["film"] * 60)])
    assert states.shape[1] == bert.tokenizer.max_length
    assert "truncated" in caplog.text


@pytest.mark.parametrize("function", [adapt.hidden_states, adapt.attention_maps])
def test_mistakes_name_the_parameter(function, bert, inputs):
    for wrong in ("a film", 3, ["a film", None], {"text": TEXTS}):
        with pytest.raises(DataError, match="texts"):
            function(bert, wrong)
    with pytest.raises(StrategyError, match="tokenizer"):
        function(inputs.checkpoint("vit_classifier"), TEXTS)
