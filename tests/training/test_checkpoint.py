"""Saves are complete or absent, a restored run continues bit for bit, damage is one error."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adapt import files
from adapt.errors import CheckpointError, OutputError
from adapt.training import checkpoint, optim
from adapt.training.losses import cross_entropy
from adapt.training.step import State, init_state, make_step
from adapt.training.strategies import strategy
from adapt.tree import digest, graft, label, merge, nbytes, paths, unflatten
from tests.helpers import tiny
from tests.helpers.small import batch, bits, classifier, copy, params, setup


@functools.cache
def prepared(name: str = "top:1"):
    model = classifier("small", dropout=0.1)
    labels, tx = setup(model, name)
    return model, labels, tx, make_step(model, cross_entropy, tx)  # dropout is on


def start(name: str = "top:1", key: int = 5):
    model, labels, tx, step = prepared(name)
    return *init_state(params(model), labels, tx, jax.random.key(key)), step


def advance(step, frozen, state, seeds) -> tuple[State, list[float]]:
    losses = []
    for seed in seeds:
        state, metrics = step(frozen, state, batch(seed=seed))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture
def saved(tmp_path):
    """(folder, state) of a run after two saves, of which the first is the best."""
    frozen, state, step = start()
    folder = tmp_path / "checkpoints"
    checkpoint.save_frozen(folder, frozen)
    state, _ = advance(step, frozen, state, [0])
    checkpoint.save(folder, state, {"progress": {"epoch": 0}}, best=True)
    state, _ = advance(step, frozen, state, [1])
    checkpoint.save(folder, state, {"progress": {"epoch": 1}}, best=False)
    return folder, state


# Going on


@pytest.mark.parametrize("name", ["top:1", "full"])
def test_four_steps_are_two_steps_a_save_a_restore_and_two_steps(tmp_path, name):
    """Bit for bit: parameters, moments, counters, key and losses, with dropout on. And nothing compiles again."""
    frozen, state, step = start(name)
    whole, losses = advance(step, frozen, state, range(4))
    frozen, state, _ = start(name)
    half, first = advance(step, frozen, state, range(2))
    checkpoint.save(tmp_path, half, {"note": "x"}, best=False)
    frozen, fresh, _ = start(name, key=99)  # what it is restored into does not matter
    restored, info = checkpoint.restore(tmp_path, fresh)
    assert info["note"] == "x" and bits(restored) == bits(half)
    traces = step.suffix._cache_size()
    end, second = advance(step, frozen, restored, range(2, 4))
    assert step.suffix._cache_size() == traces
    assert first + second == losses and bits(end) == bits(whole)


def test_the_first_step_after_a_restore_in_a_new_process_shares_the_trace_of_a_fresh_state(
    tmp_path,
):
    """A new step function, restored state first, then a fresh one: one trace."""
    frozen, state, _ = start()
    checkpoint.save(tmp_path, state, {}, best=False)
    model, _, tx, _ = prepared()
    step = make_step(model, cross_entropy, tx, dropout=False)
    restored, _ = checkpoint.restore(tmp_path, state)
    restored, _ = step(frozen, restored, batch())
    step(frozen, restored, batch())
    step(frozen, state, batch())
    assert step.suffix._cache_size() == 1


def test_a_restored_state_is_where_and_what_the_fresh_one_is(saved):
    folder, state = saved
    restored, _ = checkpoint.restore(folder, start()[1])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert (one.shape, one.dtype, one.sharding, one.committed) == (
            other.shape,
            other.dtype,
            other.sharding,
            other.committed,
        )


def test_an_optimizer_without_state_is_restored_too(tmp_path):
    model = classifier("small")
    labels = label(params(model), strategy("frozen", 1).phases[0].rules)
    _, state = init_state(
        params(model), labels, optim.by_label({"head": optax.sgd(0.1)}, labels), jax.random.key(0)
    )
    checkpoint.save(tmp_path, state, {}, best=True)
    assert bits(checkpoint.restore(tmp_path, state)[0]) == bits(state)


# What is kept


def test_the_best_and_the_last_are_kept_and_nothing_else(tmp_path):
    frozen, state, step = start("frozen")
    for number, best in enumerate([True, False, True, False, False]):
        state, _ = advance(step, frozen, state, [number])
        checkpoint.save(tmp_path, state, {"step": number + 1}, best)
        index = checkpoint.read_index(tmp_path)
        expected = {1: (1, 1), 2: (2, 1), 3: (3, 3), 4: (4, 3), 5: (5, 3)}[number + 1]
        assert (index["last"]["step"], index["best"]["step"]) == expected
        assert {path.name for path in tmp_path.iterdir()} == {
            "index.json",
            *(f"step_{n:08d}" for n in expected),
        }


def test_saving_one_step_twice_renews_what_is_said_of_it(tmp_path):
    _, state, _ = start("frozen")
    checkpoint.save(tmp_path, state, {"n": 1}, best=False)
    checkpoint.save(tmp_path, state, {"n": 2}, best=True)
    index = checkpoint.read_index(tmp_path)
    assert index["last"] == index["best"] == {"folder": "step_00000000", "n": 2}
    assert bits(checkpoint.restore(tmp_path, state)[0]) == bits(state)


def test_the_parameters_of_the_best_checkpoint_are_the_whole_tree(tmp_path):
    model, labels, _, _ = prepared()
    frozen, state, step = start()
    checkpoint.save_frozen(tmp_path, frozen)
    best, _ = advance(step, frozen, state, [0])
    checkpoint.save(tmp_path, best, {}, best=True)
    expected = digest(merge(frozen, best.params))
    last, _ = advance(step, frozen, best, [1])
    checkpoint.save(tmp_path, last, {}, best=False)
    loaded = checkpoint.load_params(tmp_path, model.shapes())
    assert digest(loaded) == expected and list(loaded) == ["encoder", "head"]
    assert all(isinstance(leaf, np.ndarray) for leaf in paths(loaded).values())
    assert digest(optim.frozen(loaded, labels)) == digest(frozen)


def test_frozen_parameters_and_moments_are_not_written_with_every_save(saved):
    folder, state = saved
    size = sum(
        path.stat().st_size for path in (folder / "step_00000002").rglob("*") if path.is_file()
    )
    model = classifier("small", dropout=0.1)
    assert (
        nbytes(state.params) * 3 < size < nbytes(state.params) * 3 + 80_000
    )  # and Orbax's own files
    stored = checkpoint.read_tree(folder / "step_00000002", None)
    assert (
        paths(stored["params"]).keys() == paths(state.params).keys() < paths(params(model)).keys()
    )


def test_reading_the_parameters_does_not_read_the_moments(saved):
    """In a checkpoint three times as large, they are one part of it."""
    tree = checkpoint.read_tree(saved[0] / "step_00000002", None, "params")
    assert list(tree) == ["params"]
    assert digest(tree["params"]) == digest(saved[1].params)


def test_relative_folders_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path.relative_to(tmp_path) / "run"
    _, state, _ = start("frozen")
    checkpoint.save(folder, state, {}, best=True)
    assert bits(checkpoint.restore(folder, state)[0]) == bits(state)


SIBLINGS = ("frozen_01", "frozen_of_yesterday", "step_00000250_01", "step_000002501")


@pytest.mark.parametrize("name", ["frozen", "step_00000250"])
@pytest.mark.parametrize("fails", [False, True])
def test_writing_a_folder_leaves_those_whose_names_begin_alike(tmp_path, monkeypatch, name, fails):
    for sibling in SIBLINGS:
        checkpoint.write_tree(tmp_path / sibling, {"a": np.arange(3.0)})
    checkpoint.write_tree(tmp_path / name, {"a": np.zeros(2)})
    if fails:
        monkeypatch.setattr(checkpoint, "checksums", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.write_tree(tmp_path / name, {"a": np.ones(2)})
        monkeypatch.undo()
    else:
        checkpoint.write_tree(tmp_path / name, {"a": np.ones(2)})
    assert {path.name for path in tmp_path.iterdir()} == {*SIBLINGS, name}
    for sibling in SIBLINGS:
        np.testing.assert_array_equal(
            checkpoint.read_tree(tmp_path / sibling, None)["a"], np.arange(3.0)
        )
    # An attempt that fails leaves what was there.
    stored = checkpoint.read_tree(tmp_path / name, None)["a"]
    np.testing.assert_array_equal(stored, np.zeros(2) if fails else np.ones(2))


def test_a_later_phase_keeps_its_own_frozen_parameters(tmp_path):
    """A phase begins at the step at which the last one ended; the best may be of either."""
    frozen, state, _ = start("frozen")
    for phase, best in ((0, True), (1, False), (2, False)):
        checkpoint.save_frozen(tmp_path, frozen, phase)
        checkpoint.save(tmp_path, state, {"phase": phase}, best, phase)
    index = checkpoint.read_index(tmp_path)
    assert index["best"] == {"folder": "step_00000000", "phase": 0}
    assert index["last"] == {"folder": "step_00000000_02", "frozen": "frozen_02", "phase": 2}
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.json",
        "frozen",
        "frozen_02",
        "step_00000000",
        "step_00000000_02",
    }


# What does not fit


def test_before_the_first_save_there_is_nothing_to_restore(tmp_path):
    message = "the run stopped before its first save; start it anew with `overwrite`"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(tmp_path, start()[1])
    with pytest.raises(CheckpointError, match="the run stopped before its first save"):
        checkpoint.load_params(tmp_path, {})


def replace_leaf(state: State, path: str, leaf) -> State:
    flat = paths(state.params)
    return dataclasses.replace(
        state, params=unflatten({p: v for p, v in (flat | {path: leaf}).items() if v is not None})
    )


LEAF = "head/classifier/bias"


@pytest.mark.parametrize(
    ("leaf", "line"),
    [
        (jnp.zeros(5), "! params/head/classifier/bias (3,), expected (5,)"),
        (jnp.zeros(3, jnp.bfloat16), "! params/head/classifier/bias float32, expected bfloat16"),
        (None, "+ params/head/classifier/bias (3,)"),
    ],
)
def test_a_leaf_of_another_shape_or_type_or_none_is_one_line_of_a_diff(saved, leaf, line):
    folder, state = saved
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(folder, replace_leaf(state, LEAF, leaf))
    assert str(caught.value).splitlines()[1:] == [f"  {line}"]


def test_a_leaf_that_the_checkpoint_lacks_is_one_line_of_a_diff(saved):
    """Never a placeholder in its place."""
    folder, state = saved
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(folder, replace_leaf(state, "head/new/kernel", jnp.zeros((2, 2))))
    assert str(caught.value).splitlines()[1:] == ["  - params/head/new/kernel (2, 2)"]
    model = classifier("small", dropout=0.1)
    with pytest.raises(CheckpointError, match="- head/new"):
        checkpoint.load_params(
            folder, graft(model.shapes(), "head/new", jax.ShapeDtypeStruct((2,), np.float32))
        )


def test_another_strategy_does_not_restore(saved):
    with pytest.raises(
        CheckpointError, match=r"do not fit \(- missing, \+ not expected, ! misshapen\)"
    ):
        checkpoint.restore(saved[0], start("full")[1])


# What is damaged


def damaged_error(folder, state) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(folder, state)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "gone", "empty"])
def test_damage_to_any_file_is_one_line_that_names_it(saved, kind):
    """Orbax itself loads arrays with a flipped bit, and tells of a truncated one in pages of a stack trace."""
    folder, state = saved
    random = np.random.default_rng(0)
    files = [
        path
        for path in (folder / "step_00000002").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    assert len(files) > 5
    for file in files:
        whole = file.read_bytes()
        if kind == "flipped":
            at = random.integers(len(whole))
            file.write_bytes(
                whole[:at] + bytes([whole[at] ^ (1 << random.integers(8))]) + whole[at + 1 :]
            )
        elif kind == "gone":
            file.unlink()
        else:
            file.write_bytes(whole[: random.integers(len(whole)) if kind == "truncated" else 0])
        if file.name == "SHA256SUMS" and kind in (
            "truncated",
            "empty",
        ):  # it may end at a whole line
            try:
                checkpoint.restore(folder, state)
            except CheckpointError as fault:
                assert "damaged" in str(fault)
        else:
            message = damaged_error(folder, state)
            assert "step_00000002 is damaged: its file" in message or "is incomplete" in message
            assert file.name in message or file.name == "SHA256SUMS"
        file.write_bytes(whole)
    checkpoint.restore(folder, state)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"last": {}}', '{"last": 3}', '{"last": {"folder": 3}}', "\x80"],
)
def test_a_damaged_index_is_one_line(saved, content):
    folder, state = saved
    (folder / "index.json").write_bytes(content.encode("latin-1"))
    assert str(folder / "index.json") in damaged_error(folder, state)


def test_an_index_that_names_a_folder_that_is_gone_is_one_line(saved):
    folder, state = saved
    shutil.rmtree(folder / "step_00000002")
    assert "step_00000002 is incomplete: No such file or directory" in damaged_error(folder, state)


# Interruptions

CHILD = """
import sys, pathlib
import numpy as np
import jax, jax.numpy as jnp
from adapt.training import checkpoint, step
folder, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for number in range(first, 10_000):
    params = {"encoder": {}, "head": {f"k{i}": jnp.full((200_000,), float(number)) for i in range(4)}}
    state = step.State(jnp.int32(number), params, (), jax.random.key(number), jnp.bool_(False))
    checkpoint.save(folder, state, {"number": number}, best=number % 3 == 1)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_save_that_loads(tmp_path):
    """SIGKILL at several moments; each time the last save that was reported, or a newer one, is there and whole."""
    folder, number, environment = tmp_path / "checkpoints", 0, tiny.environment(tmp_path)
    random = np.random.default_rng(0)
    for _ in range(3):
        words = [sys.executable, "-c", CHILD, str(folder), str(number + 1)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2):
            number = int(child.stdout.readline())
        time.sleep(random.uniform(0, 0.1))  # about as long as a save takes
        os.kill(child.pid, signal.SIGKILL)
        rest = child.communicate()[0].split()
        number = max([number, *map(int, rest)])
        for which in ("last", "best"):
            info = checkpoint.read_index(folder)[which]
            tree = checkpoint.read_tree(folder / info["folder"], None)
            assert int(tree["step"]) == info["number"]
            assert all(np.all(leaf == info["number"]) for leaf in tree["params"]["head"].values())
        assert checkpoint.read_index(folder)["last"]["number"] in (number, number + 1)
        number = checkpoint.read_index(folder)["last"]["number"]
    _, state, _ = start("frozen")
    checkpoint.save(
        folder, dataclasses.replace(state, step=jnp.int32(99_999)), {"number": 0}, best=True
    )
    assert {path.name for path in folder.iterdir()} == {
        "index.json",
        "step_00099999",
    }  # halves are swept away


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 80 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def filled(state: State, size: int) -> State:
    random = np.random.default_rng(int(state.step))  # Orbax compresses
    big = {"encoder": {}, "head": {"big": jnp.asarray(random.standard_normal(size), jnp.float32)}}
    return dataclasses.replace(state, params=big, opt_state=())


@pytest.mark.parametrize("margin", [files.MARGIN, 0, -(1 << 40)])
def test_a_full_disk_is_one_line_and_the_save_before_stays(small_disk, monkeypatch, margin):
    """Whether it is seen beforehand, or (with a margin below zero) in the midst of writing."""
    monkeypatch.setattr(files, "MARGIN", margin)
    folder = small_disk / "checkpoints"
    _, state, _ = start("frozen")
    good = filled(state, 1_000_000 if margin <= 0 else 1000)
    checkpoint.save(folder, good, {"n": 1}, best=True)
    before = {path.name for path in folder.iterdir()}
    huge = filled(dataclasses.replace(state, step=jnp.int32(7)), 30_000_000)
    with pytest.raises(OutputError) as caught:
        checkpoint.save(folder, huge, {"n": 2}, best=True)
    assert len(str(caught.value).splitlines()) == 1
    assert ("make room" in str(caught.value)) == (margin >= 0)
    assert {path.name for path in folder.iterdir()} == before
    restored, info = checkpoint.restore(folder, good)
    assert info["n"] == 1 and bits(restored) == bits(good)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    message = r"cannot make the folder .*file/checkpoints: Not a directory"
    with pytest.raises(OutputError, match=message):
        checkpoint.save(tmp_path / "file" / "checkpoints", start("frozen")[1], {}, best=True)


def test_the_index_is_json_that_a_person_can_read(saved):
    index = json.loads((saved[0] / "index.json").read_text())
    assert index["best"] == {"folder": "step_00000001", "progress": {"epoch": 0}}
    assert index["last"] == {"folder": "step_00000002", "progress": {"epoch": 1}}


def test_saving_leaves_the_state_as_it_was(tmp_path):
    _, state, _ = start()
    before, kept = bits(state), copy(state)
    checkpoint.save(tmp_path, state, {}, best=True)
    assert bits(state) == before == bits(kept)


def test_a_file_that_is_not_in_the_sums_is_damage_too(tmp_path):
    checkpoint.write_tree(tmp_path / "tree", {"a": np.arange(4.0)})
    (tmp_path / "tree" / "SHA256SUMS").write_text("")
    with pytest.raises(CheckpointError, match=r"is damaged: its file .* is not as it was saved"):
        checkpoint.read_tree(tmp_path / "tree", None)
