"""The findings about freezing: their claims, tables and figures are of their scores."""

import numpy as np
import pytest

from experiments.findings import last_quarter, lp_ft
from experiments.findings.cells import REVIEWS, FindingConfig
from experiments.study.page import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED
from experiments.study.scores import Score, score_of

PERCENT = np.arange(400) / 4


def scored(right: int) -> Score:
    """A score of 2 seeds on 400 examples, of which so many per cent are right, the first."""
    is_right = right > PERCENT
    return score_of(np.stack([is_right, is_right]).astype(np.float64))


def verdicts(claims) -> list[str]:
    return [claim.verdict for claim in claims]


def test_what_is_short_is_a_part_of_what_is_whole():
    whole = FindingConfig()
    short = FindingConfig(short=True)
    assert short.cells != whole.cells
    assert whole.of(REVIEWS) == REVIEWS
    part = short.of(REVIEWS)
    assert part.seeds < REVIEWS.seeds and part.test_rows < REVIEWS.test_rows
    assert part.rates == REVIEWS.rates and part.budgets < REVIEWS.budgets


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
    page = lp_ft.page(FindingConfig(), REVIEWS, of_domains)
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
