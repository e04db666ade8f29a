"""The probe's job: a choice that no label of the test can move, and what a run leaves."""

import json

import pytest

from adapt.cli.probe import Config, main
from adapt.errors import DataError, OutputError, StrategyError
from tests.helpers import tiny
from tests.helpers.probes import TEXTS

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


@pytest.mark.usefixtures("drawn")
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
    said = capsys.readouterr().out
    assert (
        "2 inner folds of the training rows, for each of 2 seeds; the given test part is looked at once"
        in said
    )
    assert "selected  " in said and said.count("logistic") > 6
    (classes,) = [line for line in said.splitlines() if line.startswith("classes ")]
    assert classes.split() == ["classes", "negative", "16,", "positive", "16"]


def test_without_a_test_each_fold_is_tested_in_its_turn(run, capsys):
    result = run(test=None, folds=3, method=("centroid",))
    assert (
        len(result["selected"]["by_split"]) == 6
        and result["examples"]["test"] == "each fold of train in its turn"
    )
    assert "each of 3 outer folds is looked at once" in capsys.readouterr().out


def test_what_kernels_in_fewer_bytes_change_is_said(run, capsys):
    result = run(frozen_dtype="int8", method=("centroid",))
    assert "kernels in int8" in capsys.readouterr().out
    assert result["frozen"]["dtype"] == "int8" and 1e-4 < result["frozen"]["output_error"] < 0.1


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


def test_mistakes_are_one_line_with_the_mend(run, inputs, tmp_path, command):
    for flags, error, message in (
        (
            {"task": "regression", "method": ("logistic",)},
            StrategyError,
            "`method` logistic classifies",
        ),
        ({"strengths": (1.0, 0.0)}, StrategyError, "`strengths` 1.0 0.0 must be above 0"),
        ({"strengths": ()}, StrategyError, "`strengths` : give at least one"),
        (
            {"pooling": ("mean", "mean")},
            StrategyError,
            "`pooling` mean mean: give at least one, and none twice",
        ),
        ({"frozen_dtype": "int4"}, StrategyError, "`frozen_dtype` is 'int4': give one of float32"),
        ({"folds": 1}, StrategyError, "`folds` 1 must be at least 2"),
        ({"seeds": 0}, StrategyError, "`seeds` 0 must be at least 1"),
        ({"limit": 3}, StrategyError, "`limit` 3 must be at least 4"),
        ({"folds": 17}, DataError, "32 rows are too few for `folds` 17"),
        (
            {"method": ("knn",), "neighbours": (17,)},
            StrategyError,
            "`neighbours` 17 must be 1 to 16",
        ),
        ({"label_column": "class"}, DataError, "has no column 'class'"),
        ({"checkpoint": inputs.checkpoint("vit_classifier")}, StrategyError, "is an image encoder"),
        ({"image_size": 32}, StrategyError, "`image_size` 32 is of pictures"),
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
