"""The contract of an objective of pre-training: everything that depends on what is predicted, in
one class, one file an objective.

A module of one's own adds one, and the commands take it when they import the module::

    from adapt.objectives import OBJECTIVES
    from adapt.objectives.masked import Masked

    class Spans(Masked):
        def corruption(self, pretrained, options): ...

    OBJECTIVES["spans"] = Spans()
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.data.examples import Examples
from adapt.data.masking import Corruption
from adapt.data.sources import TokenSource
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.models import Encoder, LanguageModel, Model
from adapt.options import ObjectiveOptions
from adapt.parallel.sharding import Layout
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained
from adapt.training.context import ContextLoss, LossContext
from adapt.training.losses import Loss
from adapt.training.step import PARTS

MIN_HELD_OUT = 1
MAX_HELD_OUT = 2000

# (values [n], weights [n]) of one mean.
Measure = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is trained on, pass by pass: here the same examples in every pass."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def of_pass(self, number: int) -> Examples:
        """The examples of a pass, counted from 0: as many, and as long, as those of any other."""
        return self.examples

    @property
    def digest(self) -> str:
        """The SHA-256 of what the examples are made of."""
        source = self.examples.file_sequences
        if isinstance(source, TokenSource):
            return tree.digest({"ids": source.tokens.values})
        return self.examples.digest

    def on(self, layout: Layout | None) -> "Corpus":
        """The same corpus with batches in the groups of a mesh."""
        return dataclasses.replace(self, examples=dataclasses.replace(self.examples, layout=layout))


class Objective(abc.ABC):
    """What pre-training predicts. An objective has no state: the same instance serves every run.

    Batches hold inputs that were corrupted by :meth:`corruption`, with ``label`` and ``weight`` of
    every prediction, [n] each. Where an objective has several losses, ``part`` [n] says of which a
    prediction is: the loss of a step is then the sum of their means.
    """

    # What model.json calls the task of such a run.
    task: str
    # In words, for the notes on a new head.
    head_name: str
    # Whether pictures are trained on, not texts.
    takes_pictures: bool = False
    # Whether a line is a sentence, and a blank one the end of a document.
    reads_documents: bool = False
    # The options of :class:`ObjectiveOptions` that it reads.
    reads: Sequence[str] = ()
    # The metric that is shown first, and plotted: more is better, or "loss".
    primary_metric: str = "accuracy"
    # How much each loss counts, by its name among the measures.
    terms: Mapping[str, float] = {"loss": 1.0}
    # The loss, among the terms, whose exponential is the perplexity; "" for none.
    perplexity_of: str = "loss"

    @property
    def name(self) -> str:
        """The name by which the objective is registered."""
        found = (name for name, objective in OBJECTIVES.items() if objective is self)
        return next(found, type(self).__name__)

    # What goes together

    @abc.abstractmethod
    def refusal(self, pretrained: Pretrained) -> str:
        """Why the objective does not go with this checkpoint; "" where it does."""

    def is_own(self, pretrained: Pretrained) -> bool:
        """Whether it is what the checkpoint's head was trained by, as far as that can be seen.

        Exactly one of the objectives in this package is, for any checkpoint.
        """
        return False

    # The model

    @abc.abstractmethod
    def new_head(self, pretrained: Pretrained) -> Any:
        """A fresh head, as a module."""

    def takes_head(self, pretrained: Pretrained) -> bool:
        """Whether the checkpoint's own head can be trained on."""
        return isinstance(pretrained.head, type(self.new_head(pretrained)))

    def build(
        self, pretrained: Pretrained, options: ObjectiveOptions, key: jax.Array
    ) -> tuple[Model, tree.Tree]:
        """(model, parameters) with the checkpoint's own head, or a fresh one."""
        encoder = Encoder(pretrained.config)
        if self.takes_head(pretrained):
            head = pretrained.head
            if isinstance(head, LanguageModel):
                head = head.whole()
            return Model(encoder, head), pretrained.params
        model = Model(encoder, self.new_head(pretrained))
        return model, tree.graft(
            tree.drop(pretrained.params, "head"), "head", self.init_head(pretrained, model, key)
        )

    def new_parts(self, pretrained: Pretrained, options: ObjectiveOptions) -> list[str]:
        """What of the model of :meth:`build` is new, a line for each part."""
        if self.takes_head(pretrained):
            return []
        return [
            f"{pretrained.source} has no {self.head_name}: a fresh one is trained from the start"
        ]

    def init_head(self, pretrained: Pretrained, model: Model, key: jax.Array) -> tree.Tree:
        """The parameters of a fresh head."""
        return model.init_head(key)

    def untrained_pattern(self, head: Any) -> str:
        """A pattern of the parameters that the loss never reaches, which stay as they are."""
        return ""

    def companions(
        self, pretrained: Pretrained, model: Model, params: tree.Tree
    ) -> Mapping[str, Pretrained]:
        """What trained beside ``pretrained``, by the name of its folder in the run's: checkpoints of
        their own. ``params`` are all that trained.
        """
        return {}

    # The data

    @abc.abstractmethod
    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        """(training, held-out) examples of a table with a column ``text``, or one of pictures.

        Raises :class:`DataError` for a table that teaches nothing.
        """

    @abc.abstractmethod
    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        """What turns batches into inputs and targets, by random numbers of the host."""

    # The loss

    @abc.abstractmethod
    def measures(self, context: LossContext) -> dict[str, Measure]:
        """What a batch is judged by: the :attr:`terms` of the loss and other means, by name."""

    @functools.cached_property
    def loss(self) -> Loss | ContextLoss:
        """The loss of every prediction, in the order of the batch's ``weight``."""

        def weighted_terms(context: LossContext) -> jax.Array:
            measured = self.measures(context)
            losses = [factor * measured[name][0] for name, factor in self.terms.items()]
            return jnp.concatenate(losses)

        return ContextLoss(weighted_terms, differentiates_once=True)

    def total(self, means: Mapping[str, float]) -> float:
        """The loss, of the means of all measures."""
        return sum(factor * means[name] for name, factor in self.terms.items())

    def scores(self, means: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a validation, of the means of all measures: those beside the loss."""
        return {name: value for name, value in means.items() if name != "loss"}


OBJECTIVES: dict[str, Objective] = {}


def get_objective(name: str) -> Objective:
    """The objective of this name. Raises :class:`StrategyError` that lists them."""
    if name not in OBJECTIVES:
        raise StrategyError(f"unknown `objective` {name!r}: give one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def choose(pretrained: Pretrained, options: ObjectiveOptions) -> Objective:
    """The objective of the options; by default the one of the checkpoint's own head.

    Raises :class:`StrategyError` for one that does not go with the checkpoint, naming those that
    do, and for options of other objectives.
    """
    if options.objective is None:
        objective = default_objective(pretrained)
    else:
        objective = get_objective(options.objective)
    reason = objective.refusal(pretrained)
    if reason:
        possible = [name for name, other in OBJECTIVES.items() if not other.refusal(pretrained)]
        raise StrategyError(
            f"`objective` {objective.name} does not go with {pretrained.source}: {reason}; "
            f"what goes with it: {', '.join(possible) or 'no objective'}"
        )
    check_options(objective, options)
    return objective


def default_objective(pretrained: Pretrained) -> Objective:
    """That of the checkpoint's own head; for another head that of its kind of encoder.

    An objective that a module has added is never the one that nobody asked for.
    """
    return next(one for one in OBJECTIVES.values() if one.is_own(pretrained))


def check_options(objective: Objective, options: ObjectiveOptions) -> None:
    """Raise :class:`StrategyError` for an option that only other objectives read."""
    for field in dataclasses.fields(ObjectiveOptions):
        value = getattr(options, field.name)
        if field.name == "objective" or field.name in objective.reads or value == field.default:
            continue
        readers = [name for name, other in OBJECTIVES.items() if field.name in other.reads]
        raise StrategyError(
            f"`{field.name}` {value} is of `objective` {' or '.join(readers)}, and this is "
            f"{objective.name}: leave it out"
        )


def is_exported(pretrained: Pretrained, kind: str) -> bool:
    """Whether transformers has a class of the family with a head of this kind."""
    return kind in get_family(pretrained.config.family).classes


def hold_out(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(which of ``count`` examples are trained on, which are held out): 5%, at most 2,000."""
    order = np.random.RandomState(seed).permutation(count)
    held_out = max(MIN_HELD_OUT, min(count // 20, MAX_HELD_OUT))
    return order[held_out:], order[:held_out]


def join_parts(*parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The labels and weights of several losses one after the other, with ``part`` [n].

    They have to be in the order of :attr:`Objective.terms`. Raises :class:`StrategyError` for more
    than :data:`adapt.training.step.PARTS`, which a step would not count.
    """
    if len(parts) > PARTS:
        raise StrategyError(
            f"an objective has {len(parts)} losses, and a step balances {PARTS} at the most"
        )
    numbers = [np.full(len(part["label"]), number) for number, part in enumerate(parts)]
    return {
        "label": np.concatenate([part["label"] for part in parts]),
        "weight": np.concatenate([part["weight"] for part in parts]),
        "part": np.concatenate(numbers).astype(np.int32),
    }


def is_right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Whether the largest logit is that of the label, [..., C] and [...] -> bool [...]."""
    return logits.argmax(-1) == label
