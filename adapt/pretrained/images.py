"""Pictures to pixels, the way that the checkpoint's preprocessor_config.json says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.errors import CheckpointError, DataError
from adapt.pretrained.tokenizer import read_settings


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """Resize to ``size`` squared with PIL's filter ``resample``, times ``rescale``, minus ``mean``,
    over ``std``.
    """

    size: int
    channels: int = 3
    resample: int = 2  # PIL's BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


def read_image_settings(folder: Path, size: int, channels: int) -> ImageSettings:
    """From preprocessor_config.json where there is one, else ViT's own: bilinear, mean and std one
    half.

    Raises :class:`CheckpointError` for a file that is no JSON object, or has another number of
    channels.
    """
    file = folder / "preprocessor_config.json"
    hf = read_settings(file)
    for name in ("image_mean", "image_std"):
        if len(hf.get(name) or [0.5]) not in (1, channels):
            raise CheckpointError(
                f"{file} has {len(hf[name])} values of {name} and the encoder {channels} channels"
            )
    normalise = hf.get("do_normalize", True)
    rescale = hf.get("rescale_factor", 1 / 255)
    return ImageSettings(
        size,
        channels,
        hf.get("resample", 2),
        rescale if hf.get("do_rescale", True) else 1.0,
        tuple(hf.get("image_mean") or (0.5,)) if normalise else (0.0,),
        tuple(hf.get("image_std") or (0.5,)) if normalise else (1.0,),
    )


def to_pixels(images: Sequence[Any], settings: ImageSettings, first_row: int = 1) -> np.ndarray:
    """PIL images -> float32 [N, size, size, channels]. Raises :class:`DataError` naming the row
    that is no picture.
    """
    out = np.empty((len(images), settings.size, settings.size, settings.channels), np.float32)
    for index, image in enumerate(images):
        if not hasattr(image, "convert"):
            raise DataError(
                f"row {first_row + index} holds no image: give an image column with `image_column`"
            )
        image = image.convert("RGB" if settings.channels == 3 else "L")
        if image.size != (settings.size, settings.size):
            image = image.resize((settings.size, settings.size), settings.resample)
        out[index] = np.asarray(image, np.float32).reshape(
            settings.size, settings.size, settings.channels
        )
    return (
        out * np.float32(settings.rescale) - np.asarray(settings.mean, np.float32)
    ) / np.asarray(settings.std, np.float32)
