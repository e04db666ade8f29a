"""Labels: the same numbers for the same labels, whatever the order of the rows."""

import json
import warnings
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data.tables import Table
from adapt.errors import DataError
from adapt.tasks import TASKS


def table(values: list, feature: object = None) -> Table:
    features = feature and datasets.Features({"label": feature})
    return Table(datasets.Dataset.from_dict({"label": values}, features=features), "some.csv")


def labels_of(table: Table, column: str, task: str) -> list[str]:
    return TASKS[task].label_names(table, column, ["text"])


def encode_labels(table: Table, column: str, names: list[str], task: str) -> Any:
    return TASKS[task].encode_labels(table, column, names)


def labels(values: list, task="classification") -> list[str]:
    return labels_of(table(values), "label", task)


@settings(max_examples=20)
@given(st.permutations(["pos", "neg", "NA", "null", "10", "9"]))
def test_the_order_of_rows_does_not_matter(values):
    assert labels(values) == ["9", "10", "NA", "neg", "null", "pos"]
    assert encode_labels(table(values), "label", labels(values), "classification").tolist() == [
        labels(values).index(value) for value in values
    ]


def test_numbers_sort_by_value_and_keep_their_spelling():
    assert labels(["10", "9", "-1", "007", "7", "2.5"]) == ["-1", "2.5", "007", "7", "9", "10"]
    assert labels([10, 9, 100]) == ["9", "10", "100"]
    assert labels([True, False]) == ["False", "True"]


def test_named_labels_keep_their_names_and_order():
    named = table([2, 0, 2], datasets.ClassLabel(names=["world", "sport", "business"]))
    names = labels_of(named, "label", "classification")
    assert names == ["world", "sport", "business"]
    assert encode_labels(named, "label", names, "classification").tolist() == [2, 0, 2]
    # Another file, whose names are numbered otherwise: mapped by name.
    other = table([0, 1], datasets.ClassLabel(names=["sport", "world"]))
    assert encode_labels(other, "label", names, "classification").tolist() == [1, 0]
    several = table(
        [[1, 2], []], datasets.List(datasets.ClassLabel(names=["world", "sport", "business"]))
    )
    assert encode_labels(several, "label", names, "multilabel").tolist() == [[0, 1, 1], [0, 0, 0]]
    unlabelled = table([0, -1], datasets.ClassLabel(names=["sport", "world"]))
    with pytest.raises(DataError, match="row 2 has no label"):
        encode_labels(unlabelled, "label", names, "classification")


@pytest.mark.parametrize(
    "values",
    [
        [["b", "a"], [], ["c"]],
        ['["b", "a"]', "[]", '["c"]'],
        ["b;a", "", "c"],
        ["b; a;", " ", '["c"]'],
    ],
)
def test_multilabel_values_are_lists_json_or_semicolons(values):
    assert labels(values, "multilabel") == ["a", "b", "c"]
    target = encode_labels(table(values), "label", ["a", "b", "c"], "multilabel")
    assert target.dtype == np.float32
    assert target.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_rows_without_a_label_are_said(caplog):
    encode_labels(table(["a;b", "c", ""]), "label", ["a", "b", "c"], "multilabel")
    (said,) = caplog.messages
    assert said.startswith("some.csv: 1 of 3 rows have no label in column 'label'")


def test_numbers_that_float32_can_not_keep_apart_are_named():
    times = [1.7e9 + second for second in range(24)]
    for values in (times, [2**24, 2**24 + 1, 2**24 + 2]):
        with pytest.raises(DataError, match=r"some\.csv: row \d+: .* in float32.*: subtract"):
            encode_labels(table(values), "label", [], "regression")
    centred = encode_labels(table([time - 1.7e9 for time in times]), "label", [], "regression")
    assert centred.tolist() == list(range(24))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), st.sampled_from([0, 1e-17]))
def test_numbers_of_float32_are_taken_as_they_are(values, noise):
    noisy = [value + noise for value in values]
    found = encode_labels(table(noisy), "label", [], "regression")
    assert found.tolist() == np.float32(noisy).tolist()


def test_long_numbers_are_no_spellings_of_one_name(caplog):
    names = ["1234567", "1234568", str(2**53), str(2**53 + 1)]
    assert len(labels(names)) == 4 and not caplog.messages
    labels(["7.0", "007", "8"])
    assert "differ by spelling alone" in caplog.text


def test_a_mark_of_words_that_are_not_scored_is_no_tag():
    with pytest.raises(DataError, match=r"row 2.*-100"):
        labels([[0, 1], [1, -100]], "tags")


def test_dtypes_are_what_the_losses_take():
    assert encode_labels(table(["a", "b"]), "label", ["a", "b"], "classification").dtype == np.int32
    assert labels(["1", "2"], "regression") == []
    target = encode_labels(table(["1", "-2.5", " 3e2 "]), "label", [], "regression")
    assert target.dtype == np.float32
    assert target.tolist() == [1, -2.5, 300]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "three", "", None])
def test_a_target_that_is_no_finite_number_is_named(value):
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(DataError, match=r"^some\.csv: row 2: .* is not a finite"),
    ):
        encode_labels(table(["1", value]), "label", [], "regression")


def test_bad_labels_are_named():
    with pytest.raises(
        DataError, match="column 'label' has only 'a'; classification takes at least two classes"
    ):
        labels(["a", "a"])
    with pytest.raises(DataError, match="has no label at all; multilabel takes at least two"):
        labels(["", ""], "multilabel")
    for missing in ("", "  ", None):
        with pytest.raises(DataError, match=r"some\.csv: row 3 has no label in column 'label'"):
            labels(["a", "b", missing])
    with pytest.raises(
        DataError, match=r"some\.csv: row 2: label 'C' is unseen in training \(a, b\)"
    ):
        encode_labels(table(["a", "C"]), "label", ["a", "b"], "classification")
    with pytest.raises(DataError, match="row 1: label 'z' is unseen"):
        encode_labels(table(["a;z"]), "label", ["a", "b"], "multilabel")
    with pytest.raises(DataError, match=r"row 1: .* is not a JSON list"):
        labels(["['a', 'b']"], "multilabel")
    with pytest.raises(DataError, match="has no column 'y'; it has label"):
        labels_of(table(["a"]), "y", "classification")


# Tasks with other labels


def test_tags_are_the_classes_of_words_however_they_are_spelled():
    for values in ([["N", "V"], ["N"]], ['["N", "V"]', '["N"]'], ["N V", "N"]):
        assert labels(values, "tags") == ["N", "V"]
        found = encode_labels(table(values), "label", ["N", "V"], "tags")
        assert found.values.tolist() == [0, 1, 0] and found.lengths.tolist() == [2, 1]
    assert encode_labels(table(["[ N ]"]), "label", ["N", "[", "]"], "tags").values.tolist() == [
        1,
        0,
        2,
    ]
    with pytest.raises(DataError, match="row 2: tag 'X' is unseen in training, as all tags are"):
        encode_labels(table([["O"], ["X"]]), "label", ["N", "O", "V"], "tags")
    with pytest.raises(DataError, match="row 1 has no label"):
        encode_labels(table([["N", ""]]), "label", ["N", "V"], "tags")


def test_several_columns_are_classes_of_their_own():
    columns = datasets.Dataset.from_dict({"kind": ["b", "a", "b"], "size": [10, 9, 9]})
    both = Table(columns, "some.csv")
    names = labels_of(both, "kind, size", "multitask")
    assert names == ["kind=a", "kind=b", "size=9", "size=10"]
    found = encode_labels(both, "kind, size", names, "multitask")
    assert found.tolist() == [[1, 1], [0, 0], [1, 0]] and found.dtype == np.int32


@pytest.mark.parametrize(
    "value",
    [
        [4, 8],
        "[4, 8]",
        {"text": ["film"], "answer_start": [4]},
        '{"text": "film", "answer_start": 4}',
    ],
)
def test_a_span_is_a_pair_of_characters_or_an_answer_as_squad_has_it(value):
    assert encode_labels(table([value]), "label", [], "span").tolist() == [[4, 8]]


@pytest.mark.parametrize(
    "value", ["", None, "[4]", "[8, 4]", "[-1, 4]", "[a, b]", '{"text": [], "answer_start": [3]}']
)
def test_what_is_no_span_is_named(value):
    with pytest.raises(
        DataError, match=r"^some\.csv: row 2: .* is no span: give \[start, end\], or answer_start"
    ):
        encode_labels(table(["[0, 1]", value]), "label", [], "span")


TOWN = "\U0001f600\U0001f680 Ines moved to Cork last year."
AT = TOWN.index("Cork")


def span_table(start: Any, text: Any = "Cork", context: str = TOWN) -> Table:
    answers = {"text": text, "answer_start": start}
    columns = {"text": [context], "label": [json.dumps(answers)]}
    return Table(datasets.Dataset.from_dict(columns), "some.csv")


def test_an_answer_stands_at_its_offset():
    TASKS["span"].check_labels(span_table(AT), "label", ["text"])
    TASKS["span"].check_labels(span_table([AT, 0], ["Cork", TOWN[:1]]), "label", ["text"])
    for start, text, said in (
        (AT + 2, "Cork", "UTF-16"),
        (AT + 6, "Cork", "UTF-8 bytes"),
        (AT - 1, "Cork", f"begins at {AT}"),
        ([AT, AT], ["Cork", "Ines"], "Ines"),
        (AT, "Kork", "nowhere"),
    ):
        with pytest.raises(DataError, match=rf"some\.csv: row 1: .*{said}"):
            TASKS["span"].check_labels(span_table(start, text), "label", ["text"])


@given(st.text(min_size=1), st.data())
def test_no_other_words_than_the_answer_are_ever_taken(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    text = context[start:end]
    offset = data.draw(
        st.sampled_from(
            [
                start,
                start + 1,
                len(context[:start].encode("utf-16-le")) // 2,
                len(context[:start].encode()),
            ]
        )
    )
    table = span_table(offset, text, context)
    try:
        TASKS["span"].check_labels(table, "label", ["text"])
    except DataError:
        assert context[offset : offset + len(text)] != text
        return
    first, last = encode_labels(table, "label", [], "span")[0]
    assert context[first:last] == text


def test_several_answers_are_kept_and_a_row_with_fewer_has_its_first_again():
    values = [
        {"text": ["Graz", "the city"], "answer_start": [9, 0]},
        {"text": ["Cork"], "answer_start": [3]},
    ]
    spans = encode_labels(table(values), "label", [], "span")
    assert spans.tolist() == [[[9, 13], [0, 8]], [[3, 7], [3, 7]]]


def test_a_question_without_an_answer_has_no_characters():
    values = [{"text": [], "answer_start": []}, {"text": ["Cork"], "answer_start": [3]}]
    assert encode_labels(table(values), "label", [], "span").tolist() == [[-1, -1], [3, 7]]
    assert encode_labels(table(values[:1]), "label", [], "span").tolist() == [[-1, -1]]
    TASKS["span"].check_labels(span_table([], []), "label", ["text"])


@pytest.mark.parametrize(
    "value", [[1.5, 3], "[true, 3]", {"text": ["a", "b"], "answer_start": [1]}]
)
def test_what_is_half_a_span_is_refused(value):
    with pytest.raises(DataError, match="row 1"):
        encode_labels(table([value]), "label", [], "span")


def test_a_choice_is_the_number_of_the_right_one_and_a_contrast_needs_no_label():
    assert encode_labels(table(["2", "0"]), "label", ["0", "1", "2"], "choice").tolist() == [2, 0]
    with pytest.raises(DataError, match="row 1: '3' is not the number of a choice, 0 to 2"):
        encode_labels(table([3]), "label", ["0", "1", "2"], "choice")
    assert encode_labels(table(["x", ""]), "none", [], "contrastive").tolist() == [1, 1]
