"""The probe's job: a choice that no label of the test can move, and what a run leaves."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.cli import probing
from adapt.cli.probe import Config, main
from adapt.errors import DataError, OutputError, StrategyError
from adapt.probing import linear, selection
from tests.helpers import tiny
from tests.helpers.probes import STRENGTHS, TEXTS, ill_scaled


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_folds_part_the_rows_and_no_set_holds_out_whom_it_trains_on(seed, folds, seeds, given_test):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rng.integers(20, 50)).astype(np.int32)
    test = (rng.random(len(labels)) < 0.3) & given_test
    sets = selection.nested(labels, test, folds, seeds)
    assert len(sets.outer) == (seeds if test.any() else seeds * folds)
    for split, whole in enumerate(sets.outer):
        out = sets.rows(whole)
        assert (
            sets.train[whole].sum() + len(out) == len(labels) and not sets.train[whole][out].any()
        )
        inner = [sets.rows(index) for index in range(whole - folds, whole)]
        np.testing.assert_array_equal(
            np.sort(np.concatenate(inner)), np.flatnonzero(sets.train[whole])
        )
        for index, rows in zip(range(whole - folds, whole), inner, strict=True):
            assert not sets.train[index][rows].any() and not sets.train[index][out].any()
            assert sets.train[index].sum() + len(rows) == sets.train[whole].sum()
            for name in range(3):  # stratified
                whole_class = (labels[sets.train[whole]] == name).sum()
                assert abs((labels[rows] == name).sum() - whole_class / folds) <= 1
        assert sets.seed(split) == split // (len(sets.outer) // seeds)
    tests = [
        np.concatenate([sets.rows(w) for s, w in enumerate(sets.outer) if sets.seed(s) == seed])
        for seed in range(seeds)
    ]
    for rows in tests:
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(test if test.any() else ~test))


@pytest.mark.parametrize("given_test", [True, False])
def test_labels_of_the_test_choose_nothing(given_test):
    """The planted fault: with the test's labels shuffled, every choice and validation score is the same, bit for bit."""
    x, y = ill_scaled(2, count=120)
    test = (np.arange(120) >= 90) & given_test
    sets = selection.nested(y, test, 3, 2)
    seen = selection.judge(choices(x, y, sets), y, sets, 2)
    moved = 0
    for split, whole in enumerate(sets.outer):
        shuffled, rows = y.copy(), sets.rows(whole)
        shuffled[rows] = 1 - y[rows]
        again = selection.judge(choices(x, shuffled, sets), shuffled, sets, 2)
        assert (
            again.choice[split] == seen.choice[split]
            and again.validation[split] == seen.validation[split]
        )
        others, shuffled = sets.train[whole], y.copy()
        shuffled[others] = np.random.default_rng(split).permutation(y[others])
        moved += (
            selection.judge(choices(x, shuffled, sets), shuffled, sets, 2).validation[split]
            != seen.validation[split]
        )
    assert moved  # labels of the training rows do choose


def choices(x: np.ndarray, y: np.ndarray, sets: selection.Sets) -> np.ndarray:
    scaled = linear.standardise(x, sets.train)
    return np.asarray(
        linear.predict(linear.logistic(scaled, y, sets.train, STRENGTHS, 2), scaled.x, sets.held, 2)
    )


def test_the_best_candidate_is_that_of_the_inner_folds_for_each_split():
    labels = np.arange(40).astype(np.int32) % 2
    sets = selection.nested(labels, np.zeros(40, bool), 2, 1)
    answers = np.zeros((len(sets.train), 2, sets.held.shape[1]), np.int32)
    right, wrong = answers.copy(), answers.copy()
    for index in range(len(sets.train)):
        rows = sets.rows(index)
        right[index, 1, : len(rows)] = labels[rows]  # the second of two strengths knows the labels
        wrong[index, :, : len(rows)] = 1 - labels[rows]
    judged = [selection.judge(each, labels, sets, 2) for each in (wrong, right, answers)]
    assert judged[1].choice.tolist() == [1, 1] and judged[1].validation.tolist() == [1, 1]
    winner = selection.best(judged, sets)
    assert winner.choice.tolist() == [1, 1]
    np.testing.assert_array_equal(winner.answer[0], labels)


def test_scores_are_accuracy_and_pearsons_correlation_weighted_or_resampled():
    rng = np.random.default_rng(0)
    labels = rng.standard_normal(50) * 3 + 1e4
    answers = np.stack([labels + rng.standard_normal(50) * 4, np.full(50, 7.7)]).astype(np.float32)
    weight = selection.resample(np.arange(10, 50), 50, draws=5)
    assert (weight.sum(1) == 40).all() and not weight[:, :10].any()
    got = selection.score(answers, labels, weight, 0)
    for draw, times in enumerate(weight):
        rows = np.repeat(np.arange(50), times)
        assert got[0, draw] == pytest.approx(
            np.corrcoef(answers[0, rows], labels[rows])[0, 1], abs=1e-5
        )
    assert not got[1].any()  # not defined: 0
    classes = selection.score(
        np.array([[1, 0, 1]]), np.array([1, 1, 1]), np.array([[1, 1, 0], [2, 1, 1]]), 2
    )
    np.testing.assert_allclose(classes, [[0.5, 0.75]])


def test_intervals_cover_at_their_rate():
    """Of 200 tests of 100 answers that are right at a rate of .7, the 95% interval holds .7 in about 190."""
    labels, rng = np.ones(100, int), np.random.default_rng(0)
    weight = selection.resample(np.arange(100), 100, draws=400)
    answers = (rng.random((200, 1, 100)) < 0.7).astype(int)
    held = [
        low <= 0.7 <= high
        for low, high in (selection.interval(each, labels, weight, 2) for each in answers)
    ]
    assert 180 <= sum(held) <= 199


# The job


@pytest.fixture
def run(inputs, tmp_path, own_cache):
    def probed(**flags) -> dict:
        given = {
            "checkpoint": inputs.checkpoint("bert_bare_pooler"),
            "data": inputs.train,
            "test": inputs.test,
        }
        given |= {"folds": 2, "seeds": 2, "strengths": (1.0, 100.0), "neighbours": (1, 3)} | flags
        return main(Config(**given, out=tmp_path / "out", overwrite=True))

    return probed


def test_a_run_leaves_a_table_a_curve_and_its_result(run, tmp_path, capsys):
    result = run(method=("logistic", "ridge", "knn", "centroid"), pooling=("mean", "cls"))
    assert json.loads((tmp_path / "out/result.json").read_text()) == json.loads(json.dumps(result))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json",
        "result.json",
        "layers.png",
    }
    assert len(result["cells"]) == 3 * 2 * 4 and result["examples"] == {"train": 32, "test": 14}
    for cell in result["cells"]:
        assert 0 <= cell["low"] <= cell["test"] <= cell["high"] <= 1 and len(cell["by_seed"]) == 2
        assert not cell.get("not_converged") and len(cell["strengths"]) == 2
    assert (
        "2 inner folds of the training rows, for each of 2 seeds; the given test part is looked at once"
        in (said := capsys.readouterr().out)
    )
    assert "selected  " in said and said.count("logistic") > 6


def test_without_a_test_each_fold_is_tested_in_its_turn(run, capsys):
    result = run(test=None, folds=3, method=("centroid",))
    assert (
        len(result["selected"]["by_split"]) == 6
        and result["examples"]["test"] == "each fold of train in its turn"
    )
    assert "each of 3 outer folds is looked at once" in capsys.readouterr().out


def test_regression_and_a_limit(run, tmp_path):
    rows = [(text, len(text)) for text in TEXTS]
    result = run(
        data=str(tiny.write_table(tmp_path / "long.csv", rows)),
        test=None,
        task="regression",
        limit=30,
    )
    assert result["classes"] == [] and result["cells"][0]["method"] == "ridge"
    assert result["examples"]["train"] == 30 and result["selected"]["test"] > 0.5


def test_the_comparison_with_scikit_learn_measures_both_at_the_same_optimum(capsys):
    x, y = ill_scaled(2, count=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fits that did not converge
        result = probing.speed(x, y, rounds=1, folds=3, seeds=1)
    assert result["fits"] == 30 and not result["not_converged"]
    assert max(result["relative_error"]["adapt"]) < 1e-3 and max(result["gradient"]["adapt"]) < 1e-4
    assert (
        set(result["ratio"]) == {"adapt", "lbfgs", "newton-cholesky"}
        and result["ratio"]["adapt"] == 1
    )
    assert "30 logistic regressions on 200 x 12 features" in capsys.readouterr().out


def test_mistakes_are_one_line_with_the_mend(run, inputs, tmp_path, command):
    for flags, error, message in (
        (
            {"task": "regression", "method": ("logistic",)},
            StrategyError,
            "--method logistic classifies",
        ),
        ({"strengths": (1.0, 0.0)}, StrategyError, "--strengths 1.0 0.0 must be above 0"),
        ({"strengths": ()}, StrategyError, "--strengths : give at least one"),
        (
            {"pooling": ("mean", "mean")},
            StrategyError,
            "--pooling mean mean: give at least one, and none twice",
        ),
        ({"folds": 1}, StrategyError, "--folds 1 must be at least 2"),
        ({"seeds": 0}, StrategyError, "--seeds 0 must be at least 1"),
        ({"limit": 3}, StrategyError, "--limit 3 must be at least 4"),
        ({"folds": 17}, DataError, "32 rows are too few for --folds 17"),
        (
            {"method": ("knn",), "neighbours": (17,)},
            StrategyError,
            "--neighbours 17 must be 1 to 16",
        ),
        ({"label_column": "class"}, DataError, "has no column 'class'"),
        ({"checkpoint": inputs.checkpoint("vit_classifier")}, StrategyError, "is an image encoder"),
        ({"task": "regression", "label_column": "label"}, DataError, "is not a finite number"),
    ):
        with pytest.raises(error, match=message) as caught:
            run(**flags)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    done = command(
        "probe",
        "--data",
        "no.csv",
        "--checkpoint",
        inputs.checkpoint("bert_bare_pooler"),
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stderr == "error: no.csv does not exist\n"
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").touch()
    with pytest.raises(OutputError, match=r"the output folder .* exists"):
        main(Config(out=tmp_path / "there"))
