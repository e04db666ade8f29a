"""The findings on few labels: their claims, tables and figures are of their scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapt.errors import StrategyError
from experiments.findings import bitfit, few_samples, setfit
from experiments.findings.questions import QUESTIONS, name_of
from experiments.study.page import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED, verdicts
from experiments.study.scores import Score, score_of

PERCENT = np.arange(400) / 4


def right_answers(*percent: int) -> np.ndarray:
    """Seeds of which so many per cent of 400 answers are right, the first ones."""
    return np.stack([right > PERCENT for right in percent]).astype(np.float64)


def scored(right: int) -> Score:
    return score_of(right_answers(right, right))


# Biases alone


def test_biases_are_judged_at_the_fewest_labels_and_at_the_most(tmp_path):
    scores = {
        "one": {
            32: {"bitfit": scored(60), "full": scored(50)},
            128: {"bitfit": scored(70), "full": scored(70)},
            1024: {"bitfit": scored(70), "full": scored(80)},
        },
        "other": {
            32: {"bitfit": scored(50), "full": scored(60)},
            256: {"bitfit": scored(80), "full": scored(80)},
        },
    }
    found = verdicts(bitfit.claims(scores))
    assert found[:3] == [REPRODUCED, REPRODUCED, REPRODUCED]
    assert found[3:] == [NOT_REPRODUCED, NOT_DECIDABLE, NOT_REPRODUCED]
    page = bitfit.page(bitfit.Config(), scores)
    text = page.text("figure.png")
    assert "| one | 1,024 | 0.700 | 0.800 | -0.100 (" in text
    assert "At most 1,024 labels" in text and "60 steps at least" in text
    page.figure.drawn.savefig(tmp_path / "plot.png")


def test_fits_of_two_settings_have_two_names():
    names = set()
    for name, settings in bitfit.Config().settings.items():
        for setting in settings:
            for side in bitfit.SIDES:
                names.add(name_of(name, side, setting))
    assert len(names) == 2 * 3
    assert name_of("tiny-bert", "full", QUESTIONS) in names  # which few_samples has, too
    assert "full+reinit1" in name_of("tiny-bert", "full+reinit:1", QUESTIONS)


def test_an_encoder_without_settings_is_refused():
    with pytest.raises(StrategyError, match="`checkpoints` mine: give some of tiny-bert, minilm"):
        bitfit.main(bitfit.Config(checkpoints=("mine",)))


# Few examples


@pytest.fixture
def outcomes() -> few_samples.Outcomes:
    shorter = {
        few_samples.UNCORRECTED: few_samples.outcome_of(right_answers(50, 50, 50)),
        few_samples.CORRECTED: few_samples.outcome_of(right_answers(48, 52, 50)),
        few_samples.FRESH: few_samples.outcome_of(right_answers(30, 30, 30)),
    }
    longer = {
        few_samples.UNCORRECTED: few_samples.outcome_of(right_answers(40, 60, 70)),
        few_samples.CORRECTED: few_samples.outcome_of(right_answers(80, 80, 80)),
        few_samples.FRESH: few_samples.outcome_of(right_answers(70, 70, 70)),
    }
    return {
        few_samples.SHORTER: {32: shorter, 128: shorter},
        few_samples.LONGER: {32: longer, 128: longer},
    }


def test_each_change_is_judged_by_its_mean(outcomes, tmp_path):
    found = verdicts(few_samples.claims(outcomes))
    assert found == [NOT_DECIDABLE, NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED]
    spread = outcomes[few_samples.LONGER][32][few_samples.UNCORRECTED].spread
    assert spread == pytest.approx(0.153, abs=1e-3)
    page = few_samples.page(few_samples.Config(), QUESTIONS, outcomes)
    text = page.text("figure.png")
    assert "| 60 steps | 32 | without bias correction | 0.567 (" in text and "| 0.153 |" in text
    assert "Three epochs are 6 steps with 32 labels and 21 with 128" in text
    page.figure.drawn.savefig(tmp_path / "plot.png")


# SetFit


def test_setfit_is_judged_against_fine_tuning_and_against_the_embeddings(tmp_path):
    sides = (setfit.FROZEN, setfit.FINE_TUNED, setfit.SETFIT)
    rights = {
        "reviews": dict(zip(sides, map(right_answers, (50, 50, 60), (50, 50, 60)), strict=True)),
        "trec": dict(zip(sides, map(right_answers, (60, 70, 60), (60, 70, 60)), strict=True)),
    }
    assert verdicts(setfit.claims(rights)) == [REPRODUCED, NOT_REPRODUCED, REPRODUCED]
    page = setfit.page(setfit.Config(), rights)
    text = page.text("figure.png")
    assert "| trec | 0.600 (" in text and "| mean | 0.550 (" in text
    page.figure.drawn.savefig(tmp_path / "plot.png")


def test_a_seed_draws_eight_texts_a_class_and_the_test_is_the_same(monkeypatch):
    rows = {"text": [f"text {n}" for n in range(60)], "label": ["a", "b", "b"] * 20}
    monkeypatch.setattr(setfit.bundled, "read", lambda name, part: rows)
    first, second = (setfit.draw_texts("a set", seed, 10) for seed in (0, 1))
    for drawn in (first, second):
        assert sorted(drawn.labels) == ["a"] * 8 + ["b"] * 8 and len(set(drawn.texts)) == 16
        assert drawn.test_texts == rows["text"][:10]
    assert first.texts != second.texts


def test_regression_on_embeddings_learns_from_the_labelled_texts_alone(monkeypatch):
    labels = np.array([0, 1] * 16)
    features = np.random.default_rng(0).normal(size=(32, 3)) + 9 * labels[:, None]
    monkeypatch.setattr(setfit.adapt, "encode", lambda pretrained, texts: features)
    names = [["no", "yes"][label] for label in labels]
    drawn = setfit.Draw(["x"] * 16, names[:16], ["x"] * 16, [*names[16:31], "no"], 0)
    right = setfit.on_embeddings(None, drawn)  # pyright: ignore[reportArgumentType]
    assert right.tolist() == [True] * 15 + [False]


@pytest.mark.parametrize("short", [True, False])
def test_what_is_short_is_a_part_of_what_is_whole(short):
    part = SimpleNamespace(**setfit.SHORT)
    whole = setfit.Config()
    assert set(part.data) < set(whole.data) and part.seeds < whole.seeds
    settings = bitfit.Config(short=short).settings
    assert (set(settings) < set(bitfit.SETTINGS)) == short
    seeds = few_samples.Config(short=short).of(QUESTIONS).seeds
    assert (seeds < QUESTIONS.seeds) == short
