"""The encoder as a fixed feature extractor over a whole data set: features.npy, float32 [N, D], one
row an input row.

    adapt extract --checkpoint minilm --data reviews --out runs/features
    adapt extract --checkpoint runs/finetune --data new.csv --pooling cls --layer 4 --out runs/layer4

Examples are packed by length, whatever their order in the file; memory does not grow with their
number. With several processes each reads its own part of the rows, computes with its own devices,
whose mesh is --mesh, and writes features_00000.npy or the like; index.json says which rows are
where.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, cast

import jax

from adapt.cli import console, showing
from adapt.cli.run_folder import open_run
from adapt.cli.training_report import stored_line, stored_record
from adapt.data import tables
from adapt.features import Extraction, extract, settings_at, vector_settings
from adapt.options import (
    ColumnOptions,
    DeviceOptions,
    EncoderOptions,
    FrozenDType,
    ImageSizeOptions,
    ImportOptions,
    KeptHead,
    LongOptions,
    OutputOptions,
)
from adapt.parallel import multihost, sharding
from adapt.pretrained import hub
from adapt.run_folder import check_out, versions, write_json
from adapt.tree import digest

VECTORS = ("pooling", "normalize", "prompt", "dimensions")  # what result.json says of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Which features of which data."""

    title: ClassVar[str] = "extract"

    # a file (.csv .tsv .jsonl .parquet .conll), several ('part-*.csv'), an image folder, a bundled
    # set, or a hub data set
    data: str = "reviews"
    # mean, cls, max, last, pooler or attention; default: the checkpoint's or run's own, else mean
    pooling: str | None = None
    # 0 (embedding) to L (the last block, the default); or of the checkpoint's own head: transform,
    # what its last layer reads, or logits
    layer: str | None = None
    # scale every feature vector to length 1, or not: no; default: what the checkpoint's folder says
    normalize: bool | None = None
    # of the kernels on the device; int8: with a scale for each output; default: that of the
    # computation
    frozen_dtype: FrozenDType | None = None
    # what is put before a text, or its name in the checkpoint's folder; default: the folder's own
    prompt: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    ExtractOptions,
    ImageSizeOptions,
    LongOptions,
    EncoderOptions,
    ColumnOptions,
    OutputOptions,
    ImportOptions,
    DeviceOptions,
):
    """The flags of the command."""

    checkpoint: str = "minilm"
    out: Path = Path("runs/extract")


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite, may_be_remote=True)
    pretrained = hub.with_long(hub.load(config.checkpoint), config.long)
    pretrained = hub.with_image_size(pretrained, config.image_size)
    table = tables.read(config.data, quoting=config.quoting)
    layout = sharding.make_layout(config.mesh, jax.local_devices())

    with open_run(config.out, config) as folder:
        showing.show_loaded(pretrained)
        layer = as_layer(config.layer)
        settings = vector_settings(pretrained, config.pooling, config.normalize, config.prompt)
        settings = settings_at(pretrained, settings, layer, config.pooling)
        console.say(f"vectors   {settings}")
        console.say(f"computed  {showing.dtype_line(config.dtype)}")
        started = time.perf_counter()
        share = multihost.even_shares(len(table))[jax.process_index()]
        with console.progress("extracting", len(share)) as bar:

            def show_progress(done: int, total: int) -> None:
                rate = done / (time.perf_counter() - started)
                bar.update(done, **{"examples/s": f"{rate:,.0f}"})

            extraction = extract(
                pretrained,
                table,
                folder.path,
                text_column=config.text_column,
                image_column=config.image_column,
                pooling=config.pooling,
                layer=layer,
                normalize=config.normalize,
                dtype=config.dtype,
                layout=layout,
                on_progress=show_progress,
                long=config.long,
                prompt=config.prompt,
                frozen_dtype=config.frozen_dtype,
            )
        if extraction.stored is not None:
            console.say(f"frozen    {stored_line(extraction.stored)}")
        result = {
            "examples": extraction.examples,
            "width": extraction.width,
            "seconds": extraction.seconds,
            "examples_per_second": extraction.examples_per_second,
            "padding": extraction.padding,
            "truncated": extraction.truncated,
            "long": {"rule": extraction.long.rule, **extraction.long.counts},
            **{name: getattr(extraction.settings, name) for name in VECTORS},
            "dtype": extraction.dtype,
            "frozen": stored_record(extraction.stored),
            "encoder_digest": digest(pretrained.params["encoder"]),
            "versions": versions(),
        }
        write_json(folder.path / "result.json", result)

    console.note_long(extraction.long, config.data)
    show(config, extraction, result)
    return result


def as_layer(layer: str | int | None) -> int | KeptHead | None:
    """The layer that a flag, or a number in a file of settings, names: a number, or a stage of the
    checkpoint's head, which :func:`extract` checks.
    """
    if isinstance(layer, str) and layer.removeprefix("-").isdecimal():
        return int(layer)
    return cast(KeptHead | None, layer)


def show(config: Config, extraction: Extraction, result: dict[str, Any]) -> None:
    """Print the table of what was done, and where the features are."""
    shown = ("examples", "width", "examples_per_second", "padding", "truncated")
    path = config.out / extraction.path.name
    console.table(str(path), ("", "value"), [(name, result[name]) for name in shown])
    where = config.out if multihost.is_multiprocess() else path
    size = f"{extraction.examples:,} x {extraction.width:,} float32"
    console.result(f"{where}: {size}, {extraction.examples_per_second:,.0f} examples/s")
