"""Where the patches of an image lie: a bias of the scores, or rotations, by their coordinates.

Shapes in names: T tokens of an image, the leading ones first; H heads, F pairs of features of a
head.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adapt.models.config import EncoderConfig
from adapt.models.rotary import Rotation


class PatchBias(nn.Module):
    """What is added to the scores of a class token and patches, by how far these lie apart: float32
    [H, T, T] (BEiT, Bao et al. 2022).

    ``table`` [distances, H] has a row for each distance of two patches, and three for the class
    token: as a query, as a key, and as both.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        c = self.config
        side = c.image_size // c.patch_size
        distances = (2 * side - 1) ** 2
        table = self.param("table", nn.initializers.zeros, (distances + 3, c.heads))
        rows_TT = distance_rows(side)
        return jnp.asarray(table)[rows_TT].astype(jnp.float32).transpose(2, 0, 1)


@functools.cache
def distance_rows(side: int) -> np.ndarray:
    """The row of :class:`PatchBias` for each query and key, int32 [T, T]."""
    place = np.arange(side)
    apart = place[:, None] - place[None, :] + side - 1
    down = apart[:, None, :, None]  # of rows of patches, by queries and keys
    across = apart[None, :, None, :]
    between_patches = down * (2 * side - 1) + across
    distances = (2 * side - 1) ** 2
    rows = np.zeros((side**2 + 1, side**2 + 1), np.int32)
    rows[1:, 1:] = between_patches.reshape(side**2, side**2)
    rows[0, :] = distances
    rows[:, 0] = distances + 1
    rows[0, 0] = distances + 2
    return rows


def rotation_of_patches(config: EncoderConfig) -> Rotation:
    """The rotation of the patches of an image by where their centres lie, each side from -1 to 1:
    half of the angles by the height, half by the width (DINOv3, Simeoni et al. 2025). The tokens
    before the patches are not rotated.

    A patch has the same angles at the edge of an image of any size.
    """
    side = config.image_size // config.patch_size
    count = config.width_of_head // 4  # half of the pairs of features
    exponents = np.arange(count) / count
    frequencies = 2 * math.pi / config.rotary_base**exponents
    centres = 2 * (np.arange(side) + 0.5) / side - 1
    angles = centres[:, None] * frequencies  # [side, count], of the places along one side

    grid = (side, side, count)
    by_height = np.broadcast_to(angles[:, None], grid)
    by_width = np.broadcast_to(angles[None, :], grid)
    of_patches_TF = np.concatenate([by_height, by_width], -1).reshape(side**2, 2 * count)

    of_leading_TF = np.zeros((config.leading_tokens, 2 * count))
    angles_TF = np.concatenate([of_leading_TF, of_patches_TF])
    angles_1TF = jnp.asarray(angles_TF[None], jnp.float32)
    return Rotation(jnp.cos(angles_1TF), jnp.sin(angles_1TF))
