"""What pre-training predicts: one file an objective, each an entry of ``OBJECTIVES``."""

from adapt.objectives import causal, masked, masked_image, replaced, sentence_pairs
from adapt.objectives.base import OBJECTIVES, Corpus, Objective, choose, get_objective

__all__ = [
    "OBJECTIVES",
    "Corpus",
    "Objective",
    "causal",
    "choose",
    "get_objective",
    "masked",
    "masked_image",
    "replaced",
    "sentence_pairs",
]
