"""The files beside a decoder's weights as they are on the hub: a tokenizer.json, and how
sentence-transformers makes vectors. Only the standard library is needed here, so that references
are recorded with them.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REFERENCES = Path(__file__).parents[1] / "references"
DECODERS = ("llama", "smollm3", "mistral", "qwen2", "qwen3", "gemma3_text")
QUERIES = ["the film was good", "so", "a warm cast and a dull plot"]
PROMPT = "so the query is: "
SPECIAL = ("<|endoftext|>", "<s>", "</s>")  # ids 0, 1 and 2 of the recorded checkpoints


def special(token: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": True} | flags


def template(before: Iterable[str], after: Iterable[str]) -> dict[str, Any]:
    """A post-processor that puts special tokens around a text, and around each of a pair."""

    def piece(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def around(name: str) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": 0}}
        return [*map(piece, before), text, *map(piece, after)]

    used = {}
    for token in (*before, *after):
        used[token] = {"id": token, "ids": [SPECIAL.index(token)], "tokens": [token]}
    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A") + around("B"),
        "special_tokens": used,
    }


def write_tokenizer(
    folder: Path, words: Iterable[str], before: Iterable[str] = (), after: Iterable[str] = ()
) -> None:
    """tokenizer.json of a byte-level BPE in which a space and a letter may be one token, without a
    token for padding.
    """
    letters = sorted(set("".join(words)))
    tokens = [*SPECIAL, *letters, "Ġ", *(f"Ġ{letter}" for letter in letters)]
    assert len(tokens) <= 60, "the recorded embeddings have 60 rows"
    spaces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(token, number) for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": spaces | {"use_regex": True},
        "post_processor": template(tuple(before), tuple(after)),
        "decoder": spaces | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,  # as in all of byte level
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [["Ġ", letter] for letter in letters],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def embedding_folder(folder: Path) -> Path:
    """A checkpoint laid out as Qwen3-Embedding: the end token after each text, whose state is the
    vector, padding on the left, a prompt for queries, and vectors of length 1.
    """
    ignored = shutil.ignore_patterns("*.npz")
    shutil.copytree(REFERENCES / "qwen3_bare", folder, ignore=ignored)
    write_tokenizer(folder, [*QUERIES, PROMPT.replace(" ", "")], after=["</s>"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"padding_side": "left", "pad_token": "</s>", "model_max_length": 40}
    steps = []
    for number, name in enumerate(("Transformer", "Pooling", "Normalize")):
        path = f"{number}_{name}" if number else ""
        kind = f"sentence_transformers.models.{name}"
        steps.append({"idx": number, "name": str(number), "path": path, "type": kind})
    pooling = {"word_embedding_dimension": 16, "pooling_mode_lasttoken": True}
    pooling |= {"pooling_mode_mean_tokens": False, "include_prompt": True}
    prompts = {"query": PROMPT, "document": ""}
    files = {
        "tokenizer_config.json": settings,
        "modules.json": steps,
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
