"""No false alarm: what the checks say of runs that are well, across tasks, strategies and families."""

import numpy as np
import pytest

import adapt
from adapt.doctor.cases import TrainingCase
from adapt.doctor.checks import CHECKS, run_checks
from adapt.training.strategies import as_text
from tests.helpers import healthy, tiny

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS, LABELS = healthy.sentences(80)
OTHERS = [*TEXTS[1:], TEXTS[0]]
RNG = np.random.default_rng(0)
BERT = "bert_mlm_tied"


def tags_of(texts):
    words = [text.split() for text in texts]
    telling = {*tiny.GOOD, *tiny.BAD}
    tags = [["TELLING" if word in telling else "PLAIN" for word in row] for row in words]
    return words, tags


TASKS = {
    "classification": (TEXTS, LABELS),
    "pairs": (list(zip(TEXTS, OTHERS, strict=True)), LABELS),
    "ten classes": (TEXTS, [f"class {number % 10}" for number in range(80)]),
    "numbers as classes": (TEXTS, [number % 3 for number in range(80)]),
    "regression": (TEXTS, [float(len(text)) + 0.5 for text in TEXTS]),
    "multilabel": (TEXTS, [["a", "b"][: number % 3] or ["c"] for number in range(80)]),
    "tags": tags_of(TEXTS),
    "contrastive": (list(zip(TEXTS, OTHERS, strict=True)), None),
    "setfit": (TEXTS, LABELS),
}
STRATEGIES = (
    "full",
    "frozen",
    "top:1",
    "lora:2",
    "adapters:2",
    "bitfit",
    "prefix:2",
    "lp-ft",
    "full+decay:0.9",
    "full+l2sp:0.01",
    "full+reinit:1",
    "gradual",
)
OPTIONS = (
    {"epochs": 20},
    {"batch_size": 8, "accumulate": 2},
    {"score": "macro_f1"},
    {"class_weights": "balanced"},
    {"cache": "off"},
    {"pooling": "cls"},
    {"learning_rate": 2e-5},
    {"learning_rate": 5e-4, "head_learning_rate": 5e-4},
    {"strategy": "frozen", "head_learning_rate": 1e-3},
    {"random_weights": True},
    {"dtype": "bfloat16"},
    {"strategy": "frozen", "frozen_dtype": "int8"},
)


@pytest.fixture(scope="module")
def load(inputs):
    return lambda case, blocks=1: adapt.load(inputs.checkpoint(case, blocks))


def alarms(pretrained, train, **options):
    found = healthy.names(healthy.plan(pretrained, train, **options).findings)
    return [name for name in found if name != "truncated_texts"]  # which is true of 20 positions


@pytest.mark.parametrize("name", TASKS)
def test_tasks(load, name):
    task = name if name in adapt_tasks() else "classification"
    assert alarms(load(BERT), TASKS[name], task=task) == []


def adapt_tasks():
    from adapt.tasks import TASKS as registered

    return registered


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(load, strategy):
    epochs = 4 if strategy in ("gradual", "lp-ft") else 2
    assert alarms(load(BERT), (TEXTS, LABELS), strategy=strategy, epochs=epochs) == []


@pytest.mark.parametrize("trains", ["all", "the head", "the encoder"])
def test_a_head_that_is_kept(load, trains):
    """It is pre-trained, so the rate of an encoder suits it, and it may be frozen."""
    encoder = as_text([adapt.Phase([("head/.*", adapt.FROZEN), (".*", "encoder")], epochs=2)])
    strategy = {"all": "full", "the head": "frozen", "the encoder": encoder}[trains]
    cloze = {"template": "was [MASK] and {text}", "verbalizer": "positive=good,negative=bad"}
    options = {"task": "cloze", "strategy": strategy, "epochs": 2}
    assert alarms(load(BERT), (TEXTS, LABELS), **options, **cloze) == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(load, options):
    assert alarms(load(BERT), (TEXTS, LABELS), **options) == []


@pytest.mark.parametrize("case", ["gpt2_lm_tied", "bert_pretraining", "bert_bare_pooler"])
def test_families(load, case):
    assert alarms(load(case, None), (TEXTS, LABELS)) == []


def test_pictures(inputs, load):
    pretrained = adapt.load(str(tiny.REFERENCES / "vit_bare_pooler"))
    pictures = [tiny.picture(number) for number in range(24)]
    labels = ["cat", "dog"] * 12
    assert alarms(pretrained, (pictures, labels)) == []


# Most of a run's time is compiling, so that some of the plans above are trained, and not all: one of
# each kind of labels, of strategies and of families.
TRAINED = {
    "ten classes": {"epochs": 4},
    "regression": {"strategy": "frozen"},
    "multilabel": {"strategy": "top:1"},
    "tags": {"epochs": 12, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "dropout": 0.0},
    "gpt2_lm_tied": {"strategy": "bitfit"},
    "vit_bare_pooler": {"strategy": "frozen"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_trained_runs(load, name):
    train = TASKS.get(name, (TEXTS, LABELS))
    task = name if name in adapt_tasks() else "classification"
    family = BERT if name in TASKS else name
    if name == "vit_bare_pooler":
        train = ([tiny.picture(number) for number in range(40)], ["cat", "dog"] * 20)
        pretrained = adapt.load(str(tiny.REFERENCES / name))
    else:
        pretrained = load(family)
    run = healthy.plan(pretrained, train, task=task, batch_size=16, **TRAINED[name]).train()
    found = {entry["check"] for entry in run.result["findings"]}
    assert found <= {"truncated_texts"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("final", [0.05, 0.3, 0.6])
def test_logs_of_runs_that_learned(final, seed):
    """Losses that fall with noise, and a validation that follows or is overfitted in the end."""
    rng = np.random.default_rng(seed)
    history = []
    for epoch, share in enumerate(np.linspace(1, 0, 5)):
        loss = final + (0.69 - final) * share + 0.02 * rng.standard_normal()
        step = 20 * (epoch + 1)
        validation = max(loss + 0.05, 0.4) + 0.1 * (epoch > 3)
        history.append({"epoch": epoch, "step": step, "loss": loss, "rate_head": 1e-3})
        history.append({"epoch": epoch, "step": step, "validation_loss": validation})
    case = TrainingCase(history=history, prior_loss=float(np.log(2)))
    assert run_checks(CHECKS["training"], case) == []
