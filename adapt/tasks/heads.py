"""What ``--task`` and its flags ask for: text columns, the head, the loss; and whether they go together."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt.errors import StrategyError
from adapt.models import Classifier, Span, Tagger
from adapt.pretrained import hub
from adapt.tasks.registry import TASKS, Task, multitask
from adapt.tasks.targets import columns_of
from adapt.training import losses

# How many columns --text-pair-column names, at least and at most; else none or one.
OTHERS = {"tags": (0, 0), "setfit": (0, 0), "contrastive": (1, 1), "choice": (2, 1000)}
TEXT_ONLY = ("tags", "span", "choice", "contrastive", "setfit")


def text_columns(config: Any) -> list[str]:
    """The column of the text, and those of the other texts of a row."""
    pair = getattr(config, "text_pair_column", None)
    return [config.text_column, *(columns_of(pair) if pair else [])]


def task_of(config: Any) -> Task:
    """The task, whose metrics have the names of the label columns where there are several."""
    if config.task != "multitask":
        return TASKS[config.task]
    metrics = partial(multitask, columns=columns_of(config.label_column))
    return dataclasses.replace(TASKS[config.task], metrics=metrics)


def check(config: Any, pretrained: hub.Pretrained) -> None:
    """Raise :class:`StrategyError` for flags of the task that do not go together, or not with the encoder."""
    check_columns(config.task, text_columns(config), pretrained)
    task = TASKS[config.task]
    layers = pretrained.config.layers
    if config.task == "contrastive" and config.accumulate > 1:
        raise StrategyError(
            f"--accumulate {config.accumulate} would leave an example of --task contrastive fewer negatives than "
            "--batch-size has: give --accumulate 1"
        )
    columns = columns_of(config.label_column)
    if config.task == "multitask" and (
        len(set(columns)) < len(columns) or any("=" in name for name in columns)
    ):
        raise StrategyError(
            f"--label-column {config.label_column}: label columns must differ, and have no = in their names"
        )
    if config.class_weights != "none" and task.loss is not losses.cross_entropy:
        raise StrategyError(
            f"--class-weights {config.class_weights} goes with classification and tags, not {config.task}"
        )
    if task.head is not Classifier and (config.pooling or config.layers):
        flag = "--pooling" if config.pooling else "--layers"
        raise StrategyError(
            f"{flag} is for heads that pool, and --task {config.task} reads the tokens of the last layer"
        )
    if config.mix == "learned" and not config.layers:
        raise StrategyError("--mix learned mixes the layers that --layers names: name them")
    if config.layers and config.pooling == "pooler":
        raise StrategyError(
            "--pooling pooler was trained on the last layer alone: leave --layers out"
        )
    if absent := [layer for layer in config.layers if not 0 <= layer <= layers]:
        raise StrategyError(
            f"--layers {absent[0]} is not there: the encoder has layers 0 (embedding) to {layers}"
        )


def check_columns(task: str, columns: list[str], pretrained: hub.Pretrained) -> None:
    """Raise :class:`StrategyError` for more or fewer text columns than the task takes, or any on an image encoder."""
    others, (least, most) = len(columns) - 1, OTHERS.get(task, (0, 1))
    if not least <= others <= most:
        wants = {(0, 0): "none", (1, 1): "one", (0, 1): "one at most"}.get(
            (least, most), f"{least} or more"
        )
        raise StrategyError(
            f"--text-pair-column names {others or 'no'} columns, and the task {task} takes {wants}"
        )
    if pretrained.config.is_image and (task in TEXT_ONLY or others):
        what = "--text-pair-column" if others else f"the task {task}"
        raise StrategyError(f"{pretrained.source} is an image encoder, and {what} is for texts")


def new_head(config: Any, pretrained: hub.Pretrained, names: list[str]) -> Any:
    """The module of the task, for labels of these names."""
    task = TASKS[config.task]
    c = pretrained.config
    classes = len(names) if task.classes is None else task.classes
    if task.head is Span:
        assert pretrained.tokenizer is not None  # checked with the columns
        return Span(pretrained.tokenizer.max_length, c.dropout)
    if task.head is Tagger:
        return Tagger(classes, c.dropout)
    pooling = config.pooling or {"gpt2": "last", "vit": "cls"}.get(c.family, "mean")
    # A head for GPT-2's last token has no bias, as in the original library, so that it can be exported; between choices
    # one would be of no effect.
    bias = (c.family, pooling) != ("gpt2", "last") and config.task != "choice"
    columns = columns_of(config.label_column) if config.task == "multitask" else []
    widths = tuple(sum(name.startswith(f"{column}=") for name in names) for column in columns)
    return Classifier(classes, pooling, bias, c.dropout, tuple(config.layers), config.mix, widths)


def loss_of(config: Any, labels: np.ndarray, names: list[str]) -> losses.Loss:
    """The loss of the task in training; with ``--class-weights balanced``, an example counts N / (classes * its class's).

    That is scikit-learn's formula; over the set, weights average 1.
    """
    loss = TASKS[config.task].loss
    if config.class_weights == "none":
        return loss
    counts = np.bincount(labels, minlength=len(names))
    weights = jnp.asarray(len(labels) / (len(counts) * np.maximum(counts, 1)), jnp.float32)
    return lambda outputs, label: loss(outputs, label) * weights[label]
