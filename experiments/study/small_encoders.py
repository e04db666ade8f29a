"""Small encoders that a study pre-trains itself, one for each kind of head of pre-training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adapt
from adapt.data import bundled
from adapt.pretrained.fresh import cut_vocabulary, fresh
from adapt.pretrained.hub import tokenizer_of

FAMILIES = {"masked": "bert", "causal": "gpt2", "replaced": "electra"}
TEXTS = ("reviews", "amazon", "nyt", "trec")  # bundled sets, of which the training parts
TOKENIZER = "tiny-bert"
VOCABULARY = 4000
LAYERS = 2
WIDTH = 128
HEAD_WIDTH = 32  # of attention
POSITIONS = 64
TEXTS_OF_A_LINE = 100  # so that nearly all examples, which are pieces of a line, are full
BATCH_SIZE = 16
RATE = 1e-3


def corpus(names: Sequence[str] = TEXTS) -> list[str]:
    """The training texts of bundled sets, many of a set on a line."""
    lines = []
    for name in names:
        texts = training_texts(name)
        for start in range(0, len(texts), TEXTS_OF_A_LINE):
            lines.append(" ".join(texts[start : start + TEXTS_OF_A_LINE]))
    return lines


def training_texts(name: str) -> list[str]:
    """The texts of the training part of a bundled set, of both columns where it has pairs."""
    rows = bundled.read(name, "train")
    return [one_line(text) for column in ("text", "text_b") for text in rows.get(column, [])]


def one_line(text: str) -> str:
    return " ".join(text.split())


def entries(
    objective: str, layers: int = LAYERS, width: int = WIDTH, positions: int = POSITIONS
) -> dict[str, Any]:
    """The config.json of a small encoder of the family that has the objective's head."""
    family = FAMILIES[objective]
    heads = width // HEAD_WIDTH
    if family == "gpt2":
        return {
            "model_type": family,
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_positions": positions,
            "pad_token_id": 0,
        }
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "embedding_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
    }


def pretrained(objective: str, steps: int, folder: Path) -> adapt.Pretrained:
    """The encoder and its head after so many steps on :func:`corpus`, kept in ``folder``."""
    if not (folder / "result.json").exists():
        texts = corpus()
        whole = tokenizer_of(adapt.load(TOKENIZER))
        tokenizer = cut_vocabulary(whole, texts, VOCABULARY)
        adapt.pretrain(
            fresh(entries(objective), tokenizer),
            texts,
            objective=objective,
            steps=steps,
            batch_size=BATCH_SIZE,
            max_length=POSITIONS,
            learning_rate=RATE,
            validate_every=steps,
            out=folder,
            overwrite=True,
        )
    return adapt.load(folder)
