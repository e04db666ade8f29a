"""The contents of an exported folder, as data, and what both libraries' folders share."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.models import CausalLM, Classifier, MaskedLM, MaskedPixels, ReplacedTokens, Span
from adapt.pretrained import families, hub
from adapt.pretrained.families import get_family
from adapt.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Folder:
    """What goes into one folder: config.json, tensors in the file ``weights``, and other text files
    by name.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    files: Mapping[str, str]
    weights: str = hub.WEIGHTS


def makes_embeddings(run: hub.Pretrained) -> bool:
    """Whether what is exported makes vectors and predicts nothing: a run of embeddings, or a
    checkpoint without a head, or with a pooler alone.
    """
    if run.head is None:
        return True
    return isinstance(run.head, Classifier) and not run.head.classes and not run.head.layers


def kind_in_words(run: hub.Pretrained) -> str:
    """The kind of a head, and of a classifier how it pools, such as ``"cls pooling"``."""
    head = run.head
    config = run.config
    if families.head_kind(head) == "projection":
        return "a projection"
    if makes_embeddings(run):
        return f"embeddings by {embedding_pooling(run)}"
    if isinstance(head, Classifier):
        return classifier_kind(head)
    if isinstance(head, MaskedLM):
        own = get_family(config.family).language_model(config, head.tied)
        if not isinstance(own, MaskedLM):
            return "a masked LM"
        if (head.activation, head.norm_epsilon) != (own.activation, own.norm_epsilon):
            return "a masked LM of another activation or epsilon than the family's"
    return families.head_kind(head)


def embedding_pooling(run: hub.Pretrained) -> str:
    """By which pooling vectors are made, where nobody asks for another."""
    return run.embedding.pooling or "mean"


def classifier_kind(head: Classifier) -> str:
    if head.layers:
        return "a mix of layers"
    if head.columns:
        return "several label columns"
    if head.hidden:
        return f"{head.pooling} pooling and a hidden layer with {head.hidden}"
    if head.pooling == "last":
        bias = "a bias" if head.bias else "no bias"
        return f"last pooling and {bias}"
    return f"{head.pooling} pooling"


def model_entries(run: hub.Pretrained, architecture: str) -> dict[str, Any]:
    """What config.json says beside the encoder's shapes."""
    config: dict[str, Any] = {"architectures": [architecture], "dtype": "float32"}
    if isinstance(run.head, MaskedLM | CausalLM):
        return config | {"tie_word_embeddings": run.head.tied}
    if makes_embeddings(run) or isinstance(run.head, Span | ReplacedTokens | MaskedPixels):
        return config
    names = class_names(run)
    config["num_labels"] = len(names)
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: index for index, name in enumerate(names)}
    task = TASKS.get(run.task)
    if task is not None and task.problem_type is not None:
        config["problem_type"] = task.problem_type
    return config


def class_names(run: hub.Pretrained) -> list[str]:
    """The run's own names; transformers' LABEL_0, LABEL_1, ... where it has none; [] without
    classes.
    """
    if run.labels:
        return list(run.labels)
    num_classes = getattr(run.head, "classes", 0)
    return [f"LABEL_{index}" for index in range(num_classes)]


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
