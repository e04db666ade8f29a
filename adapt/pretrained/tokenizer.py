"""Text to token ids: a thin layer over ``tokenizers`` that sets truncation and padding itself."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from adapt.errors import CheckpointError
from adapt.ragged import Ragged, ragged

Text = str | tuple[str, str]  # one, or a pair


def gather(encodings: Sequence[tokenizers.Encoding]) -> tuple[Ragged, int]:
    """(the token ids, how many were truncated)."""
    ids = ragged([e.ids for e in encodings])
    pairs = bool(encodings) and encodings[0].n_sequences == 2
    second_start = np.array([len(e) - sum(e.type_ids) for e in encodings]) if pairs else None
    return dataclasses.replace(ids, second_start=second_start), sum(
        bool(e.overflowing) for e in encodings
    )


class Tokenizer:
    """``encode`` texts to ids, cut to ``max_length`` tokens with the special tokens kept; padding
    is never added.
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_length: int):
        backend.no_padding()
        backend.enable_truncation(max_length)
        self.backend, self.max_length = backend, max_length

    def cut_to(self, max_length: int) -> "Tokenizer":
        """The same tokenizer with another length to cut to."""
        return Tokenizer(tokenizers.Tokenizer.from_str(self.backend.to_str()), max_length)

    def encode(self, texts: Sequence[Text]) -> tuple[Ragged, int]:
        """Token ids of every text or pair of texts, and how many were truncated: of a pair, the
        longer text first.
        """
        return gather(self.backend.encode_batch_fast(list(texts)))

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / "tokenizer.json"))


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer | None:
    """tokenizer.json; else vocab.txt (WordPiece) or vocab.json + merges.txt (byte-level BPE); else
    None.
    """
    config = folder / "tokenizer_config.json"
    try:
        if (file := folder / "tokenizer.json").exists():
            backend = tokenizers.Tokenizer.from_file(str(file))
        elif (file := folder / "vocab.txt").exists():
            backend = wordpiece(file, read_settings(config))
        elif (file := folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            backend = byte_level_bpe(file, folder / "merges.txt", read_settings(config))
        else:
            return None
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise CheckpointError(f"cannot read the tokenizer {file}: {error}") from None
    return Tokenizer(backend, max_length)


def read_settings(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is not there."""
    try:
        return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from None


def wordpiece(vocab: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from vocab.txt, one token a line: lines end in a newline alone, for U+2028
    may be a token.
    """
    ids = {
        token: index
        for index, token in enumerate(vocab.read_text("utf-8").removesuffix("\n").split("\n"))
    }
    if absent := {"[UNK]", "[CLS]", "[SEP]"} - ids.keys():
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
