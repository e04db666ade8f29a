"""The losses of objectives against those of transformers' classes of pre-training, recorded by
tests/references/record_objectives.py; packed batches have the same.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from adapt.models import Model
from adapt.objectives import replaced
from adapt.pretrained import hub
from adapt.training.context import LossContext
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
