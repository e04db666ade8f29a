"""LoRA, bottleneck adapters and prefixes: subtrees of the encoder like any other, computed in its layers.

    config = add(config, {"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": ".*/attention/(query|value)"})
    params = graft_added(params, Model(Encoder(config), head), key)    # .../attention/query/lora/{a,b}
    params, config = merge_lora(params, config)                        # plain weights again

Labels, digests, caches and checkpoints need nothing new for them. The arithmetic is in adapt/models/layers.py.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import EncoderConfig, Model

PEFT_PARAM = r"encoder/.*/(lora|prefix|attention_adapter|mlp_adapter)/[^/]+(/[^/]+)?"
NAMED = {"lora_rank": "LoRA's rank", "lora_alpha": "LoRA's alpha"}
NAMED |= {
    "adapter_width": "the adapters' width",
    "prefix_tokens": "the number of a prefix's tokens",
}
PEFT_FIELDS = (
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "adapter_width",
    "prefix_tokens",
)  # of EncoderConfig


def is_peft_param(path: str) -> bool:
    """Whether a leaf was added to the pre-trained layers."""
    return re.fullmatch(PEFT_PARAM, path) is not None


def with_peft(config: EncoderConfig, fields: Mapping[str, Any]) -> EncoderConfig:
    """The config with additions. Raises :class:`StrategyError` where the encoder has such already, or sizes are not positive."""
    for name, value in fields.items():
        if getattr(config, name):
            raise StrategyError(
                f"the encoder has a {name} of {getattr(config, name)!r} already: export merges LoRA"
            )
        if name == "lora_targets":
            try:
                re.compile(value)
            except re.error as fault:
                raise StrategyError(
                    f"LoRA's targets {value!r} are no regular expression: {fault}"
                ) from None
            continue
        limit = 1e6 if name == "lora_alpha" else config.mlp_width
        if not 0 < value <= limit:
            raise StrategyError(f"{NAMED[name]} {value:g} must be above 0 and at most {limit:g}")
    return dataclasses.replace(config, **fields)


def init_peft(params: tree.Tree, model: Model, key: jax.Array) -> tree.Tree:
    """``params`` with fresh subtrees for what the model's config adds; the model computes what it did before, but for a prefix.

    Raises :class:`StrategyError` when LoRA's targets match no dense layer.
    """
    there = tree.paths(model.shapes()["encoder"], "encoder/")
    c = model.encoder.config
    if c.lora_rank and not any("/lora/" in path for path in there):
        layers = ", ".join(
            p.removesuffix("/kernel")[8:] for p in there if re.match("encoder/block_00/.*kernel", p)
        )
        raise StrategyError(
            f"LoRA's targets {c.lora_targets!r} match no dense layer of the encoder: it has {layers}"
        )
    fresh = jax.jit(lambda key: tree.select(model.init(key), is_peft_param))(key)
    return tree.merge(params, jax.device_get(fresh))


def merge_lora(params: tree.Tree, config: EncoderConfig) -> tuple[tree.Tree, EncoderConfig]:
    """LoRA added into the kernels it belongs to, W + alpha / r A B, in float32: (the tree without it, its config)."""
    flat = tree.paths(params)
    for path in [path for path in flat if path.endswith("/lora/a")]:
        layer = path.removesuffix("/lora/a")
        a, b = (np.asarray(flat.pop(f"{layer}/lora/{name}")) for name in "ab")
        flat[f"{layer}/kernel"] = np.asarray(flat[f"{layer}/kernel"]) + np.float32(
            config.lora_alpha / len(b)
        ) * (a @ b)
    merged = tree.unflatten(flat | dict.fromkeys(tree.empties(params)))
    return merged, dataclasses.replace(config, lora_rank=0, lora_alpha=0.0, lora_targets="")


def renew_blocks(params: tree.Tree, model: Model, count: int, key: jax.Array) -> tree.Tree:
    """The last ``count`` blocks (and a pooler of the head) with fresh weights (Zhang et al. 2021, 5)."""
    layers = model.encoder.config.layers
    blocks = [f"encoder/block_{index:02d}" for index in range(layers - count, layers)]
    again = [*blocks, *(["head/pooler"] if "pooler" in params.get("head", {}) else [])]
    chosen = lambda path: (
        path.startswith(tuple(f"{name}/" for name in again)) and not is_peft_param(path)
    )
    fresh = jax.device_get(jax.jit(lambda key: tree.select(model.init(key), chosen))(key))
    return tree.merge(tree.select(params, lambda path: not chosen(path)), fresh)
