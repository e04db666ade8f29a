"""The sequences of a file as inputs of a model: token ids, images, or what a frozen prefix made of
them.

    TokenSource      texts, or the states of their tokens: packed, many to a row
    ImageSource      images that are decoded when they are needed: one a row
    ImageStates      the states of images' patches: one image a row
    PooledStates     one vector each: nothing is packed

Training asks a source for the micro-batches of a step, evaluation for windows over all of it.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.data.packing import Arrays, BatchShapes, StepParts, Windows
from adapt.data.shapes import CPU_SHAPES, ShapeRule
from adapt.pretrained.images import ImageSettings, to_pixels
from adapt.ragged import Ragged

# What a frozen prefix made of every sequence of a file: a vector each, [N, D], or one for each of
# their tokens.
States = np.ndarray | Ragged
VECTORS_PER_BATCH = 1024  # of an evaluation
# Training inputs that are made together: so many steps, of so many bytes of token ids or states.
STEPS_AT_ONCE = 16
BYTES_AT_ONCE = 4 << 20


class Source(abc.ABC):
    """Sequences that become inputs of a model. ``rows`` and ``step`` have indices of them."""

    @abc.abstractmethod
    def pack_steps(
        self, steps: Sequence[StepParts], local: Sequence[int], shapes: BatchShapes
    ) -> list[list[Arrays]]:
        """The inputs of the micro-batches ``local`` of each step, all of a step of one shape.

        Steps have the indices of every micro-batch, also of those that other processes make.
        """

    def steps_at_once(self, shapes: BatchShapes, parts: int) -> int:
        """For how many steps of ``parts`` micro-batches inputs are made together."""
        return 1

    @abc.abstractmethod
    def windows(self, rows: np.ndarray, few: bool = False) -> Iterator[Windows]:
        """Batches that hold each of ``rows`` once; their members are indices of ``rows``.

        With ``few``, a batch of a few texts has a small shape of its own.
        """


class FileSource(Source):
    """All sequences of a file, with what identifies and measures them."""

    max_length: int  # tokens that a sequence may have
    rule: ShapeRule  # of the shapes of batches

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Tokens of every sequence, int64 [N]."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """The SHA-256 of everything that the inputs are made from."""

    @abc.abstractmethod
    def batch_shapes(
        self, rows: np.ndarray, examples: int, seed: int, epochs: int, parts: int, width: int
    ) -> BatchShapes:
        """The shapes of training batches of ``rows``: see :func:`adapt.data.packing.batch_shapes`."""

    @abc.abstractmethod
    def with_states(self, states: States) -> Source:
        """The same sequences with what a frozen prefix made of them as inputs."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """Where each sequence begins if all lie one after the other, int64 [N]."""
        return np.cumsum(self.lengths) - self.lengths


@dataclasses.dataclass(frozen=True)
class TokenSource(FileSource):
    """Texts as token ids, or as the states of their tokens."""

    tokens: Ragged
    max_length: int
    pad: int = 0
    rule: ShapeRule = CPU_SHAPES  # of the shapes of batches

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    @functools.cached_property
    def digest(self) -> str:
        parts = {"0": self.tokens.values, "1": self.tokens.lengths}
        if self.tokens.second_start is not None:
            parts["2"] = self.tokens.second_start
        return tree.digest({"tokens": parts})

    def batch_shapes(
        self, rows: np.ndarray, examples: int, seed: int, epochs: int, parts: int, width: int
    ) -> BatchShapes:
        lengths = self.lengths[rows]
        return packing.batch_shapes(lengths, examples, seed, epochs, parts, width, self.rule)

    def with_states(self, states: States) -> Source:
        if isinstance(states, Ragged):
            return TokenSource(states, self.max_length, rule=self.rule)
        return PooledStates(states)

    def pack_steps(
        self, steps: Sequence[StepParts], local: Sequence[int], shapes: BatchShapes
    ) -> list[list[Arrays]]:
        return packing.pack_steps(self.tokens, steps, local, shapes, self.pad)

    def steps_at_once(self, shapes: BatchShapes, parts: int) -> int:
        values = self.tokens.values
        of_token = values.itemsize * max(values[:1].size, 1)
        of_step = parts * shapes.rows[-1] * shapes.width * of_token
        return int(np.clip(BYTES_AT_ONCE // of_step, 1, STEPS_AT_ONCE))

    def windows(self, rows: np.ndarray, few: bool = False) -> Iterator[Windows]:
        pack = packing.pack_few if few else packing.pack_windows
        return pack(self.tokens.take(rows), self.max_length, pad=self.pad, rule=self.rule)


class OneARow(Source):
    """Sequences of a fixed number to a batch, each in a row or a slot of its own."""

    eval_batch_size: int
    max_length: int

    @abc.abstractmethod
    def batch(self, rows: np.ndarray, shapes: BatchShapes) -> Arrays:
        """The inputs of up to ``shapes.examples`` of the sequences."""

    def pack_steps(
        self, steps: Sequence[StepParts], local: Sequence[int], shapes: BatchShapes
    ) -> list[list[Arrays]]:
        return [[self.batch(step.parts[i], shapes) for i in local] for step in steps]

    def windows(self, rows: np.ndarray, few: bool = False) -> Iterator[Windows]:
        size = self.eval_batch_size
        shapes = BatchShapes(self.max_length, (size,), size)
        members = []
        for start in range(0, len(rows), size):
            stop = min(start + size, len(rows))
            members.append(np.arange(start, stop))
        yield Windows(members, lambda part: self.batch(rows[part], shapes))


def no_views(*_: Any) -> np.ndarray:
    """``load_views`` of pictures that are not trained on."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ImageSource(OneARow, FileSource):
    """Images of ``max_length`` tokens each, decoded when they are needed.

    ``load`` takes indices [n] and gives pixels, float32 [n, S, S, channels]; ``load_views`` takes an
    augmentation and the random numbers of each example, too, and gives pixels of other views.
    """

    load: Callable[[np.ndarray], np.ndarray]
    count: int
    max_length: int
    digest: str = ""
    rule: ShapeRule = CPU_SHAPES  # of the shapes of batches
    load_views: Callable[..., np.ndarray] = no_views

    @property
    def eval_batch_size(self) -> int:
        return self.rule.images(self.max_length)

    @property
    def lengths(self) -> np.ndarray:
        return np.full(self.count, self.max_length)

    def batch_shapes(
        self, rows: np.ndarray, examples: int, seed: int, epochs: int, parts: int, width: int
    ) -> BatchShapes:
        return BatchShapes(self.max_length, (examples,), examples)

    def with_states(self, states: States) -> Source:
        if isinstance(states, Ragged):
            return ImageStates(states, self.max_length, self.eval_batch_size)
        return PooledStates(states)

    def batch(self, rows: np.ndarray, shapes: BatchShapes) -> Arrays:
        return packing.image_batch(self.load(rows), shapes.width, shapes.examples)


@dataclasses.dataclass(frozen=True)
class ImageStates(OneARow):
    """The states of the tokens of images, all of ``max_length``."""

    states: Ragged
    max_length: int
    eval_batch_size: int

    def batch(self, rows: np.ndarray, shapes: BatchShapes) -> Arrays:
        ((packed,),) = packing.pack_steps(self.states, [StepParts([rows])], [0], shapes)
        return packed


@dataclasses.dataclass(frozen=True)
class PooledStates(OneARow):
    """One vector for each sequence, [N, D]."""

    states: np.ndarray
    max_length = 0
    eval_batch_size = VECTORS_PER_BATCH

    def batch(self, rows: np.ndarray, shapes: BatchShapes) -> Arrays:
        return {"hidden": packing.pad_to(self.states[rows], shapes.examples)}


def from_images(
    images: Sequence[Any],
    settings: ImageSettings,
    max_length: int,
    first_row: int = 1,
    rule: ShapeRule = CPU_SHAPES,
) -> ImageSource:
    """The images of a list, from PIL. Where one is no image, :class:`DataError` names its row,
    counted from ``first_row``.
    """

    def load(rows: np.ndarray) -> np.ndarray:
        first = first_row + int(min(rows, default=0))
        return to_pixels([images[row] for row in rows], settings, first)

    return ImageSource(load, len(images), max_length, rule=rule)
