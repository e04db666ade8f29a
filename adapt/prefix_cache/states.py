"""The states of a frozen prefix, for every example of a file: computed once, reused by later runs.

The key is everything that the values depend on: the prefix's parameters and arithmetic, the token
ids (or pictures) themselves, the depth, the dtypes, the backend and JAX's version. The split, the
head, the seed and the rates are not in it, so other runs on the same file find the states.
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
from adapt.data.sources import OneARow
from adapt.errors import OutputError
from adapt.models import Model
from adapt.models.model import example_batch
from adapt.models.peft import PEFT_FIELDS, is_peft_param
from adapt.parallel import multihost
from adapt.parallel.sharding import Layout
from adapt.prefix_cache.store import CachedArray
from adapt.ragged import Ragged, concat_ranges
from adapt.training.events import OnProgress
from adapt.training.frozen_prefix import Cut, prefix_params
from adapt.training.loop import Index, pipelined

VERSION = 2  # of what the cache holds: another one computes anew
PIECE = 1 << 16  # tokens that are computed, written and hashed together, in each group of a mesh
SECONDS_TO_SEE = 10.0  # until another host sees what the first one wrote
NO_EFFECT = ("dropout", "attention_dropout", "init_range")  # on the states of a prefix

DONE = -1  # what the first process tells the others in place of an example
FAILED = -2

OnWait = Callable[[], None]  # another process is computing the states


def ignore(*_: Any) -> None:
    """A callback for what nobody asked to hear."""


def cached_array(
    params: tree.Tree,
    model: Model,
    depth: int,
    examples: Examples,
    dtype: jax.typing.DTypeLike,
) -> CachedArray:
    """Where the cache keeps the states of a file of examples after the first ``depth`` stages.

    The array has the shape [N, D] where the prefix pools, with a row an example, else [T, D] with
    a row a token. Nothing is computed.
    """
    below = prefix_params(params, model, depth)
    config = dataclasses.asdict(model.encoder.config)
    has_peft = any(is_peft_param(path) for path in tree.paths(below))
    no_effect = NO_EFFECT if has_peft else (*NO_EFFECT, *PEFT_FIELDS)
    pools = model.prefix_pools(depth)
    is_whole_encoder = depth == model.stages
    key = {
        "version": VERSION,
        "parameters": tree.digest(below),
        "config": {name: value for name, value in config.items() if name not in no_effect},
        "examples": examples.file_sequences.digest,
        "cut": depth,
        "pooling": pooling_digest(model) if pools else None,
        "layers": model.input_layers if is_whole_encoder else None,
        "computed_in": str(np.dtype(model.encoder.dtype)),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
    }
    lengths = examples.file_sequences.lengths
    rows = len(lengths) if pools else int(lengths.sum())
    width = model.input_width if is_whole_encoder else model.encoder.config.width
    return CachedArray(key, (rows, width), np.dtype(dtype))


def pooling_digest(model: Model) -> str:
    """A digest of what the head's pooling computes, as XLA gets it.

    Its name is not enough: it may stand for another function tomorrow.
    """
    batch = example_batch(model.encoder.config)
    x = jax.ShapeDtypeStruct((*batch["segments"].shape, model.input_width), model.encoder.dtype)
    text = jax.jit(lambda x: model.head.pool(x, batch)).lower(x).as_text()  # pyright: ignore
    return hashlib.sha256(text.encode()).hexdigest()


def compute_states(
    cut: Cut,
    params: tree.Tree,
    examples: Examples,
    array: CachedArray,
    *,
    on_progress: OnProgress = ignore,
    on_wait: OnWait = ignore,
) -> States:
    """The states of every example of the file, memory-mapped; computed now if ``array`` lacks them.

    ``dataclasses.replace(examples, states=...)`` makes batches bring them as ``hidden``. Of
    several processes all compute, and the first one writes. ``on_progress(done, total)`` counts
    examples; ``on_wait()`` is called if another run is computing the states. Raises
    :class:`OutputError` where they can't be written.
    """
    lengths = examples.file_sequences.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])  # int64 [N + 1], in tokens
    pools = cut.model.prefix_pools(cut.depth)
    ends = piece_ends(examples, offsets)

    def piece(first: int) -> tuple[np.ndarray, int]:
        """(the states of the piece that begins with this example, the example after it)."""
        end = int(ends[np.searchsorted(ends, first, side="right")])
        return encode(cut, params, examples, np.arange(first, end), on_progress), end

    def pieces(row: int) -> Iterator[np.ndarray]:
        """The rows of the array from ``row`` on; the other processes compute the same pieces."""
        first = row if pools else int(np.searchsorted(offsets, row))
        while first < len(lengths):
            multihost.broadcast_from_lead(first)
            values, first = piece(first)
            yield values

    if multihost.is_lead_process():
        values = lead(array, pieces, on_wait)
    else:
        values = follow(array, piece)
    return values if pools else Ragged(values, offsets[:-1], lengths)


def piece_ends(examples: Examples, offsets: np.ndarray) -> np.ndarray:
    """Where the pieces of a file end, int64 [pieces]: after so many examples.

    A piece has about ``PIECE`` tokens for each group of a mesh. Pictures come in whole batches.
    """
    groups, _ = packing.groups_of(examples.layout)
    ends = np.searchsorted(offsets, np.arange(PIECE * groups, offsets[-1], PIECE * groups))
    if isinstance(examples.file_sequences, OneARow):
        batch = examples.file_sequences.eval_batch_size * groups
        ends = np.maximum(ends // batch, 1) * batch
    total = len(offsets) - 1
    return np.unique([*ends[ends < total], total])


def encode(
    cut: Cut,
    params: tree.Tree,
    examples: Examples,
    rows: np.ndarray,
    on_progress: OnProgress = ignore,
) -> np.ndarray:
    """The states of consecutive sequences of the file: [rows, D] if the prefix pools, or [tokens,
    D].
    """
    below, _ = cut.split(params)
    pools = cut.model.prefix_pools(cut.depth)
    some = dataclasses.replace(examples, rows=rows, labels=None, states=None, windows=None)
    lengths = examples.file_sequences.lengths[rows]
    starts = np.cumsum(lengths) - lengths
    layout = examples.layout

    def run() -> Iterator[tuple[Any, Any, jax.Array]]:
        for index, batch in some.eval_batches():
            inputs = layout.shard_batch(batch) if layout else batch
            yield index, inputs["first"], cut.run(below, inputs)

    out: np.ndarray | None = None
    done = int(rows[0])
    for index, first, hidden in pipelined(run()):
        for members, begin, values in by_group(index, first, hidden, layout):
            if out is None:
                count = len(rows) if pools else int(lengths.sum())
                out = np.empty((count, values.shape[-1]), values.dtype)
            if pools:
                out[members] = values[: len(members)]
            else:
                begin = begin[: len(members)].astype(np.int64)
                source = concat_ranges(begin, lengths[members])
                target = concat_ranges(starts[members], lengths[members])
                out[target] = values.reshape(-1, values.shape[-1])[source]
            done += len(members)
        on_progress(done, len(examples.file_sequences))
    assert out is not None
    return out


def by_group(
    index: Index, first: Any, hidden: Any, layout: Layout | None
) -> Iterator[tuple[np.ndarray, ...]]:
    """(which examples [n], where each begins [slots], states) of each group of a batch."""
    if layout is None:
        yield index[0], first, np.asarray(hidden)
    else:
        yield from zip(index, tree.to_numpy(first), tree.to_numpy(hidden), strict=True)


def lead(
    array: CachedArray, pieces: Callable[[int], Iterator[np.ndarray]], on_wait: OnWait
) -> np.ndarray:
    """The array, filled where it has to be; the others hear how it went."""
    try:
        values = array.open(pieces, on_wait)
    except OutputError:
        multihost.broadcast_from_lead(FAILED)
        raise
    multihost.broadcast_from_lead(DONE)
    check_all_see(array, True)
    return values


def follow(array: CachedArray, piece: Callable[[int], Any]) -> np.ndarray:
    """The array, once the first process has written it; computes the pieces that it asks for."""
    while (first := multihost.broadcast_from_lead(0)) >= 0:
        piece(first)
    if first == FAILED:
        raise OutputError("the first process can't write the cache: see what it says")
    until = time.monotonic() + SECONDS_TO_SEE
    while not array.is_complete and time.monotonic() < until:
        time.sleep(0.1)  # a shared disk may take its time
    check_all_see(array, array.is_complete)
    return array.map()


def check_all_see(array: CachedArray, sees: bool) -> None:
    """Raise :class:`OutputError`, in all processes, unless all see what the first one wrote."""
    if not multihost.all_processes(sees):
        raise OutputError(
            f"{array.folder} is not there for every process: point ADAPT_CACHE to a disk that all "
            "hosts see, or give `cache` off"
        )
