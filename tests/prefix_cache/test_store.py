"""The store of shared arrays: filled once, by whoever comes first; a stop, a second process, a bad file, a full disk."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt import files
from adapt.errors import OutputError
from adapt.prefix_cache import store
from adapt.prefix_cache.store import CachedArray
from tests.helpers import tiny

ROWS, PIECES = 40, 8
SIZE = ROWS // PIECES
EXACT = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)
ENTRY = CachedArray({"what": "a test"}, EXACT.shape, np.dtype("float32"))
CHILD = """
import sys, time
from tests.prefix_cache import test_store
from adapt.prefix_cache import store
store.NOTE_SECONDS = 0.0
until, pause = int(sys.argv[1]), float(sys.argv[2])
def pieces(row):
    for number, piece in enumerate(test_store.pieces(row), row // test_store.SIZE):
        if number == until:
            print("stuck", flush=True)
            time.sleep(60)
        print("piece", number, flush=True)
        time.sleep(pause)
        yield piece
values = test_store.ENTRY.open(pieces, lambda: print("waiting", flush=True))
print("same", (values == test_store.EXACT).all(), flush=True)
"""


def pieces(row: int = 0):
    """The rows of EXACT from one on, a few a piece."""
    for start in range(row, ROWS, SIZE):
        yield EXACT[start : start + SIZE]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted():
    """`counted(row)` are the pieces; `counted.rows` what it was called with."""

    def made(row: int):
        made.rows.append(row)
        yield from pieces(row)

    made.rows = []
    return made


@pytest.fixture
def child(home):
    """`child(5, 0.0)` is a process that fills ENTRY and gets stuck before piece 5; -1: it comes to its end."""
    started = []

    def start(until: int, pause: float = 0.0) -> subprocess.Popen[str]:
        env = tiny.environment(home)
        argv = [sys.executable, "-c", CHILD, str(until), str(pause)]
        started.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names() -> set[str]:
    return {path.name for path in ENTRY.folder.iterdir()}


def test_filled_once_and_mapped_afterwards(counted):
    assert not ENTRY.is_complete
    first, second = ENTRY.open(counted), ENTRY.open(counted)
    assert counted.rows == [0] and ENTRY.is_complete and ENTRY.relative_error == 0
    for values in (first, second):
        assert isinstance(values, np.memmap) and np.array_equal(values, EXACT)
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    assert names() == {"key.json", "values.bin", "done.json", "lock"}
    assert (ENTRY.folder / "values.bin").read_bytes() == EXACT.tobytes()
    assert json.loads((ENTRY.folder / "key.json").read_text())["what"] == "a test"


def test_key_shape_and_dtype_name_the_folder(home):
    others = [
        ENTRY,
        dataclasses.replace(ENTRY, key={"what": "another"}),
        dataclasses.replace(ENTRY, shape=(ROWS, 4)),
        dataclasses.replace(ENTRY, dtype=np.dtype("float16")),
    ]
    assert len({entry.folder for entry in others}) == len(others)
    assert {entry.folder.parent for entry in others} == {home / "prefix"}
    assert dataclasses.replace(ENTRY, key=dict(reversed(ENTRY.key.items()))).folder == ENTRY.folder


def test_killed_in_mid_fill_it_goes_on_where_it_stopped(child, counted, home):
    process = child(5)
    for line in process.stdout:
        if line == "stuck\n":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert names() == {"key.json", "values.part", "progress.json", "lock"} and not ENTRY.is_complete
    values = ENTRY.open(counted)
    assert counted.rows == [5 * SIZE]
    assert np.array_equal(values, EXACT)
    stopped = {name: (ENTRY.folder / name).read_bytes() for name in names()}
    shutil.rmtree(home)
    ENTRY.open(pieces)
    assert stopped == {name: (ENTRY.folder / name).read_bytes() for name in names()}


def test_an_error_in_mid_fill_keeps_what_is_done(counted, monkeypatch):
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)

    def broken(row):
        for number, piece in enumerate(pieces(row)):
            if number == 3:
                raise KeyboardInterrupt
            yield piece

    with pytest.raises(KeyboardInterrupt):
        ENTRY.open(broken)
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows == [3 * SIZE]


def test_the_relative_error_counts_what_was_done_before_the_stop(monkeypatch, home):
    entry = dataclasses.replace(ENTRY, dtype=np.dtype("float16"))
    entry.open(pieces)
    whole = entry.relative_error
    shutil.rmtree(home)
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)

    def broken(row):
        yield from list(pieces(row))[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entry.open(broken)
    entry.open(pieces)
    assert entry.relative_error == pytest.approx(whole, rel=1e-6) and 1e-5 < whole < 1e-3


@pytest.mark.slow
def test_two_processes_at_once_fill_it_once(child):
    first = child(-1, 0.1)
    assert first.stdout.readline() == "piece 0\n"
    second = child(-1)
    (one, _), (two, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert one.splitlines() == [f"piece {number}" for number in range(1, PIECES)] + ["same True"]
    # The second either waited, or came when all was done: it computed nothing.
    assert two.splitlines() in (["waiting", "same True"], ["same True"])


@pytest.mark.slow
def test_one_waits_for_the_other_and_says_so(child):
    first = child(3)
    while first.stdout.readline() != "stuck\n":
        pass
    second = child(-1)
    assert second.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    assert second.poll() is None
    # The kernel lets the lock go with the process that held it, and the second goes on.
    first.kill()
    assert second.communicate(timeout=60)[0].splitlines() == [
        f"piece {n}" for n in range(3, PIECES)
    ] + ["same True"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def renote(folder: Path, change) -> None:
    sums = json.loads((folder / "done.json").read_text())
    change(sums)
    (folder / "done.json").write_text(json.dumps(sums))


SPOILT = {
    "a flipped byte": lambda folder: flip(folder / "values.bin"),
    "cut short": lambda folder: os.truncate(folder / "values.bin", 100),
    "empty": lambda folder: os.truncate(folder / "values.bin", 0),
    "too long": lambda folder: os.truncate(folder / "values.bin", 10_000),
    "no values": lambda folder: (folder / "values.bin").unlink(),
    "done.json cut short": lambda folder: os.truncate(folder / "done.json", 20),
    "done.json of zeros": lambda folder: (folder / "done.json").write_bytes(bytes(50)),
    "done.json of something else": lambda folder: (folder / "done.json").write_text("[1]"),
    "done.json not text": lambda folder: (folder / "done.json").write_bytes(b"\xff\xfe"),
    "no error in it": lambda folder: renote(folder, lambda sums: sums.pop("relative_error")),
    "a word for the error": lambda folder: renote(
        folder, lambda sums: sums.update(relative_error="small")
    ),
    "null for the error": lambda folder: renote(
        folder, lambda sums: sums.update(relative_error=None)
    ),
    "no done.json": lambda folder: (folder / "done.json").unlink(),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_is_not_as_it_was_written_is_filled_anew(counted, how):
    ENTRY.open(pieces)
    before = {name: (ENTRY.folder / name).read_bytes() for name in names()}
    SPOILT[how](ENTRY.folder)
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows[-1] == 0
    assert before == {name: (ENTRY.folder / name).read_bytes() for name in names()}


def note(**changes) -> bytes:
    """A note that five pieces are written, with changes."""
    sha256 = hashlib.sha256(EXACT[: 5 * SIZE].tobytes()).hexdigest()
    fields = {"rows": 5 * SIZE, "sha256": sha256, "squared_error": 0.0, "squared_norm": 0.0}
    return json.dumps(fields | changes).encode()


NOTES = {
    "cut short": note()[:30],
    "empty": b"",
    "zeros": bytes(30),
    "null": b"null",
    "a list": b"[1, 2]",
    "a string": b'"five"',
    "not text": b"\xff\xfe",
    "a word for a number": note(rows="many"),
    "a negative number": note(rows=-1),
    "more rows than there are": note(rows=99),
    "another checksum": note(sha256="0" * 64),
    "an error that is no number": note(squared_error=float("nan")),
}


def test_a_sound_note_is_trusted(counted, monkeypatch):
    half_filled(monkeypatch, 5)
    assert json.loads((ENTRY.folder / "progress.json").read_bytes()) == json.loads(note())
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows == [5 * SIZE]


@pytest.mark.parametrize("how", NOTES)
def test_a_garbled_note_of_progress_starts_anew(counted, monkeypatch, how):
    half_filled(monkeypatch, 5)
    (ENTRY.folder / "progress.json").write_bytes(NOTES[how])
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows[-1] == 0
    assert names() == {"key.json", "values.bin", "done.json", "lock"}


def half_filled(monkeypatch, count: int, seconds: float = -1.0) -> None:
    """ENTRY with ``count`` pieces in it; noted every ``seconds``."""

    def broken(row):
        yield from list(pieces(row))[:count]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "NOTE_SECONDS", seconds)
        with pytest.raises(KeyboardInterrupt):
            ENTRY.open(broken)


def test_a_part_of_another_size_starts_anew(counted, monkeypatch):
    half_filled(monkeypatch, 5)
    os.truncate(ENTRY.folder / "values.part", 100)
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows[-1] == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_part_that_was_damaged_between_a_stop_and_its_resume_is_computed_anew(
    counted, monkeypatch, dtype
):
    entry = dataclasses.replace(ENTRY, dtype=np.dtype(dtype))
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)
    with pytest.raises(KeyError):
        entry.open(
            lambda row: (part if number < 3 else {}["stop"] for number, part in enumerate(pieces()))
        )
    part = np.memmap(entry.folder / "values.part", np.uint8, "r+")
    part[1] ^= 0x10
    part.flush()
    assert np.array_equal(entry.open(counted), EXACT.astype(dtype)) and counted.rows == [0]


def test_what_changes_while_it_is_written_is_an_error_not_a_loop(monkeypatch):
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)

    def spoiling(row):
        for number, piece in enumerate(pieces(row)):
            yield piece
            if number == 2:
                np.memmap(ENTRY.folder / "values.part", np.uint8, "r+")[:] = 7

    with pytest.raises(OutputError, match=r"values\.part is not what was written"):
        ENTRY.open(spoiling)
    assert not ENTRY.is_complete and np.array_equal(ENTRY.open(pieces), EXACT)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(byte=st.integers(0, 3 * SIZE * 12 - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_stopped_file_is_seen(monkeypatch, home, byte, bit):
    shutil.rmtree(home, ignore_errors=True)
    half_filled(monkeypatch, 3)
    part = np.memmap(ENTRY.folder / "values.part", np.uint8, "r+")
    part[byte] ^= 1 << bit
    part.flush()
    rows = []
    values = ENTRY.open(lambda row: rows.append(row) or pieces(row))
    assert rows == [0] and np.array_equal(values, EXACT)


def test_a_half_filled_file_of_the_first_edition_starts_anew(counted):
    """Its rows were in any order, its note had other fields."""
    ENTRY.folder.mkdir(parents=True)
    note = {"pieces": 3, "rows": 15, "error": 0.0, "total": 0.0, "check": 12345}
    (ENTRY.folder / "progress.json").write_text(json.dumps(note))
    (ENTRY.folder / "values.part").write_bytes(EXACT[::-1].tobytes())
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows == [0]


def test_a_complete_file_of_the_first_edition_is_read(counted):
    ENTRY.folder.mkdir(parents=True)
    (ENTRY.folder / "values.bin").write_bytes(EXACT.tobytes())
    done = {"sha256": hashlib.sha256(EXACT.tobytes()).hexdigest(), "relative_error": 0.0}
    (ENTRY.folder / "done.json").write_text(json.dumps(done))
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows == []


def test_pieces_that_are_not_the_whole_array_are_refused():
    with pytest.raises(ValueError, match="35 rows, of 40"):
        ENTRY.open(lambda row: iter(list(pieces())[:-1]))
    assert not ENTRY.is_complete


def test_an_old_note_is_not_taken_for_that_of_a_new_part(monkeypatch):
    """Stopped twice: between the renaming and done.json, and again before the first note of the new filling."""
    half_filled(monkeypatch, 5)
    (ENTRY.folder / "values.part").rename(ENTRY.folder / "values.bin")
    half_filled(monkeypatch, 1, seconds=5.0)
    assert np.array_equal(ENTRY.open(pieces), EXACT)


def test_a_part_of_other_pieces_is_not_there_twice(counted, monkeypatch):
    """Stopped before its first note, it starts anew."""
    half_filled(monkeypatch, 3, seconds=5.0)
    assert names() == {"key.json", "values.part", "lock"}
    assert np.array_equal(ENTRY.open(counted), EXACT) and counted.rows[-1] == 0


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small_is_one_error_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(0, 0, files.MARGIN + ENTRY.nbytes - 1)
    )
    with pytest.raises(
        OutputError, match=r"has 67 MB free and the cache needs 0 MB: make room, point ADAPT_CACHE"
    ):
        ENTRY.open(pieces)
    assert names() == {"key.json", "lock"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, files.MARGIN + ENTRY.nbytes))
    assert np.array_equal(ENTRY.open(pieces), EXACT)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """`disk(70)` is an empty disk of 70 MB, and ADAPT_CACHE."""
    mounted = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(argv, capture_output=True).returncode:
            pytest.skip("only root can mount a small disk")
        mounted.append(folder)
        monkeypatch.setenv("ADAPT_CACHE", str(folder))
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


LARGE = CachedArray({"what": "a large test"}, (5 << 18,), np.dtype("float32"))  # 5 MiB


def ones(row: int = 0):
    """LARGE in five pieces."""
    for start in range(row, 5 << 18, 1 << 18):
        yield np.ones(min(1 << 18, (5 << 18) - start), np.float32)


def test_a_real_disk_that_is_too_small(disk, monkeypatch):
    disk(4)
    with pytest.raises(OutputError, match="has 4 MB free and the cache needs 5 MB"):
        LARGE.open(ones)
    monkeypatch.setattr(store, "need_space", lambda entries: None)  # as if it had filled up since
    with pytest.raises(OutputError, match="has no room for 5 MB: No space left on device"):
        LARGE.open(ones)
    assert {path.name for path in LARGE.folder.iterdir()} == {"key.json", "lock"}


@pytest.mark.parametrize(
    "flush", [pytest.param(5.0, id="before its first note"), pytest.param(-1.0, id="after a note")]
)
def test_a_stopped_filling_needs_no_second_room(disk, monkeypatch, flush):
    """72 MiB hold the array and the margin, but not the array twice."""
    disk(72)
    monkeypatch.setattr(store, "NOTE_SECONDS", flush)

    def broken(row):
        yield next(ones(row))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LARGE.open(broken)
    assert (LARGE.open(ones) == 1).all()


def test_a_folder_that_cannot_be_made_names_the_variable(home):
    home.mkdir()
    (home / "prefix").write_text("a file where the folder should be")
    with pytest.raises(
        OutputError,
        match=r"the cache can't be written .*: point ADAPT_CACHE to another folder, or give",
    ):
        ENTRY.open(pieces)
    assert not ENTRY.is_complete


def test_what_is_there_serves_from_a_disk_that_cannot_be_written(disk):
    folder = disk(70)
    ENTRY.open(pieces)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert np.array_equal(ENTRY.open(pieces), EXACT)


def test_an_error_of_the_input_is_not_said_to_be_the_caches():
    def broken(row):
        raise FileNotFoundError(2, "No such file or directory", "picture.png")
        yield

    with pytest.raises((OSError, OutputError)) as caught:
        ENTRY.open(broken)
    assert "the cache can't be written" not in str(caught.value)


LOSSY = [("bfloat16", 1e-4, 1e-2), ("float16", 1e-5, 1e-3), ("float64", 0.0, 0.0)]


@pytest.mark.parametrize(("dtype", "least", "most"), LOSSY)
def test_another_dtype_notes_its_relative_error(dtype, least, most):
    import ml_dtypes  # noqa: F401  # gives NumPy bfloat16

    entry = dataclasses.replace(ENTRY, dtype=np.dtype(dtype))
    values = entry.open(pieces)
    assert values.dtype == np.dtype(dtype) and np.array_equal(values, EXACT.astype(dtype))
    exact = np.float64(EXACT)
    found = np.linalg.norm(values.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert (
        entry.relative_error == pytest.approx(found, rel=1e-4)
        and least <= entry.relative_error <= most
    )


def test_a_value_that_the_dtype_cannot_hold():
    entry = CachedArray({}, (2,), np.dtype("float16"))
    with pytest.raises(
        OutputError, match="float16 can't hold the values to cache: give `cache_dtype` bfloat16"
    ):
        entry.open(lambda row: iter([np.array([1, 65521], np.float32)]))
    assert not entry.is_complete


def test_a_value_that_the_dtype_cannot_hold_warns_of_nothing():
    """One clear line, with no warning of NumPy's before it."""
    entry = CachedArray({}, (1,), np.dtype("float16"))
    with pytest.raises(OutputError, match="float16 can't hold"):
        entry.open(lambda row: iter([np.array([65521], np.float32)]))


def test_a_value_that_the_dtype_cannot_hold_leaves_no_part():
    entry = CachedArray({}, (1,), np.dtype("float16"))
    with pytest.raises(OutputError, match="float16 can't hold"):
        entry.open(lambda row: iter([np.array([65521], np.float32)]))
    assert not (entry.folder / "values.part").exists()


def test_states_that_are_not_finite_are_kept_as_they_are_for_the_loss_to_tell():
    entry = CachedArray({}, (2,), np.dtype("bfloat16"))
    values = entry.open(lambda row: iter([np.array([np.nan, 1.0], np.float32)]))
    assert np.isnan(float(values[0])) and values[1] == 1 and entry.relative_error == 0


def test_the_largest_float16_is_held():
    entry = CachedArray({}, (2,), np.dtype("float16"))
    values = entry.open(lambda row: iter([np.array([65504, -65504], np.float32)]))
    assert values.tolist() == [65504, -65504] and entry.relative_error == 0


def test_a_link_to_nothing_is_called_so(home):
    ENTRY.folder.parent.mkdir(parents=True)
    ENTRY.folder.symlink_to(home / "nowhere")
    with pytest.raises(OutputError, match=r"the cache can't be written \(.* is a dangling link\)"):
        ENTRY.open(pieces)


def test_a_folder_that_is_deleted_and_filled_by_another_meanwhile_gives_both_the_right_values():
    """The first still holds the lock of the deleted folder when the second makes it anew."""
    values = {}

    def slow(name: str, deletes: bool):
        def made(row: int):
            for number, piece in enumerate(pieces(row)):
                time.sleep(0.03)
                if deletes and number == 2 and name not in values:
                    values[name] = None  # once
                    shutil.rmtree(ENTRY.folder)
                    other.start()
                    time.sleep(0.1)
                yield piece

        return made

    other = threading.Thread(target=lambda: values.update(b=ENTRY.open(slow("b", False))))
    first = ENTRY.open(slow("a", True))
    other.join()
    assert np.array_equal(first, EXACT) and np.array_equal(values["b"], EXACT)


def test_a_folder_that_is_deleted_again_and_again_is_one_line():
    def made(row: int):
        for number, piece in enumerate(pieces(row)):
            if number == 1:
                shutil.rmtree(ENTRY.folder)
            yield piece

    with pytest.raises(
        OutputError, match="is deleted whenever it is filled: leave it alone, or give `cache` off"
    ):
        ENTRY.open(made)


def test_the_error_of_an_array_in_use_is_known_though_its_folder_is_deleted():
    entry = dataclasses.replace(ENTRY, dtype=np.dtype(np.float16))
    values = entry.open(pieces)
    shutil.rmtree(entry.folder)
    assert entry.relative_error > 0 and np.allclose(values, EXACT, rtol=1e-2)
