"""Images to pixels, the way that the checkpoint's preprocessor_config.json says."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.errors import CheckpointError, DataError
from adapt.pretrained.json_files import read_settings

VIT = "ViTImageProcessor"
SQUARE_224 = {"height": 224, "width": 224}
OF_CLIP = {
    "resample": 3,  # PIL's BICUBIC
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": SQUARE_224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# The processors of transformers that do what is done here, and what their entries are by default
# where that is not as in ViT's.
PROCESSORS: dict[str, Mapping[str, Any]] = {
    VIT: {},
    "CLIPImageProcessor": OF_CLIP,
    "BitImageProcessor": OF_CLIP,
    "SiglipImageProcessor": {"resample": 3, "size": SQUARE_224},
    "DeiTImageProcessor": {
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": SQUARE_224,
    },
    "BeitImageProcessor": {"resample": 3, "size": SQUARE_224},
    "DINOv3ViTImageProcessor": {
        "size": SQUARE_224,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
}
# Those that take one number for the size of the shorter side.
BY_SHORTER_SIDE = ("CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor")
# The one that resizes numbers which are not rounded to 8 bits.
UNROUNDED = "DINOv3ViTImageProcessor"
DEFAULT_SIZE = 224  # ViT's own, where pictures are cropped and the file names no size
LARGEST = 2**16  # pixels of a side
LARGEST_NUMBER = 1e30  # of a setting: products with pixels stay finite in float32
# What another processor has to say for all of it to be known.
ENTRIES = ("do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """An image is resized to ``size`` squared with PIL's filter ``resample``; pixels are multiplied
    by ``rescale``, then ``mean`` is subtracted, and they are divided by ``std``.

    * ``resize``: (height, width) to resize to, where that is not the size; its shorter side where
      it is one number; () for no resizing.
    * ``crop``: whether the middle of what was resized is cut out, with black around it where it is
      smaller.
    * ``rounds``: whether what was resized is rounded to 8 bits, as PIL does.
    """

    size: int
    channels: int = 3
    resample: int = 2  # PIL's BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)  # of every channel, or of each
    std: tuple[float, ...] = (0.5,)
    resize: tuple[int, ...] | None = None
    crop: bool = False
    rounds: bool = True

    def scaled_to(self, size: int) -> "ImageSettings":
        """The settings that make pictures of another size, cut out of as much of them."""
        resize = self.resize
        if resize:
            resize = tuple(round(side * size / self.size) for side in resize)
        return dataclasses.replace(self, size=size, resize=resize)


def read_image_settings(
    folder: Path, size: int, channels: int, processor: str = VIT, any_size: bool = False
) -> ImageSettings:
    """The settings in preprocessor_config.json, or those of a picture in processor_config.json;
    what it does not say is as in the processor that it names, or else in ``processor``: in ViT's
    bilinear, mean and std one half. With ``any_size`` the size is the file's, not the encoder's.

    Raises :class:`CheckpointError` for a file that is no JSON object, for what does not fit the
    encoder, and for what is not done here.
    """
    file = folder / "preprocessor_config.json"
    content = read_settings(file)
    nested = read_settings(folder / "processor_config.json").get("image_processor")
    if isinstance(nested, Mapping):  # which transformers asks first
        file = folder / "processor_config.json"
        content = dict(nested)
    processor = check_processor(file, content, processor)
    defaults = PROCESSORS.get(processor, {})
    if not content:
        defaults = for_encoder(defaults, size, channels)
    content = {**defaults, **content}
    settings = ImageSettings(
        size=size,
        channels=channels,
        resample=content.get("resample", ImageSettings.resample),
        rescale=content.get("rescale_factor", ImageSettings.rescale),
        mean=per_channel(content.get("image_mean")) or ImageSettings.mean,
        std=per_channel(content.get("image_std")) or ImageSettings.std,
        rounds=processor != UNROUNDED,
    )
    filters = range(6)  # PIL's
    if type(settings.resample) is not int or settings.resample not in filters:
        raise CheckpointError(f"{file} says {settings.resample!r} for resample: give 0 to 5")
    if not is_number(settings.rescale):
        raise CheckpointError(f"{file} says {settings.rescale!r} for rescale_factor: give a number")
    for name, values in (("image_mean", settings.mean), ("image_std", settings.std)):
        if not all(map(is_number, values)):
            raise CheckpointError(f"{file} says {list(values)} for {name}: give numbers")
        if len(values) not in (1, channels):
            raise CheckpointError(
                f"{file} has {len(values)} values of {name} and the encoder {channels} channels"
            )
    if not content.get("do_rescale", True):
        settings = dataclasses.replace(settings, rescale=1.0)
    if not content.get("do_normalize", True):
        settings = dataclasses.replace(settings, mean=(0.0,), std=(1.0,))
    if min(map(abs, settings.std)) < 1 / LARGEST_NUMBER:
        raise CheckpointError(
            f"{file} says 0 for image_std, which pixels are divided by: give another number"
        )
    if any_size:
        settings = dataclasses.replace(settings, size=made_size(file, content) or size)
    return with_sizes(settings, file, content, processor in BY_SHORTER_SIDE)


def for_encoder(defaults: Mapping[str, Any], size: int, channels: int) -> dict[str, Any]:
    """The defaults of a processor for an encoder of another size than 224, or of gray pictures:
    what is done where a folder says nothing of its pictures.
    """
    scaled = dict(defaults)
    for entry in ("size", "crop_size"):
        if entry in scaled:
            sides = scaled[entry].items()
            scaled[entry] = {name: side * size // DEFAULT_SIZE for name, side in sides}
    if channels != 3:
        scaled = {name: scaled[name] for name in scaled if name not in ("image_mean", "image_std")}
    return scaled


def check_processor(file: Path, content: Mapping[str, Any], default: str) -> str:
    """The processor that a file names, as ``PROCESSORS`` has it, or the default.

    Raises :class:`CheckpointError` for one that does something else than is done here.
    """
    name = content.get("image_processor_type") or content.get("feature_extractor_type")
    known = default if name is None else str(name).removesuffix("Fast").removesuffix("Pil")
    known = known.replace("FeatureExtractor", "ImageProcessor")
    is_known = known in PROCESSORS
    absent = [entry for entry in ENTRIES if entry not in content]
    if not is_known and absent:
        raise CheckpointError(
            f"{file} says image_processor_type {name}, whose own {absent[0]} is not known here: "
            "write all its settings into the file, or say ViTImageProcessor"
        )
    for entry in ("do_pad", "use_square_size"):
        if content.get(entry):
            raise CheckpointError(f"{file} says {entry} true: only false is read")
    return known


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that pixels can be computed with in float32."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < LARGEST_NUMBER  # which NaN is not, nor infinity


def per_channel(value: Any) -> tuple[Any, ...]:
    """A number, or one for each channel; () for none."""
    if isinstance(value, list):
        return tuple(value)
    return () if value is None else (value,)


def made_size(file: Path, content: Mapping[str, Any]) -> int | None:
    """The side of the squares that a file makes of pictures; None where it does not say."""
    entry = "size" if content.get("do_resize", True) else ""
    if content.get("do_center_crop"):
        entry = "crop_size"
    if entry not in content:
        return None
    made = sides(file, entry, content[entry])
    return made[0] if len(set(made)) == 1 and len(made) == 2 else None


def with_sizes(
    settings: ImageSettings, file: Path, content: Mapping[str, Any], by_shorter_side: bool
) -> ImageSettings:
    """The settings with what a file says of resizing and cropping. A size of one number may be that
    of the shorter side.

    Raises :class:`CheckpointError` where pictures would not get the encoder's size.
    """
    size = settings.size
    crops = bool(content.get("do_center_crop"))
    resize: tuple[int, ...] | None = None
    if not content.get("do_resize", True):
        resize = ()
    elif "size" in content or crops:
        named = content.get("size", DEFAULT_SIZE)
        if by_shorter_side and type(named) is int:
            named = {"shortest_edge": named}
        resize = sides(file, "size", named)
        resize = None if resize == (size, size) else resize
    last = resize
    if crops:
        last = sides(file, "crop_size", content.get("crop_size", size))
    if last is not None and last != (size, size):
        entry = "crop_size" if crops else "size"
        made = " x ".join(map(str, last)) if len(last) == 2 else "pictures of any size"
        if resize == () and not crops:
            entry = "do_resize false"
        raise CheckpointError(
            f"{file} makes {made} by its {entry}, and the encoder reads {size} x {size}: one of "
            "them is of another checkpoint"
        )
    return dataclasses.replace(settings, resize=resize, crop=crops)


def sides(file: Path, entry: str, value: Any) -> tuple[int, ...]:
    """(height, width), or (shorter side,). Raises :class:`CheckpointError` for anything else."""
    found: tuple[Any, ...] = ()
    if type(value) is int:
        found = (value, value)
    elif isinstance(value, Mapping) and set(value) == {"height", "width"}:
        found = (value["height"], value["width"])
    elif isinstance(value, Mapping) and set(value) == {"shortest_edge"} and entry == "size":
        found = (value["shortest_edge"],)
    elif isinstance(value, list) and len(value) == 2:
        found = (value[0], value[1])
    if not found or not all(type(side) is int and 0 < side < LARGEST for side in found):
        raise CheckpointError(
            f"{file} says {value!r} for {entry}: height and width, or shortest_edge, are read"
        )
    return found


def to_pixels(images: Sequence[Any], settings: ImageSettings, first_row: int = 1) -> np.ndarray:
    """The pixels of PIL images, float32 [N, size, size, channels].

    Raises :class:`DataError` for what is no image, naming its row, counted from ``first_row``.
    """
    size = settings.size
    pixels = np.empty((len(images), size, size, settings.channels), np.float32)
    for index, image in enumerate(images):
        if not hasattr(image, "convert"):
            raise DataError(
                f"row {first_row + index} holds no image: give an image column with `image_column`"
            )
        try:
            image = in_mode(image, settings.channels)
        except ValueError as error:
            raise DataError(f"row {first_row + index}: {error}") from None
        values = resized(image, settings)
        if settings.crop:
            values = middle(values, size)
        pixels[index] = values.reshape(size, size, settings.channels)
    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    return (pixels * np.float32(settings.rescale) - mean) / std


def in_mode(image: Any, channels: int) -> Any:
    """A PIL image in the encoder's channels: gray, or in colours, where what is transparent becomes
    white as in transformers.

    Raises :class:`ValueError` for numbers that are not of 8 or 16 bits, whose white is not known.
    """
    image = in_8_bits(image)
    if channels != 3:
        return image.convert("L")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = image.copy()
        white.paste((255, 255, 255, 255), (0, 0, *image.size))
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def in_8_bits(image: Any) -> Any:
    """A PIL image whose gray of 16 bits is one of 8. Pillow itself would cut off all above 255.

    Raises :class:`ValueError` for other numbers, whose white is not known.
    """
    if image.mode == "F":
        raise ValueError("its numbers are of floating point: convert it to 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    from PIL import Image

    values = np.asarray(image)
    if (image.mode == "I" and not 256 <= values.max() <= 65535) or values.min() < 0:
        raise ValueError(
            f"its numbers go from {values.min()} to {values.max()}, whose white is not known: "
            "convert it to 8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def resized(image: Any, settings: ImageSettings) -> np.ndarray:
    """The numbers of a PIL image as large as the settings say, float32 [H, W, ...], before anything
    is cut out of it.
    """
    height, width = size_of(image, settings)
    if image.size == (width, height):
        return np.asarray(image, np.float32)
    if settings.rounds:
        return np.asarray(image.resize((width, height), settings.resample), np.float32)
    bands = []
    for band in image.split():
        floats = band.convert("F").resize((width, height), settings.resample)
        bands.append(np.asarray(floats, np.float32))
    return np.stack(bands, -1)


def size_of(image: Any, settings: ImageSettings) -> tuple[int, int]:
    """(height, width) to which a PIL image is resized."""
    if settings.resize == ():
        return image.height, image.width
    height, width = settings.size, settings.size
    if settings.resize is not None and len(settings.resize) == 2:
        height, width = settings.resize
    elif settings.resize is not None:
        (short,) = settings.resize
        is_upright = image.width <= image.height
        shorter, longer = (image.width, image.height) if is_upright else (image.height, image.width)
        long = int(short * longer / shorter)
        height, width = (long, short) if is_upright else (short, long)
    return height, width


def middle(values: np.ndarray, size: int) -> np.ndarray:
    """The middle [size, size, ...] of an image [H, W, ...], with zeros around a smaller one."""
    for axis in (0, 1):
        length = values.shape[axis]
        missing = max(size - length, 0)
        before = -(-missing // 2)
        padding = [(0, 0)] * values.ndim
        padding[axis] = (before, missing - before)
        start = (length - size) // 2 + before
        values = np.pad(values, padding).take(range(start, start + size), axis)
    return values
