"""Prompts for recorded language models, and tokenizers that know words with a space before them."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

REFERENCES = Path(__file__).parents[1] / "references"
RECORDED = REFERENCES / "prompts.npz"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["good", "bad", "film", "was", "it", "end"]
TEXTS = ["a film", "bad film bad", "end", "it was good end"]


class PromptCase(NamedTuple):
    """A recorded checkpoint, a template, and the tokens that the words of two classes are."""

    name: str
    template: str
    tokens: Sequence[str]


WORDS_OF_CLASSES = {"positive": "good", "negative": "bad"}
CASES = [
    PromptCase("bert_mlm_tied", "{text} . it was [MASK] .", ["good", "bad"]),
    PromptCase("roberta_mlm", "{text} it was [MASK] a", ["Ġgood", "Ġbad"]),
    PromptCase("gpt2_lm_tied", "{text} it was [MASK]", ["Ġgood", "Ġbad"]),
]


def checkpoint(folder: Path, case: str) -> Path:
    """A recorded checkpoint with a tokenizer that has the words as tokens."""
    shutil.copytree(REFERENCES / case, folder, ignore=shutil.ignore_patterns("*.npz"))
    if case.startswith("bert"):
        (folder / "vocab.txt").write_text("\n".join([*BERT, *WORDS, "a", "."]))
    elif case.startswith("roberta"):
        write_words(folder, ROBERTA)
    else:
        write_words(folder, [])
    return folder


def write_words(folder: Path, special: Iterable[str]) -> None:
    """vocab.json and merges.txt of a byte-level BPE in which a word with a space before it is one
    token, and without one its letters; with GPT-2's end of a text where there is nothing special.
    """
    letters = sorted(set("".join(WORDS)))
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        spelled = f"Ġ{word}"
        merges += [(spelled[:stop], spelled[stop]) for stop in range(1, len(spelled))]
    tokens = [*special, *letters, "Ġ", *("".join(pair) for pair in merges)]
    assert len(tokens) <= 40, "the recorded embeddings have 40 rows"
    ids = {token: number for number, token in enumerate(tokens)}
    if not special:
        ids["<|endoftext|>"] = 99
    (folder / "vocab.json").write_text(json.dumps(ids))
    lines = [f"{first} {second}\n" for first, second in merges]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(lines))
