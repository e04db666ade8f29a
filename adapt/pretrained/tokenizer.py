"""Text to token ids: a thin layer over ``tokenizers`` that sets truncation and padding itself."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from adapt.errors import CheckpointError, DataError
from adapt.ragged import Ragged, ragged

logger = logging.getLogger(__name__)

Text = str | tuple[str, str]  # one, or a pair


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text, or of a pair of texts, as the encoder reads them.

    ``ids`` int32 [n]; ``strings`` are the tokens as the vocabulary spells them (``##ly``, ``Ġfilm``).
    ``offsets`` int32 [n, 2] are characters: token i is ``text[start:end]``. ``texts`` int32 [n] says
    of which text, 0 or in a pair 1; it is -1 for a special token, whose offsets are (0, 0).
    """

    ids: np.ndarray
    strings: list[str]
    offsets: np.ndarray
    texts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Tokens({' '.join(self.strings)})"


class Tokenizer:
    """Texts to token ids, cut to ``max_length`` tokens with the special tokens kept. Padding is
    never added.

        tokens, truncated = tokenizer.encode(["a good film", "a dull one"])
        tokens[0]                       # int32 [n], the special tokens included
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_length: int):
        backend.no_padding()
        backend.enable_truncation(max_length)
        self.backend = backend
        self.max_length = max_length

    def cut_to(self, max_length: int) -> "Tokenizer":
        """The same tokenizer with another length to cut to."""
        return Tokenizer(tokenizers.Tokenizer.from_str(self.backend.to_str()), max_length)

    def encode(self, texts: Sequence[Text]) -> tuple[Ragged, int]:
        """(token ids of every text or pair of texts, how many were truncated). The longer text of a
        pair is cut first.
        """
        return gather(self.backend.encode_batch_fast(list(texts)))

    def tokenize(self, texts: Sequence[Text]) -> list[Tokens]:
        """The tokens of each text, or pair of texts: what :meth:`encode` gives, and where each is.

            (tokens,) = tokenizer.tokenize(["a good film"])
            tokens.strings              # ["[CLS]", "a", "good", "film", "[SEP]"]
            tokens.offsets[2]           # [2, 6]: "a good film"[2:6]

        Raises :class:`DataError` for what is no list of texts.
        """
        return [tokens_of(encoding) for encoding in self.backend.encode_batch(as_texts(texts))]

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
        self.backend.save(str(folder / "tokenizer.json"))


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


def tokens_of(encoding: tokenizers.Encoding) -> Tokens:
    """What the library says of one text or pair."""
    texts = [-1 if number is None else number for number in encoding.sequence_ids]
    return Tokens(
        ids=np.array(encoding.ids, np.int32),
        strings=list(encoding.tokens),
        offsets=np.array(encoding.offsets, np.int32).reshape(-1, 2),
        texts=np.array(texts, np.int32),
    )


def warn_truncated(count: int, longest: int, where: str) -> None:
    """Log how many texts of ``where`` were cut to ``longest`` tokens, if any were."""
    if count:
        logger.warning(truncation_note(count, longest, where))


def truncation_note(count: int, longest: int, where: str) -> str:
    """What is said of texts that were cut."""
    what = "1 text is" if count == 1 else f"{count:,} texts are"
    return f"{where}: {what} longer than {longest} tokens and truncated"


def gather(encodings: Sequence[tokenizers.Encoding]) -> tuple[Ragged, int]:
    """(the token ids, how many were truncated). In pairs the second text begins where types are
    no longer 0.
    """
    ids = ragged([encoding.ids for encoding in encodings])
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    if encodings and encodings[0].n_sequences == 2:
        starts = [len(encoding) - sum(encoding.type_ids) for encoding in encodings]
        ids = dataclasses.replace(ids, second_start=np.array(starts))
    return ids, truncated


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder: tokenizer.json, else vocab.txt (WordPiece), else
    vocab.json with merges.txt (byte-level BPE). None if there is none of them.

    Raises :class:`CheckpointError` for a file that can't be read.
    """
    file = vocabulary_file(folder)
    if file is None:
        return None
    settings = {}
    if file.name != "tokenizer.json":  # which holds all that there is to say
        settings = read_settings(folder / "tokenizer_config.json")
    try:
        if file.name == "tokenizer.json":
            backend = tokenizers.Tokenizer.from_file(str(file))
        elif file.name == "vocab.txt":
            backend = wordpiece(file, settings)
        else:
            backend = byte_level_bpe(file, folder / "merges.txt", settings)
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise CheckpointError(f"cannot read the tokenizer {file}: {error}") from None
    return Tokenizer(backend, max_length)


def vocabulary_file(folder: Path) -> Path | None:
    """The file that a folder's tokenizer is made from; None if there is none."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).exists():
            return folder / name
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return folder / "vocab.json"
    return None


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file.

    Raises :class:`CheckpointError` for anything else in it.
    """
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from None


def wordpiece(vocab: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from vocab.txt, one token a line. Lines end in a newline alone, for U+2028
    may be a token.
    """
    tokens = vocab.read_text("utf-8").removesuffix("\n").split("\n")
    ids = {token: index for index, token in enumerate(tokens)}
    absent = {"[UNK]", "[CLS]", "[SEP]"} - ids.keys()
    if absent:
        raise ValueError(f"there is no {min(absent)} in it")
    made = tokenizers.BertWordPieceTokenizer(
        ids,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    return tokenizers.Tokenizer.from_str(made.to_str())


def byte_level_bpe(vocab: Path, merges: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from vocab.json and merges.txt."""
    space = settings.get("add_prefix_space", False)
    made = tokenizers.ByteLevelBPETokenizer.from_file(
        str(vocab), str(merges), add_prefix_space=space
    )
    if made.token_to_id("<|endoftext|>") is not None:
        made.add_special_tokens(["<|endoftext|>"])
    return tokenizers.Tokenizer.from_str(made.to_str())
