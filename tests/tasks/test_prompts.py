"""Prompts: templates as they are understood, refused and cut; words as tokens."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from adapt.data import tables
from adapt.errors import StrategyError
from adapt.models import LanguageModel, MaskedLM
from adapt.options import TaskOptions
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.tasks import get_task
from adapt.tasks.cloze import parse_verbalizer, with_prompt
from adapt.tasks.prompts import Prompt, shares
from tests.helpers import prompts, tiny

CLOZE = get_task("cloze")
WORDS = {"positive": "good", "negative": "bad"}
TEMPLATE = "{text} it was [MASK]"


@pytest.fixture(scope="module", params=[case.name for case in prompts.CASES])
def recorded(request, tmp_path_factory) -> Pretrained:
    folder = tmp_path_factory.mktemp("models") / request.param
    return hub.load(prompts.checkpoint(folder, request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Pretrained:
    folder = tmp_path_factory.mktemp("models") / "bert"
    return hub.load(prompts.checkpoint(folder, "bert_mlm_tied"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Pretrained:
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    return hub.load(prompts.checkpoint(folder, "gpt2_lm_tied"))


def prompt_of(model: Pretrained, template: str, columns: tuple[str, ...] = ("text",)) -> Prompt:
    assert model.tokenizer is not None
    return Prompt.of(template, columns, model.tokenizer, not isinstance(model.head, MaskedLM))


def strings(model: Pretrained, ids: np.ndarray) -> list[str]:
    assert model.tokenizer is not None
    return [str(model.tokenizer.backend.id_to_token(int(number))) for number in ids]


def test_a_prompt_has_the_tokens_of_transformers(recorded):
    (case,) = [case for case in prompts.CASES if case.name == Path(recorded.source).name]
    found = np.load(prompts.RECORDED)
    rows = [(text,) for text in prompts.TEXTS]
    encoded, places = prompt_of(recorded, case.template).encode(recorded.tokenizer, rows)
    np.testing.assert_array_equal(encoded.tokens.values, found[f"{case.name}/ids"])
    np.testing.assert_array_equal(encoded.tokens.lengths, found[f"{case.name}/lengths"])
    said = encoded.tokens.values[encoded.tokens.starts + places]
    assert len(set(said.tolist())) == 1, "the mask, or the last token of the template"


def test_a_word_is_the_token_that_it_is_in_its_place(recorded):
    """With the space before it in tokenizers of bytes."""
    (case,) = [case for case in prompts.CASES if case.name == Path(recorded.source).name]
    model = with_prompt(recorded, case.template, WORDS, ["text"])
    expected = np.load(prompts.RECORDED)[f"{case.name}/words"]
    assert isinstance(model.head, LanguageModel)
    assert model.head.word_tokens == tuple((int(token),) for token in expected)
    assert strings(model, expected) == list(case.tokens)
    assert CLOZE.head_notes(model)["words"] == ", ".join(
        f"{name} {token!r}" for name, token in zip(WORDS, case.tokens, strict=True)
    )


def test_a_text_is_cut_and_a_template_never(recorded):
    """At every length that has room: the tokens of the template are those of an empty one."""
    case = next(case for case in prompts.CASES if case.name == Path(recorded.source).name)
    prompt = prompt_of(recorded, case.template)
    tokenizer = recorded.tokenizer
    encoded, _ = prompt.encode(tokenizer, [(" film",)])
    shortest = encoded.tokens[0].tolist()
    film = next(
        token
        for token in tokenizer.encode([" film"])[0][0]
        if strings(recorded, [token])[0].endswith("film")
    )
    place_of_text = shortest.index(film)
    for max_length in range(len(shortest), tokenizer.max_length):
        encoded, places = prompt.encode(tokenizer.cut_to(max_length), [(" film bad" * 20,)])
        cut = encoded.tokens[0].tolist()
        more = max_length - len(shortest)
        assert cut[: place_of_text + 1] == shortest[: place_of_text + 1]
        assert cut[place_of_text + 1 + more :] == shortest[place_of_text + 1 :]
        assert places[0] == prompt.encode(tokenizer, [(" film",)])[1][0] + more
        assert (encoded.long.texts, encoded.long.tokens_left_out) == (1, 40 - 1 - more)


def test_a_text_is_cut_on_the_side_of_the_checkpoint(bert):
    prompt = prompt_of(bert, "[MASK] : {text} .")
    tokenizer = bert.tokenizer.cut_to(8)
    text = "film was good it bad end"
    encoded, places = prompt.encode(tokenizer, [(text,)])
    assert strings(bert, encoded.tokens[0])[3:-2] == ["film", "was", "good"] and places[0] == 1
    tokenizer.side = "left"
    encoded, places = prompt.encode(tokenizer, [(text,)])
    assert strings(bert, encoded.tokens[0])[3:-2] == ["it", "bad", "end"] and places[0] == 1


def test_of_two_texts_the_longer_one_is_cut(bert):
    prompt = prompt_of(bert, "{text_a} [MASK] {text_b}", ("text", "other"))
    encoded, places = prompt.encode(bert.tokenizer.cut_to(9), [("film " * 9, "bad end")])
    kept = strings(bert, encoded.tokens[0])
    assert kept == ["[CLS]", *["film"] * 4, "[MASK]", "bad", "end", "[SEP]"] and places[0] == 5
    assert (
        shares([9, 2], 6) == [4, 2] and shares([5, 5], 7) == [3, 4] and shares([1, 1], 9) == [1, 1]
    )


def test_the_mask_of_the_template_is_found_beside_one_of_the_text(bert):
    prompt = prompt_of(bert, TEMPLATE)
    encoded, places = prompt.encode(bert.tokenizer, [("a [MASK] film",)])
    assert strings(bert, encoded.tokens[0]).count("[MASK]") == 2
    assert places[0] == len(encoded.tokens[0]) - 2


def test_texts_go_by_their_place_or_by_their_column(bert):
    columns = ("premise", "claim")
    by_column = prompt_of(bert, "{claim} [MASK] {premise} {{a}}", columns)
    by_place = prompt_of(bert, "{text_b} [MASK] {text_a} {{a}}", columns)
    assert by_column == by_place and by_column.template == "{text_b} [MASK] {text_a} {{a}}"
    assert by_place.render(["film", "end"]).text == "end [MASK] film {a}"
    again = prompt_of(bert, by_place.template, ("other", "names"))
    assert again == by_place


def test_a_mask_may_be_spelled_as_the_tokenizer_does(recorded):
    if isinstance(recorded.head, MaskedLM):
        own = recorded.tokenizer.named.get("mask_token") or "[MASK]"
        assert prompt_of(recorded, f"{{text}} {own} a") == prompt_of(recorded, "{text} [MASK] a")
    else:
        assert prompt_of(recorded, "{text} it was").template == "{text} it was [MASK]"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{text} it was", "no mask"),
        ("[MASK] {text} it was [MASK]", "2 masks"),
        ("it was [MASK]", "nowhere"),
        ("{text} {text} [MASK]", "2 times"),
        ("{texts} it was [MASK]", "{texts}"),
        ("{text!r} it was [MASK]", "{text}"),
        ("{0} it was [MASK]", "{0}"),
        ("{text it was [MASK]", "brace"),
    ],
)
def test_a_template_that_is_not_understood_is_refused(bert, template, said):
    with pytest.raises(StrategyError, match=f"`template`.*{tiny.re.escape(said)}"):
        prompt_of(bert, template)


def test_a_causal_prompt_ends_with_its_mask(gpt2):
    with pytest.raises(StrategyError, match="`template`"):
        prompt_of(gpt2, "{text} was [MASK] a")
    assert prompt_of(gpt2, "{text} was [MASK]").render(["film"]).text == "film was"


def test_a_template_without_room_for_a_text_is_refused(bert):
    with pytest.raises(StrategyError, match="`max_length` 5"):
        prompt_of(bert, TEMPLATE).encode(bert.tokenizer.cut_to(5), [("film",)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"positive": "good", "negative": "baddest"}, "negative=baddest"),
        ({"positive": "good", "negative": "good"}, "negative=good"),
        ({"positive": ["good", "Good"], "negative": "bad"}, "positive=Good"),
        ({"positive": "good", "negative": ""}, "'negative'"),
        ({"positive": "good", "negative": ["bad", " "]}, "'negative'"),
        ({"positive": "good"}, "1 class"),
        ({"positive": "good film", "negative": "bad"}, "'good' 'film'"),
    ],
)
def test_a_word_that_is_no_token_of_its_own_is_refused(bert, words, said):
    with pytest.raises(StrategyError, match=f"`verbalizer`.*{said}"):
        with_prompt(bert, TEMPLATE, words, ["text"])


def test_a_word_of_several_tokens_of_bytes_is_shown(gpt2):
    """Without a space before it the word is its letters; with another ending it is two tokens."""
    with pytest.raises(StrategyError, match="'Ġgood' 's'"):
        with_prompt(gpt2, TEMPLATE, {"a": "goods", "b": "bad"}, ["text"])
    with pytest.raises(StrategyError, match="'g' 'o' 'o' 'd'"):
        with_prompt(gpt2, "{text}\n[MASK]", {"a": "good", "b": "bad"}, ["text"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("positive=good|film, negative=bad", {"positive": ["good", "film"], "negative": ["bad"]}),
        ('{"a,b": ["good"], "c=d": "bad"}', {"a,b": ["good"], "c=d": ["bad"]}),
    ],
)
def test_a_verbalizer_is_text_or_json(text, words):
    assert parse_verbalizer(text) == words


@pytest.mark.parametrize("text", ["positive", "=good", "a=good,a=bad", "{a: good}", "", '{"a": 1}'])
def test_a_verbalizer_that_is_neither_is_refused(text):
    with pytest.raises(StrategyError, match="`verbalizer`"):
        parse_verbalizer(text)


def test_options_of_prompts_are_checked(bert):
    given = TaskOptions(task="cloze", template=TEMPLATE, verbalizer="a=good,b=bad")
    model = CLOZE.with_options(bert, given, ["text"])
    table = tables.from_columns({"text": ["a film"], "label": ["c"]}, "the data")
    with pytest.raises(StrategyError, match="'c' of the data"):
        CLOZE.all_names(model, ["a", "c"], table, "label")
    again = CLOZE.with_options(model, TaskOptions(task="cloze"), ["text"])
    assert again.head == model.head and again.labels == ("a", "b")
    for options in ({"template": TEMPLATE}, {"verbalizer": "a=good,b=bad"}, {}):
        with pytest.raises(StrategyError, match="`task` cloze needs"):
            CLOZE.with_options(bert, TaskOptions(task="cloze", **options), ["text"])
    with pytest.raises(StrategyError, match="`template`"):
        get_task("classification").with_options(bert, given, ["text"])
    with pytest.raises(StrategyError, match="language model"):
        CLOZE.with_options(dataclasses.replace(bert, head=None), given, ["text"])


def test_classes_are_of_the_type_of_the_labels(bert):
    model = with_prompt(bert, TEMPLATE, {0: "bad", 1: "good", "x": "film"}, ["text"])
    table = tables.from_columns({"text": ["a film"], "label": [0]}, "the data")
    with pytest.raises(StrategyError, match="'x'"):
        CLOZE.all_names(model, ["0"], table, "label")
