"""Masked images (SimMIM, Xie et al. 2022): a token stands in for some patches of a picture, and a
dense layer after the encoder predicts their pixels.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt.data import pictures
from adapt.data.examples import from_images
from adapt.data.masking import Corruption, without_labels
from adapt.data.packing import Arrays
from adapt.data.tables import Table
from adapt.errors import DataError, StrategyError
from adapt.models import EncoderConfig
from adapt.objectives.base import OBJECTIVES, Corpus, Measure, Objective, hold_out
from adapt.options import ObjectiveOptions
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained
from adapt.training.context import LossContext

# Of a masked square, in pixels, where a picture has enough of them (SimMIM, 4.1).
SIDE = 32
ENOUGH = 4  # squares a side
COLUMN = "image"


class MaskedImage(Objective):
    """The loss is the mean over the pixels of masked patches of how far the prediction is from the
    pixel, as the encoder reads it.
    """

    task = "mim"
    head_name = "masked-image head"
    takes_pictures = True
    reads = ("patch_rate", "mask_size")
    primary_metric = "loss"
    perplexity_of = ""

    def refusal(self, pretrained: Pretrained) -> str:
        if not pretrained.config.is_image:
            return "it is no image encoder, and this is for pictures"
        if get_family(pretrained.config.family).masked_image is None:
            return f"its family has no {self.head_name}"
        return ""

    def is_own(self, pretrained: Pretrained) -> bool:
        return pretrained.config.is_image

    def new_head(self, pretrained: Pretrained) -> Any:
        make = get_family(pretrained.config.family).masked_image
        assert make is not None
        return make(pretrained.config)

    def read(
        self, pretrained: Pretrained, table: Table, options: ObjectiveOptions, seed: int
    ) -> tuple[Corpus, Corpus]:
        if len(table) < 2:
            raise DataError(
                f"{table.name} has {len(table)} pictures: pre-training needs at least 2, one of "
                "them held out"
            )
        digests = pictures.check_images(table, COLUMN)
        load = pictures.image_loader(table, COLUMN)
        examples = from_images(pretrained, load, digests, np.zeros(len(table), np.int32))
        training, held_out = hold_out(len(table), seed)
        return Corpus(examples.take(training)), Corpus(examples.take(held_out))

    def corruption(self, pretrained: Pretrained, options: ObjectiveOptions) -> Corruption:
        """Masked squares of each picture, as many of each: the batch gets ``masked_patches`` bool [N,
        patches]; ``targets``, the tokens that predict; and ``patches``, which they predict, [M].
        """
        config = pretrained.config
        side = side_of_masks(config, options.mask_size)
        grid = config.image_size // side
        repeats = side // config.patch_size
        # Without round-off: 0.07 of 100 squares is 7.000000000000001.
        share = round(options.patch_rate * grid**2, 6)
        count = max(math.ceil(share), 1)
        if count == grid**2:
            raise StrategyError(
                f"`mask_size` {side} and `patch_rate` {options.patch_rate} mask whole pictures of "
                f"{config.image_size} pixels a side: give less of one of them"
            )
        leading = config.leading_tokens

        def corrupt(batch: Arrays, rng: np.random.Generator) -> Arrays:
            num_pictures = len(batch["first"])
            ranks = np.tile(np.arange(grid**2), (num_pictures, 1))
            squares = rng.permuted(ranks, axis=1) < count
            squares = squares.reshape(num_pictures, grid, grid)
            masked = squares.repeat(repeats, 1).repeat(repeats, 2)
            masked = masked.reshape(num_pictures, -1)
            picture, patch = np.nonzero(masked)
            return without_labels(batch) | {
                "masked_patches": masked,
                "targets": (batch["first"][picture] + leading + patch).astype(np.int32),
                "patches": (picture * masked.shape[1] + patch).astype(np.int32),
                "label": np.zeros(len(patch), np.int32),
                "weight": batch["weight"][picture],
            }

        return corrupt

    def measures(self, context: LossContext) -> dict[str, Measure]:
        params = context.params
        batch = {**context.batch, "mask_token": params["head"]["mask_token"]}
        hidden = context.model.head_input(params, None, batch, 0, context.dropout_key)
        predicted_MP = context.model.outputs_of(params, hidden, batch, context.dropout_key)
        patch_size = context.model.encoder.config.patch_size
        pixels_MP = pixels_of_patches(batch["pixels"], patch_size)[batch["patches"]]
        error_M = jnp.abs(predicted_MP - pixels_MP).mean(-1)
        return {"loss": (error_M, batch["weight"])}


def pixels_of_patches(pixels: jax.Array, patch: int) -> jax.Array:
    """The pixels of every patch, [N * patches, channels * P * P], by channel and row: as a
    convolution and torch's pixel shuffle put them in place.
    """
    pictures, side, _, channels = pixels.shape
    grid = side // patch
    x = jnp.asarray(pixels).reshape(pictures, grid, patch, grid, patch, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, channels * patch * patch)


def side_of_masks(config: EncoderConfig, side: int | None) -> int:
    """The pixels a side of a masked square. Raises :class:`StrategyError` for one that is not made
    of whole patches, or does not divide a picture.
    """
    patch = config.patch_size
    size = config.image_size
    if side is None:
        fits = SIDE % patch == 0 and size % SIDE == 0
        return SIDE if fits and size >= ENOUGH * SIDE else patch
    if side < 1 or side % patch or size % side:
        raise StrategyError(
            f"`mask_size` {side} must be a multiple of {patch}, the side of a patch, and divide "
            f"{size}, that of a picture"
        )
    return side


OBJECTIVES["masked-image"] = MaskedImage()
