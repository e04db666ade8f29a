"""What the doctor's tests are made of: a plan of a tiny checkpoint that is well, to plant faults in."""

from typing import Any

import adapt
from adapt.doctor.findings import Finding
from adapt.finetuning import Prepared, prepare
from adapt.options import FinetuningOptions
from tests.helpers import tiny

Labelled = tuple[list[Any], list[Any]]


def sentences(count: int, seed: int = 0) -> Labelled:
    """Different sentences with their labels: each has a number of its own words in it."""
    texts, labels = [], []
    for number, (text, label) in enumerate(tiny.sentences(count, seed=seed)):
        words = f"{number:b}".replace("0", "the ").replace("1", "film ")
        texts.append(f"{text} {words}".strip())
        labels.append(label)
    return texts, labels


def plan(
    pretrained: adapt.Pretrained,
    train: Labelled,
    validation: Any = 0.1,
    test: Labelled | None = None,
    **options: Any,
) -> Prepared:
    """A run that was prepared and has not begun."""
    return prepare(
        pretrained, *train, FinetuningOptions(**options), validation=validation, test=test
    )


def names(findings: list[Finding]) -> list[str]:
    """The checks that found something."""
    return [finding.check for finding in findings]
