"""What people hold becomes the same table, and what is no list is refused by the parameter's name."""

import datasets
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.data import tables
from adapt.data.inputs import Columns, as_list, make_parts, make_table
from adapt.errors import DataError, StrategyError

TEXTS = ["a good film", "a dull one", "so warm"]
LABELS = ["good", "bad", "good"]
FRAME = pandas.DataFrame({"text": TEXTS, "label": LABELS})


def content(inputs, labels=None, **columns) -> dict[str, list]:
    table, _ = make_table(inputs, labels, Columns(**columns))
    return {name: table.rows[name][:] for name in table.columns}


FORMS = {
    "lists": (TEXTS, LABELS),
    "tuples": (tuple(TEXTS), tuple(LABELS)),
    "arrays": (np.array(TEXTS), np.array(LABELS)),
    "an array of objects": (np.array(TEXTS, object), LABELS),
    "a categorical series": (pandas.Series(TEXTS), pandas.Series(LABELS, dtype="category")),
    "columns of a frame": (FRAME[FRAME.text != ""]["text"], FRAME["label"]),
    "a generator": ((text for text in TEXTS), LABELS),
    "a frame": (FRAME, None),
    "a frame and a column": (FRAME, "label"),
    "a data set": (datasets.Dataset.from_pandas(FRAME), None),
    "columns of a data set": (
        datasets.Dataset.from_pandas(FRAME)["text"],
        datasets.Dataset.from_pandas(FRAME)["label"],
    ),
    "a dict": ({"text": TEXTS, "label": LABELS}, None),
    "a dict and a list": ({"text": TEXTS}, LABELS),
    "a list of rows": (FRAME.to_dict("records"), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_rows_is_the_same_table(form):
    assert content(*FORMS[form]) == {"text": TEXTS, "label": LABELS}


def test_what_a_row_of_a_list_does_not_have_is_missing():
    assert content([{"text": "so", "id": 1}, {"text": "warm", "label": "good"}]) == {
        "text": ["so", "warm"],
        "id": [1, None],
        "label": [None, "good"],
    }


def test_a_filtered_series_keeps_its_rows_whatever_its_index():
    chosen = FRAME[FRAME.label == "good"]
    assert content(chosen["text"], chosen["label"]) == {
        "text": ["a good film", "so warm"],
        "label": ["good", "good"],
    }


SERIES = {
    "series": (FRAME["text"], FRAME["label"][::-1]),
    "a frame and a series": (FRAME[["text"]], FRAME["label"][::-1]),
    "columns of a dict": ({"text": FRAME["text"], "label": FRAME["label"][::-1]}, None),
    "labels of a dict": (FRAME["text"], {"tone": FRAME["label"][::-1]}),
    "an index of several levels": (
        FRAME.set_index(["text", "label"], drop=False)["text"],
        FRAME.set_index(["text", "label"], drop=False)["label"][::-1],
    ),
    "values that can't be sorted": (
        FRAME["text"].set_axis([1, "a", "b"]),
        FRAME["label"].set_axis(["b", 1, "a"]),
    ),
}


@pytest.mark.parametrize("form", SERIES)
def test_the_same_index_in_another_order_is_no_pairing_by_position(form):
    with pytest.raises(DataError, match=r"label.* has the index of `inputs"):
        make_table(*SERIES[form], Columns(), parameter="inputs")


def test_indexes_that_say_nothing_of_an_order_are_paired_by_position():
    for labels in (
        FRAME["label"][::-1].to_numpy(),
        FRAME["label"][::-1].reset_index(drop=True),
        FRAME["label"][::-1].set_axis([7, 8, 9]),
        FRAME["label"][::-1].set_axis([0, 0, 1]),
    ):
        assert content(FRAME["text"], labels)["label"] == LABELS[::-1]
    assert content(FRAME["text"][::-1], FRAME["label"][::-1])["text"] == TEXTS[::-1]


@pytest.mark.parametrize(
    ("kind", "columns"), [("arrow", None), ("numpy", ["label"]), (None, ["text"])]
)
def test_the_format_of_a_data_set_does_not_matter(kind, columns):
    table, _ = make_table(
        datasets.Dataset.from_pandas(FRAME).with_format(kind, columns), None, Columns()
    )
    (chunk,) = tables.chunks(table, ["text", "label"])
    assert chunk == {"text": TEXTS, "label": LABELS}


def test_a_path_is_read_as_the_command_reads_it(tmp_path):
    path = tmp_path / "some.csv"
    FRAME.to_csv(path, index=False)
    assert content(path) == content(str(path)) == {"text": TEXTS, "label": LABELS}
    table, columns = make_table(path, "stars", Columns())
    assert table.name == str(path) and columns.label == "stars"


def test_tuples_are_several_texts_of_an_example():
    assert content([("a", "b"), ("c", "d")]) == {"text": ["a", "c"], "text_pair": ["b", "d"]}
    choices = [("which?", ["this", "that", "none"]), ("who?", ["she", "he", "they"])]
    table, columns = make_table(choices, [0, 2], Columns())
    assert columns.texts == ["text", "text_pair", "text_pair_2", "text_pair_3"]
    assert table.rows["text_pair_3"][:] == ["none", "they"]


def test_labels_of_several_columns_are_a_dict():
    table, columns = make_table(TEXTS, {"tone": LABELS, "topic": ["a", "b", "c"]}, Columns())
    assert columns.label == "tone,topic"
    assert table.rows["topic"][:] == ["a", "b", "c"]


@pytest.mark.parametrize("missing", [float("nan"), None, pandas.NA, np.nan], ids=str)
def test_what_is_missing_is_missing_whatever_stands_for_it(missing):
    labels = pandas.Series(["good", missing, "bad"], dtype=object)
    assert content(TEXTS, labels)["label"] == ["good", None, "bad"]


@given(st.lists(st.integers(-(2**31), 2**31), min_size=1))
def test_numbers_stay_the_same_numbers_in_every_container(values):
    texts = ["a"] * len(values)
    for labels in (values, np.array(values), pandas.Series(values)):
        assert content(texts, labels)["label"] == values


MISTAKES = {
    "a text": ("a good film", LABELS, "a good film"),
    "a label": (TEXTS, "good", "labels"),
    "too few labels": (TEXTS, LABELS[:2], "equally long"),
    "nothing": ([], [], "empty"),
    "a set": (set(TEXTS), LABELS, "no order"),
    "a dict of labels": (TEXTS, dict.fromkeys(LABELS), "labels"),
    "a number": (3, LABELS, "int"),
    "an array of three dimensions": (np.zeros((2, 2, 2)), LABELS, r"\[2, 2, 2\]"),
    "uneven tuples": ([("a", "b"), ("c",)], [0, 1], r"\[1\] has 1"),
    "labels twice": (FRAME, LABELS, "label"),
    "labels that would take the place of the texts": (TEXTS, {"text": LABELS}, "labels"),
    "labels of several types": (TEXTS, ["good", 1, 2.5], "label"),
    "a data set in parts": (
        datasets.DatasetDict({"train": datasets.Dataset.from_pandas(FRAME)}),
        None,
        "train",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_list_is_refused_by_name(mistake):
    inputs, labels, named = MISTAKES[mistake]
    with pytest.raises(DataError, match=named):
        make_table(inputs, labels, Columns(), parameter="inputs")


def test_a_column_of_several_types_is_in_nobodys_way():
    frame = pandas.DataFrame(
        {
            "text": TEXTS,
            "label": LABELS,
            "x": [1, "z", None],
            "bins": pandas.cut([1, 2, 3], 2),
        }
    )
    table, _ = make_table(frame, None, Columns(), parameter="inputs")
    assert list(table.rows["text"]) == list(TEXTS)
    with pytest.raises(DataError, match="'x' can't be read as one type"):
        tables.check_column(table, "x")


@pytest.mark.parametrize("inputs", [TEXTS, {"text": TEXTS}], ids=["a list", "a table"])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, "n", 1], r"row 2: .* 'n' is of type str, and row 1 has 1 of type int: make all"),
        ([None, 1, True], r"row 3: .* True is of type bool, and row 2 has 1 of type int: make all"),
        ([None, 0.5, True], r"row 3: .* True is of type bool, and row 2 has 0.5 of type float"),
        ([1, np.True_, 2], r"row 2: .* is of type bool_?, and row 1 has 1 of type int: make all"),
        ([1j, 1, 2], r"row 1: .* 1j is of type complex: give text or numbers"),
    ],
)
def test_labels_of_several_types_name_the_row_and_both_types(inputs, labels, said):
    with pytest.raises(DataError, match=said):
        table, columns = make_table(inputs, labels, Columns(), parameter="inputs")
        tables.check_column(table, columns.label)


def test_parts_are_named_tables_with_the_columns_of_training():
    parts = make_parts(
        FRAME.rename(columns={"label": "stars"}),
        "stars",
        Columns(),
        validation=(TEXTS, LABELS),
        test=FRAME.rename(columns={"label": "stars"}),
    )
    assert list(parts) == ["train", "validation", "test"]
    assert {part.columns.label for part in parts.values()} == {"stars"}
    assert parts["validation"].table.name == "the validation data"


def test_a_part_has_as_many_texts_as_the_training_data():
    pairs = [(text, text) for text in TEXTS]
    with pytest.raises(StrategyError, match="test"):
        make_parts(TEXTS, LABELS, Columns(), test=(pairs, LABELS))
    with pytest.raises(DataError, match="validation"):
        make_parts(pairs, LABELS, Columns(), validation=(TEXTS, LABELS))


def test_a_bundled_set_is_tested_on_its_own_test_part(monkeypatch):
    asked = []

    def read(name, split=None, quoting=None):
        asked.append((name, split))
        return tables.from_columns({"text": TEXTS, "label": LABELS}, name)

    monkeypatch.setattr(tables, "read", read)
    assert list(make_parts("reviews", None, Columns())) == ["train", "test"]
    assert asked == [("reviews", "train"), ("reviews", "test")]
    with pytest.raises(StrategyError, match="validation"):
        make_parts("reviews", None, Columns(), validation="reviews")


def test_pictures_are_arrays_files_or_pil(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "one.png")
    pictures = [pixels, Image.fromarray(pixels), tmp_path / "one.png"]
    for picture in pictures:
        table, columns = make_table([picture], [1], Columns(), are_images=True)
        assert columns.image == "image"
        assert np.array_equal(np.asarray(table.rows["image"][0]), pixels)


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 5, 3)], ids=["gray", "in colour"])
def test_an_array_of_pictures_is_a_list_of_them(shape):
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    table, _ = make_table(pictures, [1, 2, 3], Columns(), are_images=True)
    for picture, expected in zip(table.rows["image"], pictures, strict=True):
        assert np.array_equal(np.asarray(picture), expected)
    with pytest.raises(DataError, match="uint8"):
        make_table(pictures / 255, [1, 2, 3], Columns(), are_images=True)
    with pytest.raises(DataError, match=r"\[0\] is an array of float"):
        make_table(list((pictures / 255).astype(np.float32)), None, Columns(), are_images=True)


@pytest.mark.parametrize("hold", [np.array, pandas.Series])
def test_short_floats_are_what_they_print_as(hold):
    held = hold([0.1, 0.25, 3.0], dtype="float32")
    assert as_list(held, "labels") == [0.1, 0.25, 3.0]
    assert as_list([np.float32(0.1), np.float16(0.1)], "labels") == [0.1, 0.1]
    assert as_list(pandas.Series([0.1, None], dtype="Float32"), "labels") == [0.1, None]


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64", "datetime64[s]"])
def test_what_a_mask_hides_is_missing(dtype):
    held = np.ma.array(np.array([1, 2, 3]).astype(dtype), mask=[False, True, False])
    found = as_list(held, "labels")
    assert found[1] is None and None not in (found[0], found[2])
    with pytest.raises(DataError, match="masked"):
        as_list(np.ma.array([[1, 2]], mask=[[False, True]]), "labels")


def test_records_are_no_labels():
    records = np.array([(1, 2), (3, 4)], dtype=[("a", int), ("b", int)])
    with pytest.raises(DataError, match="`labels` is an array of records \\(a, b\\)"):
        as_list(records, "labels")


@pytest.mark.parametrize("unit", ["ns", "s", "D"])
def test_times_are_no_numbers(unit):
    """Their count of nanoseconds would be a fine label."""
    days = np.array(["2020-01-01", "2020-01-02"], f"datetime64[{unit}]")
    for values in (days, days - days[0], list(days), pandas.Series(days)):
        assert not any(isinstance(value, int) for value in as_list(values, "labels"))


def test_a_path_of_a_picture_that_is_no_file_is_refused_by_its_name(tmp_path):
    for path, what in ((tmp_path / "none.png", "no file here"), (tmp_path, "a folder")):
        with pytest.raises(
            DataError, match=rf"`texts`\[0\] .*{path.name}', which is {what}, and a p"
        ):
            make_table([path], None, Columns(), are_images=True)
