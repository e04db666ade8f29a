"""Losses that see more than outputs and labels: parameters, states, a key, another pass.

@context_loss
def r_drop(context):
    again = context.forward(context.key)        # with other dropout
    ...
    return losses                               # [N]

step = make_step(model, r_drop, tx)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from adapt.models import Model
from adapt.models.layers import Batch
from adapt.training.losses import Loss
from adapt.tree import Tree

CONTEXT_STREAM = 0xC0E  # folded into the key of a step: a loss and dropout draw from different bits


@dataclasses.dataclass(frozen=True)
class LossContext:
    """What a loss of :func:`context_loss` is given, inside a step.

    * ``outputs``: those of the head, [N, ...], with dropout; ``labels``: [N, ...].
    * ``batch``: all arrays of the batch, among them the ``extras`` of :func:`adapt.finetune`.
    * ``hidden``: what the head reads, [R, C, D]; [N, D] where a frozen prefix ends in the pooling.
    * ``params``: frozen and trainable, without those of a frozen prefix.
    * ``key``: another one in every step and micro-batch, from which dropout does not draw.
    * ``depth``: how many stages are the frozen prefix.

    On a mesh each group of examples has a context of its own.
    """

    model: Model
    params: Tree
    batch: Batch
    key: jax.Array
    dropout_key: jax.Array | None = None  # of the one pass; None: without dropout
    depth: int = 0

    @functools.cached_property
    def hidden(self) -> jax.Array:
        prefix = self.batch.get("hidden")
        return self.model.head_input(self.params, prefix, self.batch, self.depth, self.dropout_key)

    @functools.cached_property
    def outputs(self) -> jax.Array:
        return self.model.outputs_of(self.params, self.hidden, self.batch, self.dropout_key)

    @property
    def labels(self) -> jax.Array:
        return self.batch["label"]

    def forward(self, key: jax.Array | None = None, params: Tree | None = None) -> jax.Array:
        """The outputs once more, [N, ...]: with the dropout of ``key``, or without; perhaps with other
        parameters.
        """
        params = self.params if params is None else params
        prefix = self.batch.get("hidden")
        hidden = self.model.head_input(params, prefix, self.batch, self.depth, key)
        return self.model.outputs_of(params, hidden, self.batch, key)

    def head(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The outputs of the head for other states in place of :attr:`hidden`, [N, ...]."""
        return self.model.outputs_of(self.params, hidden, self.batch, key)


@dataclasses.dataclass(frozen=True, eq=False)
class ContextLoss:
    """A loss that is given a :class:`LossContext`; :func:`context_loss` makes one.

    One that ``differentiates_once``, as the step does and nothing within it, may be computed by
    fused kernels. Only the same object is equal: see :func:`copy_of`.
    """

    function: Callable[[LossContext], jax.Array]
    differentiates_once: bool = False

    def __call__(self, context: LossContext) -> jax.Array:
        return self.function(context)


def context_loss(function: Callable[[LossContext], jax.Array]) -> ContextLoss:
    """A decorator: the function takes a :class:`LossContext` in place of (outputs, labels), and
    returns one float32 number an example, [N].

        @adapt.context_loss
        def distil(context):
            soft = jax.nn.softmax(context.batch["teacher"])
            return -(soft * jax.nn.log_softmax(context.outputs)).sum(-1)

        adapt.finetune(..., loss=distil, extras={"teacher": logits})
    """
    return ContextLoss(function)


def losses_with_context(
    loss: ContextLoss,
    model: Model,
    params: Tree,
    batch: Batch,
    depth: int,
    key: jax.Array,
    dropout: bool,
) -> jax.Array:
    """The losses of a batch, [N]; on a mesh those of all groups. ``key`` is that of the step."""

    def of_group(params: Tree, _: None, batch: Batch, key: jax.Array) -> jax.Array:
        return loss(make_context(model, params, batch, depth, key, dropout))

    return model.by_group(of_group, params, None, batch, key)


def make_context(
    model: Model,
    params: Tree,
    batch: Batch,
    depth: int,
    key: jax.Array,
    dropout: bool,
) -> LossContext:
    """The context of a group of examples, which makes its forward pass where it is asked for it."""
    return LossContext(
        model=model,
        params=params,
        batch=batch,
        key=jax.random.fold_in(key, CONTEXT_STREAM),
        dropout_key=key if dropout else None,
        depth=depth,
    )


def copy_of(loss: Loss | ContextLoss) -> Loss | ContextLoss:
    """The same loss as an object of its own, which no earlier run has a compiled program for.

    What the function reads from outside is a constant of the program, and may be another by now.
    """
    if isinstance(loss, ContextLoss):
        return ContextLoss(loss.function, loss.differentiates_once)
    return functools.partial(loss)


def name_of(loss: Any) -> str:
    """What config.json calls a loss: the function's module and name, and what a partial adds."""
    if isinstance(loss, ContextLoss):
        return name_of(loss.function)
    if isinstance(loss, functools.partial):
        arguments = [repr(value) for value in loss.args]
        arguments += [f"{name}={value!r}" for name, value in sorted(loss.keywords.items())]
        return f"{name_of(loss.func)}({', '.join(arguments)})"
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"
