"""Fresh encoders have the shapes that are asked for; a cut vocabulary spells what it has left out."""

import json

import numpy as np
import pytest

import adapt
from adapt.errors import CheckpointError, StrategyError
from adapt.export.layout import write_config
from adapt.pretrained import hub
from adapt.pretrained.config_file import read_config
from adapt.pretrained.fresh import cut_vocabulary, fresh
from adapt.pretrained.hub import tokenizer_of
from adapt.pretrained.tokenizer import backend_of

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
}
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 12}


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return tokenizer_of(hub.load(inputs.checkpoint("bert_mlm_tied", 1)))


@pytest.mark.parametrize("entries", [BERT, GPT2])
def test_a_fresh_encoder_has_these_shapes_and_another_tokenizer_s_tokens(entries, tokenizer):
    pretrained = fresh(entries, tokenizer)
    config = pretrained.config
    assert (config.layers, config.width, config.vocabulary) == (1, 8, tokenizer.size)
    assert tokenizer_of(pretrained).max_length == 12
    features = adapt.encode(pretrained, ["the film was good", "a dull plot"], pooling="mean")
    assert features.shape == (2, 8) and np.isfinite(features).all()
    other = fresh(entries, tokenizer, seed=1)
    assert adapt.digest(other.params) != adapt.digest(pretrained.params)
    assert adapt.digest(fresh(entries, tokenizer).params) == adapt.digest(pretrained.params)


def test_a_fresh_encoder_of_pictures_has_no_tokenizer(tokenizer):
    entries = {
        "model_type": "vit",
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 7,
        "num_channels": 1,
    }
    pretrained = fresh(entries)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 28, 28), np.uint8)
    features = adapt.encode(pretrained, pictures)
    assert features.shape == (3, 8) and np.isfinite(features).all()
    with pytest.raises(StrategyError, match="leave `tokenizer` out"):
        fresh(entries, tokenizer)
    with pytest.raises(StrategyError, match="give `tokenizer`"):
        fresh(BERT)


def test_an_end_token_that_is_not_known_is_none_in_an_export(tokenizer):
    config = fresh(GPT2, tokenizer).config
    assert config.end_token is None and config.pad_token == 0
    entries = write_config(config)
    assert entries["eos_token_id"] is None and entries["bos_token_id"] is None
    assert read_config({**entries, "model_type": "gpt2"}, "export") == config


def test_entries_that_make_no_encoder_of_texts_are_refused(tokenizer):
    with pytest.raises(CheckpointError, match="model_type"):
        fresh({name: value for name, value in BERT.items() if name != "model_type"}, tokenizer)
    with pytest.raises(CheckpointError, match="hidden_size"):
        fresh({name: value for name, value in BERT.items() if name != "hidden_size"}, tokenizer)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        fresh(BERT | {"vocab_size": tokenizer.size - 5}, tokenizer)


def test_a_cut_vocabulary_keeps_what_is_frequent_and_spells_the_rest(asset):
    asset("tiny-bert")
    whole = tokenizer_of(hub.load("tiny-bert"))
    texts = ["the film was remarkable"] * 3 + ["a terrible plot"] * 2 + ["seldom remarkable"]
    fewest = (
        5 + 2 * 68
    )  # special tokens, and ASCII characters at the beginning and inside of a word
    cut = cut_vocabulary(whole, texts, fewest + 5, words=["terrible"])
    assert cut.size == fewest + 5
    tokens, _ = cut.encode(["a remarkable film, terrible"])
    names = [cut.backend.id_to_token(int(number)) for number in tokens[0]]
    assert names[:4] == ["[CLS]", "a", "remarkable", "film"]
    assert names[-2:] == ["terrible", "[SEP]"]
    spelled, _ = cut.encode(["seldom"])
    assert len(spelled[0]) == 2 + len("seldom")
    assert whole.size == 30522


def test_a_vocabulary_that_can_t_be_cut_is_refused(asset, inputs):
    asset("tiny-bert")
    whole = tokenizer_of(hub.load("tiny-bert"))
    with pytest.raises(StrategyError, match="at least"):
        cut_vocabulary(whole, ["a film"], 20)
    with pytest.raises(StrategyError, match="no such tokens"):
        cut_vocabulary(whole, ["a film"], 1000, words=["unheardofword"])
    of_bytes = tokenizer_of(hub.load(inputs.checkpoint("gpt2_lm_tied", 1)))
    with pytest.raises(StrategyError, match="of the kind BPE"):
        cut_vocabulary(of_bytes, ["a film"], 1000)


def test_a_wordpiece_tokenizer_is_refused_for_what_it_is(tokenizer):
    content = json.loads(tokenizer.backend.to_str())
    processor = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    old = tokenizer.replaced(backend=backend_of(content | {"post_processor": processor}))
    with pytest.raises(StrategyError, match="has the post_processor BertProcessing"):
        cut_vocabulary(old, ["a film"], 1000)
    backend = backend_of(content)
    backend.add_tokens(["beside"])
    with pytest.raises(StrategyError, match=r"added tokens beside its vocabulary \(beside\)"):
        cut_vocabulary(tokenizer.replaced(backend=backend), ["a film"], 1000)
