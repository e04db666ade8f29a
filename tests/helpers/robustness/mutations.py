"""Damage to the bytes of a file, at random and repeatably: flipped, cut, swapped, and worse."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator

# What stands in files that people and programs wrote wrongly.
FRAGMENTS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",  # half a character
    b"\r",
    b"\n\n",
    b'"',
    b"'",
    b",",
    b"\t",
    b"{",
    b"}",
    b"]",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"-1",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"null",
    b"\\ud800",
    "ï¼‘é好".encode(),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\ud800",
    [],
    [None],
    {},
    {"a": 1},
)


def span(content: bytes, random: Random, longest: int = 64) -> tuple[int, int]:
    """The start and the end of a random part, of one byte at least where there is one."""
    start = int(random.integers(0, max(len(content), 1)))
    return start, min(start + int(random.integers(1, longest + 1)), len(content))


def flip(content: bytes, random: Random) -> bytes:
    """One to four bits are others."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def overwrite(content: bytes, random: Random) -> bytes:
    """A part is random bytes."""
    start, end = span(content, random)
    return content[:start] + random.bytes(end - start) + content[end:]


def zero(content: bytes, random: Random) -> bytes:
    """A part is zeros, as a disk leaves a block that was never written."""
    start, end = span(content, random, 4096)
    return content[:start] + bytes(end - start) + content[end:]


def cut(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: int(random.integers(len(content)))]


def drop(content: bytes, random: Random) -> bytes:
    """A part is missing."""
    start, end = span(content, random)
    return content[:start] + content[end:]


def repeat(content: bytes, random: Random) -> bytes:
    """A part is there twice."""
    start, end = span(content, random, 256)
    return content[:end] + content[start:]


def swap(content: bytes, random: Random) -> bytes:
    """Two parts of one length have changed places."""
    size = int(random.integers(1, max(len(content) // 3, 2)))
    first = int(random.integers(0, max(len(content) - 2 * size, 1)))
    second = int(random.integers(first + size, max(len(content) - size, first + size) + 1))
    one = content[first : first + size]
    other = content[second : second + size]
    between = content[first + size : second]
    return content[:first] + other + between + one + content[second + size :]


def insert(content: bytes, random: Random) -> bytes:
    """Something stands where it does not belong."""
    place = int(random.integers(len(content) + 1))
    fragment = FRAGMENTS[int(random.integers(len(FRAGMENTS)))]
    return content[:place] + fragment + content[place:]


def empty(content: bytes, random: Random) -> bytes:
    """Nothing is left."""
    return b""


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip,
    flip,
    overwrite,
    zero,
    cut,
    cut,
    drop,
    repeat,
    swap,
    insert,
    insert,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON document but the outermost."""
    found = [path] if path else []
    children = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        found += places(child, (*path, key))
    return found


def change_value(content: bytes, random: Random) -> bytes:
    """A value of a JSON document is another, or missing, or has another name, or is there twice."""
    document = json.loads(content)
    paths = places(document)
    if not paths:
        return insert(content, random)
    *path, last = paths[int(random.integers(len(paths)))]
    parent = document
    for key in path:
        parent = parent[key]
    what = int(random.integers(4))
    if what == 0:
        del parent[last]
    elif what == 1 and isinstance(parent, dict):
        parent[f"{last}_"] = parent.pop(last)
    elif what == 2 and isinstance(parent, dict):
        twice = json.dumps(parent[last])
        parent[last] = "HERE"
        other = json.dumps(VALUES[int(random.integers(len(VALUES)))])
        text = json.dumps(document)
        return text.replace('"HERE"', f"{twice}, {json.dumps(last)}: {other}", 1).encode()
    else:
        parent[last] = VALUES[int(random.integers(len(VALUES)))]
    return json.dumps(document).encode()


def mutate(content: bytes, random: Random) -> tuple[str, bytes]:
    """(what was done, the damaged content), which differs from ``content``."""
    if random.random() < 0.01:
        return "empty", empty(content, random)
    is_object = content[:1] in (b"{", b"[") and is_json(content)
    if is_object and random.random() < 0.5:
        kind: Callable[[bytes, Random], bytes] = change_value
    else:
        kind = BYTES[int(random.integers(len(BYTES)))]
    changed = kind(content, random) if content else insert(content, random)
    if changed == content:
        return "insert", insert(content, random)
    return kind.__name__, changed


def is_json(content: bytes) -> bool:
    """Whether a file's content is one JSON document."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
