"""The encoder as a fixed feature extractor: any number of examples through it in constant memory.

encode(pretrained, ["a good film", "a dull one"])        # float32 [2, D]
extract(pretrained, table, "runs/features")              # a file, or one for each process
"""

import csv
import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adapt import files, tree
from adapt.data import packing, sources, tables
from adapt.data.inputs import as_list, as_pictures
from adapt.data.packing import Arrays
from adapt.data.shapes import shape_rule
from adapt.data.sources import Source, TokenSource
from adapt.data.tables import Table
from adapt.data.text_windows import TextWindows
from adapt.devices import check_frozen_dtype, compute_dtype
from adapt.errors import CheckpointError, DataError, StrategyError
from adapt.models import (
    Classifier,
    Encoder,
    Model,
    cached_program,
    example_batch,
    flatten_groups,
)
from adapt.models.heads import POOLINGS_OF_CHECKPOINTS
from adapt.options import DType, FrozenDType, KeptHead, Long, is_of
from adapt.other_names import suggests
from adapt.parallel import multihost, sharding
from adapt.parallel.sharding import Layout
from adapt.pretrained.dense_layers import DenseLayer, through
from adapt.pretrained.hub import (
    Pretrained,
    check_inputs,
    image_settings_of,
    known_poolings,
    loaded,
    pooling_fields,
    tokenizer_of,
    with_image_size,
    with_long,
)
from adapt.pretrained.kept_head import on_head, pooling_on_head
from adapt.pretrained.tokenizer import NO_LONG_TEXTS, LongTexts, Text, warn_long
from adapt.program_cache import keep_programs
from adapt.training import feeding, frozen_storage
from adapt.training.events import FrozenStored, OnProgress
from adapt.training.loop import Index, pipelined, scatter_outputs
from adapt.training.step import place_kernels

logger = logging.getLogger(__name__)

WINDOW = 4096  # texts that are sorted and packed together

Forward = Callable[[tree.Tree, Mapping[str, Any]], jax.Array]


class Streamed(NamedTuple):
    """A batch of a stream of examples.

    ``index`` says which examples each group has; a text in several windows comes as often, and
    ``windows`` says how many each of the index has (None: one). ``long`` counts the texts since the
    last batch that were too long.
    """

    index: Index
    batch: Arrays
    long: LongTexts
    windows: list[np.ndarray] | None = None


Stream = Iterator[Streamed]


class Chunk(NamedTuple):
    """Some examples of a stream: their sequences, and how many windows each of ``count`` has."""

    source: Source
    count: int
    long: LongTexts
    windows: TextWindows | None = None


@dataclasses.dataclass(frozen=True)
class VectorSettings:
    """How one vector is made of an example.

    ``prompt`` is put before every text, ``dense`` are layers after the pooling, ``dimensions`` are
    how many numbers of a vector are kept.
    """

    pooling: str
    normalize: bool = False
    prompt: str = ""
    dimensions: int | None = None
    dense: Sequence[DenseLayer] = ()

    def __str__(self) -> str:
        pooling = self.pooling
        if self.dense:
            widths = " and ".join(str(layer.width) for layer in self.dense)
            pooling += f" with dense layers of {widths}"
        return describe_vectors([pooling], self.normalize, self.prompt, self.dimensions)

    def width(self, pretrained: Pretrained) -> int:
        """The numbers of a vector."""
        width = pretrained.config.width
        if self.pooling == "projection":
            width = getattr(pretrained.head, "projection", 0) or width
        if self.pooling == "cls+patches":
            width = 2 * width
        if self.dense:
            width = self.dense[-1].width
        return min(self.dimensions or width, width)


def describe_vectors(
    poolings: Sequence[str], normalize: bool, prompt: str, dimensions: int | None = None
) -> str:
    """``pooling mean and cls, not normalized``: how vectors are made, in words."""
    words = [f"pooling {' and '.join(poolings)}"]
    if dimensions is not None:
        words.append(f"the first {dimensions} dimensions")
    words.append("normalized" if normalize else "not normalized")
    if prompt:
        words.append(f"prompt {prompt!r}")
    return ", ".join(words)


def vector_settings(
    pretrained: Pretrained,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
) -> VectorSettings:
    """What is asked for, and for the rest what the checkpoint's own folder says, or the run did.

    Where neither says anything, it is the mean, not normalised. With a ``pooling`` that is asked for
    there are no dense layers. ``prompt`` is the name of one of the folder's prompts, or what to put
    before a text; "" is none. Raises :class:`StrategyError` where the folder asks for something that
    is not done here.
    """
    own = pretrained.embedding
    if normalize is not None and not is_of(normalize, bool):
        raise StrategyError(f"`normalize` is {normalize!r}: True, False or None")
    if prompt is not None and not is_of(prompt, str):
        raise StrategyError(f"`prompt` is {prompt!r}: text or None")
    if pooling is None and own.refused:
        raise StrategyError(
            f"{own.refused}, which adapt does not do: give `pooling` for vectors without it"
        )
    if pooling is None and own.dense > len(pretrained.dense):
        raise StrategyError(
            f"{pretrained.source} began with a checkpoint that has dense layers after its pooling, "
            "which a run does not hold: give `pooling` for vectors without them"
        )
    if prompt is None:
        prompt = own.default_prompt or ""
    if prompt == own.default_prompt:
        text = own.prompts.get(prompt, "")  # one that is empty is not among the prompts
    else:
        text = own.prompts.get(prompt, prompt)
    if text and pretrained.config.is_image:
        raise StrategyError(f"{pretrained.source} is an image encoder: `prompt` is for texts")
    if text and not own.pools_prompt:
        raise StrategyError(
            f"{pretrained.source} leaves the tokens of a prompt out of its pooling (include_prompt "
            'false), which adapt does not do: give `prompt=""`'
        )
    if normalize is None:
        normalize = own.normalize and not own.refused
    return VectorSettings(
        pooling=pooling or own.pooling or "mean",
        normalize=normalize,
        prompt=text,
        dimensions=own.dimensions if pooling is None else None,
        dense=pretrained.dense[: own.dense] if pooling is None else (),
    )


@suggests
def encode(
    pretrained: Pretrained | str | Path,
    texts: Sequence[Any],
    pooling: str | None = None,
    normalize: bool | None = None,
    layer: int | KeptHead | None = None,
    long: Long | None = None,
    prompt: str | None = None,
    dtype: DType = "auto",
    frozen_dtype: FrozenDType | None = None,
    image_size: int | None = None,
) -> np.ndarray:
    """The features of texts, or of pictures by an image encoder, float32 [N, D], in their order.

        adapt.encode("minilm", ["a good film", "a bad one"])       # [2, 384]
        adapt.encode("minilm", articles, long="windows")
        adapt.encode("path/of/e5", ["how do fish sleep"], prompt="query: ")
        adapt.encode("path/of/dinov2", ["cat.png", "dog.png"], pooling="cls+patches")

    ``pretrained`` is what :func:`adapt.load` gives, or a name for it, which is then read anew.
    Pictures are PIL's, paths, or arrays uint8 [H, W] or [H, W, C]; ``image_size`` interpolates the
    encoder's positions for so many pixels a side.
    ``pooling`` makes one vector of the states of a text's tokens: mean, cls, max, last, or by
    weights of the checkpoint pooler or attention. ``normalize`` scales each vector to length 1, as
    sentence encoders are compared. ``prompt`` is put before each text: the name of one that the
    folder has, or the words themselves; "" is none. The default of these three is what the
    checkpoint's folder says (modules.json and the files it names), what a run was trained with, or
    else the mean as it is; see :func:`vector_settings`. ``layer`` counts from 0 (embedding) to L
    (last block, the default). Behind it are those of the checkpoint's own head, which is otherwise
    discarded: ``"transform"``, what its last layer reads, and ``"logits"``, what it puts out, of a
    language model a number for each token of the vocabulary.

    ``long`` says what is read of a text that has more tokens than the tokenizer's ``max_length``; a
    warning counts such texts. ``"head"`` reads the first tokens, ``"head+tail"`` the first quarter
    and the last three quarters of what fits (Sun et al. 2019), ``"windows"`` all of it: the vector
    is the mean of those of the fewest windows of the full length that hold the text, spread evenly.
    The default is what the checkpoint was trained with, or ``"head"``.

    ``dtype`` is that of the computation: ``"float32"``, ``"bfloat16"``, or ``"auto"``, bfloat16 where
    the device computes it natively (:func:`adapt.devices.compute_dtype`). ``frozen_dtype`` is that
    of the encoder's kernels on the device, by the name that :func:`adapt.finetune` has for those that
    it freezes: ``"float32"``, ``"bfloat16"`` or ``"int8"``; default: that of the computation.
    :func:`extract` measures what it changes.

    Raises :class:`DataError` for a bare string, or what is no text and no picture,
    :class:`StrategyError` for a pooling, a layer, a rule or a dtype that there is not, and for what
    the folder asks for and is not done here.
    """
    if isinstance(texts, str):
        raise DataError("encode takes a list: put the one text, or picture, in [brackets]")
    pretrained = with_image_size(with_long(loaded(pretrained), long), image_size)
    if pretrained.config.is_image:
        texts = as_pictures(texts, "texts")
    else:
        texts = checked_texts(texts)
    keep_programs()
    settings = vector_settings(pretrained, pooling, normalize, prompt)
    settings = settings_at(pretrained, settings, layer, pooling)
    forward, params = extractor(
        pretrained, settings.pooling, layer, compute_dtype(dtype), frozen_dtype=frozen_dtype
    )
    features = np.zeros((len(texts), width_at(pretrained, settings, layer)), np.float32)
    if pretrained.config.is_image:
        table = tables.from_columns({"image": texts}, "the pictures", "image")
        batches = table_batches(pretrained, table, image_column="image")
    else:
        chunks = (texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW))
        batches = text_batches(pretrained, with_prompt(chunks, settings.prompt), few=True)
    counts = fill(features, forward, params, batches, settings)
    warn_long(counts.long, "texts")
    return features


def checked_texts(texts: Sequence[Any]) -> list[str]:
    """The texts as a list. Raises :class:`DataError` for what is none."""
    texts = as_list(texts, "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{row}] is of type {type(text).__name__}, not text")
    warn_empty(texts)
    return texts


def settings_at(
    pretrained: Pretrained,
    settings: VectorSettings,
    layer: int | KeptHead | None,
    pooling: str | None = None,
) -> VectorSettings:
    """The settings at a layer, or a stage of the checkpoint's head, where ``pooling`` is asked for.

    What a head makes is whole: the folder's ``dimensions`` are those of the encoder's vectors, and
    its pooling is what :func:`adapt.pretrained.kept_head.pooling_on_head` makes of it. Raises
    :class:`StrategyError` for the states of an inner layer where dense layers would read them,
    which know those of the last one alone.
    """
    if settings.dense and layer not in (None, pretrained.config.layers):
        raise StrategyError(
            f"{pretrained.source} has dense layers after the last layer, and `layer` is {layer!r}: "
            "give `pooling` for vectors without them"
        )
    if not isinstance(layer, str):
        return settings
    pooling = pooling or pooling_on_head(pretrained, settings.pooling)
    return dataclasses.replace(settings, pooling=pooling, dimensions=None)


def width_at(pretrained: Pretrained, settings: VectorSettings, layer: int | KeptHead | None) -> int:
    """The numbers of a vector at a layer, or a stage of the checkpoint's head."""
    if not isinstance(layer, str):
        return settings.width(pretrained)
    model = Model(Encoder(pretrained.config), on_head(pretrained, layer, settings.pooling))
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = example_batch(pretrained.config)
    return jax.eval_shape(model.apply, params, batch).shape[-1]


def warn_empty(texts: Sequence[str]) -> None:
    """Log how many texts are empty: a vector of special tokens alone says nothing."""
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        logger.warning(
            f"{len(empty)} of {len(texts)} texts {verb} empty (the first is texts[{empty[0]}]): "
            "their vectors are of special tokens alone"
        )


def with_prompt(chunks: Iterable[Sequence[Any]], prompt: str) -> Iterator[Sequence[Any]]:
    """The texts of chunks with a prompt before each."""
    for texts in chunks:
        yield [prompt + text for text in texts] if prompt else texts


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What :func:`extract` did, over all processes."""

    path: Path  # of this process's features
    examples: int
    width: int
    seconds: float
    padding: float  # the share of the slots of batches that held no token
    long: LongTexts
    settings: VectorSettings
    dtype: str  # of the computation
    stored: FrozenStored | None = None  # what ``frozen_dtype`` changes

    @property
    def truncated(self) -> int:
        """How many texts were read in part."""
        return self.long.truncated

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds


def extract(
    pretrained: Pretrained,
    table: Table,
    folder: str | Path,
    text_column: str = "text",
    image_column: str | None = None,
    pooling: str | None = None,
    layer: int | KeptHead | None = None,
    normalize: bool | None = None,
    dtype: DType = "auto",
    layout: Layout | None = None,
    on_progress: OnProgress | None = None,
    long: Long | None = None,
    prompt: str | None = None,
    image_size: int | None = None,
    frozen_dtype: FrozenDType | None = None,
) -> Extraction:
    """Write the features of a table's rows to ``folder / "features.npy"``, float32 [N, D], in the
    order of rows.

    Memory does not grow with the number of rows: the file is mapped, and reserved before anything
    is computed. Each of several processes writes the features of its own part of the rows,
    features_00000.npy or the like, and index.json says which rows are where; ``layout`` is then a
    mesh of the process's own devices. files.csv names the file of each row of a folder of pictures.
    For pooling, normalize, prompt, layer, long, dtype and frozen_dtype see :func:`encode`; what the
    last changes is measured on the first batch. ``image_size`` interpolates positions for pictures
    of so many pixels a side. Raises :class:`StrategyError`, :class:`DataError`,
    :class:`OutputError` for a full disk, and :class:`MeshError` if the processes read different
    data.
    """
    check_inputs(pretrained, image_column)
    pretrained = with_image_size(with_long(pretrained, long), image_size)
    folder = files.local_path(folder, "folder")
    count = len(table)
    shares = multihost.even_shares(count)
    name = "features.npy"
    if image_column is not None and multihost.is_lead_process():
        write_file_names(folder, table)
    if multihost.is_multiprocess():
        digest = tree.digest(pretrained.params["encoder"])
        multihost.assert_same("what they read", {"the rows": str(count), "the encoder": digest})
        if image_column is None:
            tables.check_texts(table, text_column)  # here rows have the file's numbers
        table = table.select(shares[jax.process_index()])
        name = share_name(jax.process_index())
    settings = vector_settings(pretrained, pooling, normalize, prompt)
    settings = settings_at(pretrained, settings, layer, pooling)
    used = compute_dtype(dtype)
    forward, params = extractor(pretrained, settings.pooling, layer, used, layout, frozen_dtype)
    stream = table_batches(
        pretrained, table, text_column, image_column, layout, prompt=settings.prompt
    )
    stored = None
    if frozen_dtype is not None:
        stored, stream = measure_stored(pretrained, params, stream, used, frozen_dtype, layout)
    width = width_at(pretrained, settings, layer)

    started = time.perf_counter()
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(path) as beside:
        features = mapped_features(beside, (len(table), width))
        counts = fill(features, forward, params, stream, settings, on_progress)
        features.flush()
    # Every process is done when it knows the sums of all.
    total = multihost.total_over_processes
    long_texts = counts.long
    if pretrained.tokenizer:  # also of a process that had no rows
        totals = {name: total(value) for name, value in counts.long.counts.items()}
        long_texts = LongTexts(pretrained.tokenizer.long, pretrained.tokenizer.max_length, **totals)
    tokens = total(counts.tokens)
    slots = total(counts.slots)
    seconds = time.perf_counter() - started
    if multihost.is_multiprocess() and multihost.is_lead_process():
        write_index(folder, shares, width)
    padding = 1 - tokens / slots
    return Extraction(path, count, width, seconds, padding, long_texts, settings, used, stored)


def measure_stored(
    pretrained: Pretrained,
    params: tree.Tree,
    stream: Stream,
    dtype: str,
    frozen_dtype: FrozenDType,
    layout: Layout | None,
) -> tuple[FrozenStored | None, Stream]:
    """(what storing the encoder's kernels as ``params`` changes for the first batch, the stream from
    its beginning). None for a stream without a batch.
    """
    batches = iter(stream)
    first = next(batches, None)
    if first is None:
        return None, batches
    model = Model(Encoder(pretrained.config), Classifier(0), layout).cast(jnp.dtype(dtype))
    encoder = {"encoder": pretrained.params["encoder"]}
    computed = {"encoder": params["encoder"]}
    nothing: tree.Tree = {"head": {}}
    stored = frozen_storage.measure(
        model, dtype, frozen_dtype, encoder, computed, nothing, first.batch
    )
    return stored, itertools.chain([first], batches)


def write_file_names(folder: Path, table: Table) -> None:
    """Write files.csv, which says of which picture's file each row is, where the table knows it."""
    if tables.FILE not in table.columns:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(folder / "files.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", tables.FILE])
        writer.writerows(enumerate(table.rows[tables.FILE], 1))


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
    """The evaluation batches of texts, or pairs, in chunks; each chunk is tokenized and packed by
    itself.

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
    prompt: str = "",
) -> Stream:
    """The evaluation batches of a whole table in constant memory, of its texts or of its images.

    ``prompt`` is put before every text.
    """
    check_inputs(pretrained, image_column)
    if image_column is None:
        chunks = with_prompt(tables.text_chunks(table, text_column), prompt)
        return text_batches(pretrained, chunks, layout, few=layout is None)
    groups, _ = packing.groups_of(layout)
    config = pretrained.config
    per_batch = shape_rule(config).images(config.positions)
    chunks = tables.chunks(table, [image_column], per_batch * groups)
    return image_batches(pretrained, (chunk[image_column] for chunk in chunks), layout)


def text_sources(pretrained: Pretrained, chunks: Iterable[Sequence[Text]]) -> Iterator[Chunk]:
    """The tokens of each chunk of texts or pairs."""
    tokenizer = tokenizer_of(pretrained)
    config = pretrained.config
    rule = shape_rule(config)
    for texts in rule.joined(chunks):
        encoded = tokenizer.encode_long(texts)
        source = TokenSource(encoded.tokens, tokenizer.max_length, config.pad_token, rule)
        windows = None if encoded.windows is None else TextWindows(encoded.windows)
        yield Chunk(source, len(texts), encoded.long, windows)


def image_sources(pretrained: Pretrained, chunks: Iterable[Sequence[Any]]) -> Iterator[Chunk]:
    """Each chunk of images."""
    settings = image_settings_of(pretrained)
    config = pretrained.config
    rule = shape_rule(config)
    start = 0
    for images in chunks:
        source = sources.from_images(images, settings, config.positions, start + 1, rule)
        yield Chunk(source, len(images), NO_LONG_TEXTS)
        start += len(images)


def stream_batches(
    chunks: Iterable[Chunk], layout: Layout | None = None, few: bool = False
) -> Stream:
    """The evaluation batches of one source after the other; indices count over all of them."""
    start = 0
    for source, count, long, windows in chunks:
        texts = np.arange(count)
        sequences = texts if windows is None else windows.sequences(texts)
        owners = texts if windows is None else windows.owners(texts)
        for index, batch in packing.eval_batches(source.windows(sequences, few), layout):
            of_texts = [owners[group] for group in index]
            counts = None
            if windows is not None:
                counts = [windows.counts[group] for group in of_texts]
            yield Streamed([start + group for group in of_texts], batch, long, counts)
            long = dataclasses.replace(long, texts=0, windows=0, tokens_left_out=0)
        start += count


# Batches to features


def extractor(
    pretrained: Pretrained,
    pooling: str = "mean",
    layer: int | KeptHead | None = None,
    dtype: str = "float32",
    layout: Layout | None = None,
    frozen_dtype: FrozenDType | None = None,
) -> tuple[Forward, tree.Tree]:
    """(a jitted ``(params, batch) -> features [slots, D]`` float32, the parameters that it takes,
    on the devices).

    ``layer`` counts from 0 (embedding) to L (last block, with the final norm; the default), and
    "transform" and "logits" are of the checkpoint's head, as in :func:`encode`. ``dtype`` is that of
    the computation, ``frozen_dtype`` that of the kernels on the devices, by default the same. The
    head is otherwise discarded, except the weights of a pooling: "pooler", or a run's "attention".
    Raises :class:`StrategyError` for a layer, a pooling or a ``frozen_dtype`` that is not there.
    """
    check_frozen_dtype(frozen_dtype)
    config = pretrained.config
    if isinstance(layer, str):
        return head_extractor(pretrained, pooling, layer, dtype, layout, frozen_dtype)
    layer = config.layers if layer is None else layer
    if not is_of(layer, int) or not 0 <= layer <= config.layers:
        raise StrategyError(
            f"layer {layer} is not there: the encoder has layers 0 (embedding) to {config.layers}"
        )
    known = known_poolings(pretrained)
    if pooling not in known:
        raise StrategyError(
            f"unknown pooling {pooling!r}: give one of {', '.join(known[:-1])} or {known[-1]}"
        )
    head = {}
    if pooling == "attention" or pooling in POOLINGS_OF_CHECKPOINTS:
        head = pooling_weights(pretrained, pooling)
    of_encoder = pooling_fields(pretrained, pooling)
    model = Model(Encoder(config), Classifier(0, pooling, **of_encoder), layout)
    if dtype != "float32":
        model = model.cast(jnp.dtype(dtype))
    if layout is None:
        there = pretrained.on_device(frozen_dtype or dtype)
        head = {name: there["head"][name] for name in head}
        return features_at(model, layer), {"encoder": there["encoder"], "head": head}
    params = tree.graft(tree.drop(pretrained.params, "head"), "head", head)
    return features_at(model, layer), on_mesh(params, frozen_dtype or dtype, layout)


def on_mesh(params: tree.Tree, dtype: str, layout: Layout) -> tree.Tree:
    """The parameters on the mesh, the encoder's kernels in ``dtype``."""
    if dtype == "float32":
        return layout.shard(params)
    return place_kernels(params, dtype, layout)


def head_extractor(
    pretrained: Pretrained,
    pooling: str,
    stage: KeptHead,
    dtype: str,
    layout: Layout | None,
    frozen_dtype: FrozenDType | None = None,
) -> tuple[Forward, tree.Tree]:
    """:func:`extractor` of what the checkpoint's own head makes at a ``stage``."""
    head = on_head(pretrained, stage, pooling)
    model = Model(Encoder(pretrained.config), head, layout)
    if dtype != "float32":
        model = model.cast(jnp.dtype(dtype))
    if layout is None:
        params = pretrained.on_device(frozen_dtype or dtype)
    else:
        params = on_mesh(pretrained.params, frozen_dtype or dtype, layout)
    below = {"encoder": params["encoder"], "head": {"below": params["head"]}}
    return features_of_head(model), below


@cached_program
def features_of_head(model: Model) -> Forward:
    """A compiled function ``(params, batch) -> features`` of a head on that of the checkpoint."""
    replicated = None if model.layout is None else model.layout.replicated
    jitted = jax.jit(model.allow_fused_attention(model.apply), out_shardings=replicated)
    return sharding.shard_inputs(jitted, model.layout)


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


def check_computed(are_numbers: np.ndarray, what: str) -> None:
    """Raise :class:`CheckpointError` unless all that a model computed are numbers. Its weights are
    finite, for others are not loaded; damaged ones may be so large that their products are not.
    """
    if not are_numbers.all():
        raise CheckpointError(
            f"the {what} are not finite: a weight of the checkpoint is damaged, or `dtype` can't "
            "hold what it computes"
        )


@dataclasses.dataclass
class Counts:
    """What went through an extractor."""

    tokens: int = 0
    slots: int = 0  # for tokens, in the rows of batches
    long: LongTexts = NO_LONG_TEXTS


class OpenTexts:
    """The vectors of texts of which not all windows have come yet."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[np.ndarray, int]] = {}  # the sum, and how many are missing

    def close(
        self, texts: np.ndarray, vectors: np.ndarray, windows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(the texts that are complete with these windows, their vectors): the mean of windows."""
        is_whole = windows == 1
        done = list(texts[is_whole])
        means = list(vectors[is_whole])
        several = np.flatnonzero(~is_whole)
        for slot in several:
            text = int(texts[slot])
            total, missing = self.open.pop(text, (np.zeros_like(vectors[slot]), windows[slot]))
            total = total + vectors[slot]
            if missing > 1:
                self.open[text] = (total, missing - 1)
            else:
                done.append(text)
                means.append(total / np.float32(windows[slot]))
        return np.array(done, np.int64), np.array(means).reshape(len(done), vectors.shape[1])


def fill(
    features: np.ndarray,
    forward: Forward,
    params: tree.Tree,
    stream: Stream,
    settings: VectorSettings | None = None,
    on_progress: OnProgress | None = None,
) -> Counts:
    """Write the features of every batch to their rows of ``features`` [N, D], which may be mapped
    from a file. ``settings`` say what is done to what ``forward`` pools; None: nothing. Where
    ``features`` has fewer columns than a vector numbers, the first ones are kept.

    Raises :class:`CheckpointError` for features that are not finite.
    """
    counts = Counts()
    open_texts = OpenTexts()

    def outputs() -> Iterator[tuple[Streamed, jax.Array]]:
        for streamed in feeding.fed(stream):
            counts.tokens += int(streamed.batch["length"].sum())
            counts.slots += streamed.batch["segments"].size
            counts.long = streamed.long + counts.long  # of the stream's rule
            yield streamed, forward(params, streamed.batch)

    done = 0
    for streamed, values in pipelined(outputs()):
        rows, vectors = scatter_outputs(streamed.index, np.asarray(values))
        if streamed.windows is not None:
            windows = np.concatenate(streamed.windows)
            rows, vectors = open_texts.close(rows, vectors, windows)
        if settings is not None:
            vectors = through(settings.dense, vectors)
        if settings is not None and settings.normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, 1e-12)
        check_computed(np.isfinite(vectors), "features")
        features[rows] = vectors[:, : features.shape[1]]
        done += len(rows)
        if on_progress is not None:
            on_progress(done, len(features))
    return counts
