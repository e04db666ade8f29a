"""Entities are those of seqeval, and their scores are."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data.tables import from_columns
from adapt.errors import DataError, StrategyError
from adapt.ragged import Ragged
from adapt.tasks import TASKS
from adapt.tasks.entities import count_entities, entity_scores, other_spelling, scheme_of
from adapt.tasks.metrics import check_direction, more_is_better
from tests.helpers.tiny import ROOT

RECORDED = json.loads((ROOT / "tests/references/entities.json").read_text("utf-8"))
TYPED = [f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in "BIES"]


def numbers(sentences: list[list[str]], classes: list[str]) -> np.ndarray:
    return np.array([classes.index(tag) for tags in sentences for tag in tags])


def scores_of(classes: list[str], predicted: list[list[str]], true: list[list[str]]) -> dict:
    scheme = scheme_of(classes)
    assert scheme is not None
    is_first = np.array([place == 0 for tags in true for place in range(len(tags))])
    counts = count_entities(scheme, numbers(predicted, classes), numbers(true, classes), is_first)
    return entity_scores(scheme, counts)


def check_report(found: dict, report: dict) -> None:
    """A report of seqeval's has the types that are there or predicted."""
    of_types = {name: scores for name, scores in report.items() if name != "micro avg"}
    micro = report.get("micro avg", {"precision": 0.0, "recall": 0.0, "f1-score": 0.0})
    assert found["entity_precision"] == pytest.approx(micro["precision"])
    assert found["entity_recall"] == pytest.approx(micro["recall"])
    assert found["entity_f1"] == pytest.approx(micro["f1-score"])
    for kind, scores in of_types.items():
        label = "entity" if kind == "_" else kind
        assert found[f"precision:{label}"] == pytest.approx(scores["precision"])
        assert found[f"recall:{label}"] == pytest.approx(scores["recall"])
        assert found[f"f1:{label}"] == pytest.approx(scores["f1-score"])
        assert found[f"support:{label}"] == scores["support"]
    defined = [name for name in found if name.startswith("f1:") and not math.isnan(found[name])]
    assert len(defined) == len(of_types)


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_entity_scores_are_those_that_seqeval_gave(number):
    case = RECORDED[number]
    found = scores_of(case["classes"], case["predicted"], case["true"])
    check_report(found, case["report"])


sentence = st.lists(st.tuples(*[st.sampled_from(["O", *TYPED])] * 2), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(st.lists(sentence, min_size=1, max_size=5))
@pytest.mark.filterwarnings("ignore")
def test_entity_scores_are_those_of_seqeval(pairs):
    seqeval = pytest.importorskip("seqeval.metrics")
    true = [[tag for tag, _ in of_sentence] for of_sentence in pairs]
    predicted = [[tag for _, tag in of_sentence] for of_sentence in pairs]
    report = {}
    if any(tag != "O" for tags in true + predicted for tag in tags):
        report = seqeval.classification_report(true, predicted, output_dict=True, zero_division=0)
    report = {name: scores for name, scores in report.items() if name[-3:] != "avg"} | {
        "micro avg": report.get("micro avg", {"precision": 0, "recall": 0, "f1-score": 0})
    }
    check_report(scores_of(["O", *TYPED], predicted, true), report)


def test_bilou_is_iobes_by_other_letters():
    true = ["O", "U-PER", "U-PER", "B-LOC", "I-LOC", "L-LOC", "U-LOC"]
    predicted = ["O", "U-PER", "O", "B-LOC", "L-LOC", "O", "U-LOC"]
    classes = ["O", *(f"{letter}-{kind}" for kind in ("PER", "LOC") for letter in "BILU")]
    spelled = str.maketrans("LU", "ES")
    other = [tag if tag == "O" else tag[0].translate(spelled) + tag[1:] for tag in classes]
    of_bilou = scores_of(classes, [predicted], [true])
    as_iobes = [[other[classes.index(tag)] for tag in tags] for tags in (predicted, true)]
    assert scores_of(other, as_iobes[:1], as_iobes[1:]) == of_bilou
    assert of_bilou["entity_precision"] == pytest.approx(2 / 3)
    assert of_bilou["entity_recall"] == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    "names",
    [
        ["NN", "VB", "O"],
        ["B", "I", "N"],  # parts of speech
        ["O", "B-PER", "X-PER"],
        ["O", "PER-B", "PER-I"],
        ["O", "B-PER", "I"],
        ["O"],
    ],
)
def test_other_tags_are_of_no_entities(names):
    assert scheme_of(names) is None
    assert TASKS["tags"].deciding_metric(names) == "accuracy"


def test_entities_end_with_their_sentence_and_words_without_token_leave_no_gap():
    task = TASKS["tags"]
    names = ["B-PER", "I-PER", "O"]
    # Three sentences, of which the second has no word with a token.
    labels = Ragged(
        np.array([[0, 0], [1, 1], [0, 1], [1, 2]], np.int32),
        np.array([0, 2, 2]),
        np.array([2, 0, 2]),
    )

    class Part:
        targets = labels.values[:, 1]
        num_outputs = 4

    Part.labels = labels
    truth = task.truth(Part)
    assert truth.tolist() == [[0, 1], [1, 0], [1, 1], [2, 0]]
    found = task.metrics(np.eye(3)[truth[:, 0]], truth, names)
    assert list(found)[:5] == [
        "entity_f1",
        "entity_precision",
        "entity_recall",
        "accuracy",
        "macro_f1",
    ]
    assert task.deciding_metric(names) == "entity_f1"
    assert found["entity_f1"] == 1.0
    assert found["support:PER"] == 2, "an entity went on into the next sentence"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_what_sentences_add_up_to_is_the_score(seed):
    task = TASKS["tags"]
    random = np.random.default_rng(seed)
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    labels = np.stack([random.integers(0, 5, 40), np.arange(40) % 4 == 0], 1)
    logits = random.standard_normal((40, 5))
    scores = task.metrics(logits, labels, names)
    for name, (above, below) in task.score_ratios(logits, labels, names).items():
        assert above.shape == below.shape == (10,)
        if below.sum():
            assert above.sum() / below.sum() == pytest.approx(scores[name])


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["O", "PER-B", "PER-I"], "PER-B"),
        (["B_PER", "I_PER", "O"], "B_PER"),
        (["b-per", "i-per", "o"], "b-per"),
        (["B-PER", "I-PER", "O"], None),
        (["NN", "O", "VB"], None),
        (["B-PER", "I_PER"], None),  # no O: they may be anything
        (["0", "B-PER", "I-PER", "O"], "0"),
        (["B-", "B-PER", "I-PER", "O"], "B-"),
    ],
)
def test_other_spellings_of_entities_are_said(names, example, caplog):
    assert other_spelling(names) == example
    table = from_columns({"label": [names]}, "some.csv")
    assert TASKS["tags"].label_names(table, "label", ["text"]) == sorted(names)
    said = [message for message in caplog.messages if "scored as words" in message]
    assert len(said) == (example is not None)


TRAINED = ["B-LOC", "B-PER", "O"]
TAGGED = [["B-PER", "I-PER", "O"], ["B-ORG", "O", "B-LOC"]]


def evaluated(tags: list[list[str]]) -> tuple[dict, float]:
    """(the scores, the loss) of saying of every word the tag that it has; O where there is no
    output for that.
    """
    task = TASKS["tags"]
    labels = task.encode_labels(from_columns({"label": tags}, "some.csv"), "label", TRAINED)
    words = np.concatenate([np.arange(length) for length in labels.lengths])
    places = dataclasses.replace(labels, values=np.stack([words, labels.values], 1))

    class Part:
        labels = places
        targets = places.values[:, 1]
        num_outputs = len(words)

    outputs = np.eye(3, dtype=np.float32)[np.where(Part.targets < 3, Part.targets, 2)]
    names = task.scored_names(Part, TRAINED)
    return task.metrics(outputs, task.truth(Part), names), task.mean_loss(outputs, Part.targets)


def test_tags_that_training_did_not_have_are_wrong_as_in_seqeval(caplog):
    scores, loss = evaluated(TAGGED)
    # 2 entities are said, of which 1 is right; 3 are true.
    assert scores["entity_precision"] == pytest.approx(1 / 2)
    assert scores["entity_recall"] == pytest.approx(1 / 3)
    assert scores["entity_f1"] == pytest.approx(2 / 5)
    assert (scores["f1:ORG"], scores["support:ORG"]) == (0.0, 1.0)
    assert (scores["f1:LOC"], scores["f1:PER"]) == (1.0, 0.0)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert loss == pytest.approx(-np.log(np.e / (np.e + 2)), abs=1e-6), "of the other four words"
    assert "2 words have tags that training did not have (B-ORG, I-PER)" in caplog.text
    seen, _ = evaluated([["B-PER", "O"]])
    assert "f1:ORG" not in seen


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([["O", "B-LOC"], ["O", "b-per"]], "row 2: tag 'b-per' is 'B-PER' in training"),
        ([["O", "B-PER"], ["O", "FOO"]], "row 2: tag 'FOO' is no tag of entities"),
        ([["O", "B-ORG"], ["I-ORG"]], "row 1: tag 'B-ORG' is unseen in training, as all tags"),
    ],
)
def test_tags_that_can_not_be_meant_as_classes_of_their_own_are_refused(tags, said):
    with pytest.raises(DataError, match=said):
        evaluated(tags)


def test_a_count_does_not_decide():
    with pytest.raises(StrategyError, match="`score` support:PER counts"):
        check_direction("support:PER")
    assert not more_is_better("support:PER") and more_is_better("f1:PER")
