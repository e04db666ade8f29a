"""A probe from what people hold: the same report by lists and by a file, and mistakes that name their parameter."""

import dataclasses
import inspect

import datasets
import numpy as np
import pandas
import pytest

import adapt
from adapt.cli import probe as command
from adapt.errors import AdaptError
from adapt.options import DeviceOptions
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(32), strict=True))
NEW_TEXTS, NEW_LABELS = map(list, zip(*tiny.sentences(14, seed=1), strict=True))
FAST = {"folds": 2, "seeds": 1, "strengths": (1.0, 100.0)}
FRAME = pandas.DataFrame({"text": [*TEXTS, ""], "label": [*LABELS, "odd"]})


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture
def probe(bert):
    def run(inputs=TEXTS, labels=LABELS, **options):
        return adapt.probe(bert, inputs, labels, **FAST | options)

    return run


def test_the_report_is_that_of_the_command(probe, inputs, tmp_path):
    report = probe(test=(NEW_TEXTS, NEW_LABELS), pooling=["mean", "cls"])
    flags = FAST | {"data": inputs.train, "test": inputs.test, "pooling": ("mean", "cls")}
    checkpoint = inputs.checkpoint("bert_mlm_tied", blocks=1)
    said = command.main(command.Config(checkpoint=checkpoint, out=tmp_path / "out", **flags))
    assert report.cells == said["cells"] and report.selected == said["selected"]
    assert report.examples == {"train": 32, "test": 14}


# Flags whose place the arguments take, that are of a folder, or of several processes.
OF_THE_SHELL = {"checkpoint", "data", "out", "overwrite", "speed", "import_"} | {
    field.name for field in dataclasses.fields(DeviceOptions) if field.name != "mesh"
}


def test_the_arguments_are_the_flags_of_the_command():
    parameters = inspect.signature(adapt.probe).parameters
    flags = {field.name: field for field in dataclasses.fields(command.Config)}
    assert flags.keys() - OF_THE_SHELL == parameters.keys() - {
        "pretrained",
        "inputs",
        "labels",
        "on_progress",
    }
    for name in flags.keys() - OF_THE_SHELL:
        assert parameters[name].default == flags[name].default, name


FORMS = {
    "a file": ("train.csv", None),
    "arrays": (np.array(TEXTS), np.array(LABELS)),
    "a filtered frame": (FRAME[FRAME.text != ""], None),
    "filtered columns": (FRAME[FRAME.text != ""]["text"], FRAME[FRAME.text != ""]["label"]),
    "a data set": (datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}), None),
    "a dict": ({"text": TEXTS}, LABELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_rows_has_the_same_report(probe, inputs, form):
    rows, labels = FORMS[form]
    if form == "a file":
        rows = inputs.folder / rows
    assert probe(rows, labels, method=["centroid"]) == probe(method=["centroid"])


def test_a_report_is_a_table(probe):
    report = probe(method=["centroid", "ridge"])
    frame = report.to_pandas()
    assert len(frame) == len(report.cells) == 2 * 2
    assert {"method", "layer", "pooling", "validation", "test", "low", "high"} <= set(frame)
    assert frame["test"].between(frame["low"], frame["high"]).all()
    assert f"{report.selected['test']:.3f}" in repr(report) and len(repr(report)) < 200


def test_pairs_values_and_pictures_are_probed(probe, inputs):
    pairs = probe([(text, "a film") for text in TEXTS], method=["centroid"])
    assert pairs.cells != probe(method=["centroid"]).cells
    values = probe(labels=np.arange(32.0), task="regression")
    assert values.classes == [] and "Pearson" in repr(values)
    pictures = [np.asarray(tiny.picture(number)) for number in range(12)]
    vit = inputs.checkpoint("vit_classifier")
    report = adapt.probe(vit, pictures, ["bright", "dark"] * 6, method=["centroid"], **FAST)
    assert report.selected["test"] == 1


def test_truncated_texts_are_said(probe, caplog):
    probe(["good " * 30, *TEXTS[1:]], test=(["bad " * 30], ["negative"]), method=["centroid"])
    said = "1 text is longer than 20 tokens and truncated: 12 tokens are left out"
    assert caplog.messages == [f"the training data: {said}", f"the test: {said}"]


MISTAKES = {
    "a text for a list": (("a good film", LABELS), {}, "`inputs`"),
    "a label for a list": ((TEXTS, "positive"), {}, "`labels`"),
    "too few labels": ((TEXTS, LABELS[:3]), {}, "equally long"),
    "labels that are lists": ((TEXTS, [[label] for label in LABELS]), {}, "multilabel"),
    "no labels": ((TEXTS, None), {}, "has no column 'label'"),
    "a missing text": (([None, *TEXTS[1:]], LABELS), {}, "row 1"),
    "a pooling for a list": ((TEXTS, LABELS), {"pooling": "mean"}, "`pooling`"),
    "an unknown pooling": ((TEXTS, LABELS), {"pooling": ["average"]}, "`pooling`"),
    "a pooling with weights": ((TEXTS, LABELS), {"pooling": ["pooler"]}, "`pooling`"),
    "a method for a list": ((TEXTS, LABELS), {"method": "ridge"}, "`method`"),
    "an unknown method": ((TEXTS, LABELS), {"method": ["svm"]}, "`method`"),
    "a strength for a list": ((TEXTS, LABELS), {"strengths": 1.0}, "`strengths`"),
    "a word for a strength": ((TEXTS, LABELS), {"strengths": ["strong"]}, "`strengths`"),
    "no strength": ((TEXTS, LABELS), {"strengths": []}, "`strengths`"),
    "half a neighbour": ((TEXTS, LABELS), {"neighbours": [0.5]}, "`neighbours`"),
    "a word for folds": ((TEXTS, LABELS), {"folds": "two"}, "`folds`"),
    "one fold": ((TEXTS, LABELS), {"folds": 1}, "`folds`"),
    "too many folds": ((TEXTS, LABELS), {"folds": 17}, "`folds`"),
    "no seed": ((TEXTS, LABELS), {"seeds": 0}, "`seeds`"),
    "a word for a limit": ((TEXTS, LABELS), {"limit": "all"}, "`limit`"),
    "a limit below the folds": ((TEXTS, LABELS), {"limit": 3}, "`limit`"),
    "a task without a head": ((TEXTS, LABELS), {"task": "tags"}, "`task`"),
    "a list of tasks": ((TEXTS, LABELS), {"task": ["regression"]}, "`task`"),
    "an unknown task": ((TEXTS, LABELS), {"task": "sorting"}, "`task`"),
    "a test of three": ((TEXTS, LABELS), {"test": (TEXTS, LABELS, 3)}, "`test`"),
    "test labels unseen": ((TEXTS, LABELS), {"test": (["a"], ["odd"])}, "unseen"),
    "three texts": (([(text,) * 3 for text in TEXTS], LABELS), {}, "text_pair_column"),
    "a number for a column": ((TEXTS, LABELS), {"label_column": 1}, "label_column"),
    "a number for a mesh": ((TEXTS, LABELS), {"mesh": 2}, "mesh"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_parameter(probe, mistake):
    arguments, options, named = MISTAKES[mistake]
    with pytest.raises(AdaptError, match=named) as raised:
        probe(*arguments, **options)
    assert "\n" not in str(raised.value)
