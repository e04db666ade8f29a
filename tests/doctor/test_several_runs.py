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


def runs_of(scores, data="d", **settings):
    """Runs with the seeds 0, 1, ... and these scores, on data of one digest."""
    made = []
    for seed, score in enumerate(scores):
        name = f"{settings} {seed}"
        made.append(
            ScoredRun(
                name=name,
                settings=settings,
                seeds=(seed, None),
                data_digest=data,
                score=score,
                data={"training data": data},
            )
        )
    return made


def found(*groups, **options):
    case = RunsCase(runs=[run for group in groups for run in group], metric="test x", **options)
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


def test_runs_on_other_data_do_not_differ_by_their_seed_alone():
    one = runs_of([0.9, 0.91, 0.9], strategy="full", data="a" * 64)
    other = runs_of([0.5, 0.51, 0.5], strategy="full", data="b" * 64)
    assert found(one, other) == {}
    near = runs_of([0.9, 0.9, 0.91], strategy="full", data="b" * 64)
    finding = found(one, near)["difference_within_seeds"]
    assert "training data aaaaaaaa (3 seeds" in finding.seen and "data bbbbbbbb" in finding.seen


def test_a_metric_of_another_range_does_not_vary_wildly():
    """Euros, for one: they are not between 0 and 1."""
    scores = runs_of([812.0, 790.0, 801.0], strategy="full")
    assert found(scores, is_share=False) == {}
    assert set(found(scores)) == {"varies_by_seed"}


def test_data_that_nobody_knows_are_not_the_same():
    one = runs_of([0.8], data=None, strategy="full")
    assert found(one, runs_of([0.7], data=None, strategy="full")) == {}


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


@pytest.mark.parametrize(
    ("metric", "own", "found"),
    [
        ("accuracy", [], {"varies_by_seed"}),
        ("accuracy_tone", [], {"varies_by_seed"}),
        ("rmse", ["rmse"], set()),
        ("accuracy", ["accuracy"], set()),
        ("loss", [], set()),
    ],
)
def test_the_range_of_a_metric_is_known_where_a_task_has_it(monkeypatch, metric, own, found):
    monkeypatch.setattr("adapt.diagnosing.as_run", lambda value: value)
    runs = []
    for seed, score in enumerate([0.9, 0.5, 0.7]):
        runs.append(run_with(score, metric, seed=seed, metrics=own))
    assert {finding.check for finding in adapt.diagnose(runs)} == found


def test_less_of_the_loss_is_better(monkeypatch):
    monkeypatch.setattr("adapt.diagnosing.as_run", lambda value: value)
    (finding,) = adapt.diagnose([run_with(0.9, "loss", epochs=3), run_with(0.5, "loss", epochs=4)])
    assert finding.seen.startswith("test loss is 0.500 with epochs 4")


def test_a_diagnosis_says_which_scores_were_compared(monkeypatch):
    monkeypatch.setattr("adapt.diagnosing.as_run", lambda value: value)
    runs = [run_with(0.8, epochs=3), run_with(0.9, epochs=4)]
    assert adapt.diagnose(runs).what == "2 runs (test accuracy)"
    for run in runs:
        run.result["scores"]["validation"] = {"accuracy": 0.5}
    del runs[0].result["scores"]["test"]
    assert adapt.diagnose(runs).what == "2 runs (validation accuracy)"


def test_what_is_no_run_is_refused():
    with pytest.raises(StrategyError, match="is no run of finetune"):
        adapt.diagnose(["tiny-bert", "minilm"])
