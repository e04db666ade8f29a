"""Encoders of which some layers are local: ``layer_types`` and ``sliding_window`` of config.json."""

from collections.abc import Callable, Sequence
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families.checks import check_count
from adapt.pretrained.families.types import Entries, Fields

LOCAL = "sliding_attention"
GLOBAL = "full_attention"


def layer_types(hf: Entries, fields: Fields, is_local: Callable[[int], Any]) -> list[str]:
    """The kind of each layer: as config.json says, or by the number of a layer."""
    layers = fields["layers"]
    check_count(layers, "num_hidden_layers")
    kinds = hf.get("layer_types")
    if kinds is None:
        kinds = [LOCAL if is_local(index) else GLOBAL for index in range(layers)]
    known = isinstance(kinds, list) and all(kind in (LOCAL, GLOBAL) for kind in kinds)
    if not known or len(kinds) != layers:
        raise CheckpointError(
            f"layer_types is {kinds} in config.json: give {LOCAL} or {GLOBAL} for each of {layers} "
            "layers"
        )
    if LOCAL in kinds and hf.get("is_causal") is False:
        raise CheckpointError(
            "is_causal is false in config.json, and layers are local: only one of both is read"
        )
    return kinds


def window_fields(kinds: Sequence[str], window: Any, both_ways: bool = False) -> Fields:
    """The local layers. ``window`` is how many tokens one of theirs reads, itself among them; where
    it reads ``both_ways``, half of them on each side.
    """
    local = tuple(index for index, kind in enumerate(kinds) if kind == LOCAL)
    if not local:
        return {}
    if type(window) is not int or window < 2:
        raise CheckpointError(f"sliding_window is {window!r} in config.json: give 2 or more")
    return {"local_layers": local, "window": window // 2 if both_ways else window - 1}


def layer_types_of(config: EncoderConfig) -> list[str]:
    """The entry ``layer_types``."""
    return [LOCAL if index in config.local_layers else GLOBAL for index in range(config.layers)]


def window_entries(config: EncoderConfig) -> Fields:
    """The entries ``layer_types`` and ``sliding_window``."""
    window = config.window + 1 if config.causal else 2 * config.window
    kinds = layer_types_of(config)
    return {"layer_types": kinds, "sliding_window": window if config.local_layers else None}
