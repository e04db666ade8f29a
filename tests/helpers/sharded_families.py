"""The states of recorded checkpoints on a mesh of eight devices, in a program of its own.

    python -m tests.helpers.sharded_families '["bert_mlm_tied"]'

It prints a line of JSON a case: the largest difference of the means of the last states from those
that the original library recorded, and how many leaves of the encoder no device holds whole.
"""

import json
import sys
from pathlib import Path

from tests.helpers import sharded  # isort: skip - it sets the number of devices

import jax
import numpy as np

from adapt import tree
from adapt.features import features_at
from adapt.models import Classifier, Encoder, Model
from adapt.parallel import sharding
from adapt.pretrained import hub
from tests.helpers.recorded import unpacked

REFERENCES = Path(__file__).parents[1] / "references"
MESH = "data=2,fsdp=2,tensor=2"


def report(case: str) -> dict[str, float]:
    """What the program prints of a case."""
    layout = sharding.make_layout(MESH)
    assert layout is not None
    loaded = hub.load(REFERENCES / case)
    model = Model(Encoder(loaded.config), Classifier(0, "mean"), layout)
    params = layout.shard(tree.drop(loaded.params, "head") | {"head": {}})
    recorded = dict(np.load(REFERENCES / case / "outputs.npz"))
    batch = unpacked(recorded)
    groups = {name: np.stack([array] * layout.groups) for name, array in batch.items()}
    found = np.asarray(features_at(model, loaded.config.layers)(params, groups))

    states = recorded["last_hidden_state"]
    means = [states[row, :length].mean(0) for row, length in enumerate(batch["length"])]
    expected = np.tile(np.stack(means), (layout.groups, 1))
    split = 0
    for leaf in jax.tree.leaves(params["encoder"]):
        split += leaf.addressable_shards[0].data.size < leaf.size
    return {"error": float(np.abs(found - expected).max()), "split": split}


if __name__ == "__main__":
    assert len(jax.devices()) == 8, sharded.__doc__
    for name in json.loads(sys.argv[1]):
        print(json.dumps(report(name)), flush=True)
