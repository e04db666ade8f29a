"""The encoder as a fixed feature extractor: any number of examples through it in constant memory.

encode(pretrained, ["a good film", "a dull one"])        # float32 [2, D]
extract(pretrained, table, "runs/features")              # a file, or one for each process
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt import files, tree
from adapt.data import packing, sources, tables
from adapt.data.inputs import as_list
from adapt.data.packing import Arrays
from adapt.data.sources import IMAGES_PER_BATCH, Source, TokenSource
from adapt.data.tables import Table
from adapt.errors import DataError, StrategyError
from adapt.models import POOLINGS, Classifier, Encoder, Model, cached_program, flatten_groups
from adapt.options import is_of
from adapt.parallel import multihost, sharding
from adapt.parallel.sharding import Layout
from adapt.pretrained.hub import (
    Pretrained,
    check_inputs,
    image_settings_of,
    load,
    tokenizer_of,
)
from adapt.pretrained.tokenizer import Text, warn_truncated
from adapt.program_cache import keep_programs
from adapt.training.events import OnProgress
from adapt.training.loop import Index, pipelined, scatter_outputs

WINDOW = 4096  # texts that are sorted and packed together

Forward = Callable[[tree.Tree, Mapping[str, Any]], jax.Array]
# (which examples each group of a batch has, the batch, how many texts were truncated since the last
# one)
Stream = Iterator[tuple[Index, Arrays, int]]


def encode(
    pretrained: Pretrained | str | Path,
    texts: Sequence[str],
    pooling: str = "mean",
    normalize: bool = False,
    layer: int | None = None,
) -> np.ndarray:
    """The features of texts, float32 [N, D], in their order.

        adapt.encode("minilm", ["a good film", "a bad one"], normalize=True)       # [2, 384]

    ``pretrained`` is what :func:`adapt.load` gives, or a name for it, which is then read anew.
    ``pooling`` makes one vector of the states of a text's tokens: mean, cls, max, last, or by
    weights of the checkpoint pooler or attention. ``normalize`` scales each vector to length 1, as
    sentence encoders are compared. ``layer`` counts from 0 (embedding) to L (last block, the
    default). Texts longer than the tokenizer's ``max_length`` are truncated, and a warning says how
    many. Raises :class:`DataError` for a bare string or what is no text, :class:`StrategyError` for
    a pooling or a layer that the checkpoint does not have.
    """
    if isinstance(texts, str):
        raise DataError("encode takes a list of texts: put the one text in [brackets]")
    texts = as_list(texts, "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{row}] is of type {type(text).__name__}, not text")
    if not isinstance(pretrained, Pretrained):
        pretrained = load(pretrained)
    keep_programs()
    forward, params = extractor(pretrained, pooling, layer)
    chunks = (texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW))
    features = np.zeros((len(texts), pretrained.config.width), np.float32)
    batches = text_batches(pretrained, chunks, few=True)
    counts = fill(features, forward, params, batches, normalize)
    warn_truncated(counts.truncated, tokenizer_of(pretrained).max_length, "texts")
    return features


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What :func:`extract` did, over all processes."""

    path: Path  # of this process's features
    examples: int
    width: int
    seconds: float
    padding: float  # the share of the slots of batches that held no token
    truncated: int  # texts

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds


def extract(
    pretrained: Pretrained,
    table: Table,
    folder: str | Path,
    text_column: str = "text",
    image_column: str | None = None,
    pooling: str = "mean",
    layer: int | None = None,
    normalize: bool = False,
    dtype: Any = np.float32,
    layout: Layout | None = None,
    on_progress: OnProgress | None = None,
) -> Extraction:
    """Write the features of a table's rows to ``folder / "features.npy"``, float32 [N, D], in the
    order of rows.

    Memory does not grow with the number of rows: the file is mapped, and reserved before anything
    is computed. Each of several processes writes the features of its own part of the rows,
    features_00000.npy or the like, and index.json says which rows are where; ``layout`` is then a
    mesh of the process's own devices. ``dtype`` is that of the computation; for pooling, normalize
    and layer see :func:`encode`. Raises :class:`StrategyError`, :class:`DataError`,
    :class:`OutputError` for a full disk, and :class:`MeshError` if the processes read different
    data.
    """
    check_inputs(pretrained, image_column)
    folder = files.local_path(folder, "folder")
    count = len(table)
    shares = multihost.even_shares(count)
    name = "features.npy"
    if multihost.is_multiprocess():
        digest = tree.digest(pretrained.params["encoder"])
        multihost.assert_same("what they read", {"the rows": str(count), "the encoder": digest})
        if image_column is None:
            tables.check_texts(table, text_column)  # here rows have the file's numbers
        table = table.select(shares[jax.process_index()])
        name = share_name(jax.process_index())
    forward, params = extractor(pretrained, pooling, layer, dtype, layout)
    stream = table_batches(pretrained, table, text_column, image_column, layout)

    started = time.perf_counter()
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(path) as beside:
        features = mapped_features(beside, (len(table), pretrained.config.width))
        counts = fill(features, forward, params, stream, normalize, on_progress)
        features.flush()
    # Every process is done when it knows the sums of all.
    totals = [multihost.total_over_processes(value) for value in dataclasses.astuple(counts)]
    tokens, slots, truncated = totals
    seconds = time.perf_counter() - started
    if multihost.is_multiprocess() and multihost.is_lead_process():
        write_index(folder, shares, pretrained.config.width)
    padding = 1 - tokens / slots
    return Extraction(path, count, pretrained.config.width, seconds, padding, truncated)


def share_name(process: int) -> str:
    """The file of one process's features."""
    return f"features_{process:05d}.npy"


def write_index(folder: Path, shares: Sequence[range], width: int) -> None:
    """Write index.json: which rows are in which process's file."""
    parts = [
        {"file": share_name(process), "rows": [rows.start, rows.stop]}
        for process, rows in enumerate(shares)
    ]
    count = shares[-1].stop
    index = {"files": parts, "examples": count, "width": width, "dtype": "float32"}
    files.write_json(folder / "index.json", index)


def mapped_features(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new .npy file of float32 as an array that is mapped into memory, with room on the disk for
    all of it.
    """
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    files.reserve(path, path.stat().st_size, "features")
    return features


# Batches of any number of examples


def text_batches(
    pretrained: Pretrained,
    chunks: Iterable[Sequence[Text]],
    layout: Layout | None = None,
    few: bool = False,
) -> Stream:
    """The evaluation batches of texts, or pairs, in chunks; each chunk is tokenized and packed by itself.

    Indices count over all texts. With ``few``, a batch of a few texts has a small shape of its own.
    See :func:`adapt.data.packing.eval_batches`.
    """
    return stream_batches(text_sources(pretrained, chunks), layout, few)


def image_batches(
    pretrained: Pretrained, chunks: Iterable[Sequence[Any]], layout: Layout | None = None
) -> Stream:
    """The evaluation batches of PIL images in chunks, one image a row. Indices count over all
    images.
    """
    return stream_batches(image_sources(pretrained, chunks), layout)


def table_batches(
    pretrained: Pretrained,
    table: Table,
    text_column: str = "text",
    image_column: str | None = None,
    layout: Layout | None = None,
) -> Stream:
    """The evaluation batches of a whole table in constant memory, of its texts or of its images."""
    check_inputs(pretrained, image_column)
    if image_column is None:
        chunks = tables.text_chunks(table, text_column)
        return text_batches(pretrained, chunks, layout, few=layout is None)
    groups, _ = packing.groups_of(layout)
    chunks = tables.chunks(table, [image_column], IMAGES_PER_BATCH * groups)
    return image_batches(pretrained, (chunk[image_column] for chunk in chunks), layout)


def text_sources(
    pretrained: Pretrained, chunks: Iterable[Sequence[Text]]
) -> Iterator[tuple[Source, int, int]]:
    """(the tokens of a chunk of texts or pairs, how many it has, how many were truncated)."""
    tokenizer = tokenizer_of(pretrained)
    for texts in chunks:
        tokens, truncated = tokenizer.encode(texts)
        source = TokenSource(tokens, tokenizer.max_length, pretrained.config.pad_token)
        yield source, len(texts), truncated


def image_sources(
    pretrained: Pretrained, chunks: Iterable[Sequence[Any]]
) -> Iterator[tuple[Source, int, int]]:
    """(a chunk of images, how many it has, 0)."""
    settings = image_settings_of(pretrained)
    start = 0
    for images in chunks:
        source = sources.from_images(images, settings, pretrained.config.positions, start + 1)
        yield source, len(images), 0
        start += len(images)


def stream_batches(
    chunks: Iterable[tuple[Source, int, int]], layout: Layout | None = None, few: bool = False
) -> Stream:
    """The evaluation batches of one source after the other; indices count over all of them."""
    start = 0
    for source, count, truncated in chunks:
        windows = source.windows(np.arange(count), few)
        for index, batch in packing.eval_batches(windows, layout):
            yield [start + group for group in index], batch, truncated
            truncated = 0
        start += count


# Batches to features


def extractor(
    pretrained: Pretrained,
    pooling: str = "mean",
    layer: int | None = None,
    dtype: Any = np.float32,
    layout: Layout | None = None,
) -> tuple[Forward, tree.Tree]:
    """(a jitted ``(params, batch) -> features [slots, D]`` float32, the parameters that it takes,
    on the devices).

    ``layer`` counts from 0 (embedding) to L (last block, with the final norm; the default). The
    head is discarded, except the weights of a pooling: "pooler", or a run's "attention". Raises
    :class:`StrategyError` for a layer or a pooling that is not there.
    """
    config = pretrained.config
    layer = config.layers if layer is None else layer
    if not is_of(layer, int) or not 0 <= layer <= config.layers:
        raise StrategyError(
            f"layer {layer} is not there: the encoder has layers 0 (embedding) to {config.layers}"
        )
    if pooling not in (*POOLINGS, "attention"):
        raise StrategyError(
            f"unknown pooling {pooling!r}: give one of {', '.join(POOLINGS)} or attention"
        )
    head = {}
    if pooling in ("pooler", "attention"):
        head = pooling_weights(pretrained, pooling)
    model = Model(Encoder(config, dtype), Classifier(0, pooling, dtype=dtype), layout)
    if layout is None:
        there = pretrained.on_device()
        head = {name: there["head"][name] for name in head}
        return features_at(model, layer), {"encoder": there["encoder"], "head": head}
    params = tree.graft(tree.drop(pretrained.params, "head"), "head", head)
    return features_at(model, layer), layout.shard(params)


@cached_program
def features_at(model: Model, layer: int) -> Forward:
    """A compiled function ``(params, batch) -> features``: the same one whenever it is asked for."""
    layout = model.layout
    last = model.stages - 1
    depth = model.stages if layer == last else layer + 1  # the last layer has the final norm

    def forward(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        pool = functools.partial(model.apply_head, params["head"])
        hidden = model.prefix(params, batch, depth)
        if layout is None:
            return pool(hidden, batch)
        return flatten_groups(layout.over_groups(pool)(hidden, dict(batch)))

    replicated = None if layout is None else layout.replicated
    jitted = jax.jit(model.allow_fused_attention(forward), out_shardings=replicated)
    return sharding.shard_inputs(jitted, layout)


def pooling_weights(pretrained: Pretrained, kind: str = "pooler") -> tree.Tree:
    """The weights of a pooling as a head of its own. Raises :class:`StrategyError` if the
    checkpoint has none.
    """
    head = pretrained.params["head"]
    if kind not in head:
        content = ", ".join(head) or "nothing"
        raise StrategyError(
            f"{pretrained.source} has no {kind} to graft (its head holds: {content}): "
            "give another `pooling`, mean, cls, max or last"
        )
    return {kind: head[kind]}


@dataclasses.dataclass
class Counts:
    """What went through an extractor."""

    tokens: int = 0
    slots: int = 0  # for tokens, in the rows of batches
    truncated: int = 0


def fill(
    features: np.ndarray,
    forward: Forward,
    params: tree.Tree,
    stream: Stream,
    normalize: bool = False,
    on_progress: OnProgress | None = None,
) -> Counts:
    """Write the features of every batch to their rows of ``features`` [N, D], which may be mapped
    from a file.
    """
    counts = Counts()

    def outputs() -> Iterator[tuple[Index, jax.Array]]:
        for index, batch, truncated in stream:
            counts.tokens += int(batch["length"].sum())
            counts.slots += batch["segments"].size
            counts.truncated += truncated
            yield index, forward(params, batch)

    done = 0
    for index, values in pipelined(outputs()):
        rows, vectors = scatter_outputs(index, np.asarray(values))
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, 1e-12)
        features[rows] = vectors
        done += len(rows)
        if on_progress is not None:
            on_progress(done, len(features))
    return counts
