"""Differences between runs are set beside those of seeds, planted in two ways each."""

import numpy as np
import pytest

import adapt
from adapt.diagnosing import diagnose_runs
from adapt.doctor.cases import RunsCase, ScoredRun
from adapt.doctor.checks import CHECKS, run_checks
from adapt.doctor.several_runs import margin_of
from adapt.errors import StrategyError
from adapt.run import Run


def runs_of(scores, **settings):
    """Runs with the seeds 0, 1, ... and these scores."""
    made = []
    for seed, score in enumerate(scores):
        name = f"{settings} {seed}"
        made.append(
            ScoredRun(
                name=name, settings=settings, seeds=(seed, None), data_digest="d", score=score
            )
        )
    return made


def found(*groups, sign=1):
    case = RunsCase(runs=[run for group in groups for run in group], metric="test x", sign=sign)
    return {finding.check: finding for finding in run_checks(CHECKS["runs"], case)}


FULL = runs_of([0.80, 0.78, 0.82], strategy="full")


@pytest.mark.parametrize("scores", [[0.79, 0.80, 0.80], [0.77, 0.84, 0.74]])
def test_a_difference_that_seeds_make(scores):
    finding = found(FULL, runs_of(scores, strategy="frozen"))["difference_within_seeds"]
    assert abs(finding.evidence["difference"]) < finding.evidence["margin"]
    assert "strategy full" in finding.seen and "strategy frozen" in finding.seen
    assert finding.certainty == "likely"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_that_seeds_do_not_make(sign):
    assert found(FULL, runs_of([0.70, 0.69, 0.71], strategy="frozen"), sign=sign) == {}
    assert found(FULL, runs_of([0.60, 0.63], strategy="frozen"), sign=sign) == {}
    assert found(FULL) == {}


def test_a_run_each_tells_nothing_of_seeds():
    finding = found(FULL[:1], runs_of([0.7], strategy="frozen"))["difference_within_seeds"]
    assert finding.certainty == "possible" and finding.evidence["margin"] is None
    assert "difference_within_seeds" in found(FULL, runs_of([0.79], strategy="frozen"))
    assert found(FULL, runs_of([0.5], strategy="frozen")) == {}


def test_margins_are_half_the_intervals_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    one = dict(enumerate(rng.normal(0, 1, 6)))
    other = dict(enumerate(rng.normal(0, 2, 6)))
    paired = stats.ttest_rel([*one.values()], [*other.values()]).confidence_interval()
    assert margin_of(one, other) == pytest.approx((paired.high - paired.low) / 2)
    shifted = {seed + 10: score for seed, score in list(other.items())[:4]}
    welch = stats.ttest_ind([*one.values()], [*shifted.values()], equal_var=False)
    between = welch.confidence_interval()
    assert margin_of(one, shifted) == pytest.approx((between.high - between.low) / 2)


@pytest.mark.parametrize("scores", [[0.80, 0.62, 0.78], [0.5, 0.8, 0.8, 0.8]])
def test_scores_that_vary_wildly_by_seed(scores):
    finding = found(runs_of(scores, strategy="full"))["varies_by_seed"]
    assert list(finding.evidence["scores"].values()) == scores


@pytest.mark.parametrize("others", [[0.79], [0.80, 0.81]])
def test_the_same_run_with_another_score(others):
    again = [run for score in others for run in runs_of([score], strategy="full")]
    finding = found(FULL[:1], again)["same_run_differs"]
    assert finding.evidence["scores"][0] == 0.80 and finding.certainty == "possible"
    assert "same_run_differs" not in found(FULL[:1], runs_of([0.80], strategy="full"))


def run_with(score, metric="accuracy", **settings):
    result = {"primary_metric": metric, "scores": {"test": {metric: score}}}
    return Run(pretrained=None, result=result, settings=settings, lineage={}, history=())


def test_runs_are_compared_by_their_settings(monkeypatch):
    monkeypatch.setattr("adapt.diagnosing.as_run", lambda value: value)
    runs = [run_with(0.8, seed=0, epochs=3), run_with(0.81, seed=0, epochs=4)]
    (finding,) = adapt.diagnose(runs)
    assert "epochs 3" in finding.seen and "epochs 4" in finding.seen
    assert finding.shown_by is None, "they are in no folder"
    with pytest.raises(StrategyError, match="one metric"):
        diagnose_runs([runs[0], run_with(0.8, metric="mse")], frozenset())
    with pytest.raises(StrategyError, match="no accuracy of test"):
        diagnose_runs([runs[0], run_with(None)], frozenset())


def test_what_is_no_run_is_refused():
    with pytest.raises(StrategyError, match="is no run of finetune"):
        adapt.diagnose(["tiny-bert", "minilm"])
