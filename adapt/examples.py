"""Examples in memory or on disk, as batches: what a table of texts or images becomes for one encoder."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from adapt import data, pack
from adapt import tree as t
from adapt.errors import StrategyError
from adapt.features import IMAGES, image_windows, text_windows
from adapt.hub import Pretrained
from adapt.images import pixels
from adapt.tokenizer import Ragged

Pairs = Iterator[tuple[np.ndarray, pack.Arrays]]


@dataclasses.dataclass(frozen=True)
class Texts:
    """Tokenized texts with labels. ``truncated`` of them were longer than the tokenizer's ``max_length``."""

    tokens: Ragged
    labels: np.ndarray
    max_length: int
    pad: int
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """Of tokens and labels: what a resumed run compares."""
        return t.digest({"offsets": self.tokens.offsets, "values": self.tokens.values, "labels": self.labels})

    def take(self, index: np.ndarray) -> "Texts":
        return dataclasses.replace(self, tokens=self.tokens.take(index), labels=self.labels[index])

    def plan(self, examples: int, seed: int, epochs: int, parts: int = 1) -> pack.Plan:
        return pack.plan(self.tokens.lengths, examples, seed, epochs, parts)

    def batches(self, plan: pack.Plan, seed: int, epoch: int, skip: int = 0, parts: int = 1) -> Iterator[pack.Arrays]:
        """The training batches of one epoch from batch ``skip`` on, packed."""
        return pack.batches(self.tokens, self.labels, plan, seed, epoch, skip, self.pad, parts)

    def windows(self) -> Pairs:
        """Every example once, packed by length, for evaluation."""
        return pack.windows(self.tokens, self.max_length, pad=self.pad)


@dataclasses.dataclass(frozen=True)
class Images:
    """Rows of an image column, decoded when they are needed, with labels."""

    table: data.Table
    column: str
    labels: np.ndarray
    pretrained: Pretrained
    sums: np.ndarray  # SHA-256 of each picture, uint8 [N, 32]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def digest(self) -> str:
        """Of pictures and labels: what a resumed run compares."""
        return t.digest({"pictures": self.sums, "labels": self.labels})

    def take(self, index: np.ndarray) -> "Images":
        return dataclasses.replace(
            self, table=self.table.select(index), labels=self.labels[index], sums=self.sums[index]
        )

    def plan(self, examples: int, seed: int, epochs: int, parts: int = 1) -> pack.Plan:
        return pack.Plan(self.pretrained.config.positions, (examples,), examples)

    def batches(self, plan: pack.Plan, seed: int, epoch: int, skip: int = 0, parts: int = 1) -> Iterator[pack.Arrays]:
        """The training batches of one epoch from batch ``skip`` on: one image a row."""
        for step in pack.micro_batches(len(self), plan.examples, parts, seed, epoch, skip):
            made = [self.batch(part, plan.examples) | pack.targets(self.labels[part], plan.examples) for part in step]
            yield made[0] if parts == 1 else pack.stack(made)

    def batch(self, index: np.ndarray, slots: int) -> pack.Arrays:
        config, settings = self.pretrained.config, self.pretrained.images
        assert settings is not None  # checked when the examples were made
        rows = (
            next(data.chunks(self.table.select(index), [self.column], max(len(index), 1)))[self.column]
            if len(index)
            else []
        )
        return pack.image_batch(pixels(rows, settings), config.positions, slots)

    def windows(self) -> Pairs:
        """Every image once, for evaluation."""
        column = (chunk[self.column] for chunk in data.chunks(self.table, [self.column], IMAGES))
        for index, batch, _ in image_windows(self.pretrained, column):
            yield index, batch


Examples = Texts | Images


def examples(
    pretrained: Pretrained, table: data.Table, text_column: str, image_column: str | None, labels: np.ndarray
) -> Examples:
    """The examples of a table for this encoder. Raises :class:`StrategyError` if column and encoder do not go together."""
    check_inputs(pretrained, image_column)
    if image_column is not None:
        return Images(table, image_column, labels, pretrained, data.check_images(table, image_column))
    data.check_texts(table, text_column)
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None  # check_inputs
    parts = [tokenizer.encode(chunk[text_column]) for chunk in data.chunks(table, [text_column], 4096)]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part, _ in parts]))])
    tokens = Ragged(np.concatenate([part.values for part, _ in parts]), offsets.astype(np.int64))
    return Texts(tokens, labels, tokenizer.max_length, pretrained.config.pad_token, sum(cut for _, cut in parts))


def windows(
    pretrained: Pretrained, table: data.Table, text_column: str, image_column: str | None
) -> Iterator[tuple[np.ndarray, pack.Arrays, int]]:
    """(index, batch, number truncated) over a whole table in constant memory: for extraction and prediction."""
    check_inputs(pretrained, image_column)
    if image_column is not None:
        return image_windows(pretrained, (chunk[image_column] for chunk in data.chunks(table, [image_column], 256)))
    data.check_texts(table, text_column)
    return text_windows(pretrained, (chunk[text_column] for chunk in data.chunks(table, [text_column], 4096)))


def check_inputs(pretrained: Pretrained, image_column: Any) -> None:
    if pretrained.config.is_image and image_column is None:
        raise StrategyError(f"{pretrained.source} is an image encoder: name the image column with --image-column")
    if not pretrained.config.is_image and image_column is not None:
        raise StrategyError(
            f"{pretrained.source} is a text encoder: --image-column does not go with it, give --text-column"
        )
    if not pretrained.config.is_image and pretrained.tokenizer is None:
        raise StrategyError(
            f"{pretrained.source} has no tokenizer: add tokenizer.json, vocab.txt, or vocab.json with merges.txt"
        )
