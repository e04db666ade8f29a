"""Folders in the layout of other libraries: config.json, model.safetensors, preprocessor_config.json."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from adapt import tree
from adapt.errors import ExportError
from adapt.models import EncoderConfig
from adapt.pretrained import families
from adapt.pretrained.images import ImageSettings


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, str],
) -> None:
    """Write a folder in the Hugging Face layout: config.json, model.safetensors and other text files."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(
        dict(tensors), folder / "model.safetensors", metadata={"format": "pt"}
    )
    for name, text in {"config.json": json.dumps(dict(config), indent=2), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    shutil.copymode(
        folder / "config.json", folder / "model.safetensors"
    )  # safetensors writes for the owner alone


def replace_folder(beside: Path, target: Path) -> None:
    """Move a finished folder to its place, so that nobody ever sees half of one."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def preprocessor(settings: ImageSettings) -> dict[str, Any]:
    """preprocessor_config.json of a ViTImageProcessor that does the same; :func:`adapt.pretrained.images.image_settings` reads it back."""
    per_channel = lambda values: np.broadcast_to(
        np.asarray(values, float), settings.channels
    ).tolist()
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": settings.channels == 3,
        "do_resize": True,
        "size": {"height": settings.size, "width": settings.size},
        "resample": settings.resample,
        "do_rescale": True,
        "rescale_factor": settings.rescale,
        "do_normalize": True,
        "image_mean": per_channel(settings.mean),
        "image_std": per_channel(settings.std),
    }


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Inverse of :func:`adapt.pretrained.families.read_config`."""
    activation = next(
        theirs for theirs, ours in families.ACTIVATIONS.items() if ours == config.activation
    )
    fields = dataclasses.asdict(config) | {"activation": activation}
    return {"model_type": config.family} | {
        theirs: fields[ours] for ours, theirs, *_ in families.family_module(config.family).CONFIG
    }


def to_tensors(config: EncoderConfig, params: tree.Tree) -> dict[str, np.ndarray]:
    """Params -> the tensors of a checkpoint, by the same table. Raises :class:`ExportError` for a leaf that is not in it."""
    flat = {path: np.asarray(leaf) for path, leaf in tree.paths(params).items()}
    rows = families.table(config, flat)
    if left := flat.keys() - {path for row in rows for path in row.paths}:
        raise ExportError(f"{config.family} has no tensor for {min(left)}")
    tensors = {
        row.name: row.to_tensor([flat[path] for path in row.paths], config.patch_size)
        for row in rows
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
