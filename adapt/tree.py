"""Parameters as plain nested dicts: paths, labels, and the surgery that adaptation consists of.

A tree is a nested ``dict`` with arrays as leaves; its path language is ``"encoder/block_03/mlp/up/kernel"``.
An empty dict is legal (a tied language-model head owns no weights) and is spelled with a trailing slash, ``"head/"``.
Every function here is pure: inputs are never changed, and leaves are shared, never copied.
"""

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from adapt.errors import RuleError, TreeError

Tree = dict[str, Any]
Rules = Sequence[tuple[str, str]]


def paths(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Flatten to ``{path: leaf}``, sorted at every level. Empty subtrees are left out; see :func:`empties`."""
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        node = tree[name]
        flat.update(
            paths(node, f"{prefix}{name}/") if isinstance(node, dict) else {f"{prefix}{name}": node}
        )
    return flat


def empties(tree: Tree, prefix: str = "") -> list[str]:
    """The paths of empty subtrees, each with its trailing slash."""
    found = []
    for name, node in sorted(tree.items()):
        if isinstance(node, dict):
            found += empties(node, f"{prefix}{name}/") if node else [f"{prefix}{name}/"]
    return found


def unflatten(flat: dict[str, Any]) -> Tree:
    """Inverse of :func:`paths`; a path with a trailing slash becomes an empty subtree."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if name:
            node[name] = leaf
    return tree


def count(tree: Tree) -> int:
    """Number of parameters: the sum of the leaves' sizes."""
    return sum(int(np.prod(leaf.shape)) for leaf in paths(tree).values())


def nbytes(tree: Any) -> int:
    """Bytes of all array leaves of any pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def get(tree: Tree, path: str) -> Any:
    """The subtree or leaf at ``path``. Raises :class:`TreeError` naming the nearest paths there are."""
    node: Any = tree
    for depth, name in enumerate(names := path.strip("/").split("/")):
        if not isinstance(node, dict) or name not in node:
            where = f"under {'/'.join(names[:depth])!r}" if depth else "at the top"
            there = ", ".join(sorted(node)) if isinstance(node, dict) and node else "nothing"
            raise TreeError(f"no {path!r} in the parameters: {where} there is {there}")
        node = node[name]
    return node


def drop(tree: Tree, path: str) -> Tree:
    """The tree without the subtree at ``path``: how a pre-training head is discarded.

    ``drop(params, "head")`` gives ``{"encoder": ...}`` and leaves ``params`` as it was. Raises
    :class:`TreeError` if nothing is there, naming what is. See :func:`discarded` for the record of it.
    """
    get(tree, path)
    name, _, rest = path.strip("/").partition("/")
    if not rest:
        return {k: v for k, v in tree.items() if k != name}
    return tree | {name: drop(tree[name], rest)}


def discarded(tree: Tree, path: str) -> dict[str, Any]:
    """What ``drop(tree, path)`` takes away, as plain JSON: names with shapes, parameter count, digest."""
    gone = get(tree, path)
    path = path.strip("/")
    flat = paths(gone, f"{path}/") if isinstance(gone, dict) else {path: gone}
    shapes = {name: list(leaf.shape) for name, leaf in flat.items()}
    gone = gone if isinstance(gone, dict) else {path.rsplit("/", 1)[-1]: gone}
    return {"path": path, "parameters": count(gone), "shapes": shapes, "digest": digest(gone)}


def graft(tree: Tree, path: str, subtree: Any, prefix: str = "") -> Tree:
    """The tree with ``subtree`` attached at ``path``, which must be free: drop what is there first, visibly."""
    name, _, rest = path.strip("/").partition("/")
    here = f"{prefix}{name}"
    if rest:
        child = tree.get(name, {})
        if not isinstance(child, dict):
            raise TreeError(
                f"cannot graft at '{here}/{rest}': {here!r} is a parameter, not a subtree"
            )
        return tree | {name: graft(child, rest, subtree, f"{here}/")}
    if name in tree:
        raise TreeError(f"cannot graft at {here!r}: it is taken; drop(params, {here!r}) first")
    return tree | {name: subtree}


def merge(*trees: Tree) -> Tree:
    """The union of trees with disjoint paths: frozen and trainable parameters. Raises :class:`TreeError` on overlap."""

    def union(one: Tree, other: Tree, prefix: str = "") -> Tree:
        merged = dict(one)
        for name, node in other.items():
            if name in one and not (isinstance(one[name], dict) and isinstance(node, dict)):
                raise TreeError(f"cannot merge: '{prefix}{name}' is in both trees")
            merged[name] = union(one[name], node, f"{prefix}{name}/") if name in one else node
        return merged

    return functools.reduce(union, trees, {})


def select(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    """The leaves whose path satisfies ``keep``, as a tree; empty subtrees that were there stay where kept."""
    flat = paths(tree) | dict.fromkeys(empties(tree))
    return unflatten({path: leaf for path, leaf in flat.items() if keep(path)})


def map_paths(function: Callable[[str, Any], Any], tree: Tree, prefix: str = "") -> Tree:
    """``function(path, leaf)`` on every leaf, structure and order kept."""
    return {
        name: map_paths(function, node, f"{prefix}{name}/")
        if isinstance(node, dict)
        else function(f"{prefix}{name}", node)
        for name, node in tree.items()
    }


def match(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """``{path: group}`` by ordered rules ``(pattern, group)``: :func:`re.fullmatch`, first match wins.

    Every path must match a rule and every rule must win at least one path; otherwise :class:`RuleError`
    with the nearest paths that exist. This one language serves freezing, rates, sharding and dtypes.
    """
    names = list(names)
    won = set()
    groups = {}
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as fault:
            raise RuleError(f"rule {pattern!r} is not a regular expression: {fault}") from None
    for name in names:
        winner = next(
            (index for index, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, name)), None
        )
        if winner is None:
            raise RuleError(
                f"no rule matches {name!r}: add one, or end the list with ('.*', FROZEN)"
            )
        groups[name] = rules[winner][1]
        won.add(winner)
    for index, (pattern, group) in enumerate(rules):
        if index not in won:
            earlier = any(re.fullmatch(pattern, name) for name in names)
            near = difflib.get_close_matches(
                re.sub(r"[\\().*+?|^$\[\]]", "", pattern), names, n=3, cutoff=0.0
            )
            why = (
                "an earlier rule wins all that it matches"
                if earlier
                else f"the nearest paths are {', '.join(near)}"
            )
            raise RuleError(f"rule ({pattern!r}, {group!r}) wins no parameter: {why}")
    return groups


def label(params: Tree, rules: Rules) -> Tree:
    """The label tree: the group of every leaf, the one place where freezing is decided. See :func:`match`.

    An empty subtree takes part as a path with a trailing slash, so ``("head/.*", "head")`` may match ``{"head": {}}``.
    """
    return unflatten(match([*paths(params), *empties(params)], rules))


def group_of(labels: Tree) -> Callable[[str], str]:
    """``path -> group`` by a label tree. Raises :class:`RuleError` for a path that it has no label for."""
    groups = paths(labels)

    def group(path: str) -> str:
        if path not in groups:
            raise RuleError(
                f"{path!r} has no label: make the labels from the very tree that trains, after every drop and graft"
            )
        return groups[path]

    return group


def check_like(tree: Tree, like: Tree, what: str = "parameters", dtypes: bool = False) -> None:
    """Raise :class:`TreeError` with the :func:`differences`, unless there are none.

    Nothing is ever loaded in part: leave out what you do not want with a visible :func:`drop`.
    """
    if wrong := differences(tree, like, dtypes):
        raise TreeError(f"{what} do not fit (- missing, + not expected, ! misshapen):{wrong}")


def differences(tree: Tree, like: Tree, dtypes: bool = False) -> str:
    """A diff of paths and shapes (and dtypes, if asked): ``-`` missing in ``tree``, ``+`` not expected, ``!`` misshapen."""
    have = paths(tree)
    want = paths(like)
    lines = [f"- {p} {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"+ {p} {tuple(have[p].shape)}" for p in have if p not in want]
    for p in want:
        if p in have and tuple(have[p].shape) != tuple(want[p].shape):
            lines.append(f"! {p} {tuple(have[p].shape)}, expected {tuple(want[p].shape)}")
        elif p in have and dtypes and have[p].dtype != want[p].dtype:
            lines.append(f"! {p} {have[p].dtype}, expected {want[p].dtype}")
    shown = lines[:12] + ([f"... and {len(lines) - 12} more"] if len(lines) > 12 else [])
    return "".join(f"\n  {line}" for line in shown)


def to_numpy(leaf: Any) -> np.ndarray:
    """A leaf as a numpy array, wherever it lies; where devices of several processes hold parts, all of them have to ask."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf, order="C")  # ascontiguousarray would give scalars a dimension


def digest(tree: Tree) -> str:
    """SHA-256 (hex) over path, dtype, shape and bytes of every leaf, in path order.

    Equal digests before and after training prove that a frozen encoder did not move by a single bit.
    """
    sha = hashlib.sha256()
    for path, leaf in paths(tree).items():
        array = to_numpy(leaf)
        sha.update(json.dumps([path, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def summary(params: Tree, labels: Tree) -> dict[str, int]:
    """Parameters of each group, ``{group: count}``, in the order in which groups first appear by path."""
    counts: dict[str, int] = {}
    group = group_of(labels)
    for path, leaf in paths(params).items():
        counts[group(path)] = counts.get(group(path), 0) + int(np.prod(leaf.shape))
    return counts
