"""Documents as pairs of neighbouring sentences: a sentence a line, a blank line between documents
(as in the files that BERT was trained on).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from adapt.data import tables
from adapt.data.examples import Examples, from_sequences
from adapt.data.shapes import shape_rule
from adapt.data.tables import Table
from adapt.errors import DataError, StrategyError
from adapt.objectives.base import Corpus, hold_out
from adapt.objectives.texts import LINES
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Tokenizer
from adapt.ragged import Ragged, concat_ranges, ragged

logger = logging.getLogger(__name__)

# Random numbers of pairs are others than those of masks, which begin with the seed.
STREAM = 0x9A12


class Special(NamedTuple):
    """The special tokens around two texts, int32 each."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray

    @property
    def count(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, one: Ragged, two: Ragged) -> Ragged:
        """Pairs of texts with the special tokens."""
        # Where in a pair each part begins.
        first = len(self.before)
        between = first + one.lengths
        second = between + len(self.between)
        after = second + two.lengths

        lengths = after + len(self.after)
        starts = np.cumsum(lengths) - lengths
        values = np.zeros(lengths.sum(), np.int32)
        values[concat_ranges(starts + first, one.lengths)] = one.values
        values[concat_ranges(starts + second, two.lengths)] = two.values
        for tokens, begin in (
            (self.before, starts),
            (self.between, starts + between),
            (self.after, starts + after),
        ):
            values[begin[:, None] + np.arange(len(tokens))] = tokens
        return Ragged(values, starts, lengths, second_start=second)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Special":
        """Those that the tokenizer puts around any pair."""
        encoding = tokenizer.uncut.encode("a", "a")
        ids = np.array(encoding.ids, np.int32)
        text_of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
        (first,) = np.nonzero(text_of == 0)
        (second,) = np.nonzero(text_of == 1)
        return cls(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])


@dataclasses.dataclass(frozen=True)
class Documents:
    """The sentences of all documents one after the other, without special tokens.

    ``document`` int64 [S] says of which document each is.
    """

    sentences: Ragged
    document: np.ndarray

    @classmethod
    def read(cls, tokenizer: Tokenizer, table: Table, longest: int) -> "Documents":
        """The lines of a table's column ``text``; one of more than ``longest`` tokens becomes
        several sentences.
        """
        pieces: list[list[int]] = []
        documents: list[int] = []
        for number, ids in tokenized_lines(tokenizer, table):
            for start in range(0, len(ids), longest):
                pieces.append(ids[start : start + longest])
                documents.append(number)
        return cls(ragged(pieces), np.array(documents, np.int64))

    @property
    def ends(self) -> np.ndarray:
        """Where each sentence ends among all tokens."""
        return self.sentences.starts + self.sentences.lengths

    @property
    def is_one(self) -> bool:
        """Whether all sentences are of one document."""
        return bool(self.document[0] == self.document[-1])

    def chunks(self, room: int) -> np.ndarray:
        """Runs of two or more sentences of one document that have ``room`` tokens at the most, int64
        [N, 2]: their first sentence, and the one after their last.

        No sentence is in two of them. Where the last of a document would be left alone, the run
        before it ends a sentence earlier, if it has three or more; else that one is in none.
        """
        found: list[tuple[int, int]] = []
        first = 0
        tokens = 0
        lengths = self.sentences.lengths.tolist()
        documents = self.document.tolist()
        for number, length in enumerate([*lengths, 0]):
            is_end = number == len(lengths) or documents[number] != documents[first]
            if is_end or tokens + length > room:
                if number - first == 1:
                    first = self.shorten(found, first, room)
                if number - first > 1:
                    found.append((first, number))
                first = number
                tokens = 0
            tokens += length
        return np.array(found, np.int64).reshape(-1, 2)

    def shorten(self, found: list[tuple[int, int]], alone: int, room: int) -> int:
        """Where a run begins that the sentence ``alone`` ends: at the last sentence of the run
        before it, which is taken from that, where it is of the same document and has three or more.
        """
        if not found or alone == 0:
            return alone
        first, last = found[-1]
        is_next = last == alone and self.document[first] == self.document[alone]
        has_room = self.sentences.lengths[alone - 1 : alone + 1].sum() <= room
        if not is_next or not has_room or last - first < 3:
            return alone
        found[-1] = (first, last - 1)
        return last - 1

    def without(self, chunks: np.ndarray) -> tuple["Documents", np.ndarray]:
        """(the documents without the sentences of these runs, the new number of every sentence)."""
        is_kept = np.ones(len(self.document), bool)
        is_kept[concat_ranges(chunks[:, 0], chunks[:, 1] - chunks[:, 0])] = False
        (kept,) = np.nonzero(is_kept)
        values = self.sentences.values[self.sentences.flat_indices(kept)]
        sentences = ragged_of(values, self.sentences.lengths[kept])
        return Documents(sentences, self.document[kept]), np.cumsum(is_kept) - is_kept

    def bounds(self, sentence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the first sentence, the one after the last) of the document of each ``sentence``."""
        document = self.document[sentence]
        first = np.searchsorted(self.document, document)
        return first, np.searchsorted(self.document, document, "right")

    def elsewhere(self, inside: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Positions of tokens of other documents than that of the sentences ``inside``, int64 [sum of
        lengths]: ``lengths`` each, from the beginning of a random sentence on.

        They go on in the next document where one ends, and after the last in the first.
        """
        first, last = self.bounds(inside)
        own = last - first
        drawn = (draws * (len(self.document) - own)).astype(np.int64)
        sentence = np.where(drawn < first, drawn, drawn + own)
        start = self.sentences.starts
        own_start = start[first]
        own_tokens = self.ends[last - 1] - own_start
        # Counted without the own document.
        begin = start[sentence] - np.where(sentence >= last, own_tokens, 0)
        others = np.repeat(len(self.sentences.values) - own_tokens, lengths)
        positions = concat_ranges(begin, lengths) % others
        skipped = np.repeat(own_tokens, lengths)
        is_before = positions < np.repeat(own_start, lengths)
        return np.where(is_before, positions, positions + skipped)


@dataclasses.dataclass(frozen=True)
class PairCorpus(Corpus):
    """Pairs of texts that are made anew in every pass, by seed, pass and example.

    ``examples`` are those of the first pass. ``pair_up`` makes (tokens, labels) of a pass.
    """

    pair_up: Callable[[int], tuple[Ragged, np.ndarray]]

    def of_pass(self, number: int) -> Examples:
        tokens, labels = self.pair_up(number)
        source = dataclasses.replace(self.examples.file_sequences, tokens=tokens)  # pyright: ignore
        return dataclasses.replace(self.examples, file_sequences=source, labels=labels)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Chunks of documents, each of which becomes a pair in every pass: its first sentences, and the
    rest of it or what stands for that.

    Half of the pairs are changed, by ``swaps``: their halves change places; else their second half
    comes from another document. A pair is as long in every pass.
    """

    documents: Documents
    chunks: np.ndarray  # int64 [N, 2]
    special: Special
    swaps: bool
    seed: int

    def take(self, index: np.ndarray) -> "Pairs":
        return dataclasses.replace(self, chunks=self.chunks[index])

    def without(self, others: np.ndarray) -> "Pairs":
        """The same pairs in documents without the text of other chunks, so that no second half
        comes from these.
        """
        documents, numbers = self.documents.without(others)
        first, last = self.chunks.T
        begin = numbers[first]
        chunks = np.stack([begin, begin + last - first], 1)
        return dataclasses.replace(self, documents=documents, chunks=chunks)

    def of_pass(self, number: int) -> tuple[Ragged, np.ndarray]:
        """(token ids with special tokens, labels int32 [N], 1 where a pair was changed)."""
        rng = np.random.default_rng([STREAM, self.seed, number])
        cut, change, place = rng.random((3, len(self.chunks)))
        first, last = self.chunks.T
        split = first + 1 + (cut * (last - first - 1)).astype(np.int64)
        is_changed = change < 0.5

        begin = self.documents.sentences.starts[first]
        middle = self.documents.sentences.starts[split]
        end = self.documents.ends[last - 1]
        is_swapped = is_changed & self.swaps
        one_lengths = np.where(is_swapped, end - middle, middle - begin)
        two_lengths = np.where(is_swapped, middle - begin, end - middle)
        one = concat_ranges(np.where(is_swapped, middle, begin), one_lengths)
        two = concat_ranges(np.where(is_swapped, begin, middle), two_lengths)
        if not self.swaps:
            other = self.documents.elsewhere(first, two_lengths, place)
            two = np.where(np.repeat(is_changed, two_lengths), other, two)
        tokens = self.special.around(
            ragged_of(self.documents.sentences.values[one], one_lengths),
            ragged_of(self.documents.sentences.values[two], two_lengths),
        )
        return tokens, is_changed.astype(np.int32)


def ragged_of(values: np.ndarray, lengths: np.ndarray) -> Ragged:
    """Sequences that lie one after the other."""
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)


def tokenized_lines(tokenizer: Tokenizer, table: Table) -> Iterator[tuple[int, list[int]]]:
    """(the number of its document, token ids) of every line that has tokens."""
    document = 0
    for chunk in tables.chunks(table, ["text"], LINES):
        lines = [line or "" for line in chunk["text"]]
        encodings = tokenizer.uncut.encode_batch(lines, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        tokenizer.unknown.count(ragged(ids), lines, np.ones(len(ids), np.int64))
        for line, of_line in zip(lines, ids, strict=True):
            if not line.strip():
                document += 1
            elif of_line:
                yield document, of_line


def read_pairs(
    pretrained: Pretrained, table: Table, seed: int, swaps: bool
) -> tuple[PairCorpus, PairCorpus]:
    """(training, held-out) pairs of a table's column ``text``. 5% are held out, at most 2,000, of
    whose text no training pair has any.

    Raises :class:`DataError` for a text without two chunks of two sentences, or where pairs are
    changed by other documents, without two of these to train on.
    """
    tokenizer = tokenizer_of(pretrained)
    special = Special.of(tokenizer)
    room = tokenizer.max_length - special.count
    if room < 2:
        raise StrategyError(
            f"`max_length` {tokenizer.max_length} has no room for two texts: give "
            f"{special.count + 2} or more"
        )
    documents = Documents.read(tokenizer, table, room // 2)
    chunks = documents.chunks(room)
    if len(chunks) < 2:
        raise DataError(
            f"{table.name} has {len(chunks)} pairs of neighbouring sentences, and 2 are needed: give "
            "a sentence a line, and a blank line between documents"
        )
    if not swaps and documents.is_one:
        raise DataError(
            f"{table.name} is one document, and a sentence that does not follow comes from another: "
            "put a blank line between documents"
        )
    say_left_out(table, documents, chunks)
    pairs = Pairs(documents, chunks, special, swaps, seed)
    of_training, of_held_out = hold_out(len(chunks), seed)
    held_out = pairs.take(of_held_out)
    training = pairs.take(of_training).without(held_out.chunks)
    if not swaps and training.documents.is_one:
        raise DataError(
            f"{table.name} has one document beside what is held out, and a sentence that does not "
            "follow comes from another: give more documents"
        )
    return corpus_of(pretrained, training), corpus_of(pretrained, held_out)


def say_left_out(table: Table, documents: Documents, chunks: np.ndarray) -> None:
    """Say how many sentences no pair begins with or goes on with."""
    every = len(documents.document)
    left = every - int((chunks[:, 1] - chunks[:, 0]).sum())
    if left:
        logger.warning(
            f"{table.name}: {left:,} of {every:,} sentences make no pair: each is alone in its "
            "document, or beside a pair that has no room for it; a larger `max_length` or longer "
            "documents leave fewer"
        )


def corpus_of(pretrained: Pretrained, pairs: Pairs) -> PairCorpus:
    tokens, labels = pairs.of_pass(0)
    examples = from_sequences(tokens, shape_rule(pretrained.config))
    return PairCorpus(dataclasses.replace(examples, labels=labels), pairs.of_pass)
