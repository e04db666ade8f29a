"""Pictures that are another cut of themselves in every epoch, or mixed with others.

    augmentation = parse(("crop", "flip", "mixup=0.2"))
    augmentation.view(image, augmentation.generator(seed, epoch, row))

What happens to an example is decided by the seed, the epoch and the example alone, whatever batch it
comes in: a run that was stopped goes on with the same pictures.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.packing import Arrays
from adapt.errors import StrategyError

# The names of augmentations, and their number where none is given.
DEFAULTS = {
    "crop": 0.08,  # the least share of the area (Szegedy et al. 2015)
    "flip": 0.5,  # how probable a mirrored picture is
    "mixup": 0.2,  # alpha of the beta distribution of shares (Zhang et al. 2018)
    "cutmix": 1.0,  # the same (Yun et al. 2019)
}
TRIES = 10  # until a crop fits into the picture
ASPECTS = (3 / 4, 4 / 3)  # of width to height


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to pictures in training; 0 leaves out that part.

    * ``crop``: the least share of a picture's area that is cut out at random, and resized.
    * ``flip``: how probable a mirrored picture is.
    * ``mixup``, ``cutmix``: alpha of the beta distribution from which a share is drawn; the rest is
      another picture of the batch, everywhere or in a rectangle. With both, each is as probable.
    """

    crop: float = 0.0
    flip: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def views(self) -> bool:
        """Whether pictures are cut out or mirrored."""
        return self.crop > 0 or self.flip > 0

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed, and labels with them."""
        return self.mixup > 0 or self.cutmix > 0

    def view(self, image: Any, rng: np.random.Generator) -> Any:
        """A PIL image cut out of ``image``, or mirrored."""
        if self.crop:
            image = image.crop(crop_box(image.width, image.height, self.crop, rng))
        if self.flip and rng.random() < self.flip:
            from PIL import Image

            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def mix(
        self, pixels: np.ndarray, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(pixels [n, S, S, C] each mixed with the next, the first the next of the last; the share
        float32 [n] that is an example's own).
        """
        others = np.roll(pixels, -1, 0)
        mixed = pixels.copy()
        shares = np.ones(len(pixels), np.float32)
        for index, rng in enumerate(rngs):
            mixed[index], shares[index] = self.mixed_pair(pixels[index], others[index], rng)
        return mixed, shares

    def mixed_pair(
        self, own: np.ndarray, other: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """(two pictures [S, S, C] mixed, the share of the first)."""
        cuts = self.cutmix > 0
        if self.cutmix and self.mixup:
            cuts = rng.random() < 0.5
        alpha = self.cutmix if cuts else self.mixup
        share = float(rng.beta(alpha, alpha))
        if cuts:
            return with_rectangle(own, other, share, rng)
        mixed = np.float32(share) * own + np.float32(1 - share) * other
        return mixed, share


def with_rectangle(
    own: np.ndarray, other: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """(``own`` [S, S, C] with a random square of ``other`` in it, the share that stays its own).

    The square has 1 - ``share`` of the area, before it is cut off at the borders.
    """
    size = len(own)
    half = math.sqrt(1 - share) * size / 2
    middle_y, middle_x = rng.uniform(0, size, 2)
    top, bottom = clipped_span(middle_y, half, size)
    left, right = clipped_span(middle_x, half, size)
    mixed = own.copy()
    mixed[top:bottom, left:right] = other[top:bottom, left:right]
    covered = (bottom - top) * (right - left)
    return mixed, 1 - covered / size**2


def clipped_span(middle: float, half: float, size: int) -> tuple[int, int]:
    """(first pixel, the one after the last) of a span around ``middle``, cut off at the borders."""
    first = int(np.clip(round(middle - half), 0, size))
    end = int(np.clip(round(middle + half), 0, size))
    return first, end


# The streams of random numbers of an example.
VIEWS = 0
MIXING = 1


def generators(seed: int, epoch: int, rows: np.ndarray, stream: int) -> list[np.random.Generator]:
    """The random numbers of some examples in an epoch, of one of the streams."""
    return [np.random.default_rng([seed, epoch, int(row), stream]) for row in rows]


def crop_box(
    width: int, height: int, least: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of a picture, in pixels.

    It has a share of the area from ``least`` to 1, and an aspect within :data:`ASPECTS` (Szegedy et
    al. 2015). Where none of :data:`TRIES` fits into the picture it is the middle.
    """
    narrowest, widest = ASPECTS
    for _ in range(TRIES):
        area = width * height * rng.uniform(least, 1)
        log_aspect = rng.uniform(math.log(narrowest), math.log(widest))
        aspect = math.exp(log_aspect)
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width + 1))
            top = int(rng.integers(0, height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height

    # The largest part in the middle whose aspect is allowed.
    crop_width = min(width, max(round(height * widest), 1))
    crop_height = min(height, max(round(width / narrowest), 1))
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def parse(names: Sequence[str]) -> Augmentation | None:
    """The augmentation that is spelled ``("crop", "flip", "mixup=0.2")``; None for nothing.

    Raises :class:`StrategyError` for an unknown name, and a number that is out of range.
    """
    found: dict[str, float] = {}
    for spelled in names:
        name, has_value, value = spelled.partition("=")
        if name not in DEFAULTS:
            raise StrategyError(
                f"unknown `augment` {spelled!r}: give some of {', '.join(DEFAULTS)}, also as in "
                "mixup=0.2"
            )
        try:
            number = float(value) if has_value else DEFAULTS[name]
        except ValueError:
            number = math.nan
        most = 1.0 if name in ("crop", "flip") else 100.0
        if not 0 < number <= most:
            raise StrategyError(
                f"`augment` {spelled!r}: give a number above 0 and up to {most:g}, as in "
                f"{name}={DEFAULTS[name]:g}"
            )
        if name in found:
            raise StrategyError(f"`augment` names {name} twice: give it once")
        found[name] = number
    return Augmentation(**found) if found else None


def mixed_arrays(labels: Arrays, shares: np.ndarray, slots: int) -> Arrays:
    """What a mixed batch has beside its own labels: ``other_label``, from the targets ``labels`` of
    the pictures mixed in, and ``own_share``, float32 [slots], 1 for empty slots.
    """
    share = np.ones(slots, np.float32)
    share[: len(shares)] = shares
    return {"other_label": labels["label"], "own_share": share}
