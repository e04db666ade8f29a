"""Checkpoints of a run: what is frozen once, what trains at every save; Orbax arrays behind one atomic index file.

    checkpoints/frozen/        the frozen parameters of a phase, written once (of a later one: frozen_01); a delta's, which
                               refers to the encoder that it began with, has only those that are not as they were there
    checkpoints/step_00000250/ trainable parameters, optimizer state, step, key
    checkpoints/index.json     which step is "last" and which is "best", and what the loop needs to go on

With several processes all call these functions together: Orbax writes what each holds, the first process the rest.
Each folder has a SHA256SUMS of its files, checked before it is read: Orbax itself does not see a flipped bit.
A save is complete when index.json is replaced; a process killed before that leaves the previous save in force.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt.errors import CheckpointError, OutputError, TreeError
from adapt.parallel.multihost import barrier, is_lead_process
from adapt.parallel.sharding import Layout, device_put
from adapt.training.step import State
from adapt.tree import Tree, check_like, map_paths, merge, nbytes, paths, select

MARGIN = 64 << 20  # bytes left free on the disk beside what a save needs
CHECKSUMS = "SHA256SUMS"


def save(folder: Path, state: State, info: dict[str, Any], best: bool, phase: int = 0) -> None:
    """Save ``state`` as the last checkpoint, and as the best one if ``best``; ``info`` is plain JSON.

    Raises :class:`OutputError` when the disk is full; the saves before stay valid.
    """
    if is_lead_process():
        need_space(folder, nbytes((state.params, state.opt_state)))
    index = read_index(folder)
    name = f"step_{int(state.step):08d}{phase_suffix(phase)}"
    if index.get("last", {}).get("folder") != name:
        write_tree(folder / name, to_tree(state))
    # info may be what restore() gave, with the folders of then
    index["last"] = {**info, "folder": name} | (
        {"frozen": f"frozen{phase_suffix(phase)}"} if phase else {}
    )
    if best:
        index["best"] = index["last"]
    if is_lead_process():
        write_index(folder, index)
    barrier(f"{name} is saved")


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Put the index in its place, then delete the folders that it no longer names."""
    write_text(folder / "index.json", json.dumps(index, indent=1))
    used = {
        name
        for entry in index.values()
        for name in (entry["folder"], entry.get("frozen", "frozen"))
    }
    for old in (*folder.glob("step_*"), *folder.glob("frozen*")):
        if old.name not in used:
            shutil.rmtree(old, ignore_errors=True)


def save_frozen(folder: Path, frozen: Tree, phase: int = 0) -> None:
    """Save the frozen parameters, once a phase."""
    if is_lead_process():
        need_space(folder, nbytes(frozen))
    if paths(frozen):
        write_tree(folder / f"frozen{phase_suffix(phase)}", frozen)


def phase_suffix(phase: int) -> str:
    """Of the folders of a phase; the first one's have none."""
    return f"_{phase:02d}" if phase else ""


def read_last(folder: Path) -> dict[str, Any]:
    """What was said with the last save. Raises :class:`CheckpointError` where there is none."""
    info = read_index(folder).get("last")
    if info is None:
        raise CheckpointError(
            f"no checkpoint in {folder}: the run stopped before its first save; start it anew with --overwrite"
        )
    return info


def restore(folder: Path, like: State) -> tuple[State, dict[str, Any]]:
    """The last checkpoint as (State placed like ``like``, info). Strict: paths, shapes and dtypes are those of ``like``.

    Raises :class:`CheckpointError` where there is none or it does not fit.
    """
    info = read_last(folder)
    tree = read_tree(folder / info["folder"], to_tree(like))
    leaves, structure = jax.tree.flatten(like.opt_state)
    names = [f"leaf_{number:04d}" for number in range(len(leaves))]
    opt_state = structure.unflatten([tree["optimizer"][name] for name in names])
    key = jax.random.wrap_key_data(tree["key"], impl=jax.random.key_impl(like.key))
    return State(
        tree["step"],
        tree.get("params", {}),
        opt_state,
        device_put(key, like.step.sharding),
        tree["halted"],
    ), info


def load_params(
    folder: Path,
    like: Tree,
    base: Tree | None = None,
    which: str = "best",
    layout: Layout | None = None,
) -> Tree:
    """The whole ``{"encoder", "head"}`` tree of the best checkpoint, float32, with the shapes of ``like``.

    As numpy, or with a ``layout`` each leaf straight in its place on the mesh. ``base`` has what a delta does not store;
    ``which`` may be "last".
    """
    index = read_index(folder)
    info = index.get(which) or index.get("last")
    if info is None:
        raise CheckpointError(f"no checkpoint in {folder}: the run stopped before its first save")
    params = read_tree(folder / info["folder"], None, "params", layout).get("params", {})
    still = folder / info.get("frozen", "frozen")
    if still.exists():
        params = merge(params, read_tree(still, None, layout=layout))
    there = paths(params)
    params = merge(
        {"encoder": {}, "head": {}}, params, select(base or {}, lambda path: path not in there)
    )
    try:
        check_like(params, like, f"the parameters in {folder}", dtypes=True)
    except TreeError as fault:
        raise CheckpointError(str(fault)) from None
    return params


def to_tree(state: State) -> Tree:
    """A state as nested dicts of arrays; optimizer leaves are numbered in the order of their pytree."""
    leaves = jax.tree.leaves(state.opt_state)
    optimizer = {f"leaf_{number:04d}": leaf for number, leaf in enumerate(leaves)}
    return {
        "step": state.step,
        "halted": state.halted,
        "key": jax.random.key_data(state.key),
        "params": state.params,
        "optimizer": optimizer,
    }


def write_tree(target: Path, tree: Tree) -> None:
    from orbax.checkpoint import v1 as orbax

    target = target.absolute()  # Orbax takes no other
    if is_lead_process():
        remove(target)  # left by a process that was killed between the write and the index
    barrier(f"{target.name} is free")
    try:
        with silence_orbax(), without_glob_characters(target) as path:
            orbax.save(path, tree)
        if is_lead_process():
            write_text(
                target / CHECKSUMS,
                "".join(f"{digest}  {name}\n" for name, digest in checksums(target).items()),
            )
    except (
        Exception
    ) as fault:  # tensorstore reports a full disk as a ValueError with the system's words in it
        remove(target)
        full = next(
            (
                words
                for words in ("No space left on device", "Disk quota exceeded")
                if words in str(fault)
            ),
            "",
        )
        if isinstance(fault, OSError) or full or "ENOSPC" in str(fault):
            reason = full or str(fault).splitlines()[0]
            raise OutputError(
                f"cannot write {target}: {reason}; earlier checkpoints are kept"
            ) from None
        raise


def remove(target: Path) -> None:
    """A folder of arrays, and what Orbax keeps beside it while it writes."""
    for half in target.parent.glob(f"{target.name}*"):
        shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Let one exception tell of a failure, of which Orbax's threads log a page each and its callbacks print another."""
    log = logging.getLogger("absl")
    shown = sys.unraisablehook

    def unraisable(what: Any) -> None:
        if "Event loop is closed" not in str(what.exc_value):
            shown(what)

    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    if getattr(shown, "__module__", "") != __name__:
        sys.unraisablehook = unraisable
    try:
        yield
        sys.unraisablehook = (
            shown  # after a failure it stays for good: the callbacks come when they come
        )
    except BaseException:
        warnings.filterwarnings(
            "ignore", "coroutine 'async_serialize_.*' was never awaited", RuntimeWarning
        )  # nor will be
        raise
    finally:
        log.setLevel(level)


def read_tree(
    source: Path, like: Tree | None, only: str = "", layout: Layout | None = None
) -> Tree:
    """Read a tree; with ``like``, strictly its structure and placed on its devices; without, by ``layout`` or as numpy.

    With ``only``, the arrays of that top-level entry alone.
    """
    from orbax.checkpoint import v1 as orbax

    source = source.absolute()

    def wanted(path: str, leaf: Any) -> Any:
        if only and not path.startswith(f"{only}/"):
            return orbax.PLACEHOLDER
        if like is None:
            if layout is None:
                return np.empty(
                    leaf.shape, leaf.dtype
                )  # asks for a numpy array; its pages are never touched
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    verify(source)
    try:
        with silence_orbax(), without_glob_characters(source) as path:
            stored = orbax.metadata(path).metadata
            if like is not None:
                check_like(stored, like, f"the checkpoint {source}", dtypes=True)
            placed = paths(layout.shardings(stored)) if layout else {}
            tree = orbax.load(path, map_paths(wanted, stored if like is None else like))
    except TreeError as fault:
        raise CheckpointError(str(fault)) from None
    except Exception as fault:  # Orbax and tensorstore raise what they like, bare Exception too
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise CheckpointError(f"cannot read the checkpoint {source}: {reason}") from None
    return {name: node for name, node in tree.items() if only in ("", name)}


@contextlib.contextmanager
def without_glob_characters(path: Path) -> Iterator[str]:
    """``path`` for Orbax, to which brackets and backslashes in a parent's name are a pattern: it gets a link to that one."""
    if not re.search(r"[\[\]\\]", str(path.parent)):
        yield str(path)
        return
    if (
        jax.process_count() > 1
    ):  # each process would have a link of its own, and Orbax wants one name
        raise OutputError(
            f"{path.parent} has brackets or backslashes in its name: with several processes give another --out"
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "parent").symlink_to(path.parent)
        yield str(Path(folder) / "parent" / path.name)


def checksums(folder: Path) -> dict[str, str]:
    """``{file: SHA-256}`` of all files under ``folder``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found


def verify(folder: Path) -> None:
    """Raise :class:`CheckpointError` unless every file in ``folder`` is as it was saved."""
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8", "replace").splitlines()
        found = checksums(folder)
    except OSError as fault:
        raise CheckpointError(
            f"the checkpoint {folder} is incomplete: {fault.strerror}: {fault.filename}"
        ) from None
    noted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if wrong := [name for name in {**noted, **found} if found.get(name) != noted.get(name)]:
        why = "missing" if wrong[0] not in found else "not as it was saved"
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: its file {wrong[0]!r} is {why}; go back to a copy of it"
        )


def read_index(folder: Path) -> dict[str, Any]:
    """``{"last": {"folder": ...}, "best": ...}``; empty before the first save."""
    file = folder / "index.json"
    try:
        index = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as fault:
        raise CheckpointError(f"{file} is not JSON: {fault}") from None
    if not isinstance(index, dict) or not all(
        isinstance(e, dict) and isinstance(e.get("folder"), str) for e in index.values()
    ):
        raise CheckpointError(
            f"{file} was not written by adapt, or has been edited: it names no folder of a checkpoint"
        )
    return index


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as fault:
        beside.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {fault.strerror or fault}") from None


def need_space(folder: Path, need: int) -> None:
    """Raise :class:`OutputError` before writing when ``need`` bytes will not fit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"cannot make the folder {folder}: {fault.strerror or fault}") from None
    free = shutil.disk_usage(folder).free
    if need + MARGIN > free:
        raise OutputError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free and the checkpoint needs {need / 1e6:.0f} MB: make room"
        )
