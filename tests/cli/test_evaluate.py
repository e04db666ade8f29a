"""evaluate: the scores that finetune's own test had, on new rows, in a log's last line and in a file."""

import json

import pytest

import adapt
from adapt.cli import evaluate, finetune
from adapt.data import bundled
from adapt.errors import AdaptError, CheckpointError, DataError, OutputError, StrategyError
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory, scratch_cache):
    """(the folder of a run whose columns have names of their own, its result)."""
    folder = tmp_path_factory.mktemp("runs")
    header = ("body", "stars")
    files = {
        "train": str(tiny.write_table(folder / "train.csv", tiny.sentences(32), header)),
        "test": str(tiny.write_table(folder / "test.csv", tiny.sentences(14, seed=1), header)),
    }
    columns = {"text_column": "body", "label_column": "stars"}
    checkpoint = inputs.checkpoint("bert_mlm_tied", blocks=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPT_CACHE", str(scratch_cache))
        flags = {"strategy": "frozen", "epochs": 1, "batch_size": 4, "out": folder / "run"}
        result = finetune.main(finetune.Config(checkpoint=checkpoint, **files, **columns, **flags))
    return folder, result


def test_the_scores_are_those_of_the_test(finished, tmp_path, capsys):
    folder, result = finished
    flags = {"run": folder / "run", "data": str(folder / "test.csv")}
    scores = evaluate.main(evaluate.Config(**flags, out=tmp_path / "deep/scores.json"))
    assert scores["accuracy"] == result["accuracy"] and scores["examples"] == 14
    assert scores["loss"] == pytest.approx(result["loss"], rel=1e-5)
    *_, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == scores == json.loads((tmp_path / "deep/scores.json").read_text())


def test_other_columns_are_named(finished, inputs):
    folder, result = finished
    flags = {"run": folder / "run", "data": inputs.test, "text_column": "text"}
    scores = evaluate.main(evaluate.Config(**flags, label_column="label"))
    assert scores["accuracy"] == result["accuracy"]
    run = adapt.load_run(folder / "run")
    seen = []
    run.evaluate(folder / "test.csv", on_progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (14, 14)


def test_a_bundled_set_is_its_test_part(finished, monkeypatch):
    """Its training part is never scored by accident: a run may have been trained on it."""
    folder, _ = finished
    rows = {"body": ["a good film", "a bad film"], "stars": ["positive", "negative"]}
    asked = []

    def read(name, part=None):
        asked.append((name, part))
        return rows

    monkeypatch.setattr(bundled, "read", read)
    run = adapt.load_run(folder / "run")
    assert run.evaluate("reviews")["accuracy"] is not None
    result = evaluate.main(evaluate.Config(run=folder / "run", data="reviews"))
    assert asked == [("reviews", "test")] * 2 and result["examples"] == 2


def test_what_evaluate_refuses(finished, inputs, tmp_path, capsys):
    folder, _ = finished
    run, test = folder / "run", str(folder / "test.csv")
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    unseen = str(tiny.write_table(tmp_path / "odd.csv", [("a film", "odd")], ("body", "stars")))
    for flags, error, message in (
        ({"run": run, "data": inputs.test}, DataError, "no column 'stars'; it has text, label"),
        ({"run": run, "data": unseen}, DataError, "row 1: label 'odd' is unseen in training"),
        ({"run": run, "data": "no.csv"}, DataError, "no.csv does not exist"),
        ({"run": tmp_path, "data": test}, CheckpointError, "not a run's folder"),
        ({"run": run, "data": test, "out": taken}, OutputError, "exists: give `overwrite`"),
        ({"run": run, "data": test, "text_pair_column": "stars"}, StrategyError, "was trained"),
        ({"run": run, "data": test, "image_column": "body"}, AdaptError, "image_column"),
    ):
        with pytest.raises(error, match=message):
            evaluate.main(evaluate.Config(**flags))
    assert taken.read_text() == "mine" and not capsys.readouterr().out


def test_the_command_says_the_flag(finished, command):
    folder, _ = finished
    done = command("evaluate", "--run", folder / "run", "--data", "a good film")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --data is the string 'a good film', which is no file")
