"""The entries of a config.json on rotary positions, for the families that have them so.

transformers 5 writes ``rope_parameters``; before it there were ``rope_theta`` and ``rope_scaling``,
which it reads, too, and which are written here.
"""

import math
from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields

# The entries that each kind of scaling reads: field of EncoderConfig -> entry.
FACTOR = {"rotary_factor": "factor"}
SCALINGS = {
    "default": {},
    "linear": FACTOR,
    "llama3": FACTOR
    | {
        "rotary_slow": "low_freq_factor",
        "rotary_fast": "high_freq_factor",
        "rotary_length": "original_max_position_embeddings",
    },
    "yarn": FACTOR
    | {
        "rotary_slow": "beta_slow",
        "rotary_fast": "beta_fast",
        "rotary_length": "original_max_position_embeddings",
        "rotary_scale": "attention_factor",
    },
}


def rope_fields(hf: Entries, base: float = 10000.0) -> Fields:
    """What config.json says of rotary positions; ``base`` is the model's where it does not say.

    Raises :class:`CheckpointError` for a scaling that is not done here.
    """
    rope = entries_of(hf, "rope_scaling") or entries_of(hf, "rope_parameters")
    defaults = {
        "rope_theta": hf.get("rope_theta", base),
        "partial_rotary_factor": hf.get("partial_rotary_factor", 1.0),
        "original_max_position_embeddings": hf.get("max_position_embeddings"),
    }
    return scaling_fields(defaults | dict(rope))


def entries_of(hf: Entries, name: str) -> Entries:
    """The object ``name`` of config.json; {} where there is none."""
    found = hf.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{name} is {found!r} in config.json: it must be an object")
    return found


def rope_of_kind(hf: Entries, kind: str, entry: str, base: float) -> Fields:
    """What ``rope_parameters`` says of one kind of layers; the base is that of ``entry`` where it
    does not say one.
    """
    of_kinds = entries_of(hf, "rope_parameters")
    return {"rope_theta": hf.get(entry, base)} | dict(entries_of(of_kinds, kind))


def scaling_of_kinds(hf: Entries) -> Entries:
    """The object ``rope_scaling`` of a family whose kinds of layers have positions of their own.

    Raises :class:`CheckpointError` for one that says its kind by ``type``, the older name, alone:
    transformers 4 scales by it, and transformers 5 does not.
    """
    found = entries_of(hf, "rope_scaling")
    if "rope_type" not in found and found.get("type", "default") != "default":
        raise CheckpointError(
            f"rope_scaling in config.json has type {found['type']!r} and no rope_type, without which "
            "transformers 5 does not scale: call it rope_type, or remove rope_scaling"
        )
    return found


def scaling_fields(rope: Mapping[str, Any]) -> Fields:
    """The fields of an object such as ``rope_parameters``."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SCALINGS:
        raise CheckpointError(
            f"rope_type {kind!r} in config.json: only {', '.join(SCALINGS)} are read, "
            "choose a checkpoint that has one of them"
        )
    check_usual(rope, partial_rotary_factor=1.0)
    fields = {"position_kind": "rotary", "rotary_base": rope["rope_theta"]}
    if kind == "yarn":
        rope = yarn_entries(rope)
        fields["rotary_by_index"] = True
    for field, entry in SCALINGS[kind].items():
        if entry not in rope:
            raise CheckpointError(f"rope_type {kind!r} in config.json has no {entry!r}")
        fields[field] = rope[entry]
    return fields


def yarn_entries(rope: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of yarn with what transformers has for those that are missing."""
    check_usual(rope, truncate=True)
    found = dict(rope)
    found["beta_slow"] = rope.get("beta_slow") or 1.0
    found["beta_fast"] = rope.get("beta_fast") or 32.0
    if rope.get("attention_factor") is not None:
        return found
    scale = rope.get("mscale")
    scale_of_all = rope.get("mscale_all_dim")
    for number in (rope.get("factor", 1.0), scale, scale_of_all):
        if number is not None and type(number) not in (int, float):
            raise CheckpointError(f"rope_type 'yarn' in config.json has {number!r}: give a number")
    factor = rope.get("factor") or 1.0
    found["attention_factor"] = yarn_scale(factor)
    if scale and scale_of_all:
        quotient = yarn_scale(factor, scale) / yarn_scale(factor, scale_of_all)
        found["attention_factor"] = quotient
    return found


def yarn_scale(factor: float, scale: float = 1.0) -> float:
    """By what rotated queries and keys are multiplied in texts ``factor`` times as long (Peng et
    al. 2023, eq. 22).
    """
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_entries(config: EncoderConfig) -> Fields:
    """The entries that :func:`rope_fields` reads."""
    return {"rope_theta": config.rotary_base, "rope_scaling": scaling_entry(config)}


def scaling_entry(config: EncoderConfig) -> Fields | None:
    """The entry ``rope_scaling``."""
    if config.rotary_factor == 1 and config.rotary_scale == 1:
        return None
    kind = "llama3" if config.rotary_length else "linear"
    if config.rotary_by_index:
        kind = "yarn"
    scaling = {"rope_type": kind}
    for field, entry in SCALINGS[kind].items():
        scaling[entry] = getattr(config, field)
    return scaling
