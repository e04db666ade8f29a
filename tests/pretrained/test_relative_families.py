"""What is particular to T5, MPNet, ALBERT and DeBERTa: what is left out, refused, or read otherwise."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adapt import tree
from adapt.errors import CheckpointError
from adapt.pretrained import hub
from tests.helpers import tiny

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
        ("t5_encoder", "feed_forward_proj", "gated-mish"),
        ("mpnet_bare", "relative_attention_num_buckets", 64),
        ("mpnet_bare", "pad_token_id", 0),
        ("albert_classifier", "num_hidden_groups", 2),
        ("albert_classifier", "inner_group_num", 2),
        ("deberta_v3", "conv_kernel_size", 3),
        ("deberta_v3", "embedding_size", 8),
        ("deberta_v3", "attention_head_size", 2),
        ("deberta_v3", "pos_att_type", "p2p"),
        ("deberta_v3", "pos_att_type", None),
    ],
)
def test_an_entry_that_changes_the_computation_is_refused_by_name(tmp_path, case, entry, value):
    folder = tiny.checkpoint(tmp_path / case, case, **{entry: value})
    named = "mish" if entry == "feed_forward_proj" else entry
    with pytest.raises(CheckpointError, match=named):
        hub.load(folder)


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
