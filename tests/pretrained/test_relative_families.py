"""What is particular to T5, MPNet, ALBERT and DeBERTa: what is left out, refused, or read otherwise."""

from pathlib import Path

import pytest

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
    [("t5_encoder", "is_decoder", True), ("t5_encoder", "feed_forward_proj", "gated-mish")],
)
def test_an_entry_that_changes_the_computation_is_refused_by_name(tmp_path, case, entry, value):
    folder = tiny.checkpoint(tmp_path / case, case, **{entry: value})
    named = "mish" if entry == "feed_forward_proj" else entry
    with pytest.raises(CheckpointError, match=named):
        hub.load(folder)
