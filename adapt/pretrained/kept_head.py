"""The head of pre-training where it is kept below what comes next: which there are, and their
weights.

head = on_head(load("tiny-bert"), "transform", "mean", classes=2)
"""

from typing import Any

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import POOLINGS, LanguageModel, OnHead, stages_of
from adapt.options import KeptHead
from adapt.pretrained.hub import Pretrained, describe


def on_head(
    pretrained: Pretrained,
    stage: KeptHead,
    pooling: str = "mean",
    classes: int = 0,
    dropout: float = 0.0,
) -> OnHead:
    """A head on that of the checkpoint: on its ``logits``, or on what its ``transform`` makes.

    ``pooling`` makes one vector of those of an example's tokens; a head that pools by itself does
    it as it did. With 0 ``classes`` it puts out that vector. Raises :class:`StrategyError` for a
    head that has no such stage, and a pooling that there is not.
    """
    below = pretrained.head
    stages = stages_of(below)
    if stage not in stages:
        found = "nothing" if below is None else describe(below)
        known = f"give {' or '.join(stages)}" if stages else "it can't be kept"
        raise StrategyError(f"{pretrained.source} has no {stage} in its head ({found}): {known}")
    if pooling not in POOLINGS or pooling == "pooler":
        names = ", ".join(name for name in POOLINGS if name != "pooler")
        raise StrategyError(f"`pooling` {pooling!r} does not pool what a head makes: give {names}")
    if isinstance(below, LanguageModel):
        below = below.whole()
    return OnHead.on(below, stage, pooling, classes, dropout)


def weights_below(pretrained: Pretrained, fresh: tree.Tree) -> tree.Tree:
    """The checkpoint's weights for the part of its head that ``fresh``, the parameters of a new
    :class:`OnHead`, has below.
    """
    own: dict[str, Any] = pretrained.params["head"]
    return {name: own[name] for name in fresh.get("below", {})}
