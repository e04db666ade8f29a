"""Encoders and examples so small that a test compiles and runs them in a second."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from adapt.data import packing
from adapt.models import Classifier, Encoder, EncoderConfig, Model
from adapt.ragged import Ragged, ragged
from adapt.training.optim import adamw, by_label
from adapt.training.step import State
from adapt.training.strategies import strategy
from adapt.tree import Tree, label, map_paths

BERT = EncoderConfig("bert", 2, 16, 2, 32, positions=24, vocabulary=40, types=2)
GPT2 = EncoderConfig(
    "gpt2",
    2,
    16,
    2,
    32,
    positions=24,
    vocabulary=40,
    causal=True,
    pre_norm=True,
    activation="gelu_tanh",
)
VIT = EncoderConfig(
    "vit",
    2,
    16,
    2,
    32,
    positions=17,
    image_size=16,
    patch_size=4,
    channels=3,
    pre_norm=True,
)
# A global block, a local one and a global one, without biases.
ROTARY = EncoderConfig(
    "modernbert",
    3,
    16,
    2,
    32,
    positions=24,
    vocabulary=40,
    pre_norm=True,
    qkv_bias=False,
    position_kind="rotary",
    rotary_base=100.0,
    local_rotary_base=10.0,
    local_layers=(1,),
    window=2,
    norm_bias=False,
    mlp_bias=False,
    output_bias=False,
    gated_mlp=True,
    embedding_norm=True,
    first_norm=False,
)
# What decoders since Llama have, with Gemma's norms; wider in its heads than in its tokens.
GROUPED = EncoderConfig(
    "grouped",
    1,
    16,
    4,
    32,
    positions=24,
    vocabulary=40,
    causal=True,
    pre_norm=True,
    norm_kind="rms",
    norm_offset=True,
    branch_norms=True,
    qkv_bias=False,
    mlp_bias=False,
    output_bias=False,
    gated_mlp=True,
    position_kind="rotary",
    kv_heads=2,
    head_width=8,
    qk_norm=True,
    attention_scale=0.5,
    embedding_scale=4.0,
)
CONFIGS = {"bert": BERT, "gpt2": GPT2, "vit": VIT, "rotary": ROTARY, "grouped": GROUPED}
# One block compiles in half the time of two.
SHALLOW = {name: dataclasses.replace(config, layers=1) for name, config in CONFIGS.items()}
SMALL = SHALLOW["bert"]
CONFIGS["small"] = SMALL

SLOTS = 8
SHAPE = (3, 32, SLOTS)  # rows, tokens a row, slots of examples: what `batch` makes
CLASSES = 3


def classifier(
    family: str = "bert", pooling: str = "mean", classes: int = CLASSES, dropout: float = 0.0
) -> Model:
    return Model(Encoder(CONFIGS[family]), Classifier(classes, pooling, dropout=dropout))


@functools.cache
def params(model: Model, seed: int = 0) -> Tree:
    """Random parameters, norms and biases too, since ones and zeros hide mistakes.

    They are float32 numpy arrays, shared by all tests: never write into them.
    """
    rng = np.random.default_rng(seed)

    def random(path: str, leaf: Any) -> np.ndarray:
        centre = 1.0 if path.endswith("scale") else 0.0
        return (centre + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return map_paths(random, model.shapes())


def texts(count: int, seed: int = 0, longest: int = 20) -> Ragged:
    """Token ids of ``count`` examples of 2 to ``longest`` tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, count)
    return ragged([rng.integers(1, 40, length) for length in lengths])


def batch(
    family: str = "bert", seed: int = 0, examples: int = SLOTS, classes: int = CLASSES
) -> packing.Arrays:
    """One training batch of static shape. Fewer than 8 ``examples`` leave slots empty."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples).astype(np.int32)
    if family == "vit":
        pixels = rng.standard_normal((examples, 16, 16, 3)).astype(np.float32)
        packed = packing.image_batch(pixels, VIT.positions, SLOTS)
    else:
        tokens = texts(examples, seed, longest=12)
        rows, starts, _ = packing.pack(tokens.lengths, SHAPE[1])
        packed = packing.assemble(tokens, np.arange(examples), rows, starts, SHAPE)
    return packed | packing.pad_labels(labels, SLOTS)


def inputs(family: str = "bert", seed: int = 0, examples: int = SLOTS) -> packing.Arrays:
    """A batch without its labels and weights."""
    labelled = batch(family, seed, examples)
    return {name: array for name, array in labelled.items() if name not in ("label", "weight")}


def setup(
    model: Model, name: str, rate: float = 1e-2, clip_norm: float | None = 1.0
) -> tuple[Tree, optax.GradientTransformation]:
    """The labels and the optimizer of a strategy: AdamW with decay."""
    phase = strategy(name, model.encoder.config.layers).phases[0]
    labels = label(params(model), phase.rules)
    optimizers = {group: adamw(rate) for group in phase.groups}
    return labels, by_label(optimizers, labels, clip_norm)


def copy(state: State) -> State:
    """A state that a step may take the buffers of."""
    return jax.tree.map(lambda leaf: leaf.copy(), state)


def bits(tree: Any) -> list[bytes]:
    """The bytes of every leaf of a pytree, keys included."""

    def data(leaf: Any) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    return [np.asarray(data(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]
