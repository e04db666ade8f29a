"""Where the frozen prefix of an encoder ends: everything before the cut is a pure function of the input."""

import re

from adapt import tree as t
from adapt.optim import FROZEN


def stage(path: str, layers: int) -> int | None:
    """The stage of a parameter: 0 the embedding, 1 to ``layers`` the blocks (the last with the final norm); None: the head."""
    if path.startswith("encoder/embedding/"):
        return 0
    if found := re.match(r"encoder/block_(\d+)/", path):
        return int(found[1]) + 1
    return layers if path.startswith("encoder/final_norm/") else None


def cut(labels: t.Tree, layers: int) -> int:
    """How many leading stages are wholly FROZEN: 0 (the embedding trains) to ``layers`` + 1 (the whole encoder is frozen)."""
    moving = [stage(path, layers) for path, group in t.paths(labels).items() if group != FROZEN]
    return min((found for found in moving if found is not None), default=layers + 1)
