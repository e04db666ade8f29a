"""The findings about freezing: their claims, tables and figures are of their scores."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import adapt
from adapt.errors import StrategyError
from adapt.models import EncoderConfig
from experiments.findings import features_by_layer, freezing_saves, last_quarter, lp_ft
from experiments.findings.cells import REVIEWS, FindingConfig
from experiments.study.page import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED, verdicts
from experiments.study.scores import Score, score_of

PERCENT = np.arange(400) / 4


def scored(right: int) -> Score:
    """A score of 2 seeds on 400 examples, of which so many per cent are right, the first."""
    is_right = right > PERCENT
    return score_of(np.stack([is_right, is_right]).astype(np.float64))


def test_what_is_short_is_a_part_of_what_is_whole():
    whole = FindingConfig()
    short = FindingConfig(short=True)
    assert short.cells != whole.cells
    assert whole.of(REVIEWS) == REVIEWS
    part = short.of(REVIEWS)
    assert part.seeds < REVIEWS.seeds and part.test_rows < REVIEWS.test_rows
    assert part.rates == REVIEWS.rates and part.budgets < REVIEWS.budgets


def test_an_encoder_of_another_depth_is_refused(monkeypatch):
    of_two = SimpleNamespace(config=SimpleNamespace(layers=2))
    monkeypatch.setattr(adapt, "load", lambda name: of_two)
    for finding in (features_by_layer, freezing_saves, last_quarter):
        with pytest.raises(StrategyError, match="`checkpoint` tiny-bert has 2 layers"):
            finding.main(FindingConfig(checkpoint="tiny-bert"))


@pytest.fixture
def of_domains() -> lp_ft.Scores:
    def side(inside: int, outside: int) -> dict[str, Score]:
        others = {name: scored(outside) for name in REVIEWS.also_test}
        return {lp_ft.IN_DOMAIN: scored(inside), **others, lp_ft.ELSEWHERE: scored(outside)}

    sides = [side(60, 60), side(80, 40), side(80, 80)]
    return dict(zip(lp_ft.SIDES, sides, strict=True))


def test_probing_first_is_judged_in_and_out_of_the_domain(of_domains, tmp_path):
    found = verdicts(lp_ft.claims(of_domains))
    assert found == [REPRODUCED, REPRODUCED, NOT_DECIDABLE, REPRODUCED, REPRODUCED]
    page = lp_ft.page(FindingConfig(), REVIEWS, of_domains, of_domains)
    text = page.text("figure.png")
    assert "Each seed draws 320 of" in text and "arxiv.org" in text
    assert "| probe | 0.600 (" in text
    lp_ft.plot(of_domains, "a model").savefig(tmp_path / "plot.png")


def test_a_share_of_the_gain_is_harder_to_reach_than_of_the_accuracy(tmp_path):
    rights = {0: 75, 1: 75, 2: 90, 3: 80, 6: 80}
    scores = {layers: scored(right) for layers, right in rights.items()}
    found = verdicts(last_quarter.claims(scores))
    assert found == [REPRODUCED, REPRODUCED, NOT_REPRODUCED, REPRODUCED, NOT_DECIDABLE]
    depths = {layers: last_quarter.Depth(score, 7, 1e12) for layers, score in scores.items()}
    page = last_quarter.page(FindingConfig(), REVIEWS, depths)
    rows = last_quarter.table_rows(depths)
    assert rows[1][:2] == ("1", "top:1") and rows[1][3:5] == ("94%", "0%")
    assert "90% of what fine-tuning gains" in page.text("figure.png")
    last_quarter.plot(scores, "a model").savefig(tmp_path / "plot.png")


def test_features_are_judged_against_fine_tuning_and_the_embedding(tmp_path):
    rights = [50, 70, 78, 76, 77, 84, 84]
    scores = dict(zip(features_by_layer.SIDES, map(scored, rights), strict=True))
    found = verdicts(features_by_layer.claims(scores))
    assert found == [REPRODUCED, NOT_DECIDABLE, *[REPRODUCED] * 4]
    rows = features_by_layer.table_rows(scores)
    assert rows[0][:2] == ("embedding", "0") and rows[-1][3] == ""
    assert rows[5][1] == "3 4 5 6"
    page = features_by_layer.page(FindingConfig(), features_by_layer.QUESTIONS, scores)
    assert "Each seed draws 320 of" in page.text("figure.png")
    features_by_layer.plot(scores, "a model").savefig(tmp_path / "plot.png")


def test_freezing_trains_all_blocks_first_and_the_last_two_after():
    strategy = adapt.strategy(freezing_saves.freezing(), layers=6, epochs=3)
    assert [phase.epochs for phase in strategy.phases] == [1, 2]
    assert strategy.shared_schedule
    assert strategy.phases[1].rules == adapt.strategy("top:2", 6, 2).phases[0].rules


def test_the_cache_saves_what_is_frozen_alike_in_several_epochs():
    config = EncoderConfig("bert", layers=6, width=8, heads=2, mlp_width=16, positions=32)
    train = SimpleNamespace(tokens_per_example=10.0, tokens_per_sequence=10.0)
    material: Any = SimpleNamespace(pretrained=SimpleNamespace(config=config), train=train)

    def flops(name: str, cache: freezing_saves.Cache) -> float:
        return freezing_saves.fit_flops(material, freezing_saves.SIDES[name], 4, cache)

    assert flops("full", "on") == flops("full", "off")
    assert flops("frozen", "on") == pytest.approx(flops("frozen", "off") / 3)
    for name in ("freezing", "top:3", "top:1"):
        assert flops("frozen", "on") < flops(name, "on") < flops(name, "off") < flops("full", "on")


def test_no_run_is_timed_at_the_same_place_of_two_rounds():
    rounds = [freezing_saves.turned(number) for number in range(freezing_saves.ROUNDS)]
    for run in freezing_saves.TIMED:
        places = {of_round.index(run) for of_round in rounds}
        assert len(places) == freezing_saves.ROUNDS
    assert {name for name, _ in freezing_saves.TIMED} == set(freezing_saves.SIDES)


def test_a_saving_of_seconds_is_judged_over_rounds(tmp_path):
    def side(right: int, seconds: list[float], cached: list[float]) -> freezing_saves.Side:
        return freezing_saves.Side(scored(right), 3e12, 2e12, 1e12, seconds, cached)

    slow = [9.0, 10.0, 11.0]
    sides = {name: side(80, slow, [8.0, 9.0, 10.0]) for name in freezing_saves.SIDES}
    sides["full"] = side(80, slow, [])
    sides["freezing"] = side(80, [6.0, 5.5, 6.0], [5.0, 5.6, 6.1])
    found = verdicts(freezing_saves.claims(sides))
    assert found == [REPRODUCED, NOT_DECIDABLE, REPRODUCED, NOT_DECIDABLE]
    rows = freezing_saves.table_rows(sides)
    assert rows[1][0] == "freezing" and rows[1][5:] == ("6.0", "5.6", "1.8")
    assert rows[0][3] == rows[0][6] == ""
    text = freezing_saves.page(FindingConfig(), REVIEWS, sides).text("figure.png")
    assert "3 rounds after" in text
    freezing_saves.plot(sides, "a model").savefig(tmp_path / "plot.png")
