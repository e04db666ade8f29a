"""Faults of data are named, each planted in two ways."""

import numpy as np
import pytest

import adapt
from adapt.doctor.data import fingerprints
from tests.helpers import healthy

pytestmark = pytest.mark.usefixtures("own_cache")
TRAIN = healthy.sentences(240)
TEST = healthy.sentences(60, seed=1)
FLIPPED = {"positive": "negative", "negative": "positive"}


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture
def found(bert):
    def findings(train=TRAIN, **more):
        prepared = healthy.plan(bert, train, **{"test": TEST} | more)
        return {finding.check: finding for finding in prepared.findings}

    return findings


def test_different_rows_are_well(found):
    assert not set(found()) - {"repeated_rows"}


@pytest.mark.parametrize("name", ["test", "validation"])
def test_rows_of_another_part_that_are_trained_on(found, name):
    copies = ([*TRAIN[0][:30], *TEST[0][:10]], [*TRAIN[1][:30], *TEST[1][:10]])
    finding = found(**{name: copies})["repeated_rows"]
    assert finding.evidence["set"] == name and finding.evidence["rows"] >= 30
    assert finding.is_logged, "the library says it where it counts them"


@pytest.mark.parametrize("planted", ["a file twice", "a row in many"])
def test_copies_of_which_some_are_held_out(found, planted):
    texts, labels = TRAIN
    if planted == "a file twice":
        train = (texts * 2, labels * 2)
    else:
        train = (texts + texts[:20] * 3, labels + labels[:20] * 3)
    finding = found(train)["held_out_rows_in_training"]
    assert finding.evidence["share"] > 0.05
    assert "held_out_rows_in_training" not in found(train, validation=TEST)


@pytest.mark.parametrize("planted", ["half shuffled", "flipped once more"])
def test_rows_of_one_input_with_different_labels(found, planted):
    texts, labels = TRAIN
    other = [FLIPPED[label] for label in labels]
    if planted == "half shuffled":
        other = np.random.default_rng(0).permutation(labels).tolist()
    finding = found((texts * 2, labels + other))["contradictory_labels"]
    assert finding.evidence["share"] > 0.02


def test_rows_of_the_evidence_are_those_of_the_file(found):
    """Counted from 1, also where some of the file's rows are held out."""
    texts, labels = TRAIN
    other = [FLIPPED[label] for label in labels[-40:]]
    finding = found((texts + texts[-40:], labels + other))["contradictory_labels"]
    assert len(finding.evidence["first"]) == 5
    assert all(200 < row <= 240 for row in finding.evidence["first"])
    texts = [*texts[:100], *["the film"] * 140]
    first = found((texts, labels))["same_inputs"].evidence["first"]
    assert {texts[row - 1] for row in first} == {"the film"}


@pytest.mark.parametrize("planted", ["one text", "truncated to one"])
def test_rows_with_one_and_the_same_input(found, planted):
    texts, labels = TRAIN
    if planted == "one text":
        texts = [*texts[:100], *["the film"] * 140]
        finding = found((texts, labels))["same_inputs"]
    else:
        texts = [f"the film was {text}" for text in texts]
        finding = found((texts, labels), max_length=5)["same_inputs"]
    assert finding.severity == "error" and finding.evidence["share"] > 0.3


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_words_that_the_vocabulary_does_not_have(found, share):
    words = "ein Satz auf Deutsch"
    count = int(share * len(TRAIN[0]))
    texts = [f"{words} {number}" for number in range(count)] + TRAIN[0][count:]
    finding = found((texts, TRAIN[1]))["unknown_tokens"]
    assert finding.evidence["set"] == "train" and finding.is_logged


@pytest.mark.parametrize("way", ["a short length", "long texts"])
def test_texts_that_are_read_in_part(found, way):
    if way == "a short length":
        finding = found(max_length=5)["truncated_texts"]
    else:
        finding = found(([f"{text} " + "the " * 30 for text in TRAIN[0]], TRAIN[1]))[
            "truncated_texts"
        ]
    assert finding.severity == "note" and finding.evidence["texts"] >= 60


def test_texts_that_are_held_out_are_among_those_that_are_counted(bert):
    findings = healthy.plan(bert, TRAIN, max_length=5).findings
    (finding,) = [one for one in findings if one.check == "truncated_texts"]
    assert finding.evidence["texts"] <= finding.evidence["of"] == 240


@pytest.mark.parametrize("rare", [4, 20])
def test_a_class_so_frequent_that_accuracy_says_little(found, rare):
    labels = ["ham"] * (240 - rare) + ["spam"] * rare
    train = (TRAIN[0], labels)
    test = (TEST[0], ["ham"] * 40 + ["spam"] * 20)
    assert found(train, test=test)["imbalance"].evidence["class"] == "ham"
    assert "imbalance" not in found(train, test=test, score="macro_f1")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_set_with_one_class(found, name):
    one = [text for text, label in zip(*TEST, strict=True) if label == "positive"][:25]
    finding = found(**{name: (one, ["positive"] * len(one))})["absent_classes"]
    assert finding.evidence["set"] == name and finding.severity == "error"


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_set_without_a_class_of_training(found, name):
    """By chance a rare class may have no row; one of which ten are expected has some."""
    texts, _ = TRAIN
    labels = [f"class {number % 4}" for number in range(240)]
    other = (TEST[0], [f"class {number % 3}" for number in range(60)])
    finding = found((texts, labels), **{"test": None, name: other})["missing_classes"]
    assert finding.evidence["classes"] == ["class 3"] and finding.evidence["expected"] > 10
    rare = [*labels[:230], *["class 4"] * 10]
    every = (TEST[0], [f"class {number % 4}" for number in range(60)])
    assert "missing_classes" not in found((texts, rare), **{"test": None, name: every})


@pytest.mark.parametrize("name", ["train", "test"])
def test_values_that_are_all_the_same(found, name):
    values = [float(len(text)) + 0.5 for text in TRAIN[0]]
    constant = (TEST[0], [1.5] * len(TEST[0]))
    sets = {"train": (TRAIN[0], values), "test": None} | {name: constant}
    finding = found(sets["train"], test=sets["test"], task="regression")["constant_values"]
    assert finding.evidence["set"] == name and finding.evidence["value"] == 1.5
    assert "constant_values" not in found((TRAIN[0], values), test=None, task="regression")


@pytest.mark.parametrize("way", ["a text that is cut", "answers longer than a window"])
def test_answers_that_no_example_holds(bert, way):
    words = "the film was good and the plot was great but the cast was dull"
    options = {"stride": 0} if way == "a text that is cut" else {}
    answer = [words.index("dull"), len(words)] if options else [0, len(words)]
    rows = ([(words, "what was it")] * 24, [answer] * 12 + [[0, 3]] * 12)
    whole = ([(words, "what was it")] * 4, [[0, 3]] * 4)
    prepared = healthy.plan(bert, rows, validation=whole, task="span", max_length=14, **options)
    (finding,) = [one for one in prepared.findings if one.check == "answers_cut_off"]
    assert finding.evidence["answers"] == 12 and finding.is_logged
    assert finding.evidence["first"] == [1, 2, 3, 4, 5]


def test_classes_that_words_say(found):
    """The head of pre-training puts out one for the token that is masked."""
    cloze = {
        "task": "cloze",
        "template": "was [MASK] and {text}",
        "verbalizer": "positive=good,negative=bad",
    }
    texts, labels = TRAIN
    other = [FLIPPED[label] for label in labels[-40:]]
    train = (texts + texts[-40:], labels + other)
    one = (TEST[0], ["positive"] * len(TEST[0]))
    names = set(found(train, test=one, **cloze))
    assert {"contradictory_labels", "absent_classes"} <= names
    assert not set(found(**cloze)) & {"contradictory_labels", "absent_classes"}


def test_fingerprints_are_equal_for_equal_tokens_alone(bert):
    texts = ["the film", "film the", "the film", "the", "the the", "a film"]
    labels = ["x", "y"] * 3
    validation = (["the film", "a film"], ["x", "y"])
    train = healthy.plan(bert, (texts, labels), validation=validation).data.sets["train"]
    keys = fingerprints(train)
    assert keys[0] == keys[2] and len(np.unique(keys)) == 5
