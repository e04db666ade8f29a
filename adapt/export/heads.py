"""Heads of sequences as transformers' classes hold them.

A class has one head: the first token through a dense layer and tanh, say, and a projection. Another
head fits it where weights can be written with which the class computes the same.
"""

import dataclasses

import numpy as np

from adapt import tree
from adapt.export import card
from adapt.models import Classifier
from adapt.pretrained import hub
from adapt.pretrained.families import Family

# Hidden activations through which a head without a hidden layer can be written.
NEARLY_LINEAR = ("tanh", "relu", "gelu")
TANH_SCALE = np.float32(2.0**-16)  # a power of two, so that scaling is exact
GELU_LINEAR_FROM = 8.0  # from here on gelu(x) is x in float32


def target_of(head: Classifier, family: Family) -> Classifier | None:
    """The head of the family's class that can hold this one; None if there is none."""
    for target in family.sequence_heads:
        if holds(target, head):
            return target
    return None


def holds(target: Classifier, head: Classifier) -> bool:
    """Whether a class with the head ``target`` can compute what ``head`` does."""
    if head.layers or head.columns or (head.bias and not target.bias):
        return False
    pooling, hidden, has_norm = shape_of(target)
    if shape_of(head) == (pooling, hidden, has_norm) or is_half(target, head):
        return True
    is_plain = shape_of(head) == ("cls", "", False)
    return is_plain and pooling == "cls" and hidden in NEARLY_LINEAR and not has_norm


def is_half(target: Classifier, head: Classifier) -> bool:
    """Whether the class reads the class token beside the mean of the patches, and the head one of
    them.
    """
    return (
        target.pooling == "cls+patches" and head.pooling in ("cls", "patches") and not head.hidden
    )


def with_other_half(leaves: tree.Tree, pooling: str) -> tree.Tree:
    """The classifier of one half of what a class reads, with zeros for the other."""
    kernel = np.asarray(leaves["classifier"]["kernel"])
    halves = [kernel, np.zeros_like(kernel)]
    if pooling == "patches":
        halves.reverse()
    return leaves | {"classifier": leaves["classifier"] | {"kernel": np.concatenate(halves)}}


def shape_of(head: Classifier) -> tuple[str, str, bool]:
    """(pooling, activation of the hidden layer or "", whether a norm follows it).

    The pooler is a hidden layer by another name.
    """
    if head.pooling == "pooler":
        return "cls", "tanh", False
    return head.pooling, head.hidden, head.hidden_norm


def fit(run: hub.Pretrained, target: Classifier) -> tuple[hub.Pretrained, list[str]]:
    """(the run with its head as ``target`` has it, notes on it for the card)."""
    notes = []
    layer = "pooler" if target.pooling == "pooler" else "hidden"
    leaves = dict(run.params["head"])
    if shape_of(run.head) == shape_of(target):
        for name in ("pooler", "hidden"):
            if name in leaves:
                leaves[layer] = leaves.pop(name)
    elif is_half(target, run.head):
        leaves = with_other_half(leaves, run.head.pooling)
    elif shape_of(target)[1] == "tanh":
        leaves = through_tanh(leaves, layer, run.config.width)
        notes.append(card.NEARLY_LINEAR_TANH)
    else:
        leaves = through_shifted_relu(run, layer)
        notes.append(card.LINEAR_BY_SHIFT)
    if target.bias and "bias" not in leaves["classifier"]:
        zeros = np.zeros(run.head.classes, np.float32)
        leaves["classifier"] = leaves["classifier"] | {"bias": zeros}
    head = dataclasses.replace(
        run.head, pooling=target.pooling, hidden=target.hidden, bias=target.bias
    )
    return dataclasses.replace(run, head=head, params=run.params | {"head": leaves}), notes


def through_tanh(leaves: tree.Tree, layer: str, width: int) -> tree.Tree:
    """The leaves of a head on the first token as dense, tanh and classifier.

    tanh(y) = y (1 - y^2/3 + ...): scaled by 2^-16 before it and back after it, a feature of 20
    comes through to 3e-8 of itself.
    """
    classifier = leaves["classifier"]
    identity = np.eye(width, dtype=np.float32)
    return {
        layer: {"kernel": identity * TANH_SCALE, "bias": np.zeros(width, np.float32)},
        "classifier": classifier | {"kernel": np.asarray(classifier["kernel"]) / TANH_SCALE},
    }


def through_shifted_relu(run: hub.Pretrained, layer: str) -> tree.Tree:
    """The leaves of a head on the first token as dense, relu or gelu, and classifier.

    The dense layer shifts each feature so far that it is never negative, and the classifier's bias
    takes the shift off again. After a layer normalisation a feature is at most
    |bias| + |scale| sqrt(D).
    """
    width = run.config.width
    norm = last_norm(run)
    largest = np.abs(norm["scale"]) * np.sqrt(width)
    shift = (np.abs(norm.get("bias", 0.0)) + largest + GELU_LINEAR_FROM).astype(np.float32)
    classifier = run.params["head"]["classifier"]
    kernel = np.asarray(classifier["kernel"])
    bias = np.asarray(classifier.get("bias", np.zeros(kernel.shape[1], np.float32)), np.float64)
    bias = bias - shift.astype(np.float64) @ kernel.astype(np.float64)
    return {
        layer: {"kernel": np.eye(width, dtype=np.float32), "bias": shift},
        "classifier": classifier | {"bias": bias.astype(np.float32)},
    }


def last_norm(run: hub.Pretrained) -> tree.Tree:
    """The normalisation whose output the head reads."""
    encoder = run.params["encoder"]
    if run.config.pre_norm:
        return encoder["final_norm"]
    return encoder[run.config.block_names[-1]]["mlp_norm"]
