"""The encoder as a fixed feature extractor over a whole data set: features.npy, float32 [N, D], one row an input row.

    adapt extract --checkpoint minilm --data reviews --out runs/features
    adapt extract --checkpoint runs/finetune --data new.csv --pooling cls --layer 4 --out runs/layer4

Examples are packed by length, whatever their order in the file; memory does not grow with their number. Of several
processes each reads its own part of the rows, computes with its own devices, whose mesh is --mesh, and writes
features_00000.npy or the like; index.json says which rows are where.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adapt import features, tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, versions, write_json
from adapt.data import tables
from adapt.errors import OutputError
from adapt.options import DeviceOptions, ImportOptions
from adapt.parallel import multihost, sharding
from adapt.pretrained import hub
from adapt.training.loop import scatter_outputs


@dataclasses.dataclass(frozen=True)
class Config(ImportOptions, DeviceOptions):
    checkpoint: str = (
        "minilm"  # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    )
    data: str = "reviews"  # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
    text_column: str = "text"
    image_column: str | None = None
    pooling: str = "mean"  # mean, cls, max, last, pooler or attention
    layer: int | None = None  # 0 (embedding) to L (the last block, the default)
    normalize: bool = False  # scale every feature vector to length 1
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation
    out: Path = Path("runs/extract")
    overwrite: bool = False


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    pretrained = hub.load(config.checkpoint)
    table = inputs.read(config.data)
    layout = sharding.make_layout(config.mesh, jax.local_devices())
    whole = len(table)
    parts = multihost.even_shares(len(table))
    if multihost.is_multiprocess():
        multihost.assert_same(
            "what they read",
            {"the rows": str(whole), "the encoder": tree.digest(pretrained.params["encoder"])},
        )
        if config.image_column is None:
            tables.check_texts(table, config.text_column)  # here rows have the file's numbers
        table = table.select(parts[jax.process_index()])
    forward, params = features.extractor(
        pretrained, config.pooling, config.layer, jnp.dtype(config.dtype), layout
    )
    stream = inputs.eval_batches(pretrained, table, config.text_column, config.image_column, layout)
    console.say(
        f"loaded    {pretrained.source}: {pretrained.config.family}, width {pretrained.config.width}; its head is discarded"
    )

    name = (
        f"features_{jax.process_index():05d}.npy" if multihost.is_multiprocess() else "features.npy"
    )
    target = config.out / name
    shape = (len(table), pretrained.config.width)
    with open_run(config.out, config):
        started = time.perf_counter()
        truncated = 0
        tokens = 0
        padded = 0
        out = reserve(target.with_name(f"{name}.tmp"), shape)
        with console.progress("extracting", len(table)) as bar:
            done = 0
            pending = []
            for index, batch, cut in stream:
                pending.append((index, forward(params, batch)))
                truncated = truncated + cut
                tokens = tokens + int(batch["length"].sum())
                padded += batch["segments"].size
                if (
                    len(pending) > 2
                ):  # write late, so that the next batch is packed while this one runs
                    done += write(out, *pending.pop(0), config.normalize)
                    bar.update(
                        done, **{"examples/s": f"{done / (time.perf_counter() - started):.0f}"}
                    )
            for index, values in pending:
                done += write(out, index, values, config.normalize)
        out.flush()
        os.replace(target.with_name(f"{name}.tmp"), target)
        tokens, padded, truncated = (
            multihost.total_over_processes(each) for each in (tokens, padded, truncated)
        )  # and all are done
        seconds = time.perf_counter() - started
        result = {
            "examples": whole,
            "width": shape[1],
            "seconds": seconds,
            "examples_per_second": whole / seconds,
            "padding": 1 - tokens / padded,
            "truncated": truncated,
            "encoder_digest": tree.digest(pretrained.params["encoder"]),
            "versions": versions(),
        }
        if multihost.is_multiprocess():
            files = [
                {"file": f"features_{k:05d}.npy", "rows": [part.start, part.stop]}
                for k, part in enumerate(parts)
            ]
            write_json(
                config.out / "index.json",
                {"files": files, "examples": whole, "width": shape[1], "dtype": "float32"},
            )
        write_json(config.out / "result.json", result)
    if pretrained.tokenizer:
        console.warn_truncated(truncated, pretrained.tokenizer.max_length, config.data)
    shown = ("examples", "width", "examples_per_second", "padding", "truncated")
    console.table(str(target), ("", "value"), [(key, result[key]) for key in shown])
    if not console.is_terminal():
        where = config.out if multihost.is_multiprocess() else target
        rate = result["examples_per_second"]
        print(f"{where}: {whole} x {shape[1]} float32, {rate:.0f} examples/s")
    return result


def write(out: np.ndarray, index: Any, values: Any, normalize: bool) -> int:
    index, rows = scatter_outputs(index, np.asarray(values))
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    out[index] = rows
    return len(index)


def reserve(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A memory-mapped float32 array whose bytes are the file's own already: a full disk is an error here, not a crash later."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as fault:
        raise OutputError(
            f"{path.parent} has no room for {out.nbytes / 1e6:.0f} MB of features: {fault.strerror}"
        ) from None
    return out


if __name__ == "__main__":
    launch(Config, main)
