"""The files of a comparison's cells."""

import numpy as np
import pytest

from adapt.comparison.cells import Cells, read_arrays, write_arrays
from adapt.errors import OutputError

ARRAYS = {"right": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])}


def test_arrays_come_back(tmp_path):
    path = tmp_path / "cell.npz"
    write_arrays(path, ARRAYS)
    found = read_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["cell.npz"]


@pytest.mark.parametrize("kept", [0, 1, 20, 150, -1])
def test_a_damaged_file_is_named_with_what_to_delete(tmp_path, kept):
    path = tmp_path / "cell.npz"
    write_arrays(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        OutputError, match=r"cell.npz is damaged: delete \S*cell.json, and `resume`"
    ):
        read_arrays(path, path.with_suffix(".json"))


def test_garbage_is_no_array(tmp_path):
    path = tmp_path / "cell.npz"
    path.write_bytes(b"garbage")
    with pytest.raises(OutputError, match=r"delete \S*cell.npz"):
        read_arrays(path)


@pytest.mark.parametrize("text", ["", '{"strategy": "fu', "[]", "{}", '{"tries": [{"rat": 1}]}'])
def test_a_damaged_cell_is_named(tmp_path, text):
    (tmp_path / "full-32-0.json").write_text(text)
    with pytest.raises(OutputError, match=r"full-32-0.json is damaged: delete"):
        Cells(tmp_path)
