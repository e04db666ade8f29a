"""Pre-training targets of packed batches: BERT's masking, GPT-2's next token. NumPy, on the host,
from a seed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from adapt.data.packing import Arrays
from adapt.errors import CheckpointError
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Tokenizer
from adapt.ragged import ragged

Corruption = Callable[[Arrays, np.random.Generator], Arrays]

MASK_TOKENS = ("[MASK]", "<mask>")
# Shares of the chosen tokens that are masked, and that become a random token.
MASKED = 0.8
RANDOM = 0.1


def masked_lm(pretrained: Pretrained, rate: float = 0.15) -> Corruption:
    """Masked-LM targets (Devlin et al. 2019, 3.1): a share ``rate`` of the tokens is chosen; 80% of
    them become [MASK], 10% a random token, 10% stay. Special tokens are never chosen.

    The batch gets ``targets`` (flat positions), ``label`` and ``weight``, all [M]. M is fixed by
    the batch's shape, so that only chosen positions go through the vocabulary product.

    Raises :class:`CheckpointError` where the tokenizer has no mask token.
    """
    tokenizer = tokenizer_of(pretrained)
    mask = mask_id(tokenizer)
    special = special_ids(tokenizer)
    vocabulary = tokenizer.size

    def corrupt(batch: Arrays, rng: np.random.Generator) -> Arrays:
        tokens = batch["tokens"].reshape(-1)
        is_text = batch["segments"].reshape(-1) < len(batch["first"])
        maskable = np.flatnonzero(is_text & ~np.isin(tokens, special))
        capacity = max(round(rate * tokens.size), 1)
        count = max(round(rate * len(maskable)), 1)
        chosen = draw(maskable, min(count, capacity), rng)

        draws = rng.random(len(chosen))
        masked = chosen[draws < MASKED]
        random = chosen[(draws >= MASKED) & (draws < MASKED + RANDOM)]
        corrupted = tokens.copy()
        corrupted[masked] = mask
        corrupted[random] = rng.integers(0, vocabulary, len(random))
        inputs = without_labels(batch) | {"tokens": corrupted.reshape(batch["tokens"].shape)}
        return inputs | pad_targets(chosen, tokens[chosen], capacity)

    return corrupt


def draw(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different values, sorted; all of them where there are fewer."""
    if not len(values):
        return values
    return np.sort(rng.choice(values, min(count, len(values)), replace=False))


def causal_lm(batch: Arrays, rng: np.random.Generator) -> Arrays:
    """Next-token targets: every token but the last of each example predicts the one after it.

    The batch gets ``targets`` (flat positions), ``label`` and ``weight``, one for every token of
    its shape. Nothing is drawn from ``rng``.
    """
    tokens = batch["tokens"].reshape(-1)
    segments = batch["segments"].reshape(-1)
    positions = batch["positions"].reshape(-1)
    is_text = segments[:-1] < len(batch["first"])
    has_next = (segments[:-1] == segments[1:]) & (positions[1:] > 0)
    chosen = np.flatnonzero(is_text & has_next)
    return without_labels(batch) | pad_targets(chosen, tokens[chosen + 1], tokens.size)


def without_labels(batch: Arrays) -> Arrays:
    """The batch without the labels and weights of its examples."""
    return {name: array for name, array in batch.items() if name not in ("label", "weight")}


def pad_targets(chosen: np.ndarray, label: np.ndarray, capacity: int) -> Arrays:
    """Positions and labels [n] in ``capacity`` slots, with weight 1 where there is one."""
    count = len(chosen)
    targets = np.zeros(capacity, np.int32)
    labels = np.zeros(capacity, np.int32)
    weight = np.zeros(capacity, np.float32)
    targets[:count] = chosen
    labels[:count] = label
    weight[:count] = 1.0
    return {"targets": targets, "label": labels, "weight": weight}


def find_mask_id(tokenizer: Tokenizer) -> int | None:
    """The id of the mask token; None where the tokenizer has none."""
    for token in MASK_TOKENS:
        number = tokenizer.backend.token_to_id(token)
        if number is not None:
            return number
    return None


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the mask token. Raises :class:`CheckpointError` if there is none."""
    number = find_mask_id(tokenizer)
    if number is None:
        raise CheckpointError(
            "the tokenizer has no [MASK] token, so masked-LM training cannot corrupt its input: give "
            "a checkpoint that was trained so (T5 was not)"
        )
    return number


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids that are never masked, int32 [n]: those of added tokens that are marked special."""
    added = tokenizer.backend.get_added_tokens_decoder()
    return np.array([number for number, token in added.items() if token.special], np.int32)


def split_into_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text. One that is longer than ``max_length`` becomes several pieces, each
    with its special tokens.
    """
    pieces = []
    pieces_of_text = []
    for encoding in tokenizer.backend.encode_batch(list(texts)):
        pieces.append(encoding.ids)
        pieces += [piece.ids for piece in encoding.overflowing]
        pieces_of_text.append(1 + len(encoding.overflowing))
    tokenizer.unknown.count(ragged(pieces), texts, np.array(pieces_of_text, np.int64))
    return pieces
