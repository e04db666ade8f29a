"""The study of the head that is kept: its tasks, its probe, and its page by planted scores."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import adapt
from adapt.models import CausalLM, Classifier, MaskedLM
from adapt.probing import linear
from adapt.ragged import ragged
from experiments import keep_the_head as study
from experiments.study import dual_probe, near_tasks, page, subjects
from experiments.study.scores import Score, score_of, with_interval

TEXTS = [f"a film so long that it was {word} the end of it all" for word in near_tasks.WORDS] * 4
RNG = np.random.default_rng(0)


def scored(accuracy: float) -> Score:
    return score_of((RNG.random((5, 200)) < accuracy).astype(np.float64))


def sides(*accuracies: float) -> dict[str, Score]:
    """The last of six accuracies is the head's own answer, which a far task has not."""
    names = ("0", "1", "2", "transform", "logits", study.OWN)
    return dict(zip(names, map(scored, accuracies), strict=False))


def tuned_sides(**accuracies: float) -> dict[str, Score]:
    return {name: scored(accuracy) for name, accuracy in accuracies.items()}


@pytest.fixture(scope="module")
def found() -> study.Scores:
    far = {"reviews": sides(0.6, 0.9, 0.8, 0.7, 0.6)}
    near = {study.NEAR: sides(0.1, 0.2, 0.3, 0.4, 0.6, 0.7)}
    few = {study.NEAR_FEW: sides(0.1, 0.2, 0.2, 0.3, 0.5, 0.7)}
    return {"tiny-bert": {**far, **near, **few}}


@pytest.fixture(scope="module")
def tuned() -> study.Scores:
    far = tuned_sides(dropped=0.7, cut=0.9, transform=0.5, logits=0.3)
    near = tuned_sides(dropped=0.4, cut=0.2, transform=0.6, logits=0.8)
    return {"tiny-bert": {"reviews": far, study.NEAR: near}}


CONFIG = study.Config(data=("reviews",), tuned=("reviews", study.NEAR))
SUBJECTS: Any = [SimpleNamespace(name="tiny-bert", kind="masked")]
COSTS = {"tiny-bert": {"2": study.Cost(128, 1000, 2e6, 0.5)}}
UNTUNED = {"tiny-bert": {}}


def test_what_is_planted_is_what_the_claims_say(found, tuned):
    assert page.verdicts(study.claims_of(found, tuned, CONFIG)) == [page.REPRODUCED] * 10
    low = sides(0.1, 0.2, 0.6, 0.4, 0.3, 0.2)
    worse = {"tiny-bert": {**found["tiny-bert"], study.NEAR_FEW: low}}
    of_tiny = tuned["tiny-bert"]
    turned = {"tiny-bert": {"reviews": of_tiny[study.NEAR], study.NEAR: of_tiny["reviews"]}}
    of_worse = page.verdicts(study.claims_of(worse, turned, CONFIG))
    assert of_worse[3:] == [page.NOT_REPRODUCED] * 7
    assert len(study.claims_of(found, UNTUNED, CONFIG)) == 5


def test_heads_of_classes_are_claimed_apart_from_language_models(found):
    behind = {study.NEAR_FEW: sides(0.1, 0.2, 0.6, 0.4, 0.3, 0.2)}
    both = {**found, subjects.CLASSIFIER: behind}
    of_own = [claim for claim in study.claims_of(both, {}, CONFIG) if "ahead" in claim.statement]
    assert [claim.margin.value > 0 for claim in of_own] == [True, False]


def test_a_head_without_a_transform_counts_where_it_has_sides(found, tuned):
    of_tiny = tuned["tiny-bert"]["reviews"]
    causal = {side: of_tiny[side] for side in (study.DROPPED, study.CUT, "logits")}
    both = {**tuned, "causal": {"reviews": causal}}
    far = ("reviews", subjects.FAR_PICTURES)
    assert len(study.margins(both, far, study.DROPPED, "logits")) == 2
    assert len(study.margins(both, far, study.DROPPED, "transform")) == 1


def test_the_page_has_every_score(found, tuned, drawn):
    text = study.page(CONFIG, found, tuned, COSTS, SUBJECTS).text("figure.png")
    assert "python -m experiments.keep_the_head --data reviews --tuned reviews near" in text
    for task, of_task in found["tiny-bert"].items():
        assert f"| {of_task['logits'].value:.3f} |" in text, task
    for task, of_task in tuned["tiny-bert"].items():
        dropped = of_task[study.DROPPED]
        assert f"| {with_interval(dropped)} |" in text, task
        for side in (study.CUT, "transform", "logits"):
            assert f"| {with_interval(of_task[side] - dropped, sign=True)} |" in text, (task, side)
    own = found["tiny-bert"][study.NEAR][study.OWN] - tuned["tiny-bert"][study.NEAR][study.DROPPED]
    assert text.count(f"| {with_interval(own, sign=True)} |") == 1  # on the near task alone
    assert "| layer 2 | 128 | 1,000 | 2.0 | 0.5 |" in text


def test_prose_on_figures_is_only_where_they_are_those_of_its_flags(
    found, tuned, drawn, monkeypatch
):
    monkeypatch.setattr(study, "WHY", ("What they say.",))
    text = study.page(study.Config(), found, tuned, COSTS, SUBJECTS).text("figure.png")
    assert "What they say." in text and "Fine-tuned sides" in text
    untuned = dataclasses.replace(CONFIG, tuned=())
    other = study.page(untuned, found, UNTUNED, COSTS, SUBJECTS).text("figure.png")
    for words in ("What they say.", "Fine-tuned", "fine-tuned"):
        assert words not in other, words


def test_what_is_short_is_a_part_of_what_is_whole():
    whole = study.Config()
    assert set(study.SHORT["data"]) < set(whole.data)
    for name in ("tuned", "beside", "rates"):
        assert study.SHORT[name] and set(study.SHORT[name]) < set(getattr(whole, name)), name
    for name in ("labels", "few_labels", "pool", "seeds", "test_rows"):
        assert study.SHORT[name] < getattr(whole, name), name
    assert whole.labels < whole.pool and whole.seeds >= 5


def subject(name: str, kind: str, head: Any = None) -> subjects.Subject:
    pretrained: Any = SimpleNamespace(head=head)
    return subjects.Subject(name, kind, pretrained)


def test_every_encoder_is_fine_tuned_near_and_where_a_set_is_far():
    config = study.Config(tuned=("trec", "reviews", study.NEAR))
    near = study.NEAR
    assert study.tuned_tasks(subject("c", "causal"), config) == ("trec", "reviews", near)
    classifier = subject(subjects.CLASSIFIER, subjects.CLASSIFIER)
    assert study.tuned_tasks(classifier, config) == ("reviews", near)
    pictures = subject(subjects.PICTURES, subjects.PICTURES)
    assert study.tuned_tasks(pictures, config) == (subjects.FAR_PICTURES, near)
    only_near = dataclasses.replace(config, tuned=(near,))
    assert study.tuned_tasks(pictures, only_near) == (near,)
    assert study.tuned_tasks(pictures, dataclasses.replace(config, tuned=())) == ()


def test_a_head_is_kept_where_it_has_a_transform_or_logits():
    config = study.Config()
    masked = subject("masked", "masked", MaskedLM(40))
    assert study.tuned_sides(masked, config) == (study.DROPPED, study.CUT, "transform", "logits")
    causal = subject("causal", "causal", CausalLM(40))
    assert study.tuned_sides(causal, config) == (study.DROPPED, study.CUT, "logits")


def test_a_head_of_classes_goes_on_as_it_pools():
    data = near_tasks.Labelled([], [], ("mean", "max"))
    by_class_token = subject("p", subjects.PICTURES, Classifier(5, "cls"))
    assert study.tuned_pooling(by_class_token, data) == "cls"
    assert study.tuned_pooling(subject("r", "replaced"), data) == "max"


def test_a_classifiers_own_set_is_not_far_from_it():
    nothing: Any = None
    sets = study.Config().data
    own = subjects.TEXTS_WITH_CLASSES
    assert own in subjects.Subject("m", "masked", nothing).far(sets)
    assert own not in subjects.Subject("c", subjects.CLASSIFIER, nothing).far(sets)
    assert subjects.Subject("p", subjects.PICTURES, nothing).far(sets) == (subjects.FAR_PICTURES,)


def test_a_head_answers_with_its_likeliest_class():
    pretrained: Any = SimpleNamespace(labels=("cat", "dog", "owl"))
    classifier = subjects.Subject("c", subjects.CLASSIFIER, pretrained)
    logits = [np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 9.0]])]
    names = ["ant", "dog", "owl"]  # it has no ant, and nobody asks for its cat
    assert subjects.own_answers(classifier, logits, names).tolist() == [2, 2]


def test_a_discriminator_answers_by_the_token_that_it_doubts_most():
    discriminator = subject("r", "replaced")
    mean, most = np.array([[-3.0], [-1.0]]), np.array([[-0.5], [2.0]])
    answers = subjects.own_answers(discriminator, [mean, most], ["original", "replaced"])
    assert answers.tolist() == [0, 1]


def test_a_word_is_asked_for_where_it_stood():
    masked = near_tasks.masked(TEXTS, 20)
    following = near_tasks.causal(TEXTS, 20)
    assert len(masked.inputs) == len(following.inputs) == 20
    for text, word in zip(masked.inputs, masked.labels, strict=True):
        assert text.replace("[MASK]", word) in TEXTS
    for text, word in zip(following.inputs, following.labels, strict=True):
        assert any(whole.startswith(f"{text} {word} ") for whole in TEXTS)


def test_a_text_whose_mask_is_cut_is_refused(monkeypatch):
    read = {"with": [5, 9, 6], "without": [5, 6, 6]}
    tokenizer = SimpleNamespace(encode=lambda texts: (ragged([read[text] for text in texts]), None))
    monkeypatch.setattr(near_tasks, "tokenizer_of", lambda pretrained: tokenizer)
    monkeypatch.setattr(near_tasks, "find_mask_id", lambda tokenizer: 9)
    monkeypatch.setattr(near_tasks, "POOLINGS", {})
    monkeypatch.setattr(near_tasks, "AVERAGES", set())
    pretrained: Any = None
    data = near_tasks.Labelled(["with"], ["the"], (near_tasks.AT_MASK, "mean"))
    pooled = near_tasks.with_own_poolings(pretrained, data)
    assert pooled.poolings == ("at-mask-9", "mean") and list(near_tasks.POOLINGS) == ["at-mask-9"]
    cut = near_tasks.Labelled(["with", "without"], ["the", "of"], (near_tasks.AT_MASK,))
    with pytest.raises(ValueError, match="text 1 has no mask among its first 3 tokens"):
        near_tasks.with_own_poolings(pretrained, cut)
    other = near_tasks.Labelled(["without"], ["the"], ("mean",))
    assert near_tasks.with_own_poolings(pretrained, other) == other


def test_a_text_is_pooled_at_its_own_mask_alone():
    x = np.arange(12, dtype=np.float32).reshape(6, 2) + 1
    batch = {
        "tokens": np.array([[5, 9, 5, 5, 5, 9]]),
        "segments": np.array([[0, 0, 1, 1, 2, 2]]),
        "length": np.array([2, 2, 2]),
    }
    at_mask = near_tasks.pooling_at(lambda tokens: tokens == 9)
    pooled = at_mask(x, batch)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(pooled, [[3, 4], [0, 0], [11, 12]])
    before_it = near_tasks.pooling_at(lambda tokens: tokens != 9)
    pooled = before_it(x, batch)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(pooled, [[1, 2], [7, 8], [9, 10]])


def test_what_comes_next_is_asked_at_the_last_word_and_not_at_the_token_that_ends_a_text(inputs):
    """A causal LM has never been asked what follows the end."""
    pretrained = adapt.load(inputs.checkpoint("bert_mlm_tied", 1))
    data = near_tasks.Labelled(["the film was"], ["good"], (near_tasks.LAST_WORD,))
    (pooling,) = near_tasks.with_own_poolings(pretrained, data).poolings
    try:
        whole = adapt.encode(pretrained, data.inputs, pooling)
        states = adapt.hidden_states(pretrained, data.inputs)[0][-1]
    finally:
        near_tasks.AVERAGES.discard(near_tasks.POOLINGS.pop(pooling))
    np.testing.assert_allclose(whole[0], states[-2], atol=1e-5)


def test_half_of_the_texts_have_a_word_of_another():
    made = near_tasks.replaced(TEXTS, 40)
    assert 10 < made.labels.count("replaced") < 30
    for text, label, own in zip(made.inputs, made.labels, TEXTS, strict=True):
        assert (text == own) == (label == "original")


def test_a_probe_in_coordinates_of_its_rows_answers_as_one_in_all_features():
    x = RNG.normal(size=(60, 100))
    x[:, 3] = 7.0  # constant
    train, others = dual_probe.coordinates(x[:40], x[40:])
    assert train.shape == (40, 39) and others.shape == (20, 39)
    centred = (x - x[:40].mean(0)) / np.where(np.arange(100) == 3, np.inf, x[:40].std(0))
    np.testing.assert_allclose(train @ train.T, centred[:40] @ centred[:40].T, atol=1e-8)
    np.testing.assert_allclose(others @ train.T, centred[40:] @ centred[:40].T, atol=1e-8)


def test_logits_of_many_tokens_are_answered_as_they_would_be_without_coordinates():
    """A state of 30 numbers, some large and some small, mapped to 200 columns."""
    targets = RNG.integers(0, 3, 120)
    state = RNG.normal(size=(120, 30)) * np.geomspace(1, 1e-3, 30)
    state[:, :3] += 0.5 * np.eye(3)[targets]
    wide = state @ RNG.normal(size=(30, 200)) + 3
    rows, others = np.arange(60), np.arange(60, 120)
    answers = dual_probe.answered(wide, targets, rows, others, 3)
    train = np.arange(120) < 60
    scaled = linear.standardize(wide, train[None])
    heads = linear.ridge(scaled, targets, train[None], dual_probe.STRENGTHS, 3)
    expected = np.asarray(linear.predict(heads, scaled.x, others[None], 3))[0]
    np.testing.assert_array_equal(answers, expected)
    assert len(np.unique(answers, axis=0)) > 2  # the penalty says something


def test_a_probe_finds_the_class_and_chooses_the_features_that_have_it():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    informed = np.eye(3)[targets] + 0.1 * rng.normal(size=(300, 3))
    noise = rng.normal(size=(300, 50))
    draws = np.stack([dual_probe.drawn_rows(200, 60, seed) for seed in range(2)])
    assert not np.array_equal(*draws)
    right = dual_probe.right_answers([noise, informed], targets, draws, 100)
    assert right.shape == (2, 100) and right.mean() > 0.95
    assert dual_probe.right_answers([noise], targets, draws, 100).mean() < 0.6
