"""predict: one row an input row, named columns, probabilities that finetune's own test agrees with."""

import csv
import json
import shutil

import numpy as np
import pytest

import adapt
from adapt.cli import finetune, predict, pretrain
from adapt.errors import CheckpointError, DataError, OutputError, StrategyError
from adapt.pretrained import hub
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def rows(path) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a CSV file, without the first column, which numbers the rows."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    assert header[0] == "row"
    assert [row[0] for row in body] == [str(number + 1) for number in range(len(body))]
    return header[1:], [row[1:] for row in body]


@pytest.fixture(scope="module")
def finetuned(inputs, tmp_path_factory, scratch_cache):
    """`finetuned(task, train, test)` is (the run's folder, its result), in a head of its own on a frozen BERT."""

    def run(task: str, train: str, test: str, case: str = "bert_mlm_tied", **flags):
        out = tmp_path_factory.mktemp("runs") / "run"
        flags = {
            "strategy": "frozen",
            "epochs": 2,
            "batch_size": 4,
            "head_learning_rate": 0.05,
        } | flags
        data = {"checkpoint": inputs.checkpoint(case, 1), "train": train, "test": test}
        config = finetune.Config(task=task, out=out, **data, **flags)
        return out, finetune.main(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPT_CACHE", str(scratch_cache))
        yield run


@pytest.fixture(scope="module")
def binary(finetuned, inputs):
    return finetuned("classification", inputs.train, inputs.test)


def test_predictions_are_those_that_finetune_tested(binary, inputs, tmp_path, capsys):
    run, result = binary
    predict.main(predict.Config(run=(run,), data=inputs.test, out=tmp_path / "out.csv"))
    assert capsys.readouterr().out == f"{tmp_path / 'out.csv'}: 14 predictions\n"
    header, body = rows(tmp_path / "out.csv")
    assert header == ["prediction", "probability:negative", "probability:positive"]
    truth = [label for _, label in tiny.sentences(14, seed=1)]
    assert len(body) == len(truth)
    probabilities = np.array([row[1:] for row in body], float)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert [row[0] for row in body] == [
        ("negative", "positive")[place] for place in probabilities.argmax(1)
    ]
    assert (
        np.mean([row[0] == label for row, label in zip(body, truth, strict=True)])
        == result["accuracy"]
    )
    chosen = [("negative", "positive").index(label) for label in truth]
    assert -np.log(probabilities[np.arange(14), chosen]).mean() == pytest.approx(
        result["loss"], rel=1e-5
    )


def test_rows_stay_in_the_order_of_the_file(binary, tmp_path):
    run, _ = binary
    texts = [text for text, _ in tiny.sentences(30, seed=3)] + [
        "good",
        "a very " * 8,
        "NA",
        "null",
        "nan",
        "None",
        "007",
    ]
    tiny.write_table(tmp_path / "forth.csv", [[text] for text in texts], ["words"])
    tiny.write_table(tmp_path / "back.tsv", [[text] for text in texts[::-1]], ["words"])
    found = {}
    for name in ("forth.csv", "back.tsv"):
        predict.main(
            predict.Config(
                run=(run,),
                data=str(tmp_path / name),
                out=tmp_path / f"{name}.out",
                text_column="words",
            )
        )
        found[name] = rows(tmp_path / f"{name}.out")[1]
    assert len(found["forth.csv"]) == len(texts)
    for forth, back in zip(found["forth.csv"], found["back.tsv"][::-1], strict=True):
        np.testing.assert_allclose(np.array(forth[1:], float), np.array(back[1:], float), atol=1e-6)
    # Words that a CSV reader takes for missing values are text, and the same unknown word to this tokenizer.
    words = np.array([row[1:] for row in found["forth.csv"][32:37]], float)
    np.testing.assert_allclose(words, words[:1].repeat(5, 0), atol=1e-6)


def test_other_columns_are_kept_beside_the_predictions(binary, tmp_path, capsys):
    run, _ = binary
    file = tmp_path / "data.jsonl"
    lines = [
        {"id": 7, "text": "a good film", "tags": ["x", "y"], "note": None},
        {"id": 9, "text": "a bad, dull one", "tags": [], "note": "so, so"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    flags = {"run": (run,), "data": str(file), "out": tmp_path / "out.csv", "overwrite": True}
    kept = ("id", "text", "tags", "note")
    predict.main(predict.Config(**flags, keep_columns=kept))
    header, body = rows(tmp_path / "out.csv")
    assert header == [*kept, "prediction", "probability:negative", "probability:positive"]
    assert [row[:4] for row in body] == [
        ["7", "a good film", '["x", "y"]', ""],
        ["9", "a bad, dull one", "[]", "so, so"],
    ]
    frame = adapt.load_run(run).predict(file, keep_columns=["id", "note"]).to_pandas()
    assert list(frame)[:3] == ["id", "note", "prediction"] and list(frame["id"]) == [7, 9]
    assert list(frame["prediction"]) == [row[4] for row in body]
    for names, error, message in (
        (("size",), DataError, "no column 'size'; it has id, text, tags, note"),
        (("id", "id"), StrategyError, "`keep_columns` id: the predictions would have two"),
    ):
        with pytest.raises(error, match=message):
            predict.main(predict.Config(**flags, keep_columns=names))
    with pytest.raises(DataError, match="`keep_columns`"):
        adapt.load_run(run).predict(file, keep_columns="id")
    named = str(tiny.write_table(tmp_path / "named.csv", [("a film", "x")], ("text", "prediction")))
    with pytest.raises(StrategyError, match="`keep_columns` prediction"):
        adapt.load_run(run).predict(named, keep_columns=["prediction"])


def test_multilabel(finetuned, tmp_path):
    several = [
        (text, ["red;blue", "blue", "", '["red"]'][number % 4])
        for number, (text, _) in enumerate(tiny.sentences(24))
    ]
    table = str(tiny.write_table(tmp_path / "several.csv", several))
    run, result = finetuned("multilabel", table, table, epochs=4)
    predict.main(predict.Config(run=(run,), data=table, out=tmp_path / "out.csv"))
    header, body = rows(tmp_path / "out.csv")
    assert header == ["prediction", "probability:blue", "probability:red"]
    truth = [{"blue", "red"}, {"blue"}, set(), {"red"}] * 6
    right = 0
    for (prediction, *probabilities), labels in zip(body, truth, strict=True):
        chosen = {
            name
            for name, value in zip(("blue", "red"), probabilities, strict=True)
            if float(value) > 0.5
        }
        assert prediction == ";".join(sorted(chosen))
        right += chosen == labels
    assert right / 24 == pytest.approx(result["accuracy"])


def test_regression(finetuned, tmp_path):
    rated = [(text, 1.5 if label == "positive" else -2) for text, label in tiny.sentences(24)]
    table = str(tiny.write_table(tmp_path / "rated.csv", rated))
    run, result = finetuned("regression", table, table)
    predict.main(predict.Config(run=(run,), data=table, out=tmp_path / "out.csv"))
    header, body = rows(tmp_path / "out.csv")
    assert header == ["prediction"]
    values = np.array([row[0] for row in body], float)
    assert np.mean((values - [value for _, value in rated]) ** 2) == pytest.approx(
        result["mse"], rel=1e-5
    )


def test_labels_with_any_characters(finetuned, tmp_path):
    names = ['a "quoted" one', "comma, semicolon; done", "zwei\nZeilen", "été ☀ 好", " spaced "]
    labelled = [(text, names[number % 5]) for number, (text, _) in enumerate(tiny.sentences(40))]
    table = str(tiny.write_table(tmp_path / "odd.csv", labelled))
    run, _ = finetuned("classification", table, table, epochs=1)
    predict.main(predict.Config(run=(run,), data=table, out=tmp_path / "out.csv"))
    header, body = rows(tmp_path / "out.csv")
    assert set(header[1:]) == {f"probability:{name}" for name in names} and len(header) == 6
    for prediction, *probabilities in body:
        assert (
            f"probability:{prediction}"
            == header[1:][int(np.argmax(np.array(probabilities, float)))]
        )


def test_images(finetuned, inputs, tmp_path):
    pictures = inputs.images
    flags = {"image_column": "image", "case": "vit_classifier", "epochs": 3}
    run, result = finetuned("classification", pictures["train"], pictures["test"], **flags)
    predict.main(predict.Config(run=(run,), data=pictures["test"], out=tmp_path / "out.csv"))
    header, body = rows(tmp_path / "out.csv")
    assert header == ["file", "prediction", "probability:bright", "probability:dark"]
    assert [row[0] for row in body] == [
        str(file.relative_to(pictures["test"]))
        for file in sorted((inputs.folder / "new").glob("*/*.png"))
    ]
    is_right = [row[1] == row[0].partition("/")[0] for row in body]
    assert np.mean(is_right) == result["accuracy"]


def test_a_run_that_moved_still_predicts(binary, inputs, tmp_path):
    """A run's folder is all that predict needs: not the checkpoint that it came from, nor its old place."""
    run, _ = binary
    predict.main(predict.Config(run=(run,), data=inputs.test, out=tmp_path / "here.csv"))
    moved = shutil.copytree(run, tmp_path / "elsewhere/run")
    predict.main(predict.Config(run=(moved,), data=inputs.test, out=tmp_path / "there.csv"))
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()


def test_what_predict_refuses(binary, inputs, tmp_path):
    run, _ = binary
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        predict.main(predict.Config(run=(run,), data=inputs.test, out=out))
    with pytest.raises(CheckpointError, match="not a run's folder"):
        predict.main(predict.Config(run=(tmp_path,), data=inputs.test, out=tmp_path / "new.csv"))
    (tmp_path / hub.ADAPTER).write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter of PEFT, not a run's folder"):
        predict.main(predict.Config(run=(tmp_path,), data=inputs.test, out=tmp_path / "new.csv"))
    with pytest.raises(DataError, match="no column 'words'; it has text, label"):
        predict.main(
            predict.Config(
                run=(run,), data=inputs.test, out=out, text_column="words", overwrite=True
            )
        )
    (tmp_path / "text.txt").write_text("the film\nthe plot\na cast\n")
    text, checkpoint = str(tmp_path / "text.txt"), inputs.checkpoint("bert_mlm_tied")
    pretrain.main(
        pretrain.Config(
            text=text, checkpoint=checkpoint, steps=1, batch_size=2, out=tmp_path / "pre"
        )
    )
    with pytest.raises(CheckpointError, match="is a pre-training run"):
        predict.main(
            predict.Config(run=(tmp_path / "pre",), data=inputs.test, out=tmp_path / "new.csv")
        )
    assert out.read_text() == "mine" and not (tmp_path / "new.csv").exists()


def test_a_damaged_run_is_not_predicted_with(binary, inputs, tmp_path):
    run = shutil.copytree(binary[0], tmp_path / "run")
    best = json.loads((run / "checkpoints/index.json").read_text())["best"]["folder"]
    victim = max(
        (run / "checkpoints" / best).rglob("*"),
        key=lambda path: path.stat().st_size if path.is_file() else 0,
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        predict.main(predict.Config(run=(run,), data=inputs.test, out=tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(CheckpointError, match="is damaged"):
        hub.load(run)


def test_quotation_marks_are_read_as_in_training(finetuned, tmp_path, capsys):
    train = tmp_path / "train.tsv"
    lines = [
        f'"a {label} film\nof {number}"\t{label}'
        for number in range(8)
        for label in ("bad", "good")
    ]
    train.write_text("\n".join(["text\tlabel", *lines]), "utf-8")
    run, _ = finetuned("classification", str(train), str(train), quoting="csv", epochs=1)
    assert json.loads((run / "config.json").read_text())["quoting"] == "csv"
    out = tmp_path / "out.csv"
    capsys.readouterr()
    predict.main(predict.Config(run=(run,), data=str(train), out=out))
    assert "16 predictions" in capsys.readouterr().out
    assert len(adapt.load_run(run).predict(str(train))) == 16
    with pytest.raises(DataError, match=r"has 1 fields.*`quoting` csv|has 1 fields"):
        predict.main(
            predict.Config(run=(run,), data=str(train), out=tmp_path / "o.csv", quoting="none")
        )
    with pytest.raises(DataError, match="has 1 fields"):
        adapt.load_run(run).evaluate(str(train), quoting="none")
