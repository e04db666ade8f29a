"""Encoders and examples small enough that a test compiles and runs them in a second, shared by several tests."""

import dataclasses
import functools

import jax
import numpy as np

from adapt.data import packing
from adapt.models import Classifier, Encoder, EncoderConfig, Model
from adapt.ragged import Ragged, ragged
from adapt.training.optim import adamw, by_label
from adapt.training.step import State
from adapt.training.strategies import strategy
from adapt.tree import Tree, label, map_paths

CONFIGS = {
    "bert": EncoderConfig("bert", 2, 16, 2, 32, 24, vocabulary=40, types=2),
    "gpt2": EncoderConfig(
        "gpt2", 2, 16, 2, 32, 24, vocabulary=40, causal=True, pre_norm=True, activation="gelu_tanh"
    ),
    "vit": EncoderConfig(
        "vit", 2, 16, 2, 32, 17, image_size=16, patch_size=4, channels=3, pre_norm=True
    ),
}
CONFIGS["small"] = dataclasses.replace(CONFIGS["bert"], layers=1)  # compiles in half the time
SHAPE = (3, 32, 8)  # rows, tokens a row, examples: what `batch` makes
CLASSES = 3


def classifier(
    family: str = "bert", pooling: str = "mean", classes: int = CLASSES, dropout: float = 0.0
) -> Model:
    return Model(Encoder(CONFIGS[family]), Classifier(classes, pooling, dropout=dropout))


@functools.cache
def params(model: Model, seed: int = 0) -> Tree:
    """Random parameters, norms and biases too, since ones and zeros hide mistakes: numpy float32, shared: never write."""
    rng = np.random.default_rng(seed)
    centre = lambda path: 1.0 if path.endswith("scale") else 0.0
    random = lambda path, leaf: (centre(path) + 0.2 * rng.standard_normal(leaf.shape)).astype(
        np.float32
    )
    return map_paths(random, model.shapes())


def texts(count: int, seed: int = 0, longest: int = 20) -> Ragged:
    """Token ids of ``count`` examples of 2 to ``longest`` tokens."""
    rng = np.random.default_rng(seed)
    return ragged([rng.integers(1, 40, length) for length in rng.integers(2, longest + 1, count)])


def batch(
    family: str = "bert", seed: int = 0, examples: int = 8, classes: int = CLASSES
) -> packing.Arrays:
    """One training batch of static shape; fewer than 8 ``examples`` leave slots empty."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples).astype(np.int32)
    if family == "vit":
        made = packing.image_batch(
            rng.standard_normal((examples, 16, 16, 3)).astype(np.float32), 17, 8
        )
        return made | packing.pad_labels(labels, 8)
    tokens = texts(examples, seed, longest=12)
    rows, starts, _ = packing.pack(tokens.lengths, SHAPE[1])
    return packing.assemble(tokens, np.arange(examples), rows, starts, SHAPE) | packing.pad_labels(
        labels, 8
    )


def setup(model: Model, name: str, rate: float = 1e-2, clip_norm: float | None = 1.0):
    """(labels, optimizer) of a strategy, AdamW with decay."""
    phase = strategy(name, model.encoder.config.layers).phases[0]
    labels = label(params(model), phase.rules)
    return labels, by_label({group: adamw(rate) for group in phase.groups}, labels, clip_norm)


def copy(state: State) -> State:
    """A state that the step may eat."""
    return jax.tree.map(lambda leaf: leaf.copy(), state)


def bits(tree) -> list[bytes]:
    """The bytes of every leaf of a pytree, keys included."""
    data = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return [np.asarray(data(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]
