"""Strategies as data: a name becomes ordered rules that label every parameter. Adding one is adding a function."""

import dataclasses
import re
from collections.abc import Callable

from adapt.errors import StrategyError
from adapt.optim import FROZEN
from adapt.tree import Rules


@dataclasses.dataclass(frozen=True)
class Phase:
    """Rules for the labels, and the groups that train in this phase: ``head``, ``encoder`` or both."""

    rules: Rules
    groups: tuple[str, ...]


def full(layers: int) -> list[Phase]:
    """Fine-tune everything."""
    return [Phase([("head/.*", "head"), ("encoder/.*", "encoder")], ("encoder", "head"))]


def frozen(layers: int) -> list[Phase]:
    """Linear probing: the encoder is a fixed feature extractor, only the head trains."""
    return [Phase([("head/.*", "head"), ("encoder/.*", FROZEN)], ("head",))]


def top(layers: int, k: int) -> list[Phase]:
    """Fine-tune the head and the last ``k`` blocks (with the final norm where there is one); freeze what is below."""
    if not 1 <= k <= layers:
        raise StrategyError(
            f"top:{k} wants {k} blocks and the encoder has {layers}: give top:1 to top:{layers}, frozen or full"
        )
    blocks = "|".join(f"block_{index:02d}" for index in range(layers - k, layers))
    rules = [("head/.*", "head"), (f"encoder/({blocks}|final_norm)/.*", "encoder"), (".*", FROZEN)]
    return [Phase(rules, ("encoder", "head"))]


STRATEGIES: dict[str, Callable[..., list[Phase]]] = {"full": full, "frozen": frozen, "top": top}


def strategy(name: str, layers: int) -> list[Phase]:
    """Read ``"full"``, ``"frozen"`` or ``"top:2"`` for an encoder of ``layers`` blocks.

    Raises :class:`StrategyError` for a name that is not known, a number that is missing or too many, or a depth that
    is not there.
    """
    spellings = [f"{base}:[0-9]+" if base == "top" else base for base in STRATEGIES]
    if not re.fullmatch("|".join(spellings), name):
        raise StrategyError(f"unknown strategy {name!r}: give one of {', '.join(spellings).replace('[0-9]+', 'K')}")
    base, _, number = name.partition(":")
    return STRATEGIES[base](layers, int(number)) if number else STRATEGIES[base](layers)
