"""JSON files that are one object: SQuAD's own are rows, others are refused with the mend."""

import json

import pytest

from adapt.data import tables
from adapt.errors import DataError
from adapt.tasks import TASKS

CONTEXT = "Olaf moved to the city of Graz in 2020."
QUESTION = {
    "id": "0",
    "question": "Where did Olaf move?",
    "answers": [
        {"text": "the city of Graz", "answer_start": 14},
        {"text": "Graz", "answer_start": 26},
    ],
}
NONE = {"id": "1", "question": "Where did Mira move?", "answers": [], "is_impossible": True}


def squad(*questions: dict) -> dict:
    paragraph = {"context": CONTEXT, "qas": list(questions)}
    return {"version": "1.1", "data": [{"title": "Graz", "paragraphs": [paragraph]}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_of_squad_has_a_row_for_every_question(tmp_path, indent):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad(QUESTION, QUESTION), indent=indent))
    table = tables.read(path)
    assert table.columns == ["id", "title", "context", "question", "answers"] and len(table) == 2
    assert table.rows[0]["context"] == CONTEXT
    TASKS["span"].check_labels(table, "answers", ["context", "question"])
    spans = TASKS["span"].encode_labels(table, "answers", [])
    assert spans.tolist() == [[[14, 30], [26, 30]]] * 2


def test_a_question_without_an_answer_is_a_row_without_characters(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad(QUESTION, NONE)))
    table = tables.read(path)
    assert table.rows[1]["answers"] == {"text": [], "answer_start": []}
    spans = TASKS["span"].encode_labels(table, "answers", [])
    assert spans.tolist() == [[[14, 30], [26, 30]], [[-1, -1], [-1, -1]]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"version": 1, "rows": [{"text": "a"}, {"text": "b"}]}, "field 'rows' has 2 rows"),
        ({"text": "a", "label": "b"}, "one object a line"),
        ({"version": 1, "data": []}, "one object a line"),
    ],
)
def test_another_object_over_several_lines_is_refused_with_the_mend(tmp_path, content, said):
    path = tmp_path / "field.json"
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(DataError, match=rf"field\.json is one JSON object.*{said}"):
        tables.read(path)


def test_an_object_whose_data_are_rows_is_no_row_on_a_single_line_either(tmp_path):
    path = tmp_path / "field.json"
    path.write_text(json.dumps({"version": 1, "data": [{"text": "a", "label": "b"}]}))
    with pytest.raises(
        DataError, match=r"field\.json is one JSON object, whose field 'data' has 1"
    ):
        tables.read(path)
    path.write_text(json.dumps({"version": 1, "data": []}))
    with pytest.raises(DataError, match=r"field\.json is one JSON object and has no rows"):
        tables.read(path)


def test_a_hidden_test_has_questions_to_predict_and_no_labels(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad(QUESTION, {"id": "2", "question": "Who moved?"})))
    table = tables.read(path)
    assert table.rows[1]["question"] == "Who moved?" and table.rows[1]["answers"] is None
    with pytest.raises(DataError, match="row 2"):
        TASKS["span"].encode_labels(table, "answers", [])


def test_what_has_not_the_form_of_squad_is_named_and_lines_stay_lines(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad(QUESTION, {"answers": []})))
    with pytest.raises(DataError, match=r"squad\.json: question 2"):
        tables.read(path)
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert len(tables.read(path)) == 2
    for blank in ("\n", "  \n"):
        path.write_text(blank + '{"text": "a"}\n')
        assert len(tables.read(path)) == 1
    path.write_text('{"text": "a"\n{"text": "b"}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        tables.read(path)
