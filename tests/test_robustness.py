"""A small form of `python -m tests.robustness`; and that it finds what it looks for."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers import tiny
from tests.helpers.robustness import by_hand, doors, mutations


@pytest.mark.slow
def test_damaged_inputs_and_killed_processes_end_well(tmp_path, compiled, forks):
    flags = ["--mutations", "24", "--kills", "1", "--disks", "0", "--out", str(tmp_path / "out")]
    env = forks.env | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    done = forks.run(["tests.robustness", *flags], env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = {}
    for name in ("outcomes", "kills"):
        counts[name] = (tmp_path / f"out/{name}.jsonl").read_text().count("\n")
    assert counts["outcomes"] >= 20 and counts["kills"] == 1


@pytest.mark.parametrize("kind", mutations.BYTES)
def test_damage_is_the_same_for_the_same_number(kind):
    content = bytes(range(256))
    one, other = (kind(content, np.random.default_rng(3)) for _ in range(2))
    assert one == other != content


def test_a_value_of_json_is_changed_in_place():
    content = json.dumps({"a": [1, {"b": 2}], "c": "d"}).encode()
    changed = {mutations.change_value(content, np.random.default_rng(seed)) for seed in range(30)}
    assert content not in changed and len(changed) > 15


def test_what_is_no_clear_line_is_as_bad_as_a_traceback():
    def fail(error: Exception) -> None:
        raise error

    assert doors.call(lambda: fail(ZeroDivisionError())).kind == doors.TRACEBACK
    assert doors.call(lambda: 1) == doors.Answer(doors.TAKEN, value=1)
    assert doors.refusal("row 3 has no text").kind == doors.REFUSED
    assert doors.refusal("the trees differ:\n  - a").kind == doors.REFUSED
    assert doors.refusal("Traceback\nof another library").kind == doors.TRACEBACK
    assert doors.refusal("").kind == doors.TRACEBACK


def test_the_readers_by_hand_see_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.arange(4, dtype=np.float32)}, path)
    found = by_hand.tensors(path)
    assert found is not None and found["a"][:2] == ("F32", (4,))
    path.write_bytes(path.read_bytes()[:-1])
    assert by_hand.tensors(path) is None

    picture = tmp_path / "a.png"
    tiny.picture(0).save(picture)
    whole = picture.read_bytes()
    assert by_hand.png_is_whole(whole)
    damaged = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    assert not by_hand.png_is_whole(damaged) and not by_hand.png_is_whole(whole[:-5])

    rows = tmp_path / "a.jsonl"
    rows.write_text('{"a": 1, "a": 2}\n')
    assert by_hand.json_rows(rows) is None
