"""ModernBERT, ESM-2, NomicBERT and GTE: what their files say is obeyed or refused."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt.errors import CheckpointError
from adapt.models import Encoder, EncoderConfig, MaskedLM, Model
from adapt.models.rotary import frequencies
from adapt.pretrained import hub
from adapt.pretrained.config_file import read_config
from adapt.pretrained.families import get_family
from tests.helpers.tiny import REFERENCES, checkpoint

MODERNBERT = "modernbert_mlm_tied"


@functools.cache
def content(case: str) -> dict:
    return json.loads((REFERENCES / case / "config.json").read_text())


def config_of(case: str, *left_out: str, **changes) -> EncoderConfig:
    said = content(case) | changes
    return read_config({name: said[name] for name in said if name not in left_out}, "memory")


def test_the_kinds_of_layers_are_read_as_both_versions_of_transformers_write_them():
    assert config_of(MODERNBERT).local_layers == (1, 2)  # of four
    old = config_of("modernbert_mlm_untied_old")  # every second is global
    assert old.local_layers == (1,)
    assert (old.rotary_base, old.local_rotary_base, old.window) == (500.0, 20.0, 2)
    types = ["sliding_attention"] * 3 + ["full_attention"]
    assert config_of(MODERNBERT, layer_types=types).local_layers == (0, 1, 2)
    left_out = ("layer_types", "rope_parameters", "local_attention")
    plain = config_of(MODERNBERT, *left_out)
    assert (plain.local_layers, plain.window) == ((1, 2), 64)
    assert (plain.rotary_base, plain.local_rotary_base) == (160_000.0, 10_000.0)


SCALED = {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4}
REFUSED = {
    "layer types that are too few": (
        MODERNBERT,
        {"layer_types": ["full_attention"]},
        "layer_types",
    ),
    "a layer of another kind": (
        MODERNBERT,
        {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]},
        "chunked_attention",
    ),
    "no global layer": (
        MODERNBERT,
        {"layer_types": None, "global_attn_every_n_layers": 0},
        "global_attn_every_n_layers",
    ),
    "scaled positions of global layers": (
        MODERNBERT,
        {"rope_parameters": {"full_attention": SCALED, "sliding_attention": {}}},
        "'longrope'",
    ),
    "scaled positions of local layers": (
        MODERNBERT,
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "sliding_attention",
    ),
    "one base for two kinds of layers": (
        MODERNBERT,
        {"rope_parameters": {"rope_theta": 1e4}},
        "for all layers",
    ),
    "scaled positions as old files say it": (
        "gte_classifier",
        {"rope_scaling": {"type": "ntk", "factor": 2}},
        "'ntk'",
    ),
    "heads rotated in part": ("nomic_mlm", {"partial_rotary_factor": 0.5}, "partial_rotary"),
    "heads of an odd width": ("nomic_mlm", {"head_dim": 5}, "odd width"),
    "heads of a width that is none": ("nomic_mlm", {"head_dim": "wide"}, "'wide'"),
    "a window that is none": (MODERNBERT, {"local_attention": "wide"}, "local_attention"),
    "half a window that is none": (MODERNBERT, {"sliding_window": "wide"}, "sliding_window"),
    "half a window that is not half": (MODERNBERT, {"sliding_window": 99}, "sliding_window is 99"),
    "scaled positions without rope_type": (
        MODERNBERT,
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "no rope_type",
    ),
    "layers that are none": (
        MODERNBERT,
        {"num_hidden_layers": "four", "layer_types": None},
        "'four'",
    ),
    "positions that are no object": (MODERNBERT, {"rope_parameters": [1]}, "rope_parameters"),
    "the same of GTE": ("gte_classifier", {"rope_scaling": "linear"}, "rope_scaling"),
    "a base below 1": ("esm_mlm_old", {"rope_theta": 0.0}, "rotary_base"),
    "relative positions": (
        "esm_mlm_old",
        {"position_embedding_type": "relative_key"},
        "relative_key",
    ),
    "a decoder": ("esm_mlm_old", {"is_decoder": True}, "is_decoder"),
    "cross attention": ("esm_mlm_old", {"add_cross_attention": True}, "add_cross_attention"),
    "a folding model": ("esm_mlm_old", {"is_folding_model": True}, "is_folding_model"),
    "masks without an id": ("esm_mlm_old", {"mask_token_id": None}, "mask_token_id"),
    "an activation that ESM does not read": ("esm_mlm_old", {"hidden_act": "relu"}, "hidden_act"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name):
    case, changes, named = REFUSED[name]
    with pytest.raises(CheckpointError, match=named):
        config_of(case, **changes)


def test_a_window_is_read_under_both_of_its_names():
    config = config_of(MODERNBERT)
    assert config_of(MODERNBERT, sliding_window=config.window) == config
    hf = json.loads((REFERENCES / MODERNBERT / "config.json").read_text("utf-8"))
    del hf["local_attention"]
    assert read_config(hf, "memory").window == 64
    assert read_config(hf | {"sliding_window": 3}, "memory").window == 3


def test_frequencies_of_a_file_are_used_as_it_has_them():
    """Rounded to float16, as those of facebook's files may be; and no others."""
    loaded = hub.load(REFERENCES / "esm_mlm_old")
    assert loaded.config.rotary_dtype == "float16"
    settle = get_family("esm").settle
    config = config_of("esm_mlm_old")
    name = "rotary_embeddings.inv_freq"
    exact = frequencies(config.width_of_head, config.rotary_base)
    assert settle(config, {name: exact}).rotary_dtype == "float32"
    assert settle(config, {}).rotary_dtype == "float32"
    for other in (2 * exact, exact[:1]):
        with pytest.raises(CheckpointError, match="rope_theta"):
            settle(config, {name: other})


def test_what_config_json_says_of_the_head_counts(tmp_path: Path):
    """A bias that it denies is left out and said, and an activation that is not known is no head."""
    denied = hub.load(checkpoint(tmp_path / "denied", MODERNBERT, decoder_bias=False))
    assert isinstance(denied.head, MaskedLM)
    assert "bias" not in denied.params["head"].get("decoder", {})
    assert set(denied.unread["unknown head"]) == {"decoder.bias"}
    unknown = hub.load(checkpoint(tmp_path / "other", MODERNBERT, classifier_activation="maxout"))
    assert not isinstance(unknown.head, MaskedLM)
    assert "head.dense.weight" in unknown.unread["unknown head"]


def test_what_of_esm_is_of_no_use_is_left_out_and_said():
    unread = hub.load(REFERENCES / "esm_mlm_old").unread
    assert set(unread) == {"contact head", "positions of no effect"}


def test_a_protein_is_tokens_of_residues(tmp_path: Path):
    """As transformers' EsmTokenizer makes them, unknown letters and special tokens too."""
    tokenizer = hub.load(REFERENCES / "esm_classifier").tokenizer
    assert tokenizer is not None and tokenizer.max_length == 20
    recorded = json.loads((REFERENCES / "esm_classifier" / "residues.json").read_text())
    encoded, _ = tokenizer.encode(list(recorded))
    for index, ids in enumerate(recorded.values()):
        assert encoded[index].tolist() == ids
    # Without tokenizer_config.json the family says what vocab.txt is.
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / name).write_bytes((REFERENCES / "esm_classifier" / name).read_bytes())
    of_family = hub.load(tmp_path).tokenizer
    assert of_family is not None
    bare, _ = of_family.encode(list(recorded))
    np.testing.assert_array_equal(bare.values, encoded.values)


@pytest.mark.parametrize("family", ["modernbert", "esm", "nomic_bert", "gte"])
def test_a_fresh_language_model_is_that_of_the_family(family):
    """Its leaves are those of a file's head, so that it exports."""
    case = {
        "modernbert": MODERNBERT,
        "esm": "esm_mlm_old",
        "nomic_bert": "nomic_mlm",
        "gte": "gte_mlm_untied",
    }[family]
    loaded = hub.load(REFERENCES / case)
    assert isinstance(loaded.head, MaskedLM)
    fresh = get_family(family).language_model(loaded.config, loaded.head.tied)
    shapes = Model(Encoder(loaded.config), fresh).shapes()["head"]
    theirs = jax.tree.map(np.shape, loaded.params["head"])
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == theirs
