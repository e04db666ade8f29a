"""What config.json of a decoder says is obeyed or refused."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from adapt import tree
from adapt.errors import CheckpointError
from adapt.features import encode
from adapt.models import EncoderConfig
from adapt.models.rotary import Stretch, frequencies
from adapt.pretrained import config_file, hub
from tests.helpers import tiny
from tests.helpers.decoder_files import PROMPT, QUERIES, REFERENCES, embedding_folder

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "vocab_size": 60,
}
YARN = {"rope_type": "yarn", "factor": 4.0}


def read(model_type: str, **entries: Any) -> EncoderConfig:
    return config_file.read_config({"model_type": model_type} | SIZES | entries, "memory")


@pytest.mark.parametrize(
    ("model_type", "entries", "named"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn' .* no 'factor'"),
        ("llama", {"rope_scaling": YARN | {"factor": "4"}}, "rope_type 'yarn' .* '4'"),
        ("llama", {"rope_scaling": YARN | {"mscale": "1"}}, "rope_type 'yarn' .* '1'"),
        ("llama", {"rope_scaling": YARN | {"truncate": False}}, "truncate is false"),
        ("llama", {"rope_scaling": YARN | {"beta_fast": 1}}, "rotary_slow"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        ("qwen2", {"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "no 'factor'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "rotary_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"hidden_act": "gelu_10"}, "activation 'gelu_10'"),
        ("llama", {"num_key_value_heads": 3}, "3 heads of keys"),
        ("llama", {"head_dim": 5}, "odd width"),
        ("llama", {"hidden_size": "16"}, "hidden_size is '16'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("mistral", {"sliding_window": 1}, "sliding_window is 1"),
        ("qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is None"),
        ("mistral", {"is_causal": False}, "is_causal is false"),
        ("gemma3_text", {"is_causal": False}, "is_causal is false"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        (
            "gemma3_text",
            {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "rope_scaling in memory/config.json has type 'linear' and no rope_type",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "rope_type of sliding_attention",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_name(model_type, entries, named):
    with pytest.raises(CheckpointError, match=named):
        read(model_type, **entries)


def test_what_config_json_does_not_say_is_as_in_the_original_library():
    llama = read("llama")
    assert (llama.kv_heads, llama.width_of_head, llama.rotary_base) == (4, 4, 10000.0)
    assert llama.causal and not read("llama", is_causal=False).causal
    mistral = read("mistral", num_attention_heads=8)
    assert mistral.kv_heads == 8 and mistral.window == 4095
    assert mistral.local_layers == (0, 1, 2, 3)
    assert read("qwen3", num_key_value_heads=2).head_width == 128
    assert read("qwen2", num_key_value_heads=2).local_layers == ()
    smollm3 = read("smollm3")
    assert smollm3.unrotated_layers == (3,) and smollm3.rotary_base == 2e6
    gemma = read("gemma3_text", num_hidden_layers=7)
    assert gemma.local_layers == (0, 1, 2, 3, 4, 6) and gemma.window == 4095
    assert (gemma.rotary_base, gemma.local_rotary_base) == (1e6, 1e4)
    assert (gemma.kv_heads, gemma.head_width, gemma.attention_scale) == (4, 256, 1 / 16)


def test_old_and_new_entries_of_rotary_positions_are_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 = {"rope_type": "llama3", "original_max_position_embeddings": 20} | scaling
    new = read("llama", rope_parameters=llama3 | {"rope_theta": 5e5})
    assert new == read("llama", rope_theta=5e5, rope_scaling=llama3)
    assert (new.rotary_base, new.rotary_length, new.rotary_factor) == (5e5, 20, 8.0)
    linear = {"rope_type": "linear", "factor": 8.0}
    both = {
        "sliding_attention": {"rope_theta": 5.0},
        "full_attention": linear | {"rope_theta": 9.0},
    }
    gemma = read("gemma3_text", rope_parameters=both)
    old = {"rope_theta": 9.0, "rope_local_base_freq": 5.0, "rope_scaling": linear}
    assert gemma == read("gemma3_text", **old)


def test_yarn_scales_queries_and_keys_by_the_factor_unless_config_json_says_otherwise():
    """By 0.1 ln(factor) + 1, as transformers 5 does, or by the quotient of two of these (DeepSeek)."""
    config = read("llama", rope_scaling=YARN)
    assert config.rotary_scale == pytest.approx(0.1 * np.log(4) + 1)
    assert (config.rotary_length, config.rotary_slow, config.rotary_fast) == (40, 1.0, 32.0)
    assert read("llama", rope_scaling=YARN | {"factor": 0.5}).rotary_scale == 1
    both = {"mscale": 2.0, "mscale_all_dim": 0.5}
    of_both = (0.2 * np.log(4) + 1) / (0.05 * np.log(4) + 1)
    assert read("llama", rope_scaling=YARN | both).rotary_scale == pytest.approx(of_both)
    assert read("llama", rope_scaling=YARN | {"attention_factor": 0.8}).rotary_scale == 0.8


def test_llama_3_divides_the_angles_that_turn_seldom_and_keeps_those_that_turn_often():
    plain = frequencies(16, 500.0)
    stretched = Stretch(factor=8.0, length=100, slow=1.0, fast=4.0).apply(plain, 500.0)
    turns = 100 * plain / (2 * np.pi)
    often, seldom = turns > 4, turns < 1
    assert often.any() and seldom.any() and not np.all(often | seldom)
    np.testing.assert_array_equal(stretched[often], plain[often])
    np.testing.assert_allclose(stretched[seldom], plain[seldom] / 8, rtol=1e-6)
    between = ~(often | seldom)
    assert np.all(stretched[between] < plain[between])
    assert np.all(stretched[between] > plain[between] / 8)


def test_bfloat16_files_are_read_as_the_float32_numbers_that_they_hold(tmp_path: Path):
    folder = tiny.checkpoint(tmp_path / "half", "qwen3_bare")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(half, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    table = tree.get(hub.load(folder).params, "encoder/embedding/token")
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, half["embed_tokens.weight"].astype(np.float32))


def test_a_folder_laid_out_as_qwen3_embedding_gives_the_vectors_of_sentence_transformers(tmp_path):
    """The last token is the end that its tokenizer.json puts there; queries have a prompt."""
    pretrained = hub.load(embedding_folder(tmp_path / "model"))
    embedding = pretrained.embedding
    assert (embedding.pooling, embedding.normalize) == ("last", True)
    assert embedding.prompts == {"query": PROMPT} and embedding.default_prompt is None
    recorded = np.load(REFERENCES / "qwen3_embedding.npz")
    plain = encode(pretrained, QUERIES)
    np.testing.assert_allclose(plain, recorded["document"], atol=1e-5)
    asked = encode(pretrained, QUERIES, prompt="query")
    np.testing.assert_allclose(asked, recorded["query"], atol=1e-5)
