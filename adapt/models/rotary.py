"""Rotary positions: queries and keys are rotated by angles that grow with a token's place.

Shapes in names: R rows, C tokens a row, H heads, K width of a head, F = K / 2 frequencies.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """The cosines and sines of the angles of every token, float32 [R, C, F] (Su et al. 2021, 3.2).

    The product of a rotated query and a rotated key depends on how far apart they stand, not on
    where.

        >>> rotation = rotation_at(jnp.array([[0, 1]]), width=4, base=10000.0)
        >>> rotation.cosine.shape
        (1, 2, 2)
    """

    cosine: jax.Array
    sine: jax.Array

    def rotate(self, x_RHCK: jax.Array) -> jax.Array:
        """``x`` with the features i and i + F of each head rotated by the i-th angle.

        It is computed in float32 and has the dtype of ``x``.
        """
        first, second = jnp.split(x_RHCK.astype(jnp.float32), 2, -1)
        cosine = self.cosine[:, None]
        sine = self.sine[:, None]
        rotated = [first * cosine - second * sine, second * cosine + first * sine]
        return jnp.concatenate(rotated, -1).astype(x_RHCK.dtype)


def frequencies(width: int, base: float, dtype: str = "float32") -> np.ndarray:
    """base^(-2 i / width), float32 [F], rounded to ``dtype``. ``width`` is an even number."""
    exponents_F = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies_F = 1.0 / np.float32(base) ** exponents_F
    return frequencies_F.astype(dtype).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """How frequencies are lowered for texts longer than those of pre-training.

    * ``factor``: what frequencies are divided by; 1 leaves them as they are. This alone is position
      interpolation (Chen et al. 2023, eq. 4), "linear" in config.json.
    * ``length``: the tokens of a text of pre-training; 0 divides all frequencies alike. Otherwise a
      frequency that makes fewer than ``slow`` rotations within ``length`` tokens is divided, one
      that makes more than ``fast`` is kept, and between them the two are mixed: linearly in the
      rotations, which is Llama 3.1's rule, "llama3" in config.json, or with ``by_index`` linearly
      in the number of the frequency, which is YaRN's (Peng et al. 2023, 3.2), "yarn".
    * ``scale``: by what queries and keys are multiplied as they are rotated (3.4 there).
    """

    factor: float = 1.0
    length: int = 0
    slow: float = 1.0
    fast: float = 4.0
    by_index: bool = False
    scale: float = 1.0

    def apply(self, frequencies_F: np.ndarray, base: float) -> np.ndarray:
        """The lowered frequencies, float32 [F]; ``base`` is what they are powers of."""
        if self.factor == 1:
            return frequencies_F
        if not self.length:
            return frequencies_F / np.float32(self.factor)
        if self.by_index:
            kept_F = self.kept_by_index(len(frequencies_F), base)
        else:
            rotations_F = self.length * frequencies_F / (2 * math.pi)
            kept_F = np.clip((rotations_F - self.slow) / (self.fast - self.slow), 0, 1)
        return (frequencies_F * (kept_F + (1 - kept_F) / self.factor)).astype(np.float32)

    def kept_by_index(self, count: int, base: float) -> np.ndarray:
        """How much of each frequency is kept, [F], from 1 to 0 between the whole numbers around
        those that make ``fast`` and ``slow`` rotations.
        """
        first = max(math.floor(self.index_of(self.fast, count, base)), 0)
        last = min(math.ceil(self.index_of(self.slow, count, base)), 2 * count - 1)
        if first == last:
            last = first + 0.001  # as transformers does: a step
        lowered_F = (np.arange(count, dtype=np.float32) - first) / (last - first)
        return 1 - np.clip(lowered_F, 0, 1)

    def index_of(self, rotations: float, count: int, base: float) -> float:
        """The number of the frequency that makes so many rotations within ``length`` tokens."""
        tokens_a_radian = self.length / (rotations * 2 * math.pi)
        return count * math.log(tokens_a_radian) / math.log(base)


NO_STRETCH = Stretch()


def rotation_at(
    positions_RC: jax.Array,
    width: int,
    base: float,
    dtype: str = "float32",
    stretch: Stretch = NO_STRETCH,
) -> Rotation:
    """The rotation of tokens at their positions: an angle is a position by a frequency.

    ``width`` is that of a head. The frequencies are rounded to ``dtype``: a model that was trained
    with rounded ones needs the same, for the error of an angle grows with the position.
    """
    frequencies_F = stretch.apply(frequencies(width, base, dtype), base)
    angles_RCF = positions_RC[..., None].astype(jnp.float32) * frequencies_F
    cosine = jnp.cos(angles_RCF)
    sine = jnp.sin(angles_RCF)
    if stretch.scale == 1:
        return Rotation(cosine, sine)
    return Rotation(cosine * stretch.scale, sine * stretch.scale)
