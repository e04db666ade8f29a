"""Pre-training targets for packed batches: BERT's masking, GPT-2's next token. NumPy, on the host,
from a seed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from adapt.data.packing import Arrays
from adapt.errors import CheckpointError
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import Tokenizer

Corruption = Callable[[Arrays, np.random.Generator], Arrays]


def masked_lm(pretrained: Pretrained, rate: float = 0.15) -> Corruption:
    """Masked-LM targets (Devlin et al. 2019, 3.1): of ``rate`` of the tokens, 80% become [MASK],
    10% a random token, 10% stay. Special tokens are never chosen. Adds ``targets`` (flat
    positions), ``label`` and ``weight``, all [M] with M fixed by the batch's shape, so that only
    chosen positions go through the vocabulary product.
    """
    assert pretrained.tokenizer is not None
    mask = mask_id(pretrained.tokenizer)
    special = special_ids(pretrained.tokenizer)
    vocabulary = pretrained.tokenizer.size

    def corrupt(batch: Arrays, rng: np.random.Generator) -> Arrays:
        tokens = batch["tokens"].reshape(-1)
        slots = len(batch["first"])
        maskable = np.flatnonzero(
            (batch["segments"].reshape(-1) < slots) & ~np.isin(tokens, special)
        )
        most = max(round(rate * tokens.size), 1)
        wanted = min(max(round(rate * len(maskable)), 1), most, len(maskable))
        chosen = np.sort(rng.choice(maskable, wanted, replace=False)) if len(maskable) else maskable
        label = tokens[chosen]
        how = rng.random(len(chosen))
        corrupted = tokens.copy()
        corrupted[chosen[how < 0.8]] = mask
        swapped = chosen[(how >= 0.8) & (how < 0.9)]
        corrupted[swapped] = rng.integers(0, vocabulary, len(swapped))
        out = {name: value for name, value in batch.items() if name not in ("label", "weight")}
        return (
            out
            | {"tokens": corrupted.reshape(batch["tokens"].shape)}
            | pad_targets(chosen, label, most)
        )

    return corrupt


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the mask token. Raises :class:`CheckpointError` if there is none."""
    for token in ("[MASK]", "<mask>"):
        if (found := tokenizer.backend.token_to_id(token)) is not None:
            return found
    raise CheckpointError(
        "the tokenizer has no [MASK] token, so masked-LM training cannot corrupt its input"
    )


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids that are never masked, int32: the added tokens marked special."""
    added = tokenizer.backend.get_added_tokens_decoder()
    return np.array([number for number, token in added.items() if token.special], np.int32)


def causal_lm(batch: Arrays, rng: np.random.Generator) -> Arrays:
    """Next-token targets: every token but the last of each example predicts the one after it.
    Deterministic.
    """
    tokens = batch["tokens"].reshape(-1)
    segments = batch["segments"].reshape(-1)
    slots = len(batch["first"])
    follows = (
        (segments[:-1] == segments[1:])
        & (segments[:-1] < slots)
        & (batch["positions"].reshape(-1)[1:] > 0)
    )
    chosen = np.flatnonzero(follows)
    out = {name: value for name, value in batch.items() if name not in ("label", "weight")}
    return out | pad_targets(chosen, tokens[chosen + 1], tokens.size)


def pad_targets(chosen: np.ndarray, label: np.ndarray, most: int) -> Arrays:
    """Positions and labels in ``most`` places, with weight 1 where there is one."""
    targets = np.zeros(most, np.int32)
    labels = np.zeros(most, np.int32)
    weight = np.zeros(most, np.float32)
    targets[: len(chosen)], labels[: len(chosen)], weight[: len(chosen)] = chosen, label, 1.0
    return {"targets": targets, "label": labels, "weight": weight}


def split_into_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text, those longer than ``max_length`` as several pieces, each with its
    special tokens.
    """
    encodings = tokenizer.backend.encode_batch(list(texts))
    return [piece.ids for e in encodings for piece in (e, *e.overflowing)]
