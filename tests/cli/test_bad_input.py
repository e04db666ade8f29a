"""Every mistake ends in one line `error: ...` and status 2, and nothing half-written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adapt.cli import extract, finetune, launch, predict, pretrain
from adapt.pretrained.families import FAMILIES
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")
MODULES = {"finetune": finetune, "pretrain": pretrain, "extract": extract, "predict": predict}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """`refused("finetune", "--epochs", 0)` is what stands after `error: `, the first line and then the others."""

    def run(name: str, *flags: object) -> tuple[str, list[str]]:
        there = sorted(tmp_path.rglob("*"))
        argv = [
            name,
            *map(str, flags),
            *(() if "--out" in flags else ("--out", str(tmp_path / "out"))),
        ]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit:
            launch.launch(MODULES[name].Config, MODULES[name].main)
        said = capsys.readouterr()
        first, *others = said.err.splitlines()
        assert exit.value.code == 2
        # A log has what was loaded before the mistake was seen, and no result.
        assert not said.out or said.out.startswith("loaded ")
        short = first.replace(", ".join(FAMILIES), "all families")
        assert first.startswith("error: ") and len(short) < 300
        assert all(line.startswith("  ") for line in others), said.err
        assert sorted(tmp_path.rglob("*")) == there
        return first.removeprefix("error: "), others

    return run


@pytest.fixture
def data(inputs, tmp_path):
    """Flags of a good run of finetune, but for a training file of the test."""

    def flags(rows, header=("text", "label"), **more: object) -> list[object]:
        file = tiny.write_table(tmp_path / "train.csv", rows, header)
        words = {
            "checkpoint": inputs.checkpoint("bert_mlm_tied"),
            "train": file,
            "test": inputs.test,
        } | more
        return [
            word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)
        ]

    return flags


GOOD = tiny.sentences(12)


def test_a_file_that_is_missing_or_empty(refused, data, inputs, tmp_path):
    assert refused("finetune", *data(GOOD, train="no.csv"))[0] == "no.csv does not exist"
    assert refused("finetune", *data(GOOD, test="no.csv"))[0] == "no.csv does not exist"
    assert refused("finetune", *data(GOOD, validation="no.csv"))[0] == "no.csv does not exist"
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("text,label\n")
    assert refused("finetune", *data(GOOD, test=tmp_path / "empty.csv"))[0].endswith(
        "empty.csv is empty"
    )
    assert refused("finetune", *data(GOOD, test=tmp_path / "header.csv"))[0].endswith(
        "header.csv has no rows"
    )
    checkpoint = ("--checkpoint", inputs.checkpoint("bert_mlm_tied"))
    assert refused("extract", *checkpoint, "--data", "no.jsonl")[0] == "no.jsonl does not exist"
    assert refused("pretrain", *checkpoint, "--text", "no.txt")[0] == "no.txt does not exist"
    assert refused("pretrain", *checkpoint, "--text", tmp_path / "empty.csv")[0].endswith(
        "is empty"
    )


def test_a_column_that_is_missing(refused, data, inputs):
    said, _ = refused("finetune", *data(GOOD, text_column="body"))
    assert said.endswith("has no column 'body'; it has text, label")
    said, _ = refused("finetune", *data(GOOD, label_column="class"))
    assert said.endswith("has no column 'class'; it has text, label")
    images = ("--checkpoint", inputs.checkpoint("vit_classifier"), "--data", inputs.images["test"])
    assert "name the image column with --image-column" in refused("extract", *images)[0]
    assert (
        "has no column 'picture'; it has image"
        in refused("extract", *images, "--image-column", "picture")[0]
    )
    assert "holds no image" in refused("extract", *images, "--image-column", "label")[0]
    said, _ = refused("finetune", *data(GOOD, image_column="text"))
    assert "is a text encoder: --image-column does not go with it" in said


@pytest.mark.parametrize("blank", ["", "   ", "\t\n"])
def test_an_empty_text_is_named_by_its_row(refused, data, inputs, blank, tmp_path):
    rows = [*GOOD[:6], (blank, "positive"), *GOOD[6:], (blank, "negative")]
    said, _ = refused("finetune", *data(rows))
    assert said.endswith("train.csv: row 7 (and 1 more) has no text in column 'text'")
    checkpoint = ("--checkpoint", inputs.checkpoint("bert_mlm_tied"))
    assert "row 7" in refused("extract", *checkpoint, "--data", tmp_path / "train.csv")[0]


def test_labels(refused, data, tmp_path):
    test = tiny.write_table(tmp_path / "test.csv", [*GOOD[:3], ("so so", "neutral")])
    said, _ = refused("finetune", *data(GOOD, test=test))
    assert said.endswith(
        "test.csv: row 4: label 'neutral' is unseen in training (negative, positive)"
    )
    said, _ = refused("finetune", *data([(text, "positive") for text, _ in GOOD]))
    assert "has only 'positive'; classification takes at least two classes" in said
    said, _ = refused("finetune", *data([*GOOD, ("the film", " ")]))
    assert said.endswith("train.csv: row 13 has no label in column 'label'")
    said, _ = refused("finetune", *data(GOOD, task="regression"))
    assert said.endswith("row 1: 'positive' in column 'label' is not a finite number")
    said, _ = refused("finetune", *data([*GOOD, ("the film", '["a')], task="multilabel"))
    assert "row 13: column 'label': '[\"a' is not a JSON list" in said


def test_one_row(refused, data, tmp_path):
    assert "has only 'positive'" in refused("finetune", *data(GOOD[:1]))[0]
    said, _ = refused(
        "finetune", *data([("good", 1.5)], test=tmp_path / "train.csv", task="regression")
    )
    assert "too few to hold some out for validation" in said


def test_files_that_are_not_what_they_seem(refused, data, inputs, tmp_path):
    (tmp_path / "latin.csv").write_bytes("text,label\ngood,a\ncafé,b\n".encode("latin-1"))
    said, _ = refused("finetune", *data(GOOD, test=tmp_path / "latin.csv"))
    assert said.endswith("latin.csv: line 3 is not UTF-8; convert the file with iconv")
    checkpoint = ("--checkpoint", inputs.checkpoint("bert_mlm_tied"))
    (tmp_path / "latin.txt").write_bytes("good\nfilm\ncafé\n".encode("latin-1"))
    assert (
        "line 3 is not UTF-8"
        in refused("pretrain", *checkpoint, "--text", tmp_path / "latin.txt")[0]
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": \n')
    assert "line 2 is not JSON" in refused("finetune", *data(GOOD, test=tmp_path / "rows.jsonl"))[0]
    (tmp_path / "short.csv").write_text("text,label\ngood,positive\nbad\n")
    said, _ = refused("finetune", *data(GOOD, test=tmp_path / "short.csv"))
    assert said.endswith("row 2 (line 3) has 1 fields, the header has 2")
    (tmp_path / "notes.docx").write_text("text")
    assert (
        "is of no known format"
        in refused("extract", *checkpoint, "--data", tmp_path / "notes.docx")[0]
    )
    (tmp_path / "table.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot read" in refused("extract", *checkpoint, "--data", tmp_path / "table.parquet")[0]


FLAGS = [
    ({"strategy": "freeze"}, "unknown strategy 'freeze': give one of full, frozen, top:K"),
    ({"strategy": "top:"}, "'top:' must be spelled top:K"),
    ({"strategy": "top:3"}, "top:3 wants 3 blocks and the encoder has 2"),
    ({"strategy": "top:0"}, "top:0 wants 0 blocks"),
    ({"strategy": "frozen", "learning_rate": "1e-4"}, "--learning-rate is the encoder's"),
    ({"frozen_dtype": "int8"}, "--frozen-dtype int8: --strategy full freezes no kernel"),
    ({"pooling": "pooler"}, "has no pooler to graft"),
    ({"epochs": 0}, "--epochs 0"),
    ({"epochs": -2}, "--epochs -2"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"batch_size": -8}, "--batch-size -8"),
    ({"accumulate": 3}, "--accumulate a divisor of --batch-size"),
    ({"learning_rate": -1}, "--learning-rate -1.0 must be at least 0"),
    ({"head_learning_rate": "nan"}, "--head-learning-rate nan must be at least 0"),
    ({"dropout": 1}, "--dropout 1.0 must be at least 0 and below 1"),
    ({"attention_dropout": -0.1}, "--attention-dropout -0.1 must be at least 0 and below 1"),
    ({"attention_dropout": 1}, "--attention-dropout 1.0 must be at least 0 and below 1"),
    ({"warmup": 1.5}, "--warmup 1.5 must be at least 0 and below 1"),
    ({"max_length": 2}, "--max-length 2 must be 3 to 20"),
    ({"max_length": 21}, "--max-length 21 must be 3 to 20"),
    ({"patience": -1}, "--patience -1 must be at least 0"),
    ({"save_every": -1}, "--save-every -1 must be at least 0"),
    ({"seed": -1}, "--seed -1 must be at least 0"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[json.dumps(flags) for flags, _ in FLAGS])
def test_flags(refused, data, flags, words):
    assert words in refused("finetune", *data(GOOD, **flags))[0]


def test_flags_that_contradict_each_other(refused, data, inputs):
    assert "give one of them" in refused("finetune", *data(GOOD), "--resume", "--overwrite")[0]
    assert "there is no run in" in refused("finetune", *data(GOOD), "--resume")[0]
    extracting = ("--checkpoint", inputs.checkpoint("bert_mlm_tied"), "--data", inputs.test)
    assert (
        "layer 3 is not there: the encoder has layers 0 (embedding) to 2"
        in refused("extract", *extracting, "--layer", 3)[0]
    )
    assert "layer -1 is not there" in refused("extract", *extracting, "--layer", -1)[0]
    assert (
        "layer 1.5 is not there: give a number, or transform or logits"
        in (refused("extract", *extracting, "--layer", 1.5)[0])
    )


def test_an_output_folder_that_exists(refused, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "the output folder" in refused("finetune", *data(GOOD))[0]
    assert (
        "is not a folder that finetune wrote" in refused("finetune", *data(GOOD), "--overwrite")[0]
    )
    on_a_file = refused("finetune", *data(GOOD), "--out", str(tmp_path / "out/mine.txt"))[0]
    assert "mine.txt is a file: give the name of a folder" in on_a_file
    under = refused("finetune", *data(GOOD), "--out", str(tmp_path / "out/mine.txt/run"))[0]
    assert "Not a directory" in under and "mine.txt" in under


@pytest.fixture
def broken(inputs, tmp_path, refused):
    """`broken(change)` is what a checkpoint folder after `change(folder)` is refused with, by two commands."""

    def told(change, case: str = "bert_mlm_tied", **config) -> tuple[str, list[str]]:
        folder = tiny.checkpoint(tmp_path / "checkpoint", case, **config)
        change(folder)
        said = refused(
            "finetune", "--checkpoint", folder, "--train", inputs.train, "--test", inputs.test
        )
        assert refused("extract", "--checkpoint", folder, "--data", inputs.test) == said
        return said

    return told


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write_tensors(folder: Path, content: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(content, folder / "model.safetensors")


def test_a_checkpoint_folder_without_its_files(broken):
    assert "no config.json in" in broken(lambda folder: (folder / "config.json").unlink())[0]


def test_a_checkpoint_folder_without_weights(broken):
    assert (
        "no model.safetensors in"
        in broken(lambda folder: (folder / "model.safetensors").unlink())[0]
    )


def test_a_checkpoint_folder_with_pickled_weights(broken):
    said, _ = broken(
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    )
    assert "pytorch_model.bin is a pickle, which is not opened; convert it there: python -c" in said


def test_a_checkpoint_folder_without_tokenizer(broken):
    said, _ = broken(lambda folder: (folder / "vocab.txt").unlink())
    assert "has no tokenizer" in said


def test_a_config_of_another_architecture(broken):
    said, _ = broken(lambda folder: None, model_type="mamba")
    assert said.startswith("unknown architecture 'mamba' in ")
    assert f"/config.json: adapt reads {', '.join(FAMILIES)}" in said


@pytest.mark.parametrize("hidden_size", ["wide", 0, -24, 25, None, 24.5])
def test_a_config_of_impossible_numbers(broken, hidden_size):
    assert "config.json" in broken(lambda folder: None, hidden_size=hidden_size)[0]


@pytest.mark.parametrize("kept", [0, 7, 200, -1])
def test_truncated_weights(broken, kept):
    def cut(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])

    assert "is truncated or corrupt" in broken(cut)[0]


def test_corrupt_weights(broken):
    def garble(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])

    assert "is truncated or corrupt" in broken(garble)[0]


def test_tensors_that_are_missing_extra_or_misshapen(broken):
    def change(folder: Path) -> None:
        content = tensors(folder)
        del content["bert.encoder.layer.0.output.dense.bias"]
        content["bert.encoder.layer.0.output.dense.weight"] = np.zeros((24, 41), np.float32)
        content["bert.encoder.layer.7.output.dense.bias"] = np.zeros(24, np.float32)
        write_tensors(folder, content)

    said, diff = broken(change)
    assert "do not fit its config.json (- missing, + not known, ! misshapen)" in said
    assert sorted(diff) == [
        "  ! encoder.layer.0.output.dense.weight (24, 41), expected (24, 40)",
        "  + encoder.layer.7.output.dense.bias (24,)",
        "  - encoder.layer.0.output.dense.bias (24,)",
    ]


def test_a_tokenizer_of_another_checkpoint(broken):
    def extend(folder: Path) -> None:
        with (folder / "vocab.txt").open("a") as file:
            file.writelines(f"\nword{number}" for number in range(100))

    assert "ids up to 124, the embedding has 100 rows" in broken(extend)[0]


@pytest.mark.parametrize("words", ["", "[PAD]\n[UNK]\ngood", "good\n"])
def test_a_vocabulary_without_the_special_tokens(broken, words):
    assert "tokenizer" in broken(lambda folder: (folder / "vocab.txt").write_text(words))[0]


def test_a_tokenizer_json_that_is_none(broken):
    assert (
        "cannot read the tokenizer"
        in broken(lambda folder: (folder / "tokenizer.json").write_text("{}"))[0]
    )


def test_the_status_of_a_process(command, inputs, tmp_path):
    """The same through a shell: status 2, one line, and nothing from the libraries beneath."""
    done = command(
        "finetune",
        "--checkpoint",
        inputs.checkpoint("bert_mlm_tied"),
        "--train",
        "no.csv",
        "--test",
        "no.csv",
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no.csv does not exist\n")
    done = command(
        "predict", "--run", tmp_path, "--data", inputs.test, "--out", tmp_path / "out.csv"
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    done = command("extract", "--pool", "middle")
    said = "error: there is no flag --pool: did you mean --pooling?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
