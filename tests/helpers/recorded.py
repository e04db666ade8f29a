"""The inputs that tests/references recorded, as batches, and what a model computes of them."""

import functools

import jax
import numpy as np

from adapt import tree
from adapt.models import MaskedLM, Model


def unpacked(recorded) -> dict[str, np.ndarray]:
    """The recorded inputs as a batch with one example a row."""
    if "pixel_values" in recorded:
        pixels = recorded["pixel_values"].transpose(0, 2, 3, 1)
        rows, tokens = len(pixels), recorded["last_hidden_state"].shape[1]
        lengths = np.full(rows, tokens, np.int32)
        inputs = {"pixels": pixels}
    else:
        ids = recorded["input_ids"].astype(np.int32)
        rows, tokens = ids.shape
        lengths = recorded["attention_mask"].sum(1).astype(np.int32)
        inputs = {"tokens": ids, "positions": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1))}
        if "token_type_ids" in recorded:
            inputs["types"] = recorded["token_type_ids"].astype(np.int32)
    real = np.arange(tokens) < lengths[:, None]
    segments = np.where(real, np.arange(rows)[:, None], rows).astype(np.int32)
    return inputs | {
        "segments": segments,
        "first": np.arange(rows, dtype=np.int32) * tokens,
        "length": lengths,
    }


def packed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same texts in as many rows of the same length: all but the longest share the last row, and
    begin in the middle of it.
    """
    rows, width = batch["segments"].shape
    longest = int(np.argmax(batch["length"]))
    others = [n for n in range(rows) if n != longest]
    spare = width - sum(batch["length"][n] for n in others)
    assert spare >= 0
    fresh = {name: np.zeros_like(batch[name]) for name in batch if np.ndim(batch[name]) == 2}
    fresh["segments"] += rows
    first = np.zeros(rows, np.int32)
    places = {longest: 0}
    start = (rows - 1) * width + spare
    for n in others:
        places[n] = start
        start += batch["length"][n]
    for n, place in places.items():
        first[n] = place
        for name, array in fresh.items():
            length = batch["length"][n]
            array.reshape(-1)[place : place + length] = batch[name][n, :length]
    return fresh | {"first": first, "length": batch["length"]}


@functools.partial(jax.jit, static_argnums=0)
def computed(model: Model, params: tree.Tree, batch: dict) -> dict:
    """The state of every layer, what the head says of the last one, and of the next sentence."""
    head = params["head"]
    states = model.hidden_states(params, batch)
    table = params["encoder"]["embedding"].get("token")
    found = {"states": states, "output": model.apply_head(head, states[-1], batch, table)}
    if isinstance(model.head, MaskedLM) and model.head.next_sentence:
        found["next_sentence"] = model.head.apply(
            {"params": head}, states[-1], batch, method="next_sentence_logits"
        )
    return found
