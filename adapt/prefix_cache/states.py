"""The cache of a frozen prefix: what it makes of every example of a file, computed once and reused by later runs.

The key is everything that the values depend on: the prefix's parameters and arithmetic, the token ids (or pictures)
themselves, the cut, the dtypes, the backend and JAX's version. The split, the head, the seed and the rates are not in
it, so other runs on the same file find it.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.data.examples import Examples, States
from adapt.errors import OutputError
from adapt.models import Model
from adapt.models.model import example_batch
from adapt.models.peft import PEFT_FIELDS, is_peft_param
from adapt.parallel import multihost
from adapt.prefix_cache.store import CachedArray, Pieces
from adapt.ragged import Ragged, concat_ranges
from adapt.training.frozen_prefix import Cut, prefix_params
from adapt.training.loop import pipelined

SEEN = 10.0  # seconds in which another host sees what the first one wrote
VERSION = 2  # of what the cache holds: another one computes anew

OnProgress = Callable[[int, int], None]  # (examples that are done, of how many)
OnWait = Callable[[], None]  # another process is computing the states


def ignore(*_: Any) -> None:
    """A callback for what nobody asked to hear."""


def cached_array(
    params: tree.Tree, model: Model, at: int, examples: Examples, dtype: Any
) -> CachedArray:
    """Where the cache keeps what the prefix makes of a file of examples: pooled [N, D], or token states [T, D]."""
    config = dataclasses.asdict(model.encoder.config)
    below = prefix_params(params, model, at)
    still = ("dropout", "attention_dropout", "init_range")  # of no effect on a prefix
    still += (
        () if any(map(is_peft_param, tree.paths(below))) else PEFT_FIELDS
    )  # nor is what was added further up
    key = {
        "version": VERSION,
        "parameters": tree.digest(below),
        "config": {name: value for name, value in config.items() if name not in still},
        "examples": examples.inputs_digest,
        "cut": at,
        "pooling": pooling_digest(model) if model.prefix_pools(at) else None,
        "layers": model.input_layers if at == model.stages else None,
        "computed_in": str(np.dtype(model.encoder.dtype)),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
    }
    whole = examples.file_sequences
    count = len(whole) if model.prefix_pools(at) else int(whole.lengths.sum())
    width = model.input_width if at == model.stages else model.encoder.config.width
    return CachedArray(key, (count, width), np.dtype(dtype))


def pooling_digest(model: Model) -> str:
    """Of what the head's pooling computes, as XLA gets it: a name may stand for another function tomorrow."""
    batch = example_batch(model.encoder.config)
    x = jax.ShapeDtypeStruct((*batch["segments"].shape, model.input_width), model.encoder.dtype)
    text = jax.jit(lambda x: model.head.pool(x, batch)).lower(x).as_text()  # pyright: ignore
    return hashlib.sha256(text.encode()).hexdigest()


def compute_states(
    cut: Cut,
    params: tree.Tree,
    examples: Examples,
    kept: CachedArray,
    *,
    on_progress: OnProgress = ignore,
    on_wait: OnWait = ignore,
) -> States:
    """What the prefix makes of every example of the file, memory-mapped; computed now where the cache has it not yet.

    ``on_progress(done, total)`` counts examples, ``on_wait()`` is called if another process is computing them.
    Batches of ``dataclasses.replace(examples, states=...)`` bring it as ``hidden``.
    """
    layout = examples.layout
    below = cut.split(params)[0]
    whole = examples.file_sequences
    pooled = cut.model.prefix_pools(cut.depth)

    def pieces(skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0

        def computing() -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
            nonlocal done
            for index, batch in examples.file_batches(skip):
                batch = layout.shard_batch(batch) if layout else batch
                yield index, batch["first"], cut.run(below, batch)
                done += packing.num_examples(index)
                on_progress(done, len(whole))

        for index, first, hidden in pipelined(computing()):
            if layout is None:
                yield place(index, first, hidden)
            else:
                groups = zip(index, tree.to_numpy(first), tree.to_numpy(hidden), strict=True)
                rows, values = zip(*(place(*group) for group in groups), strict=True)
                yield np.concatenate(rows), np.concatenate(values)

    def place(
        index: np.ndarray, first: np.ndarray, hidden: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(hidden)
        if pooled:
            return index, values[: len(index)]
        source = concat_ranges(first[: len(index)].astype(np.int64), whole.lengths[index])
        return whole.flat_indices(index), values.reshape(-1, values.shape[-1])[source]

    values = open_together(kept, pieces, on_wait)
    return values if pooled else Ragged(values, whole.starts, whole.lengths)


def open_together(kept: CachedArray, pieces: Pieces, waiting: Callable[[], None]) -> np.ndarray:
    """The array of an entry; of several processes all compute what is missing, and the first one writes it."""
    if not multihost.is_multiprocess():
        return kept.open(pieces, waiting)
    done = -1
    failed = -2
    if multihost.is_lead_process():
        running: Iterator[Any] = iter(())

        def told(skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal running
            for _ in (
                running
            ):  # what was begun before the folder was deleted: the others compute it to its end
                pass
            running = pieces(multihost.broadcast_from_lead(skip))
            return running

        try:
            values = kept.open(told, waiting)
        except OutputError:
            for _ in running:  # the others compute it to its end
                pass
            multihost.broadcast_from_lead(failed)
            raise
        multihost.broadcast_from_lead(done)
        check_seen(kept, True)
        return values
    while (skip := multihost.broadcast_from_lead(0)) >= 0:
        for _ in pieces(skip):
            pass
    if skip == failed:
        raise OutputError("the first process can't write the cache: see what it says")
    until = time.monotonic() + SEEN
    while not kept.is_complete and time.monotonic() < until:  # a shared disk may take its time
        time.sleep(0.1)
    check_seen(kept, kept.is_complete)
    return np.memmap(kept.folder / "values.bin", kept.dtype, "r", shape=kept.shape)


def check_seen(kept: CachedArray, seen: bool) -> None:
    """Raise :class:`OutputError`, in all processes or in none, unless every one of them sees what the first one wrote."""
    if not multihost.all_processes(seen):
        why = "is not there for every process: point ADAPT_CACHE to a disk that all hosts see, or give `cache` off"
        raise OutputError(f"{kept.folder} {why}")
