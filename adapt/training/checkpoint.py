"""Checkpoints of a run: the last one and the best one, complete or absent.

    checkpoints/frozen/         the frozen parameters of a phase, written once; of a later phase
                                frozen_01. A run that refers to its first encoder stores
                                only those that differ from it.
    checkpoints/step_00000250/  trainable parameters, optimizer state, step, key
    checkpoints/index.json      which step is "last" and which is "best", and what the loop needs to
                                resume

A folder is written beside its place and renamed, and a save is complete when index.json is
replaced: a process killed before that leaves the previous save in force. Each folder has a
SHA256SUMS of its files, checked before it is read, since Orbax does not see a flipped bit. With
several processes all call these functions together: Orbax writes what each holds, the lead process
the rest.

Which checkpoints are kept is decided here and not by Orbax's Checkpointer. Its checkpoints are
numbered and final; here a phase begins at the step at which the last one ended, and a saved step
becomes the best one later. Its ``overwrite`` deletes before it writes.
"""

import contextlib
import hashlib
import logging
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
from adapt.files import need_space, read_json, replace_folder, write_json, write_text
from adapt.parallel.multihost import barrier, is_lead_process
from adapt.parallel.sharding import Layout, device_put
from adapt.training import optim
from adapt.training.step import State
from adapt.tree import Tree, check_like, map_paths, merge, nbytes, paths, select

INDEX = "index.json"
CHECKSUMS = "SHA256SUMS"
# What trained beside a model, and is no part of it: see adapt.objectives.replaced.
COMPANION = "generator"
FULL_DISK = ("No space left on device", "Disk quota exceeded")


# A run


def save(folder: Path, state: State, info: dict[str, Any], best: bool, phase: int = 0) -> None:
    """Save ``state`` as the last checkpoint, and as the best one if ``best``.

    ``info`` is plain JSON, which :func:`restore` returns. A step that is saved again gets the new
    ``info`` and may become the best one; its arrays are not written twice.

    Raises :class:`OutputError` if the disk is full. Earlier saves stay valid.
    """
    if is_lead_process():
        size = nbytes((state.params, state.opt_state))
        need_space(folder, size, "the checkpoint")
    index = read_index(folder)
    name = f"step_{int(state.step):08d}{phase_suffix(phase)}"
    last = index.get("last")
    if last is None or last["folder"] != name:
        write_tree(folder / name, to_tree(state))

    entry = {**info, "folder": name}  # info may come from restore(), with an older folder in it
    if phase:
        entry["frozen"] = f"frozen{phase_suffix(phase)}"
    index["last"] = entry
    if best:
        index["best"] = entry
    if is_lead_process():
        write_json(folder / INDEX, index)
        delete_unnamed(folder, index)
    barrier(f"{name} is saved")


def save_params(folder: Path, params: Tree) -> None:
    """Save parameters alone, as the best checkpoint of a run that does not go on.

    Raises :class:`OutputError` if the disk is full.
    """
    need_space(folder, nbytes(params), "the checkpoint")
    name = "step_00000000"
    write_tree(folder / name, {"params": params})
    write_json(folder / INDEX, {"last": {"folder": name}, "best": {"folder": name}})


def save_frozen(folder: Path, frozen: Tree, phase: int = 0) -> None:
    """Save the frozen parameters of a phase, if there are any, before its first :func:`save`."""
    if is_lead_process():
        need_space(folder, nbytes(frozen), "the checkpoint")
    if paths(frozen):
        write_tree(folder / f"frozen{phase_suffix(phase)}", frozen)


def restore(folder: Path, like: State) -> tuple[State, dict[str, Any]]:
    """The last checkpoint as (:class:`State`, info), its arrays on the devices of ``like``.

    Raises :class:`CheckpointError` if there is none, if a file is damaged, or if a path, a shape or
    a dtype is not that of ``like``.
    """
    info = read_last(folder)
    tree = read_tree(folder / info["folder"], to_tree(like))
    leaves, structure = jax.tree.flatten(optim.drop_settings(like.opt_state))
    opt_leaves = [tree["optimizer"][leaf_name(number)] for number in range(len(leaves))]
    opt_state = optim.take_settings(structure.unflatten(opt_leaves), like.opt_state)
    key = jax.random.wrap_key_data(tree["key"], impl=jax.random.key_impl(like.key))
    state = State(
        step=tree["step"],
        params=tree.get("params", {}),
        opt_state=opt_state,
        key=device_put(key, like.step.sharding),
        halted=tree["halted"],
    )
    return state, info


def load_params(
    folder: Path,
    like: Tree,
    base: Tree | None = None,
    which: str = "best",
    layout: Layout | None = None,
) -> Tree:
    """The parameters ``{"encoder", "head"}`` of a checkpoint, shaped as ``like``, which may have
    ``generator``, too.

    ``which`` is ``best``, or ``last``. ``base`` has what the checkpoint does not store. The leaves
    are numpy arrays; with a ``layout`` each is read straight to its place on the mesh.

    Raises :class:`CheckpointError` if there is none, if a file is damaged, or if it does not fit.
    """
    index = read_index(folder)
    entry = index.get(which) or index.get("last")
    if entry is None:
        raise CheckpointError(f"no checkpoint in {folder}: the run stopped before its first save")
    stored = read_tree(folder / entry["folder"], None, "params", layout).get("params", {})
    frozen_folder = folder / entry.get("frozen", "frozen")
    if frozen_folder.exists():
        stored = merge(stored, read_tree(frozen_folder, None, layout=layout))

    stored_paths = paths(stored)
    from_base = select(base or {}, lambda path: path not in stored_paths)
    params = merge({"encoder": {}, "head": {}}, stored, from_base)
    if COMPANION not in like:
        params.pop(COMPANION, None)
    try:
        check_like(params, like, f"the parameters in {folder}", dtypes=True)
    except TreeError as error:
        raise CheckpointError(str(error)) from None
    return params


# The index


def read_index(folder: Path) -> dict[str, Any]:
    """``{"last": {"folder": ..., ...}, "best": {...}}``; empty before the first save."""
    file = folder / INDEX
    try:
        index = read_json(file)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from None
    if not isinstance(index, dict) or not all(map(is_entry, index.values())):
        raise CheckpointError(
            f"{file} was not written by adapt, or has been edited: "
            "it names no folder of a checkpoint"
        )
    return index


def is_entry(value: Any) -> bool:
    """Whether a value of the index describes a checkpoint."""
    return isinstance(value, dict) and isinstance(value.get("folder"), str)


def read_last(folder: Path) -> dict[str, Any]:
    """The info of the last save. Raises :class:`CheckpointError` if there is none."""
    info = read_index(folder).get("last")
    if info is None:
        raise CheckpointError(
            f"no checkpoint in {folder}: the run stopped before its first save; "
            "start it anew with `overwrite`"
        )
    return info


def delete_unnamed(folder: Path, index: dict[str, Any]) -> None:
    """Delete checkpoints that the index does not name, and those that were never finished."""
    named = set()
    for entry in index.values():
        named |= {entry["folder"], entry.get("frozen", "frozen")}
    for pattern in ("step_*", "frozen*", ".step_*", ".frozen*"):
        for old in folder.glob(pattern):
            if old.name not in named:
                shutil.rmtree(old, ignore_errors=True)


def phase_suffix(phase: int) -> str:
    """The end of the names of a phase's folders; empty for the first phase."""
    return f"_{phase:02d}" if phase else ""


# A folder of arrays


def to_tree(state: State) -> Tree:
    """A state as nested dicts of arrays; optimizer leaves by their number in the pytree.

    The optimizer's settings are left out: they are those of the run's options.
    """
    leaves = jax.tree.leaves(optim.drop_settings(state.opt_state))
    return {
        "step": state.step,
        "halted": state.halted,
        "key": jax.random.key_data(state.key),
        "params": state.params,
        "optimizer": {leaf_name(number): leaf for number, leaf in enumerate(leaves)},
    }


def leaf_name(number: int) -> str:
    """``leaf_0007``: an optimizer's leaf."""
    return f"leaf_{number:04d}"


def write_tree(target: Path, tree: Tree) -> None:
    """Write nested dicts of arrays to the folder ``target``, complete or not at all.

    Raises :class:`OutputError` if they can't be written. What was there stays then.
    """
    target = target.absolute()  # Orbax refuses relative paths
    staging = target.with_name(f".{target.name}.partial")  # Orbax's own leftovers lie in it, too
    written = staging / target.name
    if is_lead_process():
        shutil.rmtree(staging, ignore_errors=True)
    try:
        if is_lead_process():
            staging.mkdir(parents=True)
        barrier(f"{staging.name} is empty")
        with silence_orbax(), without_glob_characters(written) as path:
            write_arrays(path, tree)
        if is_lead_process():
            sums = "".join(f"{digest}  {name}\n" for name, digest in checksums(written).items())
            write_text(written / CHECKSUMS, sums)
            replace_folder(written, target)
            staging.rmdir()
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        reason = disk_error(error)
        if reason is None:
            raise
        raise OutputError(
            f"cannot write {target}: {reason}; earlier checkpoints are kept"
        ) from None


def disk_error(error: Exception) -> str | None:
    """Why the disk did not take a file; None for an error of another kind.

    tensorstore reports a full disk as a ValueError with the system's words in it.
    """
    text = str(error)
    for words in FULL_DISK:
        if words in text:
            return words
    if isinstance(error, OSError):
        return error.strerror or text.splitlines()[0]
    if "ENOSPC" in text:
        return text.splitlines()[0]
    return None


def read_tree(
    source: Path, like: Tree | None, only: str = "", layout: Layout | None = None
) -> Tree:
    """The nested dicts of arrays in the folder ``source``.

    With ``like`` it must have exactly its paths, shapes and dtypes, and each array lies on the
    devices of that in ``like``. Without, arrays lie on the mesh of ``layout``, or are numpy's. With
    ``only``, the arrays of that top-level entry alone are read.

    Raises :class:`CheckpointError` if a file is missing or damaged, or if the tree is not like
    that.
    """
    source = source.absolute()
    check_checksums(source)
    try:
        with silence_orbax(), without_glob_characters(source) as path:
            stored = stored_arrays(path)
            if like is not None:
                check_like(stored, like, f"the checkpoint {source}", dtypes=True)
            shardings = paths(layout.shardings(stored)) if layout else {}

            def requested(path: str, leaf: Any) -> Any:
                if only and not path.startswith(f"{only}/"):
                    return NOT_WANTED
                if like is not None:
                    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                if layout is not None:
                    sharding = shardings[path]
                    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                # Asks for a numpy array. Its pages are never touched.
                return np.empty(leaf.shape, leaf.dtype)

            tree = read_arrays(path, map_paths(requested, stored if like is None else like))
    except TreeError as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:  # Orbax and tensorstore raise anything, bare Exception too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot read the checkpoint {source}: {reason}") from None
    if only:
        return {only: tree[only]} if only in tree else {}
    return tree


def checksums(folder: Path) -> dict[str, str]:
    """``{file: SHA-256}`` of all files under ``folder`` but the list of checksums itself."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def check_checksums(folder: Path) -> None:
    """Raise :class:`CheckpointError` unless the files in ``folder`` are those that were written."""
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8", "replace").splitlines()
        actual = checksums(folder)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {folder} is incomplete: {error.strerror}: {error.filename}"
        ) from None
    expected = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        expected[name] = digest
    for name in {**expected, **actual}:
        if actual.get(name) != expected.get(name):
            reason = "not as it was saved" if name in actual else "missing"
            raise CheckpointError(
                f"the checkpoint {folder} is damaged: its file {name!r} is {reason}; "
                "go back to a copy of it"
            )


# Orbax

NOT_WANTED = ...  # Orbax's sign for an array that is not read


def write_arrays(path: str, tree: Tree) -> None:
    """Write the arrays of a tree into a folder that is not there yet."""
    from orbax.checkpoint import v1 as orbax

    orbax.save(path, tree)


def stored_arrays(path: str) -> Tree:
    """The tree in a folder, with what has a ``shape`` and a ``dtype`` in place of each array."""
    from orbax.checkpoint import v1 as orbax

    return orbax.metadata(path).metadata


def read_arrays(path: str, wanted: Tree) -> Tree:
    """The tree in a folder: an array for each numpy array or ``ShapeDtypeStruct`` of ``wanted``, of
    that kind and on its devices.
    """
    from orbax.checkpoint import v1 as orbax

    return orbax.load(path, wanted)


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Keep Orbax quiet: on failure its threads log a traceback each; the exception says it once."""
    log = logging.getLogger("absl")
    level = log.level
    previous_hook = sys.unraisablehook

    def unraisable(unraised: Any) -> None:
        if "Event loop is closed" not in str(unraised.exc_value):
            previous_hook(unraised)

    log.setLevel(logging.CRITICAL + 1)
    if getattr(previous_hook, "__module__", "") != __name__:
        sys.unraisablehook = unraisable
    try:
        yield
        # Only after a success. After a failure the hook stays: callbacks end at any later time.
        sys.unraisablehook = previous_hook
    except BaseException:
        # Nor will it ever be.
        never_awaited = "coroutine 'async_serialize_.*' was never awaited"
        warnings.filterwarnings("ignore", never_awaited, RuntimeWarning)
        raise
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def without_glob_characters(path: Path) -> Iterator[str]:
    r"""``path`` for Orbax, which globs it: a link replaces a parent with ``[``, ``]`` or ``\``."""
    if not re.search(r"[\[\]\\]", str(path.parent)):
        yield str(path)
        return
    if jax.process_count() > 1:  # each process would have a link of its own, Orbax wants one name
        raise OutputError(
            f"{path.parent} has brackets or backslashes in its name: "
            "with several processes give another `out`"
        )
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "parent"
        link.symlink_to(path.parent)
        yield str(link / path.name)
