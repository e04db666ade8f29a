"""Examples in memory or on disk, as batches: what texts or images with labels become for one encoder."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt import pack
from adapt import tree as t
from adapt.features import IMAGES, tokenizer_of
from adapt.hub import Pretrained
from adapt.images import pixels
from adapt.tokenizer import Ragged

Pairs = Iterator[tuple[np.ndarray, pack.Arrays]]
Batches = Iterator[pack.Arrays]
Pictures = Callable[[np.ndarray], Sequence[Any]]  # rows of a file, int64 [n] -> its PIL images
POOLED = 1024  # pooled vectors a batch of an evaluation
States = np.ndarray | Ragged  # what a frozen prefix made of every example of a file: pooled [N, D], or states of tokens


@dataclasses.dataclass(frozen=True)
class Texts:
    """Tokenized texts of a file with labels. ``truncated`` of them were longer than the tokenizer's ``max_length``.

    ``rows`` says which of the file's texts these are: a split takes rows, and what is cached for the file serves any
    split of it. With ``states``, batches hold ``hidden`` in place of ``tokens``.
    """

    whole: Ragged
    rows: np.ndarray
    labels: np.ndarray
    max_length: int
    pad: int
    truncated: int = 0
    states: States | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> Ragged:
        return self.whole.take(self.rows)

    @property
    def digest(self) -> str:
        """Of tokens and labels: what a resumed run compares."""
        return t.digest({"inputs": {"file": self.inputs_digest, "rows": self.rows}, "labels": self.labels})

    @functools.cached_property
    def inputs_digest(self) -> str:
        """Of the token ids of the whole file."""
        return digest_of("tokens", self.whole.values, self.whole.lengths)

    def take(self, index: np.ndarray) -> "Texts":
        return dataclasses.replace(self, rows=self.rows[index], labels=self.labels[index])

    def plan(self, examples: int, seed: int, epochs: int, parts: int = 1) -> pack.Plan:
        return pack.plan(self.tokens.lengths, examples, seed, epochs, parts)

    def batches(self, plan: pack.Plan, seed: int, epoch: int, skip: int = 0, parts: int = 1) -> Batches:
        """The training batches of one epoch from batch ``skip`` on, packed."""
        if isinstance(self.states, np.ndarray):
            return pooled_batches(self, plan.examples, seed, epoch, skip, parts)
        tokens = self.tokens if self.states is None else self.states.take(self.rows)
        return pack.batches(tokens, self.labels, plan, seed, epoch, skip, self.pad, parts)

    def windows(self) -> Pairs:
        """Every example once, packed by length, for evaluation."""
        if isinstance(self.states, np.ndarray):
            return pack.feature_batches(self.states, self.rows, POOLED)
        tokens = self.tokens if self.states is None else self.states.take(self.rows)
        return pack.windows(tokens, self.max_length, pad=self.pad)

    def whole_windows(self, skip: int = 0) -> Pairs:
        """Every text of the file once, packed by length, from batch ``skip`` on: for the cache."""
        return itertools.islice(pack.windows(self.whole, self.max_length, pad=self.pad), skip, None)


@dataclasses.dataclass(frozen=True)
class Images:
    """Pictures, decoded when they are needed, with labels; ``rows`` and ``states`` as in :class:`Texts`."""

    pictures: Pictures
    sums: np.ndarray  # SHA-256 of each picture of the file, uint8 [N, 32]
    rows: np.ndarray
    labels: np.ndarray
    pretrained: Pretrained
    truncated: int = 0
    states: States | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def whole(self) -> Ragged:
        """The shape of the file's token states: every picture has as many tokens. It has no token ids."""
        count, tokens = len(self.sums), self.pretrained.config.positions
        return Ragged(np.zeros(0, np.int32), np.arange(count) * tokens, np.full(count, tokens))

    @property
    def digest(self) -> str:
        """Of pictures and labels: what a resumed run compares."""
        return t.digest({"inputs": {"pictures": self.sums, "rows": self.rows}, "labels": self.labels})

    @functools.cached_property
    def inputs_digest(self) -> str:
        """Of all pictures of the file, and of how they become pixels."""
        return digest_of(repr(self.pretrained.images), self.sums)

    def take(self, index: np.ndarray) -> "Images":
        return dataclasses.replace(self, rows=self.rows[index], labels=self.labels[index])

    def plan(self, examples: int, seed: int, epochs: int, parts: int = 1) -> pack.Plan:
        return pack.Plan(self.pretrained.config.positions, (examples,), examples)

    def batches(self, plan: pack.Plan, seed: int, epoch: int, skip: int = 0, parts: int = 1) -> Batches:
        """The training batches of one epoch from batch ``skip`` on: one image a row."""
        if isinstance(self.states, np.ndarray):
            yield from pooled_batches(self, plan.examples, seed, epoch, skip, parts)
            return
        for step in pack.micro_batches(len(self), plan.examples, parts, seed, epoch, skip):
            made = [self.batch(part, plan.examples) | pack.targets(self.labels[part], plan.examples) for part in step]
            yield made[0] if parts == 1 else pack.stack(made)

    def batch(self, index: np.ndarray, slots: int) -> pack.Arrays:
        """The examples ``index``, one a row, as pixels or as the states of their tokens."""
        tokens, settings = self.pretrained.config.positions, self.pretrained.images
        if isinstance(self.states, Ragged):
            row = np.arange(len(index))
            return pack.assemble(self.states.take(self.rows), index, row, np.zeros_like(row), (slots, tokens, slots))
        assert settings is not None  # of an image encoder
        return pack.image_batch(pixels(self.pictures(self.rows[index]), settings), tokens, slots)

    def windows(self) -> Pairs:
        """Every image once, for evaluation."""
        if isinstance(self.states, np.ndarray):
            return pack.feature_batches(self.states, self.rows, POOLED)
        cuts = range(0, len(self), IMAGES)
        parts = (np.arange(start, min(start + IMAGES, len(self))) for start in cuts)
        return ((part, self.batch(part, IMAGES)) for part in parts)

    def whole_windows(self, skip: int = 0) -> Pairs:
        """Every image of the file once, from batch ``skip`` on: for the cache."""
        everything = dataclasses.replace(self, rows=np.arange(len(self.sums)), states=None)
        cuts = range(skip * IMAGES, len(everything), IMAGES)
        parts = (np.arange(start, min(start + IMAGES, len(everything))) for start in cuts)
        return ((part, everything.batch(part, IMAGES)) for part in parts)


def pooled_batches(examples: "Examples", slots: int, seed: int, epoch: int, skip: int, parts: int) -> Batches:
    """Training batches of pooled features: nothing is packed, for an example is one vector."""
    assert isinstance(examples.states, np.ndarray)
    for step in pack.micro_batches(len(examples), slots, parts, seed, epoch, skip):
        made = []
        for part in step:
            empty = {"hidden": np.zeros((slots, examples.states.shape[1]), examples.states.dtype)}
            pairs = pack.feature_batches(examples.states, examples.rows[part], slots)
            made.append(next(pairs, (None, empty))[1] | pack.targets(examples.labels[part], slots))
        yield made[0] if parts == 1 else pack.stack(made)


def digest_of(what: str, *arrays: np.ndarray) -> str:
    return t.digest({what: {str(number): array for number, array in enumerate(arrays)}})


Examples = Texts | Images


def texts(pretrained: Pretrained, chunks: Iterable[list[str]], labels: np.ndarray) -> Texts:
    """Texts of a file, in chunks, for this encoder; labels [N, ...]. Raises :class:`StrategyError` without a tokenizer."""
    tokenizer = tokenizer_of(pretrained)
    parts = [tokenizer.encode(chunk) for chunk in chunks]
    lengths = np.concatenate([part.lengths for part, _ in parts])
    tokens = Ragged(np.concatenate([part.values for part, _ in parts]), np.cumsum(lengths) - lengths, lengths)
    truncated = sum(cut for _, cut in parts)
    return Texts(tokens, np.arange(len(tokens)), labels, tokenizer.max_length, pretrained.config.pad_token, truncated)


def images(pretrained: Pretrained, sums: np.ndarray, pictures: Pictures, labels: np.ndarray) -> Images:
    """Pictures of a file for this encoder: ``sums`` uint8 [N, 32], the SHA-256 of each; labels [N, ...]."""
    return Images(pictures, sums, np.arange(len(sums)), labels, pretrained)
