"""Answers score as SQuAD's official scripts score them, over windows, with and without answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.models import Span
from adapt.tasks import TASKS, span_scores
from tests.helpers import spans

SPAN = TASKS["span"]
TOWN = "Ines moved to the city of Graz in 2020 ."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The City, of  Graz!", "city of graz"),
        ("an apple a day", "apple day"),
        ("theatre and Athens", "theatre and athens"),
        ("U.S.A.", "usa"),
        ("it's 5 o'clock", "its 5 oclock"),
        (
            "\u201cquoted\u201d\u2014dash",
            "\u201cquoted\u201d\u2014dash",
        ),  # of string.punctuation alone
        ("\tthe\n", ""),
        ("Ünï the-best", "ünï thebest"),
    ],
)
def test_a_text_is_normalized_by_case_punctuation_articles_and_spaces(text, expected):
    assert span_scores.normalized(text) == expected


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["the", "Graz", "graz,", "of", "city", "a"]), max_size=6))
def test_an_answer_is_its_own_best_score_and_f1_does_not_see_the_order(words):
    text = " ".join(words)
    assert span_scores.exact_match(text, ["other", text]) == 1
    assert span_scores.f1(" ".join(reversed(words)), [text]) == 1


def test_the_best_of_several_answers_counts_and_the_same_words_elsewhere_do_too():
    labels = spans.labels(
        [(TOWN, ["the city of Graz", "Graz"]), ("Graz lies south of Graz", ["Graz"])]
    )
    outputs = spans.outputs([(7, 7), (5, 5)])  # Graz
    assert SPAN.metrics(outputs, labels, []) == {"exact_match": 1.0, "f1": 1.0}
    outputs = spans.outputs([(6, 8), (1, 2)])  # of Graz in; Graz lies
    # 2 of 3 words shared with the 3 of "city of graz"; 1 of 2 with the one of "graz"
    expected = {"exact_match": 0.0, "f1": (2 / 3 + 2 / 3) / 2}
    assert SPAN.metrics(outputs, labels, []) == pytest.approx(expected)


def test_several_answers_are_scored_and_the_first_is_the_loss():
    first = spans.labels([(TOWN, ["the city of Graz"])])
    both = spans.labels([(TOWN, ["the city of Graz", "Graz"])])
    outputs = spans.outputs([(7, 7)])
    assert SPAN.mean_loss(outputs, both) == SPAN.mean_loss(outputs, first)
    assert SPAN.metrics(outputs, first, [])["exact_match"] == 0


def test_a_span_that_was_cut_off_is_in_no_score_and_no_loss():
    labels = spans.labels([(TOWN, ["moved"]), (TOWN, ["2020"])], room=5, is_cut=True)
    outputs = spans.outputs([(2, 2), (2, 2)])
    assert np.asarray(labels).tolist() == [[2, 2], [-1, -1]]
    assert SPAN.metrics(outputs, labels, []) == {"exact_match": 1.0, "f1": 1.0}
    assert SPAN.mean_loss(outputs, labels) == SPAN.mean_loss(outputs[:1], labels[[0]])
    nothing = labels[[1]]
    assert np.isnan(SPAN.metrics(outputs[1:], nothing, [])["f1"])
    assert np.isnan(SPAN.mean_loss(outputs[1:], nothing))
    assert SPAN.baseline(labels, labels) == {"majority_accuracy": 1.0}


def test_the_best_span_of_all_windows_of_a_text_answers_in_characters_of_the_text():
    labels = spans.labels([(TOWN, ["Graz"]), ("so Cork", ["Cork"])], room=4, stride=2)
    assert labels.file.windows.counts.tolist() == [4, 1]
    # Windows begin at Ines, to, city, Graz: the third one says the city itself.
    places = [(1, 1), (2, 2), (3, 3), (4, 4), (2, 2)]
    found = span_scores.best_answers(spans.outputs(places, scores=[1, 2, 3, 2, 1]), labels)
    assert found.spans == [(TOWN.index("Graz"), TOWN.index("Graz") + 4, "Graz"), (3, 7, "Cork")]
    # The window of each is one of its own row, whatever the others say.
    found = span_scores.best_answers(spans.outputs(places, scores=[1, 2, 1, 1, 99]), labels)
    assert [text for _, _, text in found.spans] == ["the", "Cork"]


def test_no_answer_lies_in_a_question_or_in_what_is_no_text():
    labels = spans.labels([(TOWN, ["Ines"])])
    outputs = spans.outputs([(0, 0)])  # [CLS] alone
    outputs[0, :, 11] = 50  # beyond the text
    outputs[0, :, 1] = 1
    ((start, end, text),) = span_scores.best_answers(outputs, labels).spans
    assert (start, end, text) == (0, 4, "Ines")


# Without an answer


NONE = [(TOWN, ["Graz"]), (TOWN, []), ("so Cork", ["Cork"]), ("so Cork", [])]


def with_null(margins):
    """Outputs that say the right words in every text, and [CLS] by so much more."""
    outputs = spans.outputs([(7, 7), (7, 7), (2, 2), (2, 2)], scores=[0] * 4)
    outputs[:, :, 0] = np.array(margins)[:, None] / 2
    return outputs


def test_a_question_without_an_answer_is_right_where_none_is_given():
    labels = spans.labels(NONE)
    assert np.asarray(labels).tolist() == [[7, 7], [0, 0], [2, 2], [0, 0]]
    found = SPAN.metrics(with_null([-1, 1, 1, -1]), labels, [])
    assert found == {
        "exact_match": 0.5,
        "f1": 0.5,
        "HasAns_exact": 0.5,
        "HasAns_f1": 0.5,
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
    }
    assert SPAN.baseline(labels, labels) == {"majority_accuracy": 0.5}
    # In a set of which every question has an answer, to give none is wrong.
    labels = spans.labels([row for row in NONE if row[1]])
    assert SPAN.metrics(with_null([1, 9, 1, 9])[[0, 2]], labels, []) == {"exact_match": 0, "f1": 0}


def test_the_threshold_is_the_best_of_validation_and_decides_afterwards():
    labels = spans.labels(NONE)
    outputs = with_null([3, 7, 5, 6])  # answers are right up to 5, none from 6 on
    decisions = SPAN.decide(outputs, labels)
    assert decisions == {"null_threshold": pytest.approx(5.5)}
    scores = SPAN.metrics(SPAN.apply_decisions(outputs, labels, decisions), labels, [])
    assert scores["f1"] == scores["NoAns_f1"] == 1.0
    head = SPAN.with_decisions(Span(12), decisions)
    assert SPAN.decisions_of(head) == decisions
    # Without a decision, as where every question was trained to have an answer, one is given.
    assert SPAN.decide(outputs[[0, 2]], labels[[0, 2]]) == {}
    never = SPAN.metrics(SPAN.apply_decisions(outputs, labels, {}), labels, [])
    assert (never["HasAns_f1"], never["NoAns_f1"]) == (1.0, 0.0)


@settings(max_examples=30)
@given(st.lists(st.integers(-9, 9), min_size=4, max_size=4))
def test_no_other_threshold_is_better(margins):
    labels = spans.labels(NONE)
    outputs = with_null(margins)

    def f1(threshold):
        decided = SPAN.apply_decisions(outputs, labels, {"null_threshold": threshold})
        return SPAN.metrics(decided, labels, [])["f1"]

    best = f1(SPAN.decide(outputs, labels)["null_threshold"])
    assert best == max(f1(threshold) for threshold in np.arange(-11, 11, 0.25))


def test_no_answer_has_to_be_the_best_in_every_window():
    labels = spans.labels([(TOWN, []), (TOWN, ["2020"])], room=6, stride=3)
    per_row = int(labels.file.windows.counts[0])
    outputs = spans.outputs([(1, 1)] * 2 * per_row, scores=[0] * 2 * per_row)
    outputs[:, :, 0] = 1
    assert (span_scores.best_answers(outputs, labels).margins > 0).all()
    outputs[1, :, 0] = -1  # one window of the first says that the answer is there
    assert (span_scores.best_answers(outputs, labels).margins > 0).tolist() == [False, True]


# The official scripts


# (answer, gold answers, exact match, F1): as squad_metrics of transformers 4.46.3 and SQuAD of
# torchmetrics 1.9.0 give them; 20,000 random ones of these words were the same in all three.
RECORDED = [
    ("-- graz don\u2019t \u00e9", ["-- Graz don\u2019t \u00e9"], 1, 1.0),
    ("-- \u00e9 5% Graz", ["\u00e9"], 0, 0.5),
    ("the \u2014 the u.s.", ["THE", "The a graz,", "the \u2014 The U.S."], 1, 1.0),
    ("\u00e9", ["Graz don\u2019t An", "Graz", "\u00e9"], 1, 1.0),
    ("the. don\u2019t --", ["x-ray THE", "the. don\u2019t --"], 1, 1.0),
    ("graz, it's", ["graz, it's"], 1, 1.0),
    ("\u2014 An city", ["\u2014 An", "Graz", "\u00e9 a don\u2019t"], 0, 2 / 3),
    ("x-ray x-ray", ["Graz"], 0, 0.0),
    ("the 5% the. it's city", ["the 5% the. it's"], 0, 0.8),
    ("Graz city", ["Graz", "x-ray", "U.S. Graz"], 0, 2 / 3),
    ("THE 5% -- city", ["THE 5% --", "Graz"], 0, 2 / 3),
]


@pytest.mark.parametrize(("answer", "gold", "exact", "f1"), RECORDED)
def test_an_answer_scores_as_other_implementations_score_it(answer, gold, exact, f1):
    assert span_scores.exact_match(answer, gold) == exact
    assert span_scores.f1(answer, gold) == pytest.approx(f1)


def test_answers_without_words_score_as_the_script_of_the_files_format_scores_them():
    rows = [("?! it was The", ["The"]), ("?! it was Cork", ["?!"]), ("so Porto", ["Porto"])]
    said = spans.outputs([(1, 1), (4, 4), (1, 1)])  # ?!, Cork and so
    labels = spans.labels(rows)
    # evaluate-v1.1.py: equal after normalization, and no word is shared.
    assert SPAN.metrics(said, labels, []) == pytest.approx({"exact_match": 1 / 3, "f1": 0.0})
    # evaluate-v2.0.py: neither has a word, and f1 says what exact_match does.
    labels = spans.labels([*rows, ("so Lodz", [])])
    said = spans.outputs([(1, 1), (4, 4), (1, 1), (0, 0)])
    scores = SPAN.metrics(said, labels, [])
    assert scores["HasAns_exact"] == scores["HasAns_f1"] == pytest.approx(1 / 3)
    assert span_scores.f1("the", ["?!", "Graz"], of_no_words=0) == 0
    assert span_scores.f1("the", ["?!", "Graz"]) == 1
    assert span_scores.f1("the", ["Graz"]) == span_scores.f1("Graz", ["the"]) == 0


# (text, its answers, the tokens that are said; (0, 0) is no answer)
SET = [
    ("in The city of Graz! now", ["Graz", "The city of Graz"], (2, 5)),
    (TOWN, [], (0, 0)),
    ("born in 2020 there", ["2020"], (2, 3)),
    ("so Cork", [], (2, 2)),
    ("so Porto", ["Porto"], (0, 0)),
    ("lodz or Lodz or \u0141\u00f3d\u017a", ["Lodz", "\u0141\u00f3d\u017a"], (1, 1)),
    ("An old town and the end", ["the", "old town"], (1, 3)),
]


def test_a_set_scores_as_squad_evaluate_of_transformers_scores_it():
    labels = spans.labels([(text, answers) for text, answers, _ in SET])
    assert SPAN.metrics(spans.outputs([places for _, _, places in SET]), labels, []) == {
        "exact_match": pytest.approx(0.5714285714285715),
        "f1": pytest.approx(0.6666666666666666),
        "HasAns_exact": pytest.approx(0.6),
        "HasAns_f1": pytest.approx(0.7333333333333333),
        "NoAns_exact": pytest.approx(0.5),
        "NoAns_f1": pytest.approx(0.5),
    }
