"""A checkpoint without its last layers is the rest of it, and is adapted as any other."""

import dataclasses

import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.errors import StrategyError
from adapt.pretrained import hub
from tests.helpers import tiny

TEXTS = [text for text, _ in tiny.sentences(24, seed=3)]
LABELS = [label for _, label in tiny.sentences(24, seed=3)]


@pytest.fixture(scope="module", params=["bert_mlm_tied", "gpt2_bare"])
def pretrained(request, inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint(request.param))


def test_the_layers_that_are_left_give_the_same_states(pretrained):
    before = adapt.hidden_states(pretrained, TEXTS[:3])
    for count in (0, 1, 2):
        left = pretrained.config.layers - count
        shorter = adapt.drop_layers(pretrained, count)
        after = adapt.hidden_states(shorter, TEXTS[:3])
        for whole, states in zip(before, after, strict=True):
            assert len(states) == left + 1
            # The last layer has the norm after the last block, where a family has one.
            np.testing.assert_array_equal(states[:left], whole[:left])
            if not pretrained.config.pre_norm:
                np.testing.assert_array_equal(states[left], whole[left])


def test_the_head_and_the_last_blocks_are_gone_and_the_rest_is_not_copied(pretrained):
    shorter = adapt.drop_layers(pretrained, 1)
    before = tree.paths(pretrained.params)
    after = tree.paths(shorter.params)
    gone = {path for path in before if path not in after}
    assert any(path.startswith("encoder/block_01/") for path in gone)
    assert all(path.startswith(("encoder/block_01/", "head/")) for path in gone)
    assert all(leaf is before[path] for path, leaf in after.items() if not path.endswith("/"))
    assert "1 of 2 layers" in repr(shorter) and pretrained.config.layers == 2


def test_layers_with_a_window_are_those_that_are_left(pretrained):
    config = dataclasses.replace(pretrained.config, local_layers=(0, 1), unrotated_layers=(1,))
    shorter = adapt.drop_layers(dataclasses.replace(pretrained, config=config), 1)
    assert shorter.config.local_layers == (0,) and shorter.config.unrotated_layers == ()


@pytest.mark.parametrize("count", [-1, 3, 1.0, True, "1"])
def test_a_number_of_layers_that_there_are_not_is_refused(inputs, count):
    pretrained = hub.load(inputs.checkpoint("bert_mlm_tied"))
    with pytest.raises(StrategyError, match="2 layers: give 0 to 2"):
        adapt.drop_layers(pretrained, count)


def test_a_run_on_what_is_left_is_saved_whole(inputs, tmp_path):
    shorter = adapt.drop_layers(hub.load(inputs.checkpoint("bert_mlm_tied")), 1)
    run = adapt.finetune(shorter, TEXTS, LABELS, strategy="frozen", epochs=1, out=tmp_path / "run")
    again = adapt.load_run(tmp_path / "run")
    assert again.pretrained.config.layers == 1
    outputs = run.predict(TEXTS).outputs
    np.testing.assert_allclose(again.predict(TEXTS).outputs, outputs, rtol=1e-5)
