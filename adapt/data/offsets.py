"""Where an answer begins in its text: counted in characters, in UTF-16 units as JavaScript and Java
count, or in UTF-8 bytes.

    characters_before("😀 Cork", 3, "utf16")        # 2: the emoji is one character of two units
    agreeing_unit("😀 Cork", 3, "Cork")             # "utf16"
"""

import typing

from adapt.options import Offsets

UNIT_NAMES: dict[Offsets, str] = {
    "characters": "characters",
    "utf16": "UTF-16 units",
    "bytes": "UTF-8 bytes",
}
ENCODINGS = {"utf16": ("utf-16-le", 2), "bytes": ("utf-8", 1)}  # with the bytes of a unit


def characters_before(text: str, offset: int, unit: Offsets) -> int | None:
    """How many characters stand before an offset of so many units.

    None where it lies within a character, or beyond the end of the text.
    """
    if unit == "characters":
        return offset if offset <= len(text) else None
    codec, size = ENCODINGS[unit]
    # A lone surrogate is no character of UTF-8 or UTF-16, yet JSON may have one.
    encoded = text.encode(codec, "surrogatepass")
    if size * offset > len(encoded):
        return None
    try:
        before = encoded[: size * offset].decode(codec, "surrogatepass")
    except UnicodeDecodeError:
        return None
    # Half of a character of two units is decoded as a lone surrogate, which the text has not.
    return len(before) if text.startswith(before) else None


def num_units(text: str, unit: Offsets) -> int:
    """The length of a text in these units."""
    if unit == "characters":
        return len(text)
    codec, size = ENCODINGS[unit]
    return len(text.encode(codec, "surrogatepass")) // size


def agreeing_unit(context: str, offset: int, text: str) -> Offsets | None:
    """The unit in which ``text`` stands at ``offset`` of its context; None if in none."""
    for unit in typing.get_args(Offsets):
        place = characters_before(context, offset, unit)
        if place is not None and context.startswith(text, place):
            return unit
    return None
