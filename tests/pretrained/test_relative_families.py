"""What is particular to T5, MPNet, ALBERT and DeBERTa: what is left out, refused, or read otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adapt import tree
from adapt.errors import CheckpointError
from adapt.pretrained import hub
from adapt.pretrained.config_file import read_config
from tests.helpers import tiny

NORM = ("weight", "bias")
REFERENCES = Path(__file__).parents[1] / "references"


def test_the_decoder_of_t5_is_left_out_and_said():
    loaded = hub.load(REFERENCES / "t5_generation")
    assert list(loaded.unread) == ["decoder"]
    left = loaded.unread["decoder"]
    assert left["decoder.block.0.layer.1.EncDecAttention.q.weight"] == (18, 16)
    assert not loaded.params["head"]


@pytest.mark.parametrize(
    ("case", "entry", "value"),
    [
        ("t5_encoder", "is_decoder", True),
        ("t5_encoder", "dense_act_fn", "mish"),
        ("mpnet_bare", "relative_attention_num_buckets", 64),
        ("mpnet_bare", "pad_token_id", 0),
        ("albert_classifier", "num_hidden_groups", 2),
        ("albert_classifier", "inner_group_num", 2),
        ("deberta_v3", "conv_kernel_size", 4),
        ("deberta_v2_convolution", "conv_act", "mish"),
        ("deberta_v2_convolution", "conv_groups", 2),
        ("deberta_v3", "embedding_size", 8),
        ("deberta_v3", "attention_head_size", 2),
        ("deberta_v3", "pos_att_type", "p2p"),
        ("deberta_v3", "pos_att_type", None),
    ],
)
def test_an_entry_that_changes_the_computation_is_refused_by_name(tmp_path, case, entry, value):
    folder = tiny.checkpoint(tmp_path / case, case, **{entry: value})
    named = "mish" if entry == "dense_act_fn" else entry
    with pytest.raises(CheckpointError, match=named) as error:
        hub.load(folder)
    assert f" in {folder}/config.json" in str(error.value)


@pytest.mark.parametrize(
    ("entries", "activation", "is_gated"),
    [
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gelu", "dense_act_fn": "silu"}, "silu", False),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "relu", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu", True),
        ({"feed_forward_proj": "gated-relu", "is_gated_act": False}, "relu", False),
    ],
)
@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
def test_two_entries_of_t5_are_taken_over_a_third(model_type, entries, activation, is_gated):
    hf = json.loads((REFERENCES / "t5_encoder/config.json").read_text("utf-8"))
    for entry in ("feed_forward_proj", "dense_act_fn", "is_gated_act"):
        hf.pop(entry, None)
    config = read_config(hf | entries | {"model_type": model_type}, "memory")
    assert (config.activation, config.gated_mlp) == (activation, is_gated)
    with pytest.raises(CheckpointError, match=r"'mish' in memory/config\.json"):
        read_config(hf | {"feed_forward_proj": "gated-mish"}, "memory")


def test_deberta_without_relative_positions_has_no_use_for_their_norm(tmp_path):
    case = "deberta_v2_mlm"
    changes = {"relative_attention": False, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    folder = tiny.checkpoint(tmp_path / case, case, **changes)
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in safetensors.numpy.load_file(file).items():
        if ".pos_" not in name and "rel_embeddings" not in name:
            tensors[name] = tensor
    norm = {f"deberta.encoder.LayerNorm.{name}": np.ones(16, np.float32) for name in NORM}
    safetensors.numpy.save_file(tensors | norm, file)
    loaded = hub.load(folder)
    assert "relative" not in loaded.params["encoder"] and loaded.params["head"]
    assert loaded.unread["norm of relative positions of no effect"].keys() == norm.keys()


def test_the_new_names_of_debertas_masked_lm_head_are_read(tmp_path):
    case = "deberta_v2_mlm"
    folder = tiny.checkpoint(tmp_path / case, case, legacy=False)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    for old, new in (
        ("cls.predictions.transform.", "lm_predictions.lm_head."),
        ("cls.predictions.", "lm_predictions.lm_head."),
    ):
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, file)
    loaded = hub.load(folder)
    assert tree.digest(loaded.params) == tree.digest(hub.load(REFERENCES / case).params)

    # Beside a head for replaced tokens it is another encoder's.
    replaced = {"mask_predictions.dense.weight": np.zeros((16, 16), np.float32)}
    safetensors.numpy.save_file(tensors | replaced, file)
    loaded = hub.load(folder)
    assert not loaded.params["head"]
    assert sorted(loaded.unread) == ["masked-LM head of the generator", "replaced-token head"]
