"""Images to pixels, the way that the checkpoint's preprocessor_config.json says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.errors import CheckpointError, DataError
from adapt.pretrained.json_files import read_settings


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """An image is resized to ``size`` squared with PIL's filter ``resample``; pixels are multiplied
    by ``rescale``, then ``mean`` is subtracted, and they are divided by ``std``.
    """

    size: int
    channels: int = 3
    resample: int = 2  # PIL's BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)  # of every channel, or of each
    std: tuple[float, ...] = (0.5,)


def read_image_settings(folder: Path, size: int, channels: int) -> ImageSettings:
    """The settings in preprocessor_config.json; what it does not say is ViT's own: bilinear, mean
    and std one half.

    Raises :class:`CheckpointError` for a file that is no JSON object, or has another number of
    channels.
    """
    file = folder / "preprocessor_config.json"
    content = read_settings(file)
    settings = ImageSettings(
        size=size,
        channels=channels,
        resample=content.get("resample", ImageSettings.resample),
        rescale=content.get("rescale_factor", ImageSettings.rescale),
        mean=tuple(content.get("image_mean") or ImageSettings.mean),
        std=tuple(content.get("image_std") or ImageSettings.std),
    )
    for name, values in (("image_mean", settings.mean), ("image_std", settings.std)):
        if len(values) not in (1, channels):
            raise CheckpointError(
                f"{file} has {len(values)} values of {name} and the encoder {channels} channels"
            )
    if not content.get("do_rescale", True):
        settings = dataclasses.replace(settings, rescale=1.0)
    if not content.get("do_normalize", True):
        settings = dataclasses.replace(settings, mean=(0.0,), std=(1.0,))
    return settings


def to_pixels(images: Sequence[Any], settings: ImageSettings, first_row: int = 1) -> np.ndarray:
    """The pixels of PIL images, float32 [N, size, size, channels].

    Raises :class:`DataError` for what is no image, naming its row, counted from ``first_row``.
    """
    size = (settings.size, settings.size)
    mode = "RGB" if settings.channels == 3 else "L"
    pixels = np.empty((len(images), *size, settings.channels), np.float32)
    for index, image in enumerate(images):
        if not hasattr(image, "convert"):
            raise DataError(
                f"row {first_row + index} holds no image: give an image column with `image_column`"
            )
        image = image.convert(mode)
        if image.size != size:
            image = image.resize(size, settings.resample)
        pixels[index] = np.asarray(image, np.float32).reshape(*size, settings.channels)
    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    return (pixels * np.float32(settings.rescale) - mean) / std
