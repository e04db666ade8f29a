"""CLIP's tower of texts: its vectors, in an export too, and out of a folder of both towers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

import adapt
from adapt import tree
from adapt.errors import CheckpointError, StrategyError
from adapt.export.exporting import export
from adapt.models import Classifier
from adapt.pretrained import hub
from tests.helpers import tiny

TEXTS = ["w1 w2 w3", "w4", " ".join(["w5"] * 40)]  # the last one is longer than 16 tokens
ENDS = [("<|startoftext|>", 18), ("<|endoftext|>", 19)]


def texts_tower(folder: Path, case: str) -> Path:
    """A recorded tower of texts with a tokenizer that ends each of them."""
    shutil.copytree(tiny.REFERENCES / case, folder)
    words = ["<unk>", *(f"w{number}" for number in range(1, 18)), *(token for token, _ in ENDS)]
    ids = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([token for token, _ in ENDS])
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        pair="<|startoftext|> $A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=ENDS,
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_projection_is_exported_with_its_tower_and_makes_the_same_vectors(tmp_path):
    loaded = hub.load(texts_tower(tmp_path / "clip", "clip_text_projection"))
    assert export(loaded, tmp_path / "out") == "transformers"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModelWithProjection"]
    assert config["projection_dim"] == 12 and config["eos_token_id"] == 19
    again = hub.load(tmp_path / "out")
    assert again.head == loaded.head
    assert tree.digest(again.params) == tree.digest(loaded.params)
    vectors = adapt.encode(loaded, TEXTS, pooling="projection")
    assert vectors.shape == (3, 12)
    np.testing.assert_array_equal(adapt.encode(again, TEXTS, pooling="projection"), vectors)
    kernel = loaded.params["head"]["projection"]["kernel"]
    ends = adapt.encode(loaded, TEXTS, pooling="last")
    np.testing.assert_allclose(ends @ np.asarray(kernel), vectors, atol=1e-5)


def test_a_tower_without_a_projection_exports_to_sentence_transformers(tmp_path):
    loaded = hub.load(texts_tower(tmp_path / "clip", "clip_text_bare"))
    assert export(loaded, tmp_path / "out") == "sentence-transformers"
    with pytest.raises(StrategyError, match="unknown pooling 'projection'"):
        adapt.encode(loaded, TEXTS, pooling="projection")


@pytest.mark.parametrize("case", ["clip_text_projection", "clip_text_bare"])
def test_a_tokenizer_that_does_not_end_texts_is_refused(tmp_path, case):
    folder = texts_tower(tmp_path / "clip", case)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(CheckpointError, match="puts no end token after a text"):
        hub.load(folder)


@pytest.mark.parametrize("case", ["clip_text_projection", "clip_text_bare"])
@pytest.mark.parametrize("long", ["head", "head+tail"])
def test_a_text_that_spells_the_end_token_is_read_as_far_as_there(tmp_path, case, long):
    loaded = hub.load(texts_tower(tmp_path / "clip", case))
    texts = ["w1 <|endoftext|> w2", "w3 w4", "<|endoftext|>" + " w5" * 40]
    until_end = ["w1", "w3 w4", ""]
    vectors = adapt.encode(loaded, texts, long=long)
    np.testing.assert_array_equal(vectors, adapt.encode(loaded, until_end))
    tokenizer = hub.tokenizer_of(loaded)
    tokens = tokenizer.tokenize(texts)
    assert [list(one.ids) for one in tokens] == [list(ids) for ids in tokenizer.encode(texts)[0]]
    assert tokens[0].strings == ["<|startoftext|>", "w1", "<|endoftext|>"]


def test_both_texts_of_a_pair_are_read_beyond_the_end_of_the_first(tmp_path):
    tokenizer = hub.tokenizer_of(hub.load(texts_tower(tmp_path / "clip", "clip_text_bare")))
    pairs, _ = tokenizer.encode([("w1", "w2 <|endoftext|> w3")])
    assert 3 in pairs[0] and len(tokenizer.tokenize([("w1", "w2")])[0]) == 5


def test_the_texts_of_both_towers_are_read_where_config_json_says_so(tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(tiny.REFERENCES / "clip_towers", folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "clip_text_model"
    (folder / "config.json").write_text(json.dumps(config))
    loaded = hub.load(folder)
    assert not loaded.config.is_image and loaded.config.positions == 8
    assert loaded.head == Classifier(0, "projection", projection=6, projected="last")
    assert set(loaded.unread) == {"tower of images", "projection of images", "temperature"}
