"""The study of prompts: its prompts are understood, its table and its figure are of its scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapt.markdown import markdown_table
from adapt.pretrained import hub
from adapt.tasks.cloze import with_prompt
from experiments import prompting
from experiments.study.scores import Score, accuracy_of

TARGETS = np.array([0, 1] * 20)


def outputs(right: int) -> np.ndarray:
    """Logits of 40 examples, the first of which are right."""
    is_right = np.arange(len(TARGETS)) < right
    return np.eye(2)[np.where(is_right, TARGETS, 1 - TARGETS)]


def scored(right: int) -> Score:
    return accuracy_of([outputs(right), outputs(right - 2)], TARGETS)


@pytest.fixture(scope="module")
def scores() -> prompting.Scores:
    return {
        0: {"prompt": scored(22)},
        4: {"probe": scored(20), "new head": scored(24), "prompt": scored(30)},
    }


@pytest.mark.parametrize("name", prompting.PROMPTS)
def test_a_prompt_of_the_study_has_a_token_for_every_class(name, asset):
    asset("tiny-bert")
    prompt = prompting.PROMPTS[name]
    model = with_prompt(hub.load("tiny-bert"), prompt.template, prompt.words, ["text"])
    assert list(model.labels) == sorted(prompt.words)


def test_the_table_and_the_figure_have_every_score(scores, tmp_path):
    rows = prompting.table_rows({"reviews": scores})
    assert [row[:5] for row in rows] == [
        ("reviews", "0", "", "", "0.525"),
        ("reviews", "4", "0.475", "0.575", "0.725"),
    ]
    assert rows[0][5] == "" and rows[1][5].startswith("+0.150 (+0.")
    drawn = prompting.plot({"reviews": scores}, {"reviews": 0.5}, "a model")
    text = prompting.page(prompting.Config(seeds=2), rows, drawn).text("figure.png")
    assert "`python -m experiments.prompting --seeds 2`" in text
    assert "\n".join(markdown_table(prompting.COLUMNS, rows, 5)) in text
    ((axis,),) = [drawn.axes]
    assert axis.get_title().startswith("reviews") and len(axis.containers) == 3
    drawn.savefig(tmp_path / "plot.png")


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**prompting.SHORT)
    whole = prompting.Config()
    assert set(short.data) < set(whole.data) and set(short.labels) < set(whole.labels)
    assert short.seeds < whole.seeds and short.test_rows < whole.test_rows
