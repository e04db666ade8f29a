"""Folders in the layout of other libraries: config.json, model.safetensors,
preprocessor_config.json.
"""

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
from adapt.pretrained.images import UNROUNDED, VIT, ImageSettings


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, str],
    weights: str = "model.safetensors",
) -> None:
    """Write a folder in the Hugging Face layout: config.json, the file ``weights`` and other text
    files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / weights
    safetensors.numpy.save_file(dict(tensors), file, metadata={"format": "pt"})
    texts = {"config.json": json.dumps(dict(config), indent=2), **files}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    shutil.copymode(folder / "config.json", file)  # safetensors writes for the owner alone


def preprocessor(settings: ImageSettings) -> dict[str, Any]:
    """preprocessor_config.json of a processor that does the same.

    :func:`adapt.pretrained.images.read_image_settings` reads it back.
    """

    def per_channel(values: Any) -> list[float]:
        return np.broadcast_to(np.asarray(values, float), settings.channels).tolist()

    square = {"height": settings.size, "width": settings.size}
    size: dict[str, int] = square
    if settings.resize and len(settings.resize) == 2:
        size = dict(zip(("height", "width"), settings.resize, strict=True))
    elif settings.resize:
        size = {"shortest_edge": settings.resize[0]}
    return {
        "image_processor_type": processor_class(settings),
        "do_convert_rgb": settings.channels == 3,
        "do_resize": settings.resize != (),
        "size": size,
        "resample": settings.resample,
        "do_center_crop": settings.crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": settings.rescale,
        "do_normalize": True,
        "image_mean": per_channel(settings.mean),
        "image_std": per_channel(settings.std),
    }


def processor_class(settings: ImageSettings) -> str:
    """The class of transformers that does all of it: ViT's cuts nothing out of a picture in
    versions before 5, and of those that do DeiT's takes no shorter side.
    """
    if not settings.rounds:
        return UNROUNDED
    if not settings.crop:
        return VIT
    has_two_sides = settings.resize is None or len(settings.resize) == 2
    return "DeiTImageProcessor" if has_two_sides else "BitImageProcessor"


def write_config(config: EncoderConfig, head: Any = None) -> dict[str, Any]:
    """The entries of config.json: the inverse of :func:`adapt.pretrained.config_file.read_config`.

    ``head`` is None for an encoder alone.
    """
    family = families.get_family(config.family)
    entries = {"model_type": config.family} | families.config_entries(config)
    return entries | family.entries(config, head)


def to_tensors(config: EncoderConfig, params: tree.Tree, head: Any = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by the family's table. ``head`` is None for an encoder alone.

    Raises :class:`ExportError` for a leaf that is not in the table.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in tree.paths(params).items()}
    rows = families.tensor_rows(config, leaves, head)
    in_table = {path for row in rows for path in row.paths}
    unknown = leaves.keys() - in_table
    if unknown:
        raise ExportError(f"{config.family} has no tensor for {min(unknown)}")
    tensors = {}
    for row in rows:
        tensor = row.to_tensor([leaves[path] for path in row.paths], config.patch_size)
        tensors[row.name] = np.ascontiguousarray(tensor)
    return tensors


def with_prefix(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], head: Any = None
) -> dict[str, np.ndarray]:
    """Tensors by the names that the original library's class with this head uses. The pooler is the
    encoder's there.
    """
    family = families.get_family(config.family)
    of_head = set()
    for row in family.table:
        if row.paths[0].startswith("head/") and not row.paths[0].startswith(families.OF_ENCODER):
            of_head.add(row.name)
    renamed = {}
    for name, tensor in tensors.items():
        renamed[name if name in of_head else family.prefix_of(head) + name] = tensor
    return renamed
