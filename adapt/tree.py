"""Parameters as plain nested dicts: paths, labels, and the surgery that adaptation consists of.

A tree is a nested ``dict`` with arrays as leaves. A path is ``"encoder/block_03/mlp/up/kernel"``.
An empty dict is legal, for a tied language-model head owns no weights, and its path ends in a
slash: ``"head/"``. Every function here is pure: arguments are never changed, leaves are shared and
never copied.
"""

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from adapt.errors import RuleError, TreeError

Tree = dict[str, Any]
Value = TypeVar("Value")
Rules = Sequence[tuple[str, str]]

DIFFERENCES_SHOWN = 12


# Paths


def paths(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """``{path: leaf}``, sorted at every level, each path after ``prefix``.

    Empty subtrees have no leaf and are left out; see :func:`empties`.

        >>> list(paths({"head": {"bias": 1}, "encoder": {"norm": {"scale": 2, "bias": 3}}}))
        ['encoder/norm/bias', 'encoder/norm/scale', 'head/bias']
    """
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        node = tree[name]
        if isinstance(node, dict):
            flat.update(paths(node, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = node
    return flat


def empties(tree: Tree, prefix: str = "") -> list[str]:
    """The paths of the empty subtrees, each with its trailing slash."""
    empty = []
    for name, node in sorted(tree.items()):
        if not isinstance(node, dict):
            continue
        if node:
            empty += empties(node, f"{prefix}{name}/")
        else:
            empty.append(f"{prefix}{name}/")
    return empty


def unflatten(flat: dict[str, Any]) -> Tree:
    """The tree of ``{path: leaf}``: the inverse of :func:`paths`.

    A path with a trailing slash becomes an empty subtree.
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if name:
            node[name] = leaf
    return tree


def get(tree: Tree, path: str) -> Any:
    """The subtree or leaf at ``path``.

    Raises :class:`TreeError` where nothing is there; it says what is.
    """
    names = path.strip("/").split("/")
    node: Any = tree
    for depth, name in enumerate(names):
        if not isinstance(node, dict) or name not in node:
            where = f"under {'/'.join(names[:depth])!r}" if depth else "at the top"
            present = "nothing"
            if isinstance(node, dict) and node:
                present = ", ".join(sorted(node))
            raise TreeError(f"no {path!r} in the parameters: {where} there is {present}")
        node = node[name]
    return node


def map_paths(function: Callable[[str, Any], Any], tree: Tree, prefix: str = "") -> Tree:
    """The tree of ``function(path, leaf)``, with structure and order as they are."""
    mapped: Tree = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            mapped[name] = map_paths(function, node, f"{prefix}{name}/")
        else:
            mapped[name] = function(f"{prefix}{name}", node)
    return mapped


def shapes(tree: Tree) -> Tree:
    """The tree of :class:`jax.ShapeDtypeStruct`, which lie where arrays do that are held to a
    device: what is compiled for these is what is compiled for the arrays.
    """

    def shape(_: str, leaf: Any) -> Any:
        sharding = leaf.sharding if getattr(leaf, "committed", False) else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return map_paths(shape, tree)


def count(tree: Tree) -> int:
    """The number of parameters: the sum of the leaves' sizes."""
    return sum(int(np.prod(leaf.shape)) for leaf in paths(tree).values())


def cast_down(leaf: Any, dtype: Any) -> Any:
    """A leaf in ``dtype``; one that is stored in as few bytes or fewer is left as it is."""
    return leaf.astype(dtype) if leaf.dtype.itemsize > np.dtype(dtype).itemsize else leaf


def nbytes(tree: Any) -> int:
    """The bytes of all array leaves of any pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# Surgery


def drop(tree: Tree, path: str) -> Tree:
    """The tree without the subtree at ``path``: how a pre-training head is discarded.

    Raises :class:`TreeError` where nothing is there; it says what is. See :func:`discarded` for a
    record of what is dropped.

        >>> params = {"encoder": {"bias": np.zeros(2)}, "head": {"bias": np.zeros(3)}}
        >>> list(drop(params, "head"))
        ['encoder']
        >>> list(params)
        ['encoder', 'head']
    """
    get(tree, path)
    name, _, rest = path.strip("/").partition("/")
    if rest:
        return tree | {name: drop(tree[name], rest)}
    return {key: node for key, node in tree.items() if key != name}


def discarded(tree: Tree, path: str) -> dict[str, Any]:
    """What ``drop(tree, path)`` takes away, as plain JSON.

    The keys are ``path``, ``parameters`` (how many), ``shapes`` (by path) and ``digest`` (of the
    subtree by itself). Raises :class:`TreeError` where nothing is there.

        >>> discarded({"head": {"bias": np.zeros(3)}}, "head")["shapes"]
        {'head/bias': [3]}
    """
    subtree = get(tree, path)
    path = path.strip("/")
    if isinstance(subtree, dict):
        flat = paths(subtree, f"{path}/")
    else:
        flat = {path: subtree}
        subtree = {path.rsplit("/", 1)[-1]: subtree}
    return {
        "path": path,
        "parameters": count(subtree),
        "shapes": {name: list(leaf.shape) for name, leaf in flat.items()},
        "digest": digest(subtree),
    }


def graft(tree: Tree, path: str, subtree: Any) -> Tree:
    """The tree with ``subtree`` attached at ``path``: the inverse of :func:`drop`.

    ``subtree`` is a tree or a leaf. Missing parents are made. Raises :class:`TreeError` where
    ``path`` is taken, which wants a visible :func:`drop` first, or leads through a leaf.

        >>> params = graft({"encoder": {"bias": 0}}, "head", {"bias": 1})
        >>> paths(params)
        {'encoder/bias': 0, 'head/bias': 1}
        >>> graft(params, "head", {})
        Traceback (most recent call last):
        adapt.errors.TreeError: cannot graft at 'head': it is taken; drop(params, 'head') first
    """
    return _graft(tree, path.strip("/").split("/"), subtree, "")


def _graft(tree: Tree, names: list[str], subtree: Any, prefix: str) -> Tree:
    name, *rest = names
    path = f"{prefix}{name}"
    if not rest:
        if name in tree:
            raise TreeError(f"cannot graft at {path!r}: it is taken; drop(params, {path!r}) first")
        return tree | {name: subtree}
    child = tree.get(name, {})
    if not isinstance(child, dict):
        target = "/".join([path, *rest])
        raise TreeError(f"cannot graft at {target!r}: {path!r} is a parameter, not a subtree")
    return tree | {name: _graft(child, rest, subtree, f"{path}/")}


def merge(*trees: Tree) -> Tree:
    """The union of trees with disjoint paths, such as frozen and trainable parameters.

    Raises :class:`TreeError` for a path that is in two of them.

        >>> merge({"encoder": {"bias": 0}}, {"encoder": {"scale": 1}, "head": {}})
        {'encoder': {'bias': 0, 'scale': 1}, 'head': {}}
    """
    return functools.reduce(_merge_two, trees, {})


def _merge_two(one: Tree, other: Tree, prefix: str = "") -> Tree:
    merged = dict(one)
    for name, node in other.items():
        if name not in one:
            merged[name] = node
            continue
        if not (isinstance(one[name], dict) and isinstance(node, dict)):
            raise TreeError(f"cannot merge: '{prefix}{name}' is in both trees")
        merged[name] = _merge_two(one[name], node, f"{prefix}{name}/")
    return merged


def select(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    """The leaves and the empty subtrees whose path satisfies ``keep``, as a tree.

    >>> select({"encoder": {"bias": 0, "kernel": 1}}, lambda path: path.endswith("/bias"))
    {'encoder': {'bias': 0}}
    """
    flat = paths(tree) | dict.fromkeys(empties(tree))
    return unflatten({path: leaf for path, leaf in flat.items() if keep(path)})


# Rules and labels


def match(names: Iterable[str], rules: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """``{path: value}`` by ordered rules ``(pattern, value)``: the first that matches wins.

    A pattern is a regular expression for the whole path. Every path must match a rule, and every
    rule must win a path: otherwise :class:`RuleError`, with the nearest paths that there are. This
    one language says what is frozen, at which rate what else trains, and how a mesh divides
    parameters.

        >>> match(["encoder/bias", "head/bias"], [("head/.*", "head"), (".*", "frozen")])
        {'encoder/bias': 'frozen', 'head/bias': 'head'}
    """
    names = list(names)
    for pattern, _ in rules:
        _compile(pattern)
    values = {}
    winners = set()
    for name in names:
        winner = _winner(name, rules)
        values[name] = rules[winner][1]
        winners.add(winner)
    for index, (pattern, value) in enumerate(rules):
        if index not in winners:
            reason = _why_unused(pattern, names)
            raise RuleError(f"rule ({pattern!r}, {value!r}) wins no parameter: {reason}")
    return values


def first_match(path: str, rules: Sequence[tuple[str, Value]]) -> tuple[str, Value]:
    """The rule that wins one path; see :func:`match`, which also wants that every rule wins.

    Raises :class:`RuleError` where no rule does.
    """
    return rules[_winner(path, rules)]


def _winner(path: str, rules: Sequence[tuple[str, Value]]) -> int:
    for index, (pattern, _) in enumerate(rules):
        if _compile(pattern).fullmatch(path):
            return index
    raise RuleError(f"no rule matches {path!r}: add one, or end the list with one for '.*'")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RuleError(f"rule {pattern!r} is not a regular expression: {error}") from None


def _why_unused(pattern: str, names: list[str]) -> str:
    if any(re.fullmatch(pattern, name) for name in names):
        return "an earlier rule wins all that it matches"
    literal = re.sub(r"[\\().*+?|^$\[\]]", "", pattern)
    nearest = difflib.get_close_matches(literal, names, n=3, cutoff=0.0)
    return f"the nearest paths are {', '.join(nearest)}"


def label(params: Tree, rules: Rules) -> Tree:
    """The label tree: the group of every parameter, and the one place where freezing is decided.

    ``rules`` are ``(pattern, group)`` as :func:`match` takes them, with its errors. An empty
    subtree takes part as a path with a trailing slash, so ``("head/.*", "head")`` may match
    ``{"head": {}}``.

        >>> params = {"encoder": {"bias": 0}, "head": {"bias": 1}}
        >>> label(params, [("head/.*", "head"), (".*", "frozen")])
        {'encoder': {'bias': 'frozen'}, 'head': {'bias': 'head'}}
    """
    return unflatten(match([*paths(params), *empties(params)], rules))


def group_of(labels: Tree) -> Callable[[str], str]:
    """``path -> group`` of a label tree; raises :class:`RuleError` for a path without a label."""
    groups = paths(labels)

    def group(path: str) -> str:
        if path not in groups:
            raise RuleError(
                f"{path!r} has no label: make the labels from the very tree that trains, "
                "after every drop and graft"
            )
        return groups[path]

    return group


def summary(params: Tree, labels: Tree) -> dict[str, int]:
    """``{group: number of parameters}``, in the order in which groups first appear by path.

    Raises :class:`RuleError` for a parameter without a label.

        >>> params = {"encoder": {"bias": np.zeros(4)}, "head": {"bias": np.zeros(2)}}
        >>> summary(params, label(params, [("head/.*", "head"), (".*", "frozen")]))
        {'frozen': 4, 'head': 2}
    """
    counts: dict[str, int] = {}
    group_at = group_of(labels)
    for path, leaf in paths(params).items():
        group = group_at(path)
        counts[group] = counts.get(group, 0) + int(np.prod(leaf.shape))
    return counts


# Comparison


def check_like(tree: Tree, like: Tree, what: str = "parameters", dtypes: bool = False) -> None:
    """Raise :class:`TreeError` unless both trees have the same paths and shapes.

    With ``dtypes`` they must have the same dtypes, too. The error names every difference and
    begins with ``what`` the tree is. Nothing is ever loaded in part: leave out what you do not want
    with a visible :func:`drop`.

        >>> check_like({"bias": np.zeros(2)}, {"bias": np.zeros(3)}, "the head")
        Traceback (most recent call last):
        adapt.errors.TreeError: the head do not fit (- missing, + not expected, ! misshapen):
          ! bias (2,), expected (3,)
    """
    listed = differences(tree, like, dtypes)
    if listed:
        raise TreeError(f"{what} do not fit (- missing, + not expected, ! misshapen):{listed}")


def differences(tree: Tree, like: Tree, dtypes: bool = False) -> str:
    """A line a path that differs, each on a new line; the empty string where none does.

    ``-`` is missing in ``tree``, ``+`` is not expected, ``!`` has another shape (or dtype, if
    asked).
    """
    present = paths(tree)
    expected = paths(like)
    lines = []
    for path, leaf in expected.items():
        if path not in present:
            lines.append(f"- {path} {tuple(leaf.shape)}")
    for path, leaf in present.items():
        if path not in expected:
            lines.append(f"+ {path} {tuple(leaf.shape)}")
    for path, leaf in expected.items():
        if path in present:
            lines += _mismatches(path, present[path], leaf, dtypes)
    if len(lines) > DIFFERENCES_SHOWN:
        more = f"... and {len(lines) - DIFFERENCES_SHOWN} more"
        lines = [*lines[:DIFFERENCES_SHOWN], more]
    return "".join(f"\n  {line}" for line in lines)


def _mismatches(path: str, leaf: Any, expected: Any, dtypes: bool) -> list[str]:
    if tuple(leaf.shape) != tuple(expected.shape):
        return [f"! {path} {tuple(leaf.shape)}, expected {tuple(expected.shape)}"]
    if dtypes and leaf.dtype != expected.dtype:
        return [f"! {path} {leaf.dtype}, expected {expected.dtype}"]
    return []


def digest(tree: Tree) -> str:
    """SHA-256 (hex) over path, dtype, shape and bytes of every leaf, in path order.

    Equal digests before and after training prove that a frozen encoder did not move by a single
    bit. On a mesh of several processes all of them must call it.

        >>> digest({"bias": np.zeros(2)}) == digest({"bias": -np.zeros(2)})
        False
    """
    sha = hashlib.sha256()
    for path, leaf in paths(tree).items():
        array = to_numpy(leaf)
        sha.update(json.dumps([path, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def to_numpy(leaf: Any) -> np.ndarray:
    """A leaf as a numpy array, wherever it lies.

    Where the devices of several processes hold parts of it, all of the processes must call this.
    """
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf, order="C")  # ascontiguousarray would give scalars a dimension
