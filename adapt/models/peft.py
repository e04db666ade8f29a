"""LoRA, bottleneck adapters and prefixes: subtrees of the encoder like any other.

    config = with_peft(config, {"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": ".*/query"})
    model = Model(Encoder(config), head)
    params = init_peft(params, model, key)           # .../attention/query/lora/{a,b}
    params, config = merge_lora(params, config)      # plain weights again

Labels, digests, caches and checkpoints need nothing new for them. Their arithmetic is in
:mod:`adapt.models.layers` (LoRA, adapters) and :mod:`adapt.models.attention` (prefixes).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import StrategyError
from adapt.models.config import EncoderConfig
from adapt.models.layers import LEAST_LENGTH
from adapt.models.model import Model

# The fields of an EncoderConfig that say what is added to the pre-trained layers.
PEFT_FIELDS = (
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_stabilised",
    "lora_magnitudes",
    "adapter_width",
    "prefix_tokens",
)

# What a message calls them.
SPOKEN = {
    "lora_rank": "LoRA's rank",
    "lora_alpha": "LoRA's alpha",
    "adapter_width": "the adapters' width",
    "prefix_tokens": "the number of a prefix's tokens",
}

PEFT_PARAM = r"encoder/.*/(lora|prefix|attention_adapter|mlp_adapter)/[^/]+(/[^/]+)?"


def is_peft_param(path: str) -> bool:
    """Whether the parameter at ``path`` was added to the pre-trained layers."""
    return re.fullmatch(PEFT_PARAM, path) is not None


def with_peft(config: EncoderConfig, fields: Mapping[str, Any]) -> EncoderConfig:
    """The config with some of ``PEFT_FIELDS`` set.

    Raises :class:`StrategyError` where the encoder has such a field already, a size is not positive
    or wider than the MLP, or LoRA's targets are no regular expression.
    """
    for name, value in fields.items():
        present = getattr(config, name)
        if present:
            raise StrategyError(
                f"the encoder has a {name} of {present!r} already: export merges LoRA"
            )
        if name == "lora_targets":
            check_pattern(value)
        elif not isinstance(value, bool):
            check_size(name, value, 1e6 if name == "lora_alpha" else config.mlp_width)
    return dataclasses.replace(config, **fields)


def check_pattern(targets: str) -> None:
    """Raise :class:`StrategyError` unless LoRA's targets are a regular expression."""
    try:
        re.compile(targets)
    except re.error as error:
        raise StrategyError(
            f"LoRA's targets {targets!r} are no regular expression: {error}"
        ) from None


def check_size(name: str, value: float, limit: float) -> None:
    """Raise :class:`StrategyError` unless 0 < value <= limit."""
    if not 0 < value <= limit:
        raise StrategyError(f"{SPOKEN[name]} {value:g} must be above 0 and at most {limit:g}")


def init_peft(params: tree.Tree, model: Model, key: jax.Array) -> tree.Tree:
    """``params`` with fresh subtrees for what the model's config adds.

    LoRA and adapters change no output at first (DoRA by round-off); a prefix does. Raises
    :class:`StrategyError` where LoRA's targets match no dense layer.
    """
    config = model.encoder.config
    encoder_paths = tree.paths(model.shapes()["encoder"], "encoder/")
    if config.lora_rank and not any("/lora/" in path for path in encoder_paths):
        kernels = [path for path in encoder_paths if re.match("encoder/block_00/.*kernel", path)]
        layers = [path.removeprefix("encoder/").removesuffix("/kernel") for path in kernels]
        raise StrategyError(
            f"LoRA's targets {config.lora_targets!r} match no dense layer of the encoder by its "
            f"whole path, as .*/{layers[0].rpartition('/')[2]} does: it has {', '.join(layers)}"
        )
    added = tree.paths(jax.device_get(peft_init(model)(key)))
    kernels = tree.paths(params)
    for path in added:
        if path.endswith("/lora/magnitude"):
            kernel = np.asarray(kernels[path.replace("/lora/magnitude", "/kernel")])
            added[path] = np.linalg.norm(kernel, axis=0).astype(np.float32)
    return tree.merge(params, tree.unflatten(added))


@functools.lru_cache(maxsize=32)
def peft_init(model: Model) -> Any:
    """A jitted ``key -> the parameters that the model's config adds``."""
    return jax.jit(lambda key: tree.select(model.init(key), is_peft_param))


def merge_lora(params: tree.Tree, config: EncoderConfig) -> tuple[tree.Tree, EncoderConfig]:
    """LoRA added into the kernels that it belongs to, W + scale A B, computed in float32; of DoRA
    with the lengths of their columns.

    Returns the tree without LoRA, whose merged kernels are numpy arrays, and its config.
    """
    flat = tree.paths(params)
    layers = [path.removesuffix("/lora/a") for path in flat if path.endswith("/lora/a")]
    for layer in layers:
        a = np.asarray(flat.pop(f"{layer}/lora/a"))
        b = np.asarray(flat.pop(f"{layer}/lora/b"))
        kernel = np.asarray(flat[f"{layer}/kernel"])
        kernel = kernel + np.float32(config.lora_scale) * (a @ b)
        if config.lora_magnitudes:
            magnitude = np.asarray(flat.pop(f"{layer}/lora/magnitude"))
            length = np.maximum(np.linalg.norm(kernel, axis=0), LEAST_LENGTH)
            kernel *= magnitude / length
        flat[f"{layer}/kernel"] = kernel
    empty = dict.fromkeys(tree.empties(params))
    return tree.unflatten(flat | empty), without_lora(config)


def without_lora(config: EncoderConfig) -> EncoderConfig:
    """The config of the same encoder without LoRA."""
    names = [name for name in PEFT_FIELDS if name.startswith("lora_")]
    defaults = {field.name: field.default for field in dataclasses.fields(EncoderConfig)}
    return dataclasses.replace(config, **{name: defaults[name] for name in names})


def renew_blocks(params: tree.Tree, model: Model, count: int, key: jax.Array) -> tree.Tree:
    """``params`` with fresh weights in the last ``count`` blocks and the head's pooler.

    Re-initialising layers is due to Zhang et al. (2021, 5). What was added to the blocks stays.
    """
    blocks = model.encoder.config.own_blocks
    renewed = [f"encoder/block_{index:02d}/" for index in range(blocks - count, blocks)]
    if "pooler" in params.get("head", {}):
        renewed.append("head/pooler/")
    fresh = jax.device_get(init_below(model, tuple(renewed))(key))
    rest = tree.select(params, lambda path: not is_renewed(path, tuple(renewed)))
    return tree.merge(rest, fresh)


def is_renewed(path: str, renewed: tuple[str, ...]) -> bool:
    """Whether a parameter lies below one of these paths, and is the encoder's or the head's own."""
    return path.startswith(renewed) and not is_peft_param(path)


@functools.lru_cache(maxsize=32)
def init_below(model: Model, renewed: tuple[str, ...]) -> Any:
    """A jitted ``key -> fresh parameters below these paths``."""
    return jax.jit(lambda key: tree.select(model.init(key), lambda path: is_renewed(path, renewed)))
