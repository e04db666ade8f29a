"""The frozen prefix: everything before the first stage that trains is a pure function of the input, computed once.

Prefix and suffix are two compiled functions, whether the cache is on or off; with it, batches bring ``hidden``, what the
prefix put out, and only the suffix runs.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import Model
from adapt.training.optim import FROZEN

SUFFIX_INPUTS = (
    "segments",
    "first",
    "length",
    "label",
    "weight",
    "targets",
)  # what a suffix reads of a batch, beside "hidden"


def stage(path: str, layers: int) -> int | None:
    """The stage of a parameter: 0 the embedding, 1 to ``layers`` the blocks (the last with the final norm); None: the head."""
    if path.startswith("encoder/embedding/"):
        return 0
    if found := re.match(r"encoder/block_(\d+)/", path):
        return int(found[1]) + 1
    return layers if path.startswith("encoder/final_norm/") else None


def cut(labels: tree.Tree, layers: int) -> int:
    """How many leading stages are wholly FROZEN: 0 (the embedding trains) to ``layers`` + 1 (the whole encoder is frozen)."""
    moving = [stage(path, layers) for path, group in tree.paths(labels).items() if group != FROZEN]
    return min((found for found in moving if found is not None), default=layers + 1)


def prefix_params(params: tree.Tree, model: Model, depth: int) -> tree.Tree:
    """The parameters of the first ``depth`` stages."""
    return tree.select(
        params, lambda path: (found := stage(path, model.stages - 1)) is not None and found < depth
    )


def suffix_params(params: tree.Tree, model: Model, depth: int) -> tree.Tree:
    """The parameters that a suffix needs: of the stages from ``depth`` on, of the head, and a table that is tied to it."""
    tied = "encoder/embedding/token" if getattr(model.head, "tied", False) else None

    def needed(path: str) -> bool:
        found = stage(path, model.stages - 1)
        return found is None or found >= depth or path == tied

    return tree.select(params, needed)


def make_prefix(model: Model, depth: int) -> Any:
    """``(params, batch) -> hidden``, deterministic, jitted: token states [R, C, D] at the cut, or pooled vectors [N, D].

    A leading axis of micro-batches stays.
    """

    def run(params: tree.Tree, batch: Mapping[str, Any]) -> Any:
        if np.ndim(batch["first"]) == 2 + bool(model.layout):
            return jax.lax.map(lambda part: model.prefix(params, part, depth), dict(batch))
        return model.prefix(params, batch, depth)

    return jax.jit(model.allow_fused_attention(run))


def suffix_batch(model: Model, batch: Mapping[str, Any], depth: int, hidden: Any) -> dict[str, Any]:
    """What the suffix takes: ``hidden``, and of the batch what it reads."""
    names = ("label", "weight") if model.prefix_pools(depth) else SUFFIX_INPUTS
    return {"hidden": hidden} | {name: batch[name] for name in names if name in batch}


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a model is cut, and the compiled prefix: turns a batch into what the suffix takes, by cache or by computing."""

    model: Model
    depth: int
    run: Any  # jitted (params before the cut, batch) -> hidden
    memo: dict[int, tuple[tree.Tree, tree.Tree, tree.Tree]] = dataclasses.field(
        default_factory=dict
    )

    def split(self, params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
        """(before, after), made once for a tree."""
        if id(params) not in self.memo:
            self.memo.clear()
            self.memo[id(params)] = (
                params,
                prefix_params(params, self.model, self.depth),
                suffix_params(params, self.model, self.depth),
            )
        return self.memo[id(params)][1:]

    def __call__(
        self, params: tree.Tree, batch: Mapping[str, Any]
    ) -> tuple[tree.Tree, dict[str, Any]]:
        """(the parameters, the batch) of the suffix."""
        below, above = self.split(params)
        hidden = batch["hidden"] if "hidden" in batch else self.run(below, batch)
        return above, suffix_batch(self.model, batch, self.depth, hidden)


def cut_at(model: Model, depth: int) -> Cut:
    """A :class:`Cut` with its compiled prefix. Raises :class:`StrategyError` where the head reads a layer that it hides."""
    if min(model.input_layers) + 1 < depth < model.stages:
        raise StrategyError(
            f"the head reads layers {', '.join(map(str, model.input_layers))} and {depth} of {model.stages} stages are frozen: "
            f"read layers from {depth - 1} on, or freeze none or all of the encoder"
        )
    return Cut(model, depth, make_prefix(model, depth))
