"""Tiny things that tests are made of: random checkpoints with a tokenizer, sentences, tables, pictures."""

import csv
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from adapt.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parents[1] / "references"
GOOD, BAD = ("good", "fine", "great", "warm"), ("bad", "dull", "poor", "cold")
PLAIN = ("the", "a", "film", "plot", "was", "is", "and", "very", "so", "cast", "score", "end")
TPU_PYTHON = os.environ.get("ADAPT_TPU_PYTHON") or (
    sys.executable if importlib.util.find_spec("libtpu") else None
)
with_libtpu = pytest.mark.skipif(
    TPU_PYTHON is None, reason="no libtpu here, and ADAPT_TPU_PYTHON names no Python that has it"
)
GPU_COMPILER = TPU_PYTHON and any(
    Path(TPU_PYTHON).parent.parent.glob("lib/python*/site-packages/jax_cuda12_plugin")
)
with_gpu_compiler = pytest.mark.skipif(
    not GPU_COMPILER, reason="no jax-cuda12-plugin beside libtpu here, see with_libtpu"
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def checkpoint(folder: Path, case: str, blocks: int | None = None, **changes: object) -> Path:
    """A recorded random checkpoint as a folder of its own, with a tokenizer and changes of its config.json.

    ``blocks`` keeps the first of its two: a program of one block is compiled in little more than half the time.
    """
    shutil.copytree(REFERENCES / case, folder, ignore=shutil.ignore_patterns("*.npz"))
    if blocks is not None:
        changes |= keep_blocks(folder, blocks)
    if changes:
        change_config(folder, changes)
    if case.startswith("bert"):
        (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *PLAIN, *GOOD, *BAD]))
    elif case.startswith("gpt2"):
        write_bpe(folder, [*PLAIN, *GOOD, *BAD])
    return folder


def change_config(folder: Path, changes: Mapping[str, object]) -> None:
    """Change entries of a checkpoint's config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | changes))


def keep_blocks(folder: Path, blocks: int) -> dict[str, int]:
    """Drop the tensors of all other blocks; what changes in config.json."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    kept = {}
    for name, tensor in tensors.items():
        block = re.search(r"\b(?:layer|h)\.(\d+)\.", name)
        if block is None or int(block[1]) < blocks:
            kept[name] = tensor
    safetensors.numpy.save_file(kept, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    name = "n_layer" if "n_layer" in config else "num_hidden_layers"
    return {name: blocks}


def write_bpe(folder: Path, words: Iterable[str]) -> None:
    """vocab.json and merges.txt of a byte-level BPE in which a space and a word's first letter are one token."""
    letters = sorted(set("".join(words)))
    tokens = [*letters, "Ġ", *(f"Ġ{letter}" for letter in letters), "Ċ"]
    assert (
        len(tokens) < 99
    )  # the recorded embeddings have 100 rows, the last of them is the end of a text
    ids = {token: number for number, token in enumerate(tokens)} | {"<|endoftext|>": 99}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"Ġ {letter}\n" for letter in letters)
    )


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): 2 to 9 words, of which one tells the class; every second one is positive."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label, telling = (("positive", GOOD), ("negative", BAD))[number % 2]
        words = [*rng.choice(PLAIN, rng.integers(1, 9)), str(rng.choice(telling))]
        rows.append((" ".join(rng.permutation(words)), label))
    return rows


def write_table(
    path: Path, rows: Iterable[Iterable[object]], header: Iterable[str] = ("text", "label")
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [header, *rows]
        )
    return path


def picture(seed: int, size: int = 32) -> Image.Image:
    """Coloured noise, bright for even seeds and dark for odd ones."""
    noise = np.random.default_rng(seed).integers(0, 128, (size, size, 3))
    return Image.fromarray((noise + 127 * (seed % 2 == 0)).astype(np.uint8))


def image_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """One folder a class, as `datasets` reads them: the column `image`, and `label` with the folders' names."""
    for number in range(seed, seed + count):
        file = folder / ("bright", "dark")[number % 2] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    return folder


def module(name: str) -> list[str]:
    """What follows ``python -m``: a command of adapt, or an experiment."""
    return ["adapt", name] if name in COMMANDS else [f"experiments.{name}"]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment of a command that a test starts: this code, that cache, and warnings shown, so
    that leaks are seen.
    """
    own = {
        "ADAPT_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "default",
    }
    return os.environ | own | more


def lines(path: Path) -> list[dict]:
    """The records of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(records: Iterable[dict]) -> list[dict]:
    """The records of a metrics.jsonl without what the clock decides."""
    timed = ("seconds", "compile_seconds", "timed_examples")
    return [
        {name: value for name, value in record.items() if name not in timed} for record in records
    ]


def bare_python(path: Path) -> Path:
    """An interpreter without any package: a program where nothing is installed."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    return path
