"""Examples in memory or on disk, as batches: what texts or images with labels become for one encoder."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.parallel.sharding import Layout
from adapt.pretrained.hub import Pretrained, image_settings_of, tokenizer_of
from adapt.pretrained.images import to_pixels
from adapt.pretrained.tokenizer import Text
from adapt.ragged import Ragged

Pairs = Iterator[tuple[Any, packing.Arrays]]  # of indices [n], on a mesh a list of them
States = (
    np.ndarray | Ragged
)  # what a frozen prefix made of every example of a file: pooled [N, D], or states of tokens


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenized texts, or pictures that are decoded when they are needed, of a file with labels [N, ...].

    ``rows`` says which of the file's examples these are: a split takes rows, and what is cached for the file serves any
    split of it. An example of several sequences (choices, pairs to compare) has a row of them, [N, K]; where words have
    labels, they are Ragged int32 [words, 2] of (place of its token in the example, class). With ``states``, batches hold
    ``hidden`` in place of inputs. ``truncated`` texts were longer than ``max_length``; a picture has ``max_length`` tokens.
    """

    file_sequences: Ragged  # token ids of every text of the file; of pictures the lengths alone
    rows: np.ndarray
    labels: Any
    max_length: int
    pad: int = 0
    truncated: int = 0
    pictures: Callable[[np.ndarray], np.ndarray] | None = (
        None  # rows of the file -> pixels float32 [n, S, S, channels]
    )
    pictures_digest: str = ""
    states: States | None = None
    layout: Layout | None = (
        None  # batches and windows are its groups, of which this process makes its own
    )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> int:
        return self.layout.groups if self.layout else 1

    @property
    def tokens(self) -> Ragged:
        return self.file_sequences.take(self.rows.reshape(-1))

    @property
    def targets(self) -> np.ndarray:
        """The labels in the order in which :meth:`eval_batches` counts: of words, their classes."""
        if isinstance(self.labels, Ragged):
            return self.labels.values[self.labels.flat_indices(np.arange(len(self))), 1]
        return self.labels

    @property
    def num_outputs(self) -> int:
        """How many outputs of the head there are: one a sequence, or a word."""
        return int(self.labels.lengths.sum()) if isinstance(self.labels, Ragged) else self.rows.size

    @property
    def digest(self) -> str:
        """Of inputs and labels: what a resumed run compares."""
        ragged = isinstance(self.labels, Ragged)
        labels = {"truth": self.targets, "lengths": self.labels.lengths} if ragged else self.labels
        return tree.digest(
            {"inputs": {"file": self.inputs_digest, "rows": self.rows}, "labels": labels}
        )

    @functools.cached_property
    def inputs_digest(self) -> str:
        """Of the token ids of the whole file; or of all its pictures, and of how they become pixels."""
        second_start = (
            {}
            if self.file_sequences.second_start is None
            else {"2": self.file_sequences.second_start}
        )
        return self.pictures_digest or tree.digest(
            {
                "tokens": {
                    "0": self.file_sequences.values,
                    "1": self.file_sequences.lengths,
                    **second_start,
                }
            }
        )

    def take(self, index: np.ndarray) -> "Examples":
        return dataclasses.replace(self, rows=self.rows[index], labels=self.labels[index])

    def plan(self, examples: int, seed: int, epochs: int, parts: int = 1) -> packing.Plan:
        examples = examples // self.groups
        parts = parts * self.groups
        if self.pictures is not None:
            return packing.Plan(self.max_length, (examples,), examples)
        return packing.plan(self.file_sequences.lengths[self.rows], examples, seed, epochs, parts)

    def batches(
        self, plan: packing.Plan, seed: int, epoch: int, skip: int = 0, parts: int = 1
    ) -> Iterator[packing.Arrays]:
        """The training batches of one epoch from batch ``skip`` on: texts packed, one picture a row."""
        sequences = dataclasses.replace(plan, examples=plan.examples * self.rows[0].size)
        make = lambda step, kept, _: self.arrays(
            [self.rows[part].reshape(-1) for part in step], kept, sequences
        )
        return packing.batches(make, self.labels, plan, seed, epoch, skip, parts, self.layout)

    def arrays(
        self, step: packing.Part, kept: Sequence[int], plan: packing.Plan
    ) -> list[packing.Arrays]:
        """The model's inputs in micro-batches of one shape, each of the file's rows in a part of ``step``, by its place."""
        if isinstance(self.states, np.ndarray):  # one vector an example: nothing is packed
            return [
                {"hidden": packing.pad_to(self.states[step[place]], plan.examples)}
                for place in kept
            ]
        if self.pictures is not None and self.states is None:
            return [
                packing.image_batch(self.pictures(step[place]), plan.width, plan.examples)
                for place in kept
            ]
        return packing.packed(
            self.file_sequences if self.states is None else self.states, step, kept, plan, self.pad
        )

    def eval_batches(self, skip: int = 0) -> Pairs:
        """Every sequence once from batch ``skip`` on, (index [n], batch), for evaluation: texts packed by length.

        Where words have labels, ``index`` counts them. On a mesh there is one a group: see :func:`adapt.data.packing.group_batches`.
        """
        pooled = isinstance(self.states, np.ndarray)
        rows = self.rows.reshape(-1)
        if pooled or self.pictures is not None:
            slots = packing.POOLED_PER_BATCH if pooled else packing.IMAGES_PER_BATCH
            plan = packing.Plan(self.max_length, (slots,), slots)
            cuts = range(skip * slots * self.groups, len(rows), slots)
            parts = [np.arange(start, min(start + slots, len(rows))) for start in cuts]
            return packing.group_batches(
                parts, lambda part: self.arrays([rows[part]], (0,), plan)[0], self.layout
            )
        held = self.states if isinstance(self.states, Ragged) else self.file_sequences
        words = None
        if isinstance(self.labels, Ragged):
            words = Ragged(
                self.labels.values,
                np.cumsum(self.labels.lengths) - self.labels.lengths,
                self.labels.lengths,
            )
        found = packing.eval_batches(
            held.take(rows), self.max_length, pad=self.pad, layout=self.layout
        )
        found = itertools.islice(found, skip, None)
        return found if words is None else (self.tagged(words, *each) for each in found)

    def tagged(
        self, words: Ragged, index: Any, batch: packing.Arrays
    ) -> tuple[Any, packing.Arrays]:
        """A window with the labels of its words, and which of all words these are."""
        if self.layout is None:
            return words.flat_indices(index), batch | packing.pad_word_labels(
                self.labels[index], batch
            )
        own = [
            (index[group], {name: each[place] for name, each in batch.items()})
            for place, group in enumerate(self.layout.local_groups)
        ]
        tags = packing.stack(
            [packing.pad_word_labels(self.labels[part], inputs) for part, inputs in own]
        )
        return [words.flat_indices(part) for part in index], batch | tags

    def file_batches(self, skip: int = 0) -> Pairs:
        """Every example of the file once, from batch ``skip`` on: for the cache."""
        return dataclasses.replace(
            self, rows=np.arange(len(self.file_sequences)), labels=None, states=None
        ).eval_batches(skip)


def from_texts(
    pretrained: Pretrained, chunks: Iterable[Sequence[Text]], labels: np.ndarray
) -> Examples:
    """Texts (or pairs) of a file, in chunks, for this encoder. Raises :class:`StrategyError` if it takes none."""
    return from_tokens(pretrained, map(tokenizer_of(pretrained).encode, chunks), labels)


def from_tokens(
    pretrained: Pretrained, parts: Iterable[tuple[Ragged, int]], labels: Any
) -> Examples:
    """What the tokenizer made of a file's chunks, with labels: of each in turn, or of as many sequences as come to one."""
    ragged, cut = zip(*parts, strict=True)
    values, lengths = (
        np.concatenate([getattr(part, name) for part in ragged]) for name in ("values", "lengths")
    )
    second_start = (
        None
        if ragged[0].second_start is None
        else np.concatenate([part.second_start for part in ragged])
    )
    whole = Ragged(values, np.cumsum(lengths) - lengths, lengths, second_start)
    rows = np.arange(len(lengths))
    rows = rows if len(rows) == len(labels) else rows.reshape(len(labels), -1)
    length = tokenizer_of(pretrained).max_length
    pad = pretrained.config.pad_token
    return Examples(whole, rows, labels, length, pad, sum(cut))


def from_images(
    pretrained: Pretrained,
    take: Callable[[np.ndarray], Sequence[Any]],
    sums: np.ndarray,
    labels: np.ndarray,
) -> Examples:
    """Pictures of a file for this encoder: ``take`` gives the PIL images of rows, ``sums`` uint8 [N, 32] are their SHA-256.

    Raises :class:`StrategyError` if it takes none.
    """
    settings = image_settings_of(pretrained)
    every = np.arange(len(sums))
    tokens = pretrained.config.positions
    whole = Ragged(np.zeros(0, np.int32), every * tokens, np.full(len(sums), tokens))
    pictures = lambda rows: to_pixels(take(rows), settings)
    digest = tree.digest({repr(settings): {"0": sums}})
    return Examples(whole, every, labels, tokens, pictures=pictures, pictures_digest=digest)
