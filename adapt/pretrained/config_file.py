"""config.json of a checkpoint -> :class:`EncoderConfig`, by the rows of its family.

The family says what entries mean. What makes an encoder at all is checked here, in one place for
all families and for the configs that runs store.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import POSITION_KINDS, EncoderConfig
from adapt.pretrained.families import ACTIVATIONS, Fields, get_family
from adapt.pretrained.families.checks import check_usual

# Fields that every encoder says.
REQUIRED = ("layers", "width", "heads", "mlp_width", "positions")


def read_config(hf: Mapping[str, Any], where: str) -> EncoderConfig:
    """The config of the encoder that config.json describes; ``hf`` are its entries.

    Raises :class:`CheckpointError` for entries that are missing, wrong, or not done here.

    ``where`` is the folder of the file. A family does not know it: its errors say "config.json",
    which becomes the path here.
    """
    try:
        return encoder_config(hf, where)
    except CheckpointError as error:
        said = str(error)
        if where not in said:
            said = said.replace("config.json", f"{where}/config.json", 1)
        raise CheckpointError(said) from error


def encoder_config(hf: Mapping[str, Any], where: str) -> EncoderConfig:
    """What :func:`read_config` gives, by the rows of the family and its ``complete``."""
    model_type = hf["model_type"]
    family = get_family(model_type)
    hf = usual_entries(family.settings(hf), family.aliases)
    fields: Fields = {"family": model_type}
    for ours, theirs, *default in reversed(family.config):
        if theirs not in hf and not default:
            raise CheckpointError(f"{where}/config.json has no entry {theirs!r}")
        fields[ours] = hf.get(theirs, *default)
    if "quantization_config" in hf:
        raise CheckpointError(
            f"quantization_config in {where}/config.json: only weights in floating point are read"
        )
    check_usual(hf, **family.usual)
    fields = family.complete(hf, {**fields, **family.always})
    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        raise CheckpointError(
            f"the family {model_type} has no row for {' and '.join(missing)}: add one to its config, "
            "or say it in `always` or `complete`"
        )
    if fields.get("pad_token", 0) is None:  # padding is masked here, so that any token will do
        end = fields.get("end_token")
        fields["pad_token"] = 0 if end is None else end
    fields["activation"] = activation(fields["activation"])
    entries = {}
    for ours, theirs, *_ in reversed(family.config):
        if hf.get(theirs) == fields.get(ours):  # else `complete` made another value of it
            entries[ours] = theirs
    for name in ("pad_token", "end_token"):
        if fields.get(name) is not None:
            fields[name] = token_id(fields[name], entries.get(name, name), where)
    config = EncoderConfig(**fields)
    check_config(config, f"config.json in {where}", entries)
    if not config.is_image and not 0 <= config.pad_token < config.vocabulary:
        # A padding token without a row.
        config = dataclasses.replace(config, pad_token=0)
    return config


def usual_entries(hf: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """The entries with those that have another name under the usual one, too.

    Raises :class:`CheckpointError` where both are there and say different things: transformers
    takes the other name then, which the original library may not know.
    """
    found = dict(hf)
    for other, usual in aliases.items():
        if other not in hf:
            continue
        if hf.get(usual, hf[other]) != hf[other]:
            raise CheckpointError(
                f"{other} is {hf[other]!r} and {usual} is {hf[usual]!r} in config.json: both are "
                "names of one entry, remove the wrong one"
            )
        found[usual] = hf[other]
    return found


def activation(name: Any) -> str:
    """Our name of an activation of config.json. Raises :class:`CheckpointError` for an unknown
    one.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(
            f"unknown activation {name!r} in config.json: adapt has {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def token_id(value: Any, name: str, where: str) -> int:
    """The id of a token, or the first of several. Raises :class:`CheckpointError` for anything
    else.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if type(value) is not int:
        raise CheckpointError(f"config.json in {where} says {value!r} for {name}: give its id")
    return value


def check_config(
    config: EncoderConfig, file: str, entries: Mapping[str, str] | None = None
) -> None:
    """Raise :class:`CheckpointError` for sizes that make no encoder. ``file`` says them, under the
    names of the fields or those that ``entries`` has for them.
    """
    says = f"{file} says"
    entries = entries or {}
    for name in (
        "layers",
        "width",
        "heads",
        "mlp_width",
        "positions",
        *([] if config.is_image else ["vocabulary"]),
    ):
        size = getattr(config, name)
        said = f"{says} {size!r} for {entries.get(name, name)}"
        if type(size) is not int or size < 1:
            raise CheckpointError(f"{said}: it must be a whole number from 1 on")
        if size >= 2**31:
            raise CheckpointError(f"{said}: it must be below 2^31")
    for name in ("norm_epsilon", "dropout", "attention_dropout", "init_range"):
        value = getattr(config, name)
        most = 1.0 if name.endswith("dropout") else 1e6
        if type(value) not in (int, float) or not 0 <= value < most:
            raise CheckpointError(
                f"{says} {value!r} for {entries.get(name, name)}: it must be a number from 0 to "
                f"{most}"
            )
    check_heads(config, says)
    check_positions(config, says, entries)


def check_heads(config: EncoderConfig, says: str) -> None:
    """Raise :class:`CheckpointError` for heads that do not share the width, or each other's keys."""
    for name in ("head_width", "kv_heads"):
        size = getattr(config, name)
        if type(size) is not int or not 0 <= size < 2**31:
            raise CheckpointError(
                f"{says} {size!r} for {name}: it must be a whole number from 1 on"
            )
    if not config.head_width and config.width % config.heads:
        raise CheckpointError(
            f"{says} {config.heads} heads, which does not divide the width {config.width}"
        )
    if config.kv_heads and config.heads % config.kv_heads:
        raise CheckpointError(
            f"{says} {config.kv_heads} heads of keys and values, which does not divide "
            f"{config.heads} heads"
        )


def check_positions(config: EncoderConfig, says: str, entries: Mapping[str, str]) -> None:
    """Raise :class:`CheckpointError` for positions and local layers that no block has."""
    if config.position_kind not in POSITION_KINDS:
        kinds = ", ".join(POSITION_KINDS)
        raise CheckpointError(
            f"{says} {config.position_kind!r} for position_kind: adapt has {kinds}"
        )
    offset = config.position_offset
    if type(offset) is not int or not 0 <= offset < 2**31:
        raise CheckpointError(
            f"{says} {offset!r} for {entries.get('position_offset', 'position_offset')}: it must be "
            "a whole number from 0 to 2^31"
        )
    if any(block not in range(config.layers) for block in config.local_layers):
        raise CheckpointError(
            f"{says} {list(config.local_layers)} for local_layers: it has {config.layers} layers"
        )
    if type(config.window) is not int or not 0 <= config.window < 2**31:
        raise CheckpointError(
            f"{says} {config.window!r} for window: it must be a whole number from 0 to 2^31"
        )
    if config.position_kind == "rotary":
        check_rotary(config, says)


def check_rotary(config: EncoderConfig, says: str) -> None:
    """Raise :class:`CheckpointError` for numbers that make no rotation, or for heads of a width
    that can't be rotated.
    """
    for name in ("rotary_base", "local_rotary_base"):
        base = getattr(config, name)
        least = 1.0 if name == "rotary_base" else 0.0
        if type(base) not in (int, float) or not least <= base < math.inf:
            raise CheckpointError(f"{says} {base!r} for {name}: it must be a number above {least}")
    if config.rotary_dtype not in ("float32", "float16"):
        raise CheckpointError(
            f"{says} {config.rotary_dtype!r} for rotary_dtype: it must be float32 or float16"
        )
    for name in ("rotary_factor", "rotary_slow", "rotary_fast", "rotary_scale"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise CheckpointError(f"{says} {value!r} for {name}: it must be a number above 0")
    if type(config.rotary_length) is not int or not 0 <= config.rotary_length < 2**31:
        raise CheckpointError(
            f"{says} {config.rotary_length!r} for rotary_length: it must be a whole number from 0 on"
        )
    if config.rotary_slow >= config.rotary_fast:
        raise CheckpointError(
            f"{says} {config.rotary_slow} for rotary_slow: it must be below rotary_fast, "
            f"{config.rotary_fast}"
        )
    if config.width_of_head % 2:
        raise CheckpointError(
            f"{says} {config.heads} heads of an odd width, which rotary positions can't halve"
        )
    if config.is_image and config.width_of_head % 4:
        raise CheckpointError(
            f"{says} {config.heads} heads of width {config.width_of_head}: rotary positions of "
            "patches want a multiple of 4"
        )
