"""Text to token ids: a thin layer over ``tokenizers`` that sets truncation and padding itself.

What becomes of a text that has more tokens than an example may, the tokenizer's ``long`` says:

    head        the first tokens; the last where the checkpoint's truncation_side is left
    head+tail   the first quarter and the last three quarters of what fits, as Sun et al. 2019,
                "How to Fine-Tune BERT for Text Classification?", 5.3.1, do: 128 + 382 of 510
    windows     the fewest windows of the full length that hold the whole text, evenly spread: a
                sequence each; whoever reads them takes the mean of their vectors

Special tokens are kept at their places, and every window has its own.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from adapt.errors import DataError, StrategyError
from adapt.options import Long, is_of, wanted
from adapt.pretrained.unknown_texts import UnknownTexts, unknown_token
from adapt.ragged import Ragged, concat_ranges, ragged

logger = logging.getLogger(__name__)

Text = str | tuple[str, str]  # one, or a pair
Encoding = tokenizers.Encoding  # the tokens of one of them, and where they are in it


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text, or of a pair of texts, as the encoder reads them.

    ``ids`` int32 [n]; ``strings`` are the tokens as the vocabulary spells them (``##ly``,
    ``Ġfilm``). ``offsets`` int32 [n, 2] are characters: token i is ``text[start:end]``. ``texts``
    int32 [n] says of which text, 0 or in a pair 1; it is -1 for a special token, whose offsets are
    (0, 0).
    """

    ids: np.ndarray
    strings: list[str]
    offsets: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Tokens({' '.join(self.strings)})"

    def take(self, places: np.ndarray) -> "Tokens":
        """Those at some places."""
        strings = [self.strings[place] for place in places]
        return Tokens(self.ids[places], strings, self.offsets[places], self.texts[places])


@dataclasses.dataclass(frozen=True)
class LongTexts:
    """How many texts had more tokens than ``max_length``, and what became of them.

    ``windows`` is how many they were cut into, ``tokens_left_out`` how many tokens nobody reads.
    """

    rule: Long = "head"
    max_length: int = 0
    texts: int = 0
    windows: int = 0
    tokens_left_out: int = 0

    def __add__(self, other: "LongTexts") -> "LongTexts":
        """The texts of both, which were read by one rule."""
        return dataclasses.replace(
            self,
            texts=self.texts + other.texts,
            windows=self.windows + other.windows,
            tokens_left_out=self.tokens_left_out + other.tokens_left_out,
        )

    @property
    def truncated(self) -> int:
        """Texts of which tokens were left out."""
        return 0 if self.rule == "windows" else self.texts

    @property
    def counts(self) -> dict[str, int]:
        """What result.json says of them."""
        return {
            "texts": self.texts,
            "windows": self.windows,
            "tokens_left_out": self.tokens_left_out,
        }

    def note(self, where: str) -> str:
        """What is said of the long texts of ``where``."""
        what = "1 text is" if self.texts == 1 else f"{self.texts:,} texts are"
        if self.rule == "windows":
            done = f"cut into {self.windows:,} windows"
        else:
            number = self.tokens_left_out
            lost = "1 token is" if number == 1 else f"{number:,} tokens are"
            where_cut = "" if self.rule == "head" else " in the middle"
            done = f"truncated{where_cut}: {lost} left out"
        return f"{where}: {what} longer than {self.max_length} tokens and {done}"


NO_LONG_TEXTS = LongTexts()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N texts, or pairs of texts, as the encoder reads them.

    ``tokens`` has a sequence of ids for each, or as many as ``windows`` int64 [N] says, those of a
    text one after the other.
    """

    tokens: Ragged
    long: LongTexts
    windows: np.ndarray | None = None


class Tokenizer:
    """Texts to token ids, at most ``max_length`` a sequence with the special tokens kept. Padding
    is never added; ``long`` says what is read of longer texts.

        tokens, truncated = tokenizer.encode(["a good film", "a dull one"])
        tokens[0]                       # int32 [n], the special tokens included

    ``named`` are the special tokens by transformers' names (``pad_token``), None for one that the
    checkpoint says it has not; what it does not say is not in it. ``end`` is the id of the token
    that ends a text, where it is put after each: a text that spells it is read as far as there.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        max_length: int,
        long: Long = "head",
        side: str | None = None,
        stride: int | None = None,
        named: Mapping[str, str | None] | None = None,
        end: int | None = None,
    ):
        backend.no_padding()
        # The side is the backend's own, which is right unless a checkpoint says otherwise.
        if side is None:
            side = str((backend.truncation or {}).get("direction", "right"))
        if long == "head":
            backend.enable_truncation(max_length, direction=side)
        else:
            backend.no_truncation()
        self.backend = backend
        self.max_length = max_length
        self.long: Long = long
        self.stride = stride  # tokens between the windows that spans are read in; None: unsaid
        self.side = side.lower()
        self.named = named_in(backend, named or {})
        self.end = end
        self.by_rule: dict[str, Tokenizer] = {}
        self.unknown = UnknownTexts(
            unknown_token(backend), backend.num_special_tokens_to_add(is_pair=False)
        )

    def replaced(
        self,
        *,
        backend: tokenizers.Tokenizer | None = None,
        max_length: int | None = None,
        long: Long | None = None,
        stride: int | None = None,
        named: Mapping[str, str | None] | None = None,
        end: int | None = None,
    ) -> "Tokenizer":
        """The same tokenizer with other arguments; those that are None stay."""
        return Tokenizer(
            copied(self.backend) if backend is None else backend,
            self.max_length if max_length is None else max_length,
            self.long if long is None else long,
            self.side,
            self.stride if stride is None else stride,
            self.named if named is None else named,
            self.end if end is None else end,
        )

    def cut_to(self, max_length: int) -> "Tokenizer":
        """The same tokenizer with another length to cut to."""
        return self.replaced(max_length=max_length)

    def with_long(self, long: Long) -> "Tokenizer":
        """The same tokenizer with another rule for long texts; made once."""
        if long == self.long:
            return self
        if long not in self.by_rule:
            self.by_rule[long] = self.replaced(long=long)
        return self.by_rule[long]

    def encode(self, texts: Sequence[Text]) -> tuple[Ragged, int]:
        """(token ids of every text or pair of texts, how many were truncated). The longer text of a
        pair is cut first.

        Raises :class:`StrategyError` by the rule ``windows``: see :meth:`encode_long`.
        """
        self.check_one_sequence("encode")
        encoded = self.encode_long(texts)
        return encoded.tokens, encoded.long.truncated

    def encode_long(self, texts: Sequence[Text]) -> Encoded:
        """The token ids of every text or pair of texts by the rule for long ones, and their count.

        Raises :class:`StrategyError` for a pair that is longer than a window.
        """
        encodings = self.backend.encode_batch_fast(list(texts))
        if self.long != "head":
            encoded = self.cut(encodings)
        elif encodings and encodings[0].n_sequences == 2:
            number = self.left_out_of_pairs(encodings, texts)
            encoded = gather(encodings, number, self.max_length)
        else:
            encoded = gather(encodings, left_out(encodings), self.max_length)
        if self.end is not None and encoded.tokens.second_start is None:
            ended = ended_at(encoded.tokens, self.end)
            encoded = dataclasses.replace(encoded, tokens=ended)
        self.unknown.count(encoded.tokens, texts, encoded.windows)
        return encoded

    def left_out_of_pairs(
        self, encodings: Sequence[tokenizers.Encoding], texts: Sequence[Text]
    ) -> int:
        """The tokens of pairs that were cut off. What the library says of both texts does not tell
        them: long pairs are tokenized once more.
        """
        long_ones = [row for row, encoding in enumerate(encodings) if encoding.overflowing]
        if not long_ones:
            return 0
        whole = self.uncut.encode_batch_fast([texts[row] for row in long_ones])
        kept = sum(len(encodings[row]) for row in long_ones)
        return sum(map(len, whole)) - kept

    @functools.cached_property
    def uncut(self) -> tokenizers.Tokenizer:
        """The library's tokenizer without truncation."""
        backend = copied(self.backend)
        backend.no_truncation()
        return backend

    def cut(self, encodings: Sequence[tokenizers.Encoding]) -> Encoded:
        """Whole texts by the rules ``head+tail`` and ``windows``."""
        sequences: list[Sequence[int] | np.ndarray] = []
        windows = np.ones(len(encodings), np.int64)
        starts = []  # of the second text of a pair
        long = LongTexts(self.long, self.max_length)
        for row, encoding in enumerate(encodings):
            ids = encoding.ids
            kept = None
            if len(ids) <= self.max_length:
                sequences.append(ids)
            else:
                kept = self.kept(encoding)
                sequences += [np.array(ids)[places] for places in kept]
                windows[row] = len(kept)
                long += self.count(len(ids), kept)
            if encoding.n_sequences == 2:
                types = np.array(encoding.type_ids)
                types = types if kept is None else types[kept[0]]
                starts.append(len(types) - types.sum())
        tokens = ragged(sequences)
        if starts:
            tokens = dataclasses.replace(tokens, second_start=np.array(starts))
        return Encoded(tokens, long, windows if long.windows else None)

    def count(self, length: int, kept: Sequence[np.ndarray]) -> LongTexts:
        """What became of a long text of so many tokens."""
        if self.long == "windows":
            return LongTexts(self.long, self.max_length, 1, windows=len(kept))
        left_out = length - len(kept[0])
        return LongTexts(self.long, self.max_length, 1, tokens_left_out=left_out)

    def kept(self, encoding: tokenizers.Encoding) -> list[np.ndarray]:
        """The places of the tokens that are read of a long text, for each of its sequences."""
        texts = texts_of(encoding)
        special = np.flatnonzero(texts < 0)
        room = self.max_length - len(special)
        if room < 1:
            raise StrategyError(
                f"`max_length` {self.max_length} has no room for a text beside {len(special)} "
                "special tokens: give a larger one"
            )
        own = [np.flatnonzero(texts == number) for number in range(encoding.n_sequences)]
        if self.long == "windows":
            if len(own) == 2:
                raise no_windows_of_pairs()
            spread = spread_starts(len(own[0]), room)
            pieces = [own[0][start : start + room] for start in spread]
        else:
            shares = (room,)
            if len(own) == 2:
                shares = shares_of_pair(len(own[0]), len(own[1]), room)
            ends = [head_and_tail(*one) for one in zip(own, shares, strict=True)]
            pieces = [np.concatenate(ends)]
        return [np.sort(np.concatenate([special, piece])) for piece in pieces]

    def check_one_sequence(self, what: str) -> None:
        """Raise :class:`StrategyError` by the rule ``windows``, for what has one sequence a text."""
        if self.long == "windows":
            raise StrategyError(
                f"`long` windows makes several sequences of a text, and {what} has one: give `long` "
                "head or head+tail"
            )

    def tokenize(self, texts: Sequence[Text]) -> list[Tokens]:
        """The tokens of each text, or pair of texts: what :meth:`encode` gives, and where each is.

            (tokens,) = tokenizer.tokenize(["a good film"])
            tokens.strings              # ["[CLS]", "a", "good", "film", "[SEP]"]
            tokens.offsets[2]           # [2, 6]: "a good film"[2:6]

        Raises :class:`DataError` for what is no list of texts, :class:`StrategyError` by the rule
        ``windows``.
        """
        self.check_one_sequence("tokenize")
        found = []
        for encoding in self.backend.encode_batch(as_texts(texts)):
            tokens = tokens_of(encoding)
            if len(tokens) > self.max_length:
                (places,) = self.kept(encoding)
                tokens = tokens.take(places)
            if self.end is not None and encoding.n_sequences == 1:
                length = np.argmax(tokens.ids == self.end) + 1
                tokens = tokens.take(np.arange(length))
            found.append(tokens)
        return found

    def decode(self, ids: Sequence[int] | np.ndarray, special: bool = False) -> str:
        """The text of token ids [n], without the special tokens unless ``special``.

        Spaces, capitals and accents are those that the tokenizer kept. Raises :class:`DataError`
        for what is no id of the vocabulary.
        """
        array = np.asarray(ids)
        if array.size and array.dtype.kind not in "iu":
            raise DataError(f"`ids` is of type {type(ids).__name__}: give a list of whole numbers")
        numbers = [int(number) for number in array.reshape(-1)]
        for number in numbers:
            if number < 0 or self.backend.id_to_token(number) is None:
                raise DataError(f"`ids`: {number} is no token of the vocabulary")
        return self.backend.decode(numbers, skip_special_tokens=not special)

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def save(self, folder: Path) -> None:
        backend = copied(self.backend)
        backend.enable_truncation(self.max_length, direction=self.side)  # the file keeps the side
        backend.save(str(folder / "tokenizer.json"))


def as_texts(texts: Any) -> list[Text]:
    """Texts, or pairs of texts, in a list.

    Raises :class:`DataError` for a bare string, for what is no text, and for both kinds together.
    """
    if isinstance(texts, str):
        raise DataError(f"`texts` is one string, {texts[:40]!r}: put it in [brackets]")
    if isinstance(texts, Mapping | set) or not isinstance(texts, Iterable):
        raise DataError(f"`texts` is of type {type(texts).__name__}: give a list of texts")
    checked: list[Any] = []
    for row, text in enumerate(texts):
        is_pair = isinstance(text, tuple | list) and len(text) == 2
        members = tuple(text) if is_pair else (text,)
        if not all(isinstance(member, str) for member in members):
            raise DataError(
                f"`texts`[{row}] is of type {type(text).__name__}: give a text, or a pair of texts"
            )
        if checked and is_pair != isinstance(checked[0], tuple):
            raise DataError(f"`texts`[{row}] is another kind than `texts`[0]: give texts or pairs")
        checked.append(members if is_pair else str(text))
    return checked


def named_in(
    backend: tokenizers.Tokenizer, named: Mapping[str, str | None]
) -> dict[str, str | None]:
    """The named tokens without those that were left out of the tokenizer. One that is not an added
    token is left out, too: naming it would change how texts are split.
    """
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    kept = {}
    for name, token in named.items():
        if token is None or token in added:
            kept[name] = token
    return kept


def ended_at(tokens: Ragged, end: int) -> Ragged:
    """The sequences as far as their first token ``end``, which each of them has."""
    ends = np.flatnonzero(tokens.values == end)
    if len(ends) == len(tokens):
        return tokens
    first_ends = ends[np.searchsorted(ends, tokens.starts)]
    lengths = first_ends + 1 - tokens.starts
    values = tokens.values[concat_ranges(tokens.starts, lengths)]
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)


def copied(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy, whose settings are its own."""
    return tokenizers.Tokenizer.from_str(backend.to_str())


def backend_of(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, of the entries of a tokenizer.json."""
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def check_long_rule(long: Any) -> None:
    """Raise :class:`StrategyError` for what is no rule for long texts."""
    if not is_of(long, Long):
        raise StrategyError(f"`long` is {long!r}: {wanted(Long)}")


def no_windows_of_pairs() -> StrategyError:
    """The error of windows for pairs of texts."""
    return StrategyError(
        "`long` windows is for single texts, and these are pairs: give `long` head or head+tail, "
        "which cut the longer text of a pair first"
    )


def spread_starts(count: int, room: int) -> np.ndarray:
    """Where the windows of ``room`` tokens begin that hold ``count`` tokens: the fewest, int64 [k],
    evenly spread from the first token to the last.
    """
    windows = -(-count // room)
    return np.arange(windows) * (count - room) // max(windows - 1, 1)


def head_and_tail(places: np.ndarray, room: int) -> np.ndarray:
    """The first quarter and the last three quarters of ``room`` places; all, where they fit."""
    if len(places) <= room:
        return places
    head = -(-room // 4)
    return np.concatenate([places[:head], places[len(places) - (room - head) :]])


def shares_of_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair may have of ``room``: the longer one is cut first.

    That is what the library calls ``longest_first``.
    """
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def texts_of(encoding: tokenizers.Encoding) -> np.ndarray:
    """The text of each token, int32 [n]: 0, or 1 in a pair; -1 for a special token."""
    numbers = [-1 if number is None else number for number in encoding.sequence_ids]
    return np.array(numbers, np.int32)


def tokens_of(encoding: tokenizers.Encoding) -> Tokens:
    """What the library says of one text or pair."""
    return Tokens(
        ids=np.array(encoding.ids, np.int32),
        strings=list(encoding.tokens),
        offsets=np.array(encoding.offsets, np.int32).reshape(-1, 2),
        texts=texts_of(encoding),
    )


def warn_long(long: LongTexts, where: str) -> None:
    """Log how many texts of ``where`` were too long, if any were."""
    if long.texts:
        logger.warning(long.note(where))


def left_out(encodings: Sequence[tokenizers.Encoding], text: int = 0) -> int:
    """How many tokens the library cut off, where it cut only this text of a pair."""
    number = 0
    for encoding in encodings:
        for rest in encoding.overflowing:
            number += int((texts_of(rest) == text).sum())
    return number


def gather(
    encodings: Sequence[tokenizers.Encoding], tokens_left_out: int, max_length: int
) -> Encoded:
    """The token ids of texts that the library cut at their end. In pairs the second text begins
    where types are no longer 0.
    """
    ids = ragged([encoding.ids for encoding in encodings])
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    if encodings and encodings[0].n_sequences == 2:
        starts = [len(encoding) - sum(encoding.type_ids) for encoding in encodings]
        ids = dataclasses.replace(ids, second_start=np.array(starts))
    return Encoded(ids, LongTexts("head", max_length, truncated, 0, tokens_left_out))
