"""Small tokenizers of transformers' classes, as their folders have them, for tests and for recording."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

TEXTS = [
    "A good film",
    "  two  spaces\tand a\nnew line ",
    "ÉTÉ naïve ﬁne ½ ＡＢＣ e\u0301",
    "don't: 123, \"quoted\" ``so'' (yes)!",
    "日本 🙂",
    "",
    "<mask>[MASK]</s>",
]
PAIR = ("good", "FILM.")
# (class, what tokenizer_config.json says beside it)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("AlbertTokenizer", {}),
    ("AlbertTokenizer", {"do_lower_case": False, "keep_accents": True}),
    ("CamembertTokenizer", {}),
    ("DebertaV2Tokenizer", {}),
    ("DebertaV2Tokenizer", {"do_lower_case": True, "split_by_punct": True}),
    ("DebertaV2TokenizerFast", {"add_prefix_space": False}),
    ("MPNetTokenizer", {}),
    ("MPNetTokenizer", {"do_lower_case": False, "strip_accents": True}),
    ("Qwen2Tokenizer", {}),
    ("Qwen2Tokenizer", {"add_prefix_space": True}),
    ("T5Tokenizer", {"extra_ids": 0}),
    ("XLMRobertaTokenizer", {}),
    ("XLMRobertaTokenizer", {"add_prefix_space": False}),
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# The special tokens of a class, in the order of their ids, those first that its model is made with.
SPECIAL = {
    "AlbertTokenizer": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
    "DebertaV2Tokenizer": BERT,
    "MPNetTokenizer": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"],
    "Qwen2Tokenizer": ["<|endoftext|>"],
    "T5Tokenizer": ["<pad>", "</s>", "<unk>"],
}
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LETTERS = sorted({*"".join(TEXTS), *"".join(TEXTS).lower(), *"eEaiIfilmF.12⁄"} - {*" \t\n"})
WORDS = ["▁good", "▁film", "▁two", "good", "film", "on", "ne", "▁1", "12"]


def write(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """A folder whose tokenizer.json says nothing of letters and spaces that the class would."""
    kind = name.removesuffix("Fast")
    special = SPECIAL.get(kind, ROBERTA)
    folder.mkdir(parents=True)
    backend = Tokenizer(model_of(kind, special))
    backend.add_special_tokens(special)
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": name, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def model_of(kind: str, special: list[str]) -> Any:
    """A model that has every letter of the texts, and some words."""
    if kind == "MPNetTokenizer":
        pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), "good", "film"]
        return models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    if kind == "Qwen2Tokenizer":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("o", "o"), ("g", "oo"), ("Ġ", "f"), ("i", "l"), ("1", "2")]
        pieces = [*special, *letters, *("".join(merge) for merge in merges)]
        return models.BPE({piece: n for n, piece in enumerate(pieces)}, merges)
    scored = [(piece, 0.0) for piece in special]
    scored += [(letter, -6.0) for letter in ["▁", *LETTERS]]
    scored += [(word, -4.0 - 0.1 * n) for n, word in enumerate(WORDS)]
    unknown = special.index("[UNK]" if "[UNK]" in special else "<unk>")
    return models.Unigram(scored, unknown)
