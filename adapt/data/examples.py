"""Examples in memory or on disk, as batches: what texts or images with labels become for one
encoder.
"""

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.data.augmentation import MIXING, VIEWS, Augmentation, generators, mixed_arrays
from adapt.data.packing import Arrays, BatchShapes, Windows
from adapt.data.shapes import CPU_SHAPES, ShapeRule, shape_rule
from adapt.data.sources import FileSource, ImageSource, Source, States, TokenSource
from adapt.data.text_windows import TextWindows
from adapt.parallel.sharding import Layout
from adapt.pretrained.hub import Pretrained, image_settings_of, tokenizer_of
from adapt.pretrained.images import to_pixels
from adapt.pretrained.tokenizer import NO_LONG_TEXTS, Encoded, LongTexts, Text
from adapt.ragged import Ragged, concatenate
from adapt.training.loop import Index


@typing.runtime_checkable
class OwnLabels(Protocol):
    """Labels of a task's own class, which has ``len`` and an index as an array [N] has."""

    @property
    def content(self) -> Mapping[str, Any]:
        """What a digest of the labels is made of."""
        ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples with labels: tokenized texts, or images that are decoded when they are needed.

        training = from_texts(pretrained, [["a good film", "a dull one"]], np.array([1, 0]))
        shapes = training.batch_shapes(32, seed=0, epochs=1)
        for batch in training.batches(shapes, seed=0, epoch=0): ...

    ``rows`` [N] says which sequences of a file these examples are: a split takes rows, and what is
    cached for the file serves any split of it. An example of several sequences (choices, pairs to
    compare) has several, [N, K]. Where texts were cut into ``windows``, ``rows`` are texts, each
    with one or more of the file's sequences. ``labels`` are [N, ...], or where words have labels,
    Ragged int32 [words, 2] of (token in the example, class), or a task's :class:`OwnLabels`. With
    ``states``, which a frozen prefix made of the file's sequences, batches hold ``hidden`` in place
    of tokens or pixels. ``long`` counts the texts that were longer than the tokenizer's
    ``max_length``. ``weights`` float32 [N] say how much each example counts in training batches;
    None: each 1. ``extras`` are arrays [N, ...] by name that training batches bring along.
    ``augmentation`` is what training batches do to pictures.
    """

    file_sequences: FileSource
    rows: np.ndarray
    labels: Any
    long: LongTexts = NO_LONG_TEXTS
    states: States | None = None
    layout: Layout | None = None  # batches are its groups, of which this process makes its own
    weights: np.ndarray | None = None
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    windows: TextWindows | None = None
    augmentation: Augmentation | None = None  # of pictures in training batches

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def inputs(self) -> Source:
        """What batches are made of."""
        if self.states is None:
            return self.file_sequences
        return self.file_sequences.with_states(self.states)

    @property
    def max_length(self) -> int:
        """Tokens that a sequence may have."""
        return self.file_sequences.max_length

    @property
    def tokens_per_sequence(self) -> float:
        """The tokens of a sequence of the file, in the mean."""
        return float(self.file_sequences.lengths.mean())

    @property
    def tokens_per_example(self) -> float:
        """The tokens of all sequences of an example, in the mean."""
        return self.tokens_per_sequence * len(self.sequences) / len(self)

    @property
    def targets(self) -> Any:
        """The labels in the order of the outputs of an evaluation; where words have labels, their
        classes.
        """
        if isinstance(self.labels, Ragged):
            return self.labels.values[self.labels.flat_indices(np.arange(len(self))), 1]
        return self.labels

    @property
    def num_outputs(self) -> int:
        """How many outputs of the head there are: one for each text or image, or for each word."""
        if isinstance(self.labels, Ragged):
            return int(self.labels.lengths.sum())
        return self.rows.size

    @property
    def sequences(self) -> np.ndarray:
        """The file's sequences of all examples, one after the other."""
        return self.sequences_of(np.arange(len(self)))

    def sequences_of(self, index: np.ndarray) -> np.ndarray:
        """The file's sequences of some examples, int64: their texts, or the windows of these."""
        texts = self.rows[index].reshape(-1)
        return texts if self.windows is None else self.windows.sequences(texts)

    @property
    def digest(self) -> str:
        """The SHA-256 of inputs and labels: what a resumed run compares."""
        labels = self.labels
        if isinstance(labels, Ragged):
            labels = {"truth": self.targets, "lengths": labels.lengths}
        elif isinstance(labels, OwnLabels):
            labels = labels.content
        inputs = {"file": self.file_sequences.digest, "rows": self.rows}
        content = {"inputs": inputs, "labels": labels}
        if self.windows is not None:
            content["windows"] = self.windows.counts
        if self.weights is not None:
            content["weights"] = self.weights
        if self.extras:
            content["extras"] = dict(self.extras)
        return tree.digest(content)

    def take(self, index: np.ndarray) -> "Examples":
        """The examples ``index``, of the same file."""
        weights = None if self.weights is None else self.weights[index]
        extras = {name: values[index] for name, values in self.extras.items()}
        return dataclasses.replace(
            self,
            rows=self.rows[index],
            labels=self.labels[index],
            weights=weights,
            extras=extras,
        )

    def batch_shapes(
        self, examples: int, seed: int, epochs: int, accumulate: int = 1, width: int = 64
    ) -> BatchShapes:
        """The static shapes of training batches: ``accumulate`` micro-batches of up to ``examples``
        each. ``width`` is the least that a row of tokens may have.

        The same for every call with the same arguments, so a resumed run has the same shapes.
        """
        groups, _ = packing.groups_of(self.layout)
        micro_batches = accumulate * groups
        if self.windows is not None:
            return packing.batch_shapes(
                self.window_lengths(),
                examples // groups,
                seed,
                epochs,
                micro_batches,
                width,
                self.file_sequences.rule,
            )
        return self.file_sequences.batch_shapes(
            self.rows, examples // groups, seed, epochs, micro_batches, width
        )

    def window_lengths(self) -> Ragged:
        """The tokens of all windows of each example, int64."""
        assert self.windows is not None
        counts = self.windows.counts[self.rows].reshape(len(self), -1).sum(1)
        lengths = self.file_sequences.lengths[self.sequences]
        return Ragged(lengths, np.cumsum(counts) - counts, counts)

    def batches(
        self, shapes: BatchShapes, seed: int, epoch: int, skip: int = 0, accumulate: int = 1
    ) -> Iterator[Arrays]:
        """The training batches of one epoch from batch ``skip`` on, in an order that seed and epoch
        decide.

        Texts are packed, images have a row each. The last batch may have empty slots (weight 0).
        ``accumulate`` > 1 micro-batches of a step are stacked on a leading axis; the next one is
        that of a layout's groups.
        """
        inputs_of = self.inputs
        slots = shapes.sequences
        if slots is None:
            slots = shapes.examples * self.rows[0].size
        sequences = dataclasses.replace(shapes, examples=slots)
        groups, local_groups = packing.groups_of(self.layout)
        steps = packing.micro_batches(
            len(self), shapes.examples, accumulate * groups, seed, epoch, skip
        )
        num_parts = accumulate * groups
        local = [i for i in range(num_parts) if i % groups in local_groups]
        of_lengths = packing.fingerprint(self.file_sequences.lengths[self.sequences])
        packed = shapes.packed.get((of_lengths, seed, epoch))
        at_once = inputs_of.steps_at_once(sequences, num_parts)
        numbered = enumerate(steps, skip)
        while together := list(itertools.islice(numbered, at_once)):
            parts = []
            for number, step in together:
                rows = [self.sequences_of(part) for part in step]
                places = None
                if packed is not None:
                    first = number * num_parts
                    places = [packed.placement(first + i) for i in range(num_parts)]
                parts.append(packing.StepParts(rows, places))
            if self.augmentation is None:
                inputs_of_steps = inputs_of.pack_steps(parts, local, sequences)
            else:
                ((_, step),) = together
                indices = [step[i] for i in local]
                inputs_of_steps = [self.augmented_batches(indices, sequences, seed, epoch)]
            for (_, step), inputs in zip(together, inputs_of_steps, strict=True):
                batches = []
                for i, of_part in zip(local, inputs, strict=True):
                    batches.append(of_part | self.training_arrays(step[i], of_part, shapes))
                yield packing.stack_groups(batches, self.layout, accumulate)

    def augmented_batches(
        self, indices: Sequence[np.ndarray], shapes: BatchShapes, seed: int, epoch: int
    ) -> list[Arrays]:
        """The inputs of micro-batches of pictures that are augmented, with what mixing adds."""
        assert isinstance(self.file_sequences, ImageSource) and self.augmentation is not None
        batches = []
        for index in indices:
            rows = self.sequences_of(index)
            views = generators(seed, epoch, rows, VIEWS)
            pixels = self.file_sequences.load_views(rows, self.augmentation, views)
            mixing: Arrays = {}
            if self.augmentation.mixes and len(index):
                rngs = generators(seed, epoch, rows, MIXING)
                pixels, shares = self.augmentation.mix(pixels, rngs)
                others = self.labels[np.roll(index, -1)]
                targets = packing.make_targets(others, {}, shapes.examples, None)
                mixing = mixed_arrays(targets, shares, shapes.examples)
            batch = packing.image_batch(pixels, shapes.width, shapes.examples)
            batches.append(batch | mixing)
        return batches

    def training_arrays(self, index: np.ndarray, inputs: Arrays, shapes: BatchShapes) -> Arrays:
        """What a training batch of some examples has beside its inputs."""
        weights = None if self.weights is None else self.weights[index]
        targets = packing.make_targets(self.labels[index], inputs, shapes.examples, weights)
        return targets | self.more_arrays(index, shapes)

    def more_arrays(self, index: np.ndarray, shapes: BatchShapes) -> Arrays:
        """What a batch of some examples has beside inputs and targets: extras, and whose windows
        the sequences are.
        """
        arrays = {}
        for name, values in self.extras.items():
            arrays[name] = packing.pad_to(values[index], shapes.examples)
        if self.windows is not None and shapes.sequences is not None:
            slots = shapes.examples * self.rows[0].size
            texts = self.rows[index].reshape(-1)
            arrays |= self.windows.arrays(texts, slots, shapes.sequences)
        return arrays

    def eval_batches(self, skip: int = 0, few: bool = False) -> Iterator[tuple[Index, Arrays]]:
        """Every sequence once from batch ``skip`` on, as (index, batch): texts packed by length.
        With ``few``, a batch of a few texts has a small shape of its own.

        ``index`` is a list of arrays, one for each group of the layout (one without a layout):
        which outputs of all (see :attr:`targets`) come out of the group's first slots. A text that
        was cut into windows comes as often as it has windows: see
        :func:`adapt.training.loop.evaluate`.
        """
        windows = self.inputs.windows(self.sequences, few)
        if not isinstance(self.labels, Ragged):
            batches = packing.eval_batches(windows, self.layout, skip)
            return batches if self.windows is None else self.text_batches(batches, self.windows)
        return self.word_batches(windows, self.labels, skip)

    def eval_shapes(self) -> Iterator[Arrays]:
        """A batch of each shape that :meth:`eval_batches` has, some of them perhaps twice."""
        windows = self.inputs.windows(self.sequences)
        if isinstance(self.labels, Ragged):
            words = self.labels
            windows = (with_word_labels(window, words) for window in windows)
        firsts = (dataclasses.replace(window, members=window.members[:1]) for window in windows)
        for _, batch in packing.eval_batches(firsts, self.layout):
            yield batch

    def text_batches(
        self, batches: Iterable[tuple[Index, Arrays]], windows: TextWindows
    ) -> Iterator[tuple[Index, Arrays]]:
        """The same batches with an index that counts texts in place of windows."""
        owners = windows.owners(self.rows.reshape(-1))
        for index, batch in batches:
            yield [owners[group] for group in index], batch

    def word_batches(
        self, windows: Iterable[Windows], labels: Ragged, skip: int
    ) -> Iterator[tuple[Index, Arrays]]:
        """Evaluation batches with the tokens of labelled words; their index counts words."""
        first_word = np.cumsum(labels.lengths) - labels.lengths
        words = dataclasses.replace(labels, starts=first_word)
        labelled = (with_word_labels(window, labels) for window in windows)
        for index, batch in packing.eval_batches(labelled, self.layout, skip):
            yield [words.flat_indices(group) for group in index], batch

    def file_batches(self, skip: int = 0) -> Iterator[tuple[Index, Arrays]]:
        """Every sequence of the file once, from batch ``skip`` on: for the cache of a frozen
        prefix.
        """
        every = np.arange(len(self.file_sequences))
        return packing.eval_batches(self.file_sequences.windows(every), self.layout, skip)


def with_word_labels(window: Windows, labels: Ragged) -> Windows:
    """The same batches with ``targets``, ``label`` and ``weight`` of their words."""

    def make(part: np.ndarray) -> Arrays:
        inputs = window.make(part)
        return inputs | packing.pad_word_labels(labels[part], inputs)

    return Windows(window.members, make)


def from_texts(
    pretrained: Pretrained, chunks: Iterable[Sequence[Text]], labels: np.ndarray
) -> Examples:
    """Examples of the texts (or pairs) of a file, in chunks, for this encoder.

    Raises :class:`StrategyError` if the checkpoint has no tokenizer.
    """
    return from_tokens(pretrained, map(tokenizer_of(pretrained).encode_long, chunks), labels)


def from_tokens(pretrained: Pretrained, chunks: Iterable[Encoded], labels: Any) -> Examples:
    """Examples from tokenized chunks.

    An example has as many sequences as there are for one of the ``labels``: one, or several for
    choices and pairs.
    """
    encoded = list(chunks)
    tokenizer = tokenizer_of(pretrained)
    tokens = concatenate([one.tokens for one in encoded])
    config = pretrained.config
    file_sequences = TokenSource(tokens, tokenizer.max_length, config.pad_token, shape_rule(config))
    rule = encoded[0].long.rule if encoded else tokenizer.long
    long = LongTexts(rule, tokenizer.max_length)
    for one in encoded:
        long += one.long
    windows = None
    if long.windows:
        windows = TextWindows(np.concatenate([window_counts(one) for one in encoded]))
    rows = np.arange(len(file_sequences) if windows is None else len(windows.counts))
    if len(rows) != len(labels):
        rows = rows.reshape(len(labels), -1)
    return Examples(file_sequences, rows, labels, long, windows=windows)


def window_counts(encoded: Encoded) -> np.ndarray:
    """How many windows each text has, int64 [N]."""
    if encoded.windows is None:
        return np.ones(len(encoded.tokens), np.int64)
    return encoded.windows


def from_images(
    pretrained: Pretrained,
    take: Callable[[np.ndarray], Sequence[Any]],
    sums: np.ndarray,
    labels: np.ndarray,
) -> Examples:
    """Examples of the images of a file: ``take`` gives the PIL images of rows, ``sums`` uint8 [N,
    32] their SHA-256.

    Raises :class:`StrategyError` if the encoder takes no images.
    """
    settings = image_settings_of(pretrained)
    load = lambda rows: to_pixels(take(rows), settings)
    whole = dataclasses.replace(settings, resize=None, crop=False)

    def load_views(
        rows: np.ndarray, augmentation: Augmentation, rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        images = [augmentation.view(*pair) for pair in zip(take(rows), rngs, strict=True)]
        return to_pixels(images, whole if augmentation.crop else settings)

    digest = tree.digest({repr(settings): {"0": sums}})
    config = pretrained.config
    file_sequences = ImageSource(
        load, len(sums), config.positions, digest, shape_rule(config), load_views
    )
    return Examples(file_sequences, np.arange(len(sums)), labels)


def from_sequences(tokens: Ragged, rule: ShapeRule = CPU_SHAPES) -> Examples:
    """Examples without labels, for pre-training: one for each sequence of token ids."""
    file_sequences = TokenSource(tokens, int(tokens.lengths.max(initial=0)), rule=rule)
    return Examples(file_sequences, np.arange(len(tokens)), np.zeros(len(tokens), np.int32))
