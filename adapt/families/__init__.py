"""Families of checkpoints: one file each, with a config mapping and ONE name table for both import and export.

A family module has

* ``MODEL_TYPES``: the ``model_type`` values of config.json that it reads;
* ``PREFIX``: what the original library puts before the encoder's names where a head is on it;
* ``read_config(hf) -> EncoderConfig`` and ``write_config(config) -> dict``, each other's inverse;
* ``canonical(name) -> str | None``: a checkpoint's tensor name in the table's spelling; None for a buffer to ignore;
* ``recognise(hf, tensors) -> head``: the pre-training head whose weights are there, as a module;
* ``table(config, head) -> list[Row]``: which tensor is which leaf.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from adapt import tree as t
from adapt.errors import CheckpointError
from adapt.models import Encoder, EncoderConfig, Model

HEADS = ("classifier.", "cls.", "lm_head.", "score.")  # how names that take no PREFIX begin


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint and the leaf, or the leaves side by side along the last axis, that it becomes.

    ``layout``: ``same``; ``transposed`` (torch's [out, in]); ``patches`` (a convolution kernel [D, C, P, P] as
    [P*P*C, D]); ``token`` (a leading batch axis of 1, or two, taken off).
    """

    name: str
    paths: tuple[str, ...]
    layout: str = "same"
    patch_size: int = 0

    def to_leaves(self, tensor: np.ndarray) -> list[np.ndarray]:
        if self.layout == "transposed":
            tensor = tensor.T
        elif self.layout == "patches":
            tensor = tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
        elif self.layout == "token":
            tensor = tensor.reshape(tensor.shape[-2:] if tensor.shape[1] > 1 else tensor.shape[-1:])
        return [np.ascontiguousarray(part) for part in np.split(tensor, len(self.paths), -1)]

    def to_tensor(self, leaves: list[np.ndarray]) -> np.ndarray:
        tensor = leaves[0] if len(leaves) == 1 else np.concatenate(leaves, -1)
        if self.layout == "transposed":
            tensor = tensor.T
        elif self.layout == "patches":
            p, width = self.patch_size, tensor.shape[-1]
            tensor = tensor.reshape(p, p, -1, width).transpose(3, 2, 0, 1)
        elif self.layout == "token":
            tensor = tensor.reshape((1,) * (3 - tensor.ndim) + tensor.shape)
        return tensor


def dense(name: str, path: str, bias: bool = True, layout: str = "transposed") -> list[Row]:
    """The rows of one dense layer, ``name.weight`` and ``name.bias``."""
    rows = [Row(f"{name}.weight", (f"{path}/kernel",), layout)]
    return rows + [Row(f"{name}.bias", (f"{path}/bias",))] if bias else rows


def norm(name: str, path: str) -> list[Row]:
    """The rows of one layer normalisation."""
    return [Row(f"{name}.weight", (f"{path}/scale",)), Row(f"{name}.bias", (f"{path}/bias",))]


def family(model_type: str) -> ModuleType:
    """The family that reads ``model_type``. Raises :class:`CheckpointError` naming those that are known."""
    from adapt.families import bert, gpt2, vit

    modules = (bert, gpt2, vit)
    for module in modules:
        if model_type in module.MODEL_TYPES:
            return module
    known = ", ".join(name for module in modules for name in module.MODEL_TYPES)
    raise CheckpointError(f"unknown architecture {model_type!r} in config.json: adapt reads {known}")


def to_params(
    module: ModuleType, hf: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Any, Any, t.Tree]:
    """Tensors of a checkpoint -> (EncoderConfig, head module, params), strict in both directions.

    Raises :class:`CheckpointError` with a diff in the checkpoint's own names: ``-`` missing, ``+`` not known,
    ``!`` misshapen.
    """
    config = module.read_config(hf)
    check_config(config, where)
    named: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if (canonical := module.canonical(name)) in named:
            raise CheckpointError(f"the weights in {where} hold {canonical} twice, the second time as {name}")
        named |= {canonical: tensor} if canonical else {}
    head, named = module.recognise(hf, named)
    rows = module.table(config, head)
    want = t.paths(Model(Encoder(config), head).shapes())
    lines, flat = [], {}
    for row in rows:
        shape = row.to_tensor([np.broadcast_to(np.float32(0), want[path].shape) for path in row.paths]).shape
        if row.name not in named:
            lines.append(f"- {row.name} {shape}")
        elif named[row.name].shape != shape:
            lines.append(f"! {row.name} {named[row.name].shape}, expected {shape}")
        else:
            tensor = to_float32(named[row.name], row.name, where)
            flat.update(zip(row.paths, row.to_leaves(tensor), strict=True))
    known = {row.name for row in rows}
    lines += [f"+ {name} {tensor.shape}" for name, tensor in named.items() if name not in known]
    if lines:
        shown = lines[:12] + ([f"... and {len(lines) - 12} more"] if len(lines) > 12 else [])
        raise CheckpointError(
            f"the weights in {where} do not fit its config.json (- missing, + not known, ! misshapen):\n  "
            + "\n  ".join(shown)
        )
    params = t.unflatten(dict(sorted(flat.items())))
    return config, head, {"encoder": params["encoder"], "head": params.get("head", {})}


def to_float32(tensor: np.ndarray, name: str, where: str) -> np.ndarray:
    """Raises :class:`CheckpointError` for integers (a quantised file) and for what is not finite."""
    if tensor.dtype.kind in "biu":
        raise CheckpointError(
            f"{name} in {where} is of type {tensor.dtype}: adapt reads floating-point weights, no others"
        )
    with np.errstate(over="ignore"):
        tensor = tensor.astype(np.float32, copy=False)
    if not np.isfinite(tensor).all():
        raise CheckpointError(f"{name} in {where} holds values that are not finite: the checkpoint is damaged")
    return tensor


def check_config(config: EncoderConfig, where: str) -> None:
    """Raise :class:`CheckpointError` for sizes that make no encoder."""
    sizes = {name: getattr(config, name) for name in ("layers", "width", "heads", "mlp_width", "positions")}
    sizes |= {} if config.is_image else {"vocabulary": config.vocabulary}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(f"config.json in {where} says {size!r} for {name}: it must be at least 1")
    for name in ("norm_epsilon", "dropout", "attention_dropout", "init_range"):
        value = getattr(config, name)
        most = 1.0 if name.endswith("dropout") else float("inf")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
            raise CheckpointError(
                f"config.json in {where} says {value!r} for {name}: it must be a number from 0 to {most}"
            )
    if config.width % config.heads:
        raise CheckpointError(
            f"config.json in {where} says {config.heads} heads, which does not divide the width {config.width}"
        )


def to_tensors(module: ModuleType, config: Any, head: Any, params: t.Tree) -> dict[str, np.ndarray]:
    """Params -> the tensors of a checkpoint, by the same table."""
    flat = {path: np.asarray(leaf) for path, leaf in t.paths(params).items()}
    rows = module.table(config, head)
    return {row.name: np.ascontiguousarray(row.to_tensor([flat[path] for path in row.paths])) for row in rows}


def with_prefix(module: ModuleType, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table's names as the original library's classes with a head spell them."""
    return {name if name.startswith(HEADS) else module.PREFIX + name: tensor for name, tensor in tensors.items()}
