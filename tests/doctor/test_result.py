"""Faults that scores show are named, each planted in two ways."""

import numpy as np
import pytest

from adapt.doctor.cases import ResultCase, ScoredSet, prior_loss
from adapt.doctor.checks import CHECKS, run_checks
from adapt.tasks import get_task

TASK = get_task("classification")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 600)


def outputs_for(labels, right=0.8, classes=3, seed=0):
    """Logits [N, C] of which a share decides for the label, and calibrated at that."""
    rng = np.random.default_rng(seed)
    decided = np.where(
        rng.random(len(labels)) < right, labels, rng.integers(0, classes, len(labels))
    )
    logits = np.zeros((len(labels), classes), np.float32)
    logits[np.arange(len(labels)), decided] = 2.5
    return logits


def scored(name, labels, outputs, keeps_outputs=True):
    scores = TASK.metrics(outputs, labels, ["a", "b", "c"])
    return ScoredSet(
        name=name, scores=scores, labels=labels, outputs=outputs if keeps_outputs else None
    )


def found(*sets, task=TASK, **result):
    baselines = {one.name: TASK.baseline(LABELS, one.labels) for one in sets}
    case = ResultCase(
        task=task, names=["a", "b", "c"], sets=sets, baselines=baselines, result=result
    )
    return {finding.check: finding for finding in run_checks(CHECKS["result"], case)}


HEALTHY = scored("validation", LABELS, outputs_for(LABELS), keeps_outputs=False)


@pytest.mark.parametrize("right", [0.4, 0.6, 0.8, 0.95])
def test_a_run_that_is_better_than_chance_is_well(right):
    validation = scored("validation", LABELS, outputs_for(LABELS, right), keeps_outputs=False)
    test = scored("test", LABELS, outputs_for(LABELS, right, seed=1))
    assert not set(found(validation, test)) - {"overconfident"}


@pytest.mark.parametrize("planted", ["at random", "the rarest class"])
def test_a_score_no_better_than_without_a_look(planted):
    outputs = outputs_for(LABELS, 0.0)
    if planted == "the rarest class":
        rarest = np.bincount(LABELS).argmin()
        outputs = np.eye(3, dtype=np.float32)[np.full(len(LABELS), rarest)]
    finding = found(scored("test", LABELS, outputs))["no_better_than_baseline"]
    assert finding.evidence["set"] == "test" and finding.certainty == "possible"


def test_classes_that_words_say_are_classes():
    cloze = get_task("cloze")
    flipped = scored("test", np.array([1, 0, 2])[LABELS], outputs_for(LABELS))
    assert "labels_in_another_order" in found(HEALTHY, flipped, task=cloze)
    first = scored("test", LABELS, np.eye(3, dtype=np.float32)[np.zeros(len(LABELS), int)])
    assert "one_class_for_all" in found(first, task=cloze)
    assert prior_loss(cloze, np.array([0, 1]), ["a", "b"]) == pytest.approx(np.log(2))


@pytest.mark.parametrize("keeps_outputs", [True, False])
@pytest.mark.parametrize("number", [0, 2])
def test_one_class_for_every_input(number, keeps_outputs):
    """By the outputs; and by the scores alone, as of a validation."""
    outputs = np.eye(3, dtype=np.float32)[np.full(len(LABELS), number)]
    finding = found(scored("test", LABELS, outputs, keeps_outputs))["one_class_for_all"]
    assert finding.evidence["class"] == "abc"[number]


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1]])
def test_labels_in_another_order(order):
    """Two swapped, and all of them numbered otherwise."""
    finding = found(HEALTHY, scored("test", np.array(order)[LABELS], outputs_for(LABELS)))
    assert set(finding) == {"labels_in_another_order"}, "what follows from it is not said again"
    evidence = finding["labels_in_another_order"].evidence
    assert evidence["renamed"] > 0.8 > evidence["accuracy"]
    assert all("abc"[order["abc".index(one)]] == name for one, name in evidence["names"].items())


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1]])
def test_validation_labels_in_another_order(order):
    validation = scored("validation", np.array(order)[LABELS], outputs_for(LABELS))
    assert set(found(validation)) == {"labels_in_another_order"}


@pytest.mark.parametrize("planted", ["shuffled", "a harder set"])
def test_validation_and_test_that_disagree(planted):
    if planted == "shuffled":
        test = scored("test", RNG.permutation(LABELS), outputs_for(LABELS))
    else:
        test = scored("test", LABELS, outputs_for(LABELS, 0.5, seed=2))
    finding = found(HEALTHY, test)["sets_disagree"]
    assert finding.evidence["validation"] > finding.evidence["test"]


def test_sets_that_are_small_or_close_agree():
    few = scored("test", LABELS[:24], outputs_for(LABELS[:24], 0.6, seed=3))
    close = scored("test", LABELS, outputs_for(LABELS, 0.77, seed=1))
    assert "sets_disagree" not in found(HEALTHY, few)
    assert "sets_disagree" not in found(HEALTHY, close)


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_probabilities_above_how_often_they_are_right(scale):
    outputs = scale * outputs_for(LABELS, 0.5)
    for name in ("validation", "test"):
        assert found(scored(name, LABELS, outputs))["overconfident"].severity == "note"
    for unsure in (0.0001, 1.0):
        right = scored("test", LABELS, unsure * outputs_for(LABELS, 0.9))
        assert "overconfident" not in found(right)


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_batches_that_are_mostly_padding(share):
    assert found(HEALTHY, padding=share, steps=100)["padding"].evidence["padding"] == share
    assert found(HEALTHY, padding=0.3, steps=100) == {}
    assert found(HEALTHY, padding=share, steps=3) == {}
