"""Which objective a checkpoint is trained by where nobody names one."""

from pathlib import Path

import pytest

from adapt.objectives import OBJECTIVES
from adapt.objectives.base import default_objective
from adapt.objectives.masked import Masked
from adapt.pretrained import hub

REFERENCES = Path(__file__).parents[1] / "references"


class Spans(Masked):
    """An objective of one's own."""


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("bert_bare_pooler", "masked"),
        ("bert_pretraining", "masked"),
        ("t5_encoder", "masked"),
        ("electra_generator", "masked"),
        ("gpt2_bare", "causal"),
        ("electra_discriminator", "replaced"),
        ("vit_classifier", "masked-image"),
        ("beit_classifier", "masked-image"),
    ],
)
def test_the_default_is_that_of_the_head_or_of_the_encoder(monkeypatch, case, name):
    monkeypatch.setitem(OBJECTIVES, "spans", Spans())
    assert default_objective(hub.load(REFERENCES / case)) is OBJECTIVES[name]
