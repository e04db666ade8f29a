"""What studies share: paired scores, verdicts by intervals, pages."""

import dataclasses
import json

import numpy as np
import pytest

from adapt.cli import plots
from adapt.comparison import intervals
from adapt.errors import OutputError
from adapt.tasks import get_task
from experiments.study import draw, page
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.scores import Score, accuracy_of, as_plain, mean_of, score_of, with_interval

CLASSES = ["negative", "positive"]
TARGETS = np.array([0, 1] * 20)


def outputs(right: int) -> np.ndarray:
    """Logits of 40 examples, the first of which are right."""
    is_right = np.arange(len(TARGETS)) < right
    return np.eye(2)[np.where(is_right, TARGETS, 1 - TARGETS)]


def scored(right: int) -> Score:
    return accuracy_of([outputs(right), outputs(right - 2)], TARGETS)


def test_a_score_has_the_resamples_of_a_comparison():
    tests = [(outputs(30), TARGETS), (outputs(28), TARGETS)]
    task = get_task("classification")
    resamples = intervals.resampled(task, CLASSES, "accuracy", tests, is_one_test=True)
    score = scored(30)
    np.testing.assert_allclose(score.resamples, resamples, rtol=1e-12)
    assert score.value == pytest.approx(29 / 40)


def test_a_difference_is_paired_by_seed_and_example():
    more, less = scored(30), scored(24)
    gain = more - less
    low, high = gain.interval
    assert gain.value == pytest.approx(6 / 40) and 0 < low < gain.value < high
    resamples = more.resamples - less.resamples[::-1]
    unpaired = dataclasses.replace(gain, resamples=resamples).interval
    assert high - low < unpaired[1] - unpaired[0]
    assert (more - more).interval == (0, 0)
    assert (0.5 * more + 0.5 * more).value == pytest.approx(more.value)


def test_scores_of_other_examples_or_resamples_are_not_subtracted():
    score = scored(30)
    shorter = score_of(np.ones((2, 10)))
    fewer = dataclasses.replace(score, resamples=score.resamples[:200])
    for other in (shorter, fewer):
        with pytest.raises(ValueError, match="not paired"):
            score - other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyRunOptions):
    labels: int = 10
    data: tuple[str, ...] = ("reviews",)


def opened(config: Config) -> None:
    open_study("experiments.study", config, chosen=("data",))


def test_a_study_goes_on_with_the_same_flags_alone(tmp_path):
    out = tmp_path / "a study"
    config = Config(out=out, resume=True)
    opened(config)  # there is nothing yet
    (out / "cell").write_text("done")
    opened(dataclasses.replace(config, data=("trec", "reviews")))
    with pytest.raises(OutputError, match=r"`labels` was 10 in .* and is 20 now"):
        opened(dataclasses.replace(config, labels=20))
    assert (out / "cell").exists()


def test_results_are_made_anew_only_where_they_may_be_replaced(tmp_path):
    out = tmp_path / "a study"
    opened(Config(out=out))
    (out / "cell").write_text("done")
    with pytest.raises(OutputError, match="give `resume` to go on with it, `overwrite`"):
        opened(Config(out=out, labels=20))
    opened(Config(out=out, labels=20, overwrite=True))
    assert not (out / "cell").exists()
    opened(Config(out=out, labels=20, resume=True))
    (out / "config.json").unlink()
    (out / "notes").write_text("of somebody")
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError):
            opened(Config(out=out, **flags))
    assert (out / "notes").exists()


def test_what_is_short_leaves_what_is_whole_alone(tmp_path):
    out = tmp_path / "a study"
    opened(Config(out=out))
    (out / "cell").write_text("done")
    opened(Config(out=out, short=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a study", "a study-short"]
    assert (out / "cell").exists()


def test_a_mean_of_scores_is_paired_too():
    mean = mean_of([scored(30), scored(24)])
    assert mean.value == pytest.approx((29 + 23) / 80)
    np.testing.assert_allclose((mean - 0.5 * scored(30)).resamples, 0.5 * scored(24).resamples)


@pytest.mark.parametrize(
    ("margin", "verdict"),
    [
        (scored(34) - scored(20), page.REPRODUCED),
        (scored(20) - scored(34), page.NOT_REPRODUCED),
        (scored(30) - scored(30), page.NOT_DECIDABLE),
    ],
)
def test_a_claim_holds_where_its_interval_is_above_zero(margin, verdict):
    assert page.verdicts([page.Claim("more is better", "more - less", margin)]) == [verdict]


def test_claims_of_a_page_share_their_five_per_cent():
    margin = Score(2.3, np.array([1.3, 3.3]), np.full(5, 2.3), (5, 400))  # 2.3 standard errors
    claim = page.Claim("more is better", "more - less", margin)
    assert page.verdicts([claim]) == [page.REPRODUCED]
    assert page.verdicts([claim] * 8) == [page.NOT_DECIDABLE] * 8
    low, high = claim.interval_among(8)
    assert low < claim.margin.interval[0] and high > claim.margin.interval[1]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_the_mean_of_all_seeds_as_often_as_it_says(seeds):
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        by_seed = random.normal(0, 1, seeds)
        drawn = np.full(2, by_seed.mean())
        drawn += by_seed.std() / np.sqrt(seeds) * np.array([-1, 1])  # what a bootstrap spreads
        low, high = Score(by_seed.mean(), drawn, by_seed, (seeds, 100)).interval
        held += low < 0 < high
    assert 0.93 < held / 2000 < 0.97


def test_where_seeds_agree_the_interval_is_that_of_the_examples():
    right = np.tile((np.arange(400) < 280).astype(np.float64), (5, 1))
    low, high = score_of(right).interval
    assert (high - low) / 2 == pytest.approx(1.966 * np.sqrt(0.7 * 0.3 / 400), rel=0.06)


def test_a_known_number_moves_a_score_and_its_interval():
    low, high = scored(30).interval
    moved = scored(30).shifted(0.02)
    assert moved.value == pytest.approx(scored(30).value + 0.02)
    assert moved.interval == pytest.approx((low + 0.02, high + 0.02))


def test_a_page_says_claims_figures_and_how_and_is_written_twice(tmp_path, drawn):
    figure, axes = plots.figure()
    draw.points(axes[0, 0], [0, 1], [scored(30), scored(24)], plots.BLUE, "more")
    gain = scored(34) - scored(20)
    written = page.Page(
        name="more",
        title="More is better",
        question="Is it?",
        claims=[page.Claim("more is better", "more - less", gain)],
        why=["Because there is more."],
        figure=page.Figure(figure, "Accuracy of more."),
        tables=[page.Table(("side", "score"), [("more", "0.7")], right=1)],
        method=["Two seeds."],
        differs=["The model is small."],
        source="Source: by hand.",
    )
    page.write_page(written, tmp_path / "out", tmp_path / "docs")
    text = (tmp_path / "docs" / "studies" / "more.md").read_text("utf-8")
    assert f"| {with_interval(gain, sign=True)} | reproduced |" in text
    assert "here (95% interval) |" in text
    assert "](../img/more.png)" in text
    assert text.index("Because") < text.index("| more | 0.7 |") < text.index("* The model")
    for image in ("out/more.png", "docs/img/more.png"):
        assert (tmp_path / image).stat().st_size > 1000
    assert "](more.png)" in (tmp_path / "out" / "more.md").read_text("utf-8")


def test_a_study_ends_with_its_result_page_and_tables(tmp_path, capsys):
    scores = {"reviews": {8: scored(30)}}
    table = page.Table(("set", "accuracy"), [("reviews", ".725")], right=1, title="Test accuracy")
    config = StudyRunOptions(out=tmp_path / "out", short=True)
    config.folder.mkdir()
    result = as_plain(scores)
    short = page.Page(name="one", title="One", question="?", tables=[table], source="here")
    page.publish(short, result, config)
    said = capsys.readouterr().out
    assert "Test accuracy" in said and ".725" in said and json.dumps(result) in said
    assert json.loads((tmp_path / "out-short/one.json").read_text()) == result
    assert result["reviews"]["8"] == scored(30).plain
    assert (tmp_path / "out-short/one.md").exists()
