"""The frozen prefix: all stages before the first that trains are a pure function of the input.

Prefix and suffix are two compiled functions. Where the outputs of the prefix are cached, batches
bring them as ``hidden``, and only the suffix runs.

    depth = cut(labels, layers)
    step = make_step(model, loss, tx, depth)      # step.prefix is cut_at(model, depth)
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import Model, cached_program
from adapt.training.optim import FROZEN

# The arrays of a batch that a suffix reads, beside "hidden"; and those that it needs after a pooling.
POOLED_SUFFIX_INPUTS = ("window_of", "windows", "label", "weight")
SUFFIX_INPUTS = ("segments", "first", "length", "targets", *POOLED_SUFFIX_INPUTS)
# What else a batch has. Any other array is a loss's own, and stays in the batch of a suffix.
PREFIX_INPUTS = ("tokens", "positions", "types", "pixels", "hidden")


def stage(path: str, layers: int) -> int | None:
    """The stage of a parameter of an encoder with ``layers`` blocks; None for the head's.

    0 is the embedding, with the table of distances that all blocks read, 1 to ``layers`` are the
    blocks, the last one with the final norm. Blocks that share their weights are all 1.
    """
    if path.startswith(("encoder/embedding/", "encoder/relative/")):
        return 0
    if path.startswith("encoder/final_norm/"):
        return layers
    block = re.match(r"encoder/block_(\d+)/", path)
    if block:
        return int(block[1]) + 1
    return None


def cut(labels: tree.Tree, layers: int) -> int:
    """The number of leading stages in which every leaf is FROZEN.

    0: the embedding trains; ``layers`` + 1: the whole encoder is frozen.
    """
    depth = layers + 1
    for path, group in tree.paths(labels).items():
        number = stage(path, layers)
        if group != FROZEN and number is not None:
            depth = min(depth, number)
    return depth


def prefix_params(params: tree.Tree, model: Model, depth: int) -> tree.Tree:
    """The parameters of the first ``depth`` stages."""

    def in_prefix(path: str) -> bool:
        number = stage(path, model.stages - 1)
        return number is not None and number < depth

    return tree.select(params, in_prefix)


def suffix_params(params: tree.Tree, model: Model, depth: int) -> tree.Tree:
    """The parameters of the other stages and the head, and of earlier ones what these read, too: a
    token table that the head shares, the table of distances, and a block that all blocks share.
    """
    read_again = []
    if getattr(model.head, "tied", False):
        read_again.append("encoder/embedding/token")
    if depth < model.stages:
        read_again.append("encoder/relative/")
    if depth < model.stages and model.encoder.config.shared_blocks:
        read_again.append("encoder/block_00/")

    def in_suffix(path: str) -> bool:
        number = stage(path, model.stages - 1)
        return number is None or number >= depth or path.startswith(tuple(read_again))

    return tree.select(params, in_suffix)


@cached_program
def make_prefix(model: Model, depth: int) -> Any:
    """``(params, batch) -> hidden``, deterministic, jitted: the first ``depth`` stages.

    It is the same function for the same model, so that what it has compiled serves the next run.

    ``hidden`` is token states [R, C, D], or vectors [N, D] where the prefix pools. A leading axis
    of micro-batches stays.
    """
    example_axes = 2 if model.layout else 1  # [groups, N] on a mesh, [N] without one

    def run(params: tree.Tree, batch: Mapping[str, Any]) -> Any:
        if np.ndim(batch["first"]) == example_axes:
            return model.prefix(params, batch, depth)
        return jax.lax.map(lambda micro: model.prefix(params, micro, depth), dict(batch))

    return jax.jit(model.allow_fused_attention(run))


def suffix_batch(model: Model, batch: Mapping[str, Any], depth: int, hidden: Any) -> dict[str, Any]:
    """The batch of the suffix: ``hidden``, the arrays of ``batch`` that a suffix reads, and those
    of a loss.
    """
    read = POOLED_SUFFIX_INPUTS if model.prefix_pools(depth) else SUFFIX_INPUTS
    unread = {*SUFFIX_INPUTS, *PREFIX_INPUTS} - {*read}
    return {name: array for name, array in batch.items() if name not in unread} | {"hidden": hidden}


@dataclasses.dataclass(frozen=True)
class Cut:
    """``(params, batch) -> (params, batch)`` of the suffix: a model cut after ``depth`` stages.

    It runs the compiled prefix, unless the batch brings ``hidden``. Made by :func:`cut_at`.
    """

    model: Model
    depth: int
    run: Any  # jitted (parameters of the prefix, batch) -> hidden
    memo: dict[int, tuple[tree.Tree, tree.Tree, tree.Tree]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def split(self, params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
        """The parameters of prefix and suffix. Those of the last tree are remembered."""
        key = id(params)
        if key not in self.memo:
            prefix = prefix_params(params, self.model, self.depth)
            suffix = suffix_params(params, self.model, self.depth)
            self.memo.clear()
            self.memo[key] = (params, prefix, suffix)  # it holds the tree, so no other has its id
        _, prefix, suffix = self.memo[key]
        return prefix, suffix

    def __call__(
        self, params: tree.Tree, batch: Mapping[str, Any]
    ) -> tuple[tree.Tree, dict[str, Any]]:
        prefix, suffix = self.split(params)
        hidden = batch["hidden"] if "hidden" in batch else self.run(prefix, batch)
        return suffix, suffix_batch(self.model, batch, self.depth, hidden)


def cut_at(model: Model, depth: int) -> Cut:
    """A :class:`Cut` after ``depth`` stages, with its compiled prefix.

    Raises :class:`StrategyError` if the head reads a layer that lies inside the prefix.
    """
    if min(model.input_layers) + 1 < depth < model.stages:
        layers = ", ".join(map(str, model.input_layers))
        raise StrategyError(
            f"the head reads layers {layers} and {depth} of {model.stages} stages are frozen: "
            f"read layers from {depth - 1} on, or freeze none or all of the encoder"
        )
    return Cut(model, depth, make_prefix(model, depth))
