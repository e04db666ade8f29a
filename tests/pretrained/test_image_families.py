"""What image families refuse of config.json, and what a new head pools by."""

import json

import pytest

from adapt.errors import CheckpointError, StrategyError
from adapt.models import Classifier
from adapt.options import TaskOptions
from adapt.pretrained import config_file, hub
from adapt.tasks.base import check_pooling, classifier
from tests.helpers import tiny


@pytest.mark.parametrize(
    ("case", "entries", "named"),
    [
        ("vit_classifier", {"pooler_act": "relu"}, "pooler_act"),
        ("vit_classifier", {"image_size": [32, 24]}, "square"),
        ("deit_classifier", {"patch_size": 5}, "square"),
        ("dinov2_bare", {"mlp_ratio": "four"}, "mlp_ratio"),
        ("dinov2_registers", {"num_register_tokens": -1}, "registers"),
        ("dinov3", {"num_attention_heads": 8}, "multiple of 4"),
        ("beit_classifier", {"use_shared_relative_position_bias": True}, "both"),
    ],
)
def test_entries_that_would_change_the_outputs_are_refused_by_name(case, entries, named):
    hf = json.loads((tiny.REFERENCES / case / "config.json").read_text())
    config_file.read_config(hf, "here")
    with pytest.raises(CheckpointError, match=named):
        config_file.read_config(hf | entries, "here")


def test_two_equal_sides_are_one_number():
    hf = json.loads((tiny.REFERENCES / "dinov2_bare" / "config.json").read_text())
    one = config_file.read_config(hf, "here")
    assert (
        config_file.read_config(hf | {"image_size": [12, 12], "patch_size": [4, 4]}, "here") == one
    )


def test_the_tower_of_texts_is_discarded_and_said():
    loaded = hub.load_silently(tiny.REFERENCES / "clip_towers")
    assert loaded.head.pooling == "projection" and loaded.head.projection == 6
    assert set(loaded.unread) == {"tower of texts", "projection of texts", "temperature"}


@pytest.mark.parametrize(
    ("case", "pooling"),
    [
        ("dinov2_registers", "cls"),
        ("beit_positions", "patch_norm"),
        ("beit_class_token", "cls"),
        ("siglip_vision", "mean"),
        ("clip_towers", "cls"),
    ],
)
def test_a_new_head_pools_as_its_family_does_with_what_the_checkpoint_has(case, pooling):
    loaded = hub.load_silently(tiny.REFERENCES / case)
    assert classifier(loaded, TaskOptions(), 2).pooling == pooling


def test_a_head_on_patches_leaves_out_the_tokens_before_them():
    loaded = hub.load_silently(tiny.REFERENCES / "dinov2_registers")
    head = classifier(loaded, TaskOptions(pooling="cls+patches"), 2)
    assert isinstance(head, Classifier) and head.leading == 4


def test_poolings_of_patches_are_not_for_texts():
    loaded = hub.load_silently(tiny.REFERENCES / "bert_bare_pooler")
    with pytest.raises(StrategyError, match="unknown `pooling` 'patches'"):
        check_pooling("patches", loaded)
