"""A new head on top of the checkpoint's pre-training head, and the weights it starts from.

head = on_head(load("tiny-bert"), "transform", "mean", classes=2)
"""

import typing
from typing import Any

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import POOLINGS, Classifier, LanguageModel, OnHead, stages_of
from adapt.options import KeptHead
from adapt.pretrained.hub import Pretrained, describe


def on_head(
    pretrained: Pretrained,
    stage: KeptHead,
    pooling: str | None = None,
    classes: int = 0,
    dropout: float = 0.0,
) -> OnHead:
    """A head on that of the checkpoint: on its ``logits``, or on what its ``transform`` makes.

    ``pooling`` makes one vector of those of an example's tokens; None is what
    :func:`pooling_on_head` gives. A head that pools by itself has no other than its own. With 0
    ``classes`` it puts out that vector. Raises :class:`StrategyError` for a head that has no such
    stage, and a pooling that there is not.
    """
    below = pretrained.head
    stages = stages_of(below)
    if stage not in typing.get_args(KeptHead):
        raise StrategyError(
            f"layer {stage} is not there: give a number, or transform or logits, which are of the "
            "checkpoint's head"
        )
    if stage not in stages:
        found = "nothing" if below is None else describe(below)
        known = f"give {' or '.join(stages)}" if stages else "it can't be kept"
        raise StrategyError(f"{pretrained.source} has no {stage} in its head ({found}): {known}")
    if pooling is None:
        pooling = pooling_on_head(pretrained, "mean")
    if isinstance(below, Classifier):
        if pooling != below.pooling:
            raise StrategyError(
                f"`pooling` is {pooling!r}, and the head of {pretrained.source} pools by itself, by "
                f"{below.pooling}: leave `pooling` out"
            )
    elif pooling not in poolings_of_tokens():
        names = ", ".join(poolings_of_tokens())
        raise StrategyError(f"`pooling` {pooling!r} does not pool what a head makes: give {names}")
    if isinstance(below, LanguageModel):
        below = below.whole()
    return OnHead.on(below, stage, pooling, classes, dropout)


def pooling_on_head(pretrained: Pretrained, own: str) -> str:
    """What a head on that of the checkpoint pools by where nobody asks for a pooling.

    A head that pools by itself goes on as it did. What a head makes of tokens is pooled by ``own``,
    the checkpoint's, or by the mean where that reads the encoder alone.
    """
    if isinstance(pretrained.head, Classifier):
        return pretrained.head.pooling
    return own if own in poolings_of_tokens() else "mean"


def poolings_of_tokens() -> list[str]:
    """The poolings of what a head makes: those without weights of their own."""
    return [name for name in POOLINGS if name != "pooler"]


def weights_below(pretrained: Pretrained, fresh: tree.Tree) -> tree.Tree:
    """The checkpoint's weights for the part of its head that ``fresh``, the parameters of a new
    :class:`OnHead`, has below.
    """
    own: dict[str, Any] = pretrained.params["head"]
    return {name: own[name] for name in fresh.get("below", {})}
