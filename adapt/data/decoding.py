"""The file of a picture, decoded: whole, or refused.

An entry of a column of pictures has the ``bytes`` of its file, or the ``path``.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt import signatures
from adapt.errors import first_line

PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins


def content_of(image: Mapping[str, Any]) -> bytes:
    """The content of a picture's file. Raises :class:`OSError` where it can't be read."""
    return image.get("bytes") or Path(image.get("path") or "").read_bytes()


def decoded(image: Mapping[str, Any] | None, feature: Any) -> Any:
    """The picture of an entry of a column, decoded as its ``feature`` does; None for none.

    Raises :class:`OSError` with the path, where there is one, of what can't be decoded.
    """
    if image is None:
        return None
    content = content_of(image)
    path = image.get("path")
    try:
        check_pixels(content)
        return feature.decode_example({"path": path, "bytes": content})
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        why = first_line(error).partition(" <_io.")[0]  # without the address of the bytes
        if path:
            why = f"{path} is no picture that can be decoded: {why}"
        raise OSError(why) from error


def check_pixels(content: bytes) -> None:
    """Have Pillow raise an error for a PNG whose pixels are not those that were written: it
    compares the checksums of all of its other parts by itself.

    Raises :class:`OSError` for what was fetched in place of a picture.
    """
    from PIL import Image

    what = signatures.stand_in(content[: signatures.BEGINNING])
    if what is not None:
        raise OSError(f"not a picture: {what}")
    if content.startswith(PNG):
        with Image.open(io.BytesIO(content)) as image:
            image.verify()


def decode_coarsely(content: bytes) -> None:
    """Decode a picture to see that it is whole; whatever Pillow raises says that it is not."""
    from PIL import Image

    check_pixels(content)
    with Image.open(io.BytesIO(content)) as image:
        image.draft("L", (64, 64))  # a JPEG is read whole, but decoded at an eighth of its size
        image.load()
