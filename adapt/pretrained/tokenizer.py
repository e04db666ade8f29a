"""Text to token ids: a thin layer over ``tokenizers`` that sets truncation and padding itself."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from adapt.errors import CheckpointError
from adapt.ragged import Ragged, ragged

logger = logging.getLogger(__name__)

Text = str | tuple[str, str]  # one, or a pair


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

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / "tokenizer.json"))


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
