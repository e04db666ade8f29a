"""The losses of objectives against those of transformers' classes of pre-training, recorded by
tests/references/record_objectives.py; packed batches have the same.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from adapt.errors import StrategyError
from adapt.models import Model
from adapt.objectives import OBJECTIVES, base, replaced
from adapt.pretrained import hub
from adapt.training.context import LossContext
from adapt.training.step import PARTS
from tests.helpers.recorded import packed, unpacked

REFERENCES = Path(__file__).parents[1] / "references"
RECORDED = np.load(REFERENCES / "objectives.npz")


def batch_of(case: str) -> dict[str, np.ndarray]:
    """The recorded inputs of a case."""
    return unpacked(dict(np.load(REFERENCES / case / "outputs.npz")))


def context_of(model: Model, params, batch) -> LossContext:
    return LossContext(model, params, batch, jax.random.key(0))


def mean(measure) -> float:
    values, weights = measure
    return float((values * weights).sum() / weights.sum())


def test_more_losses_than_a_step_counts_are_refused():
    part = {"label": np.zeros(2, np.int32), "weight": np.ones(2, np.float32)}
    assert base.join_parts(*[part] * PARTS)["part"].max() == PARTS - 1
    with pytest.raises(StrategyError, match=f"{PARTS + 1} losses"):
        base.join_parts(*[part] * (PARTS + 1))


def test_the_loss_of_replaced_tokens_is_that_of_the_original_class():
    case = "electra_discriminator"
    loaded = hub.load(REFERENCES / case)
    rows = batch_of(case) | {"labels": RECORDED[f"{case}/labels"]}

    @jax.jit
    def judged(batch):
        weight = (batch["segments"] < len(batch["first"])).reshape(-1).astype(np.float32)
        context = context_of(loaded.model, loaded.params, batch)
        return replaced.judged(context, batch["tokens"], batch["labels"] > 0, weight)

    expected = float(RECORDED[f"{case}/loss"])
    alone = judged(rows)
    together = judged(packed(rows))
    assert mean(alone["replaced_loss"]) == pytest.approx(expected, abs=1e-5)
    for name, measure in together.items():
        assert mean(measure) == pytest.approx(mean(alone[name]), abs=1e-5), name


@pytest.mark.parametrize(
    ("case", "objective"),
    [("bert_pretraining", "next-sentence"), ("albert_pretraining", "sentence-order")],
)
def test_the_loss_of_sentence_pairs_is_that_of_the_original_class(case, objective):
    loaded = hub.load(REFERENCES / case)
    following = RECORDED[f"{case}/next"]
    rows = batch_of(case) | {"labels": RECORDED[f"{case}/labels"]}

    @jax.jit
    def measured(batch):
        context = context_of(loaded.model, loaded.params, batch)
        return OBJECTIVES[objective].measures(context)

    def loss(rows) -> float:
        labels = rows["labels"].reshape(-1)
        is_text = rows["segments"].reshape(-1) < len(rows["first"])
        (targets,) = np.nonzero((labels != -100) & is_text)
        masked = {"label": labels[targets], "weight": np.ones(len(targets), np.float32)}
        pairs = {"label": following, "weight": np.ones(len(following), np.float32)}
        batch = {name: array for name, array in rows.items() if name != "labels"}
        batch |= {"targets": targets.astype(np.int32), **base.join_parts(masked, pairs)}
        means = {name: mean(measure) for name, measure in measured(batch).items()}
        return OBJECTIVES[objective].total(means)

    expected = float(RECORDED[f"{case}/loss"])
    assert loss(rows) == pytest.approx(expected, abs=1e-5)
    assert loss(packed(rows)) == pytest.approx(expected, abs=1e-5)
