"""Lists as hypothesis makes them: texts and labels of any type, a few of them as they should be."""

import datetime
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TASKS = ("classification", "regression", "multilabel", "contrastive", "tags", "choice", "span")
WORDS = st.sampled_from(["the film", "good", "very bad", "so so", "a plot", "é好", "cold"])
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.text(st.characters(categories=("Cs", "Cc", "Cn")), max_size=3),
    st.binary(max_size=4),
    st.decimals(),
    st.dates(),
    st.complex_numbers(),
    st.sampled_from([np.float32("nan"), np.int8(3), np.bool_(True), np.str_("a"), np.zeros(2)]),
    st.sampled_from([Decimal(1), datetime.timedelta(1), object, frozenset({1}), {"start": 1}]),
    st.lists(st.one_of(st.none(), st.integers(0, 3), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.sampled_from(["start", "end", "text", "a"]), st.integers(), max_size=3),
)
SPANS = st.fixed_dictionaries(
    {"answer_start": st.lists(st.just(0), min_size=1, max_size=1), "text": st.just(["a"])}
)
# What the labels of a task are mostly like, and texts.
LABELS = {
    "classification": (st.sampled_from(["a", "b", "c"]), st.integers(0, 3), st.booleans()),
    "regression": (st.floats(0, 1), st.integers(-3, 3)),
    "multilabel": (st.lists(st.sampled_from(["a", "b"]), max_size=2),),
    "contrastive": (st.integers(0, 3), st.sampled_from(["a", "b"])),
    "tags": (st.lists(st.sampled_from(["O", "B-x"]), min_size=2, max_size=2),),
    "choice": (st.integers(0, 1),),
    "span": (SPANS,),
}
TWO_WORDS = st.sampled_from([["the", "film"], ["very", "good"]])
TEXTS = {"tags": TWO_WORDS, "choice": TWO_WORDS, "span": st.tuples(WORDS, st.just("a film"))}
SHAPES = ("list",) * 6 + ("array", "tuple", "scalar", "pandas")


@st.composite
def columns(draw: st.DrawFn, usual: st.SearchStrategy[Any], count: int) -> Any:
    """A column of ``count`` values, or nearly so many, of which one may be odd."""
    size = max(0, count + draw(st.sampled_from([0] * 18 + [1, -1])))
    values = draw(st.lists(usual, min_size=size, max_size=size))
    if values and draw(st.integers(0, 3)) == 0:
        values[draw(st.integers(0, size - 1))] = draw(ODD)
    return shaped(values, draw(st.sampled_from(SHAPES)))


def shaped(values: list[Any], shape: str) -> Any:
    """The values as people hold them."""
    if shape == "tuple":
        return tuple(values)
    if shape == "scalar" and values:
        return values[0]
    if shape == "array":
        content = np.empty(len(values), object)
        content[:] = values
        return content
    if shape == "pandas":
        import pandas as pd

        return pd.Series(values, dtype=object)
    return values


@st.composite
def examples(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """(task, texts, labels)."""
    task = draw(st.sampled_from(TASKS))
    count = draw(st.integers(0, 12) if draw(st.integers(0, 5)) == 0 else st.integers(4, 12))
    texts = draw(columns(TEXTS.get(task, WORDS), count))
    labels = draw(columns(draw(st.sampled_from(LABELS[task])), count))
    return task, texts, labels


def write_all(folder: Path, count: int, number: int) -> None:
    """Write ``count`` examples as files of their own, the same ones for the same ``number``."""
    folder.mkdir()
    found: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(examples())
    def collect(example: tuple[str, Any, Any]) -> None:
        found.append(pickle.dumps(example))

    collect()
    for index, content in enumerate(found[-count:]):
        (folder / f"{index:04}.pickle").write_bytes(content)
