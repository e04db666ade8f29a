"""What README says runs: the lines under "Extending it", as they stand there."""

import re

import jax
import numpy as np

from adapt.models import POOLINGS, Classifier, Encoder, Model
from adapt.training import strategies
from adapt.training.optim import FROZEN
from adapt.tree import paths
from tests.helpers.small import CONFIGS, batch, params
from tests.helpers.tiny import ROOT


def test_a_strategy_and_a_pooling_are_added_as_readme_says(monkeypatch):
    section = (
        (ROOT / "README.md")
        .read_text("utf-8")
        .partition("## Extending it")[2]
        .partition("\n## ")[0]
    )
    for name in ("STRATEGIES", "POOLINGS"):  # what the lines change is changed back
        home = (
            strategies
            if name == "STRATEGIES"
            else __import__("adapt.models.heads", fromlist=["heads"])
        )
        monkeypatch.setattr(home, name, getattr(home, name).copy())
    monkeypatch.setattr(
        "adapt.models.POOLINGS", __import__("adapt.models.heads", fromlist=["heads"]).POOLINGS
    )
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    exec(code, {})
    assert "ends" not in POOLINGS  # the copy that this module holds
    model = Model(Encoder(CONFIGS["bert"]), Classifier(2, "ends"))
    tree, made = params(model), batch()
    x = model.hidden_states(tree, made)[-1].reshape(-1, 16)
    pooled = np.asarray(model.prefix(tree, made, model.stages))
    first = made["first"]
    np.testing.assert_allclose(pooled, (x[first] + x[first + made["length"] - 1]) / 2, rtol=1e-6)
    labels, factors = strategies.label_phase(
        strategies.strategy("norms+decay:0.9", 2).phases[0], tree, 2
    )
    moving = {
        path
        for path, group in paths(labels).items()
        if group != FROZEN and path.startswith("encoder/")
    }
    assert moving == {
        path for path in paths(tree) if "norm/" in path and path.startswith("encoder/")
    }
    assert factors["encoder_02"] == 1.0 and jax.numpy.isclose(factors["encoder_01"], 0.9)
