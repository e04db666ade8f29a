"""Runs of LoRA as training leaves them, without any training."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from adapt import tree
from adapt.models import Classifier, Encoder, Model, Tagger, peft
from adapt.pretrained import hub
from tests.helpers.tiny import REFERENCES


def lora_run(case: str, targets: str = ".*", **fields: object) -> hub.Pretrained:
    """A recorded checkpoint with random LoRA on ``targets``, and other weights in a head that
    predicts.
    """
    base = hub.load_silently(REFERENCES / case)
    lora = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": targets, **fields}
    config = peft.with_peft(base.config, lora)
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    params = dict(tree.paths(base.params))
    for path, leaf in tree.paths(Model(Encoder(config), base.head).shapes()).items():
        if path.endswith("/magnitude"):
            kernel = params[path.replace("/lora/magnitude", "/kernel")]
            lengths = np.linalg.norm(kernel, axis=0)
            draw = lengths * (1 + rng.normal(size=leaf.shape, scale=0.2))
            params[path] = draw.astype(np.float32)
        elif peft.is_peft_param(path):
            params[path] = rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)
        elif path.startswith("head/") and isinstance(base.head, Classifier | Tagger):
            params[path] = params[path] + rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)
    params = tree.unflatten(params | dict.fromkeys(tree.empties(base.params)))
    return dataclasses.replace(base, config=config, params=params)


def with_other_biases(run: hub.Pretrained) -> hub.Pretrained:
    """The run with other biases in its encoder."""
    rng = np.random.default_rng(0)

    def change(path: str, leaf: np.ndarray) -> np.ndarray:
        if not path.startswith("encoder/") or not path.endswith("/bias"):
            return leaf
        return leaf + rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    return dataclasses.replace(run, params=tree.map_paths(change, run.params))


def base_of(case: str) -> Path:
    """The folder of the base of such a run."""
    return REFERENCES / case
