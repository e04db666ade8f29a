"""The command: from a file to a page, and on after a stop."""

import json
from pathlib import Path

import pytest

from adapt.cli import compare, finetune, launch
from adapt.cli.flags import read_flags
from adapt.comparison import comparing
from adapt.errors import OutputError
from adapt.options import FinetuningOptions

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.usefixtures("drawn")
def test_a_short_comparison_ends_in_a_page_and_resumes(inputs, tmp_path, capsys):
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", 1),
        "train": inputs.train,
        "test": inputs.test,
        "strategies": ("probe", "lora:2"),
        "rates": (1.0, 3.0),
        "labels": ("8", "all"),
        "seeds": 2,
        "min_steps": 4,
        "epochs": 1,
        "out": tmp_path / "out",
    }
    with launch.running("adapt compare --train mine.csv"):
        result = compare.main(compare.Config(**flags))
    assert len(result["rows"]) == 2 * 2
    page = (tmp_path / "out/compare.md").read_text()
    assert "Written by `adapt compare --train mine.csv`" in page
    assert page.count("| lora:2 |") == 2
    for name in ("labels.png", "cost.png", "cells.parquet", "comparison.json"):
        assert (tmp_path / "out" / name).stat().st_size, name
    printed = capsys.readouterr().out
    assert "8 labels" in printed and "best" in printed
    assert "\nclasses   negative " in printed
    shown = json.loads(printed.splitlines()[-1])["answers"]
    assert shown == compare.rounded(result["answers"]) and len(shown) == 2
    with pytest.raises(OutputError, match="exists"):
        compare.main(compare.Config(**flags))
    with launch.running("adapt compare --resume"):
        again = compare.main(compare.Config(**flags, resume=True))
    assert again == result
    assert (tmp_path / "out/compare.md").read_text() == page
    # Its config.json makes another one, in which a flag may be another.
    words = ["--config", str(tmp_path / "out/config.json"), "--seeds", "3", "--out", "other"]
    read = read_flags(compare.Config, "adapt compare", None, words)
    expected = compare.Config(**flags | {"seeds": 3, "out": Path("other")}, config=read.config)
    assert read == expected
    # A comparison of an earlier version, whose config.json lacks what is newer, goes on as well.
    file = tmp_path / "out/config.json"
    settings = json.loads(file.read_text())
    for name in ("together", "offsets", "quoting", "stride"):
        del settings[name]
    file.write_text(json.dumps(settings))
    assert compare.main(compare.Config(**flags, resume=True)) == result


def test_numbers_are_shown_with_6_digits():
    answer = {"score": 0.6499999999999999, "labels": "all", "seeds": 3, "interval": (1 / 3, None)}
    shown = {"score": 0.65, "labels": "all", "seeds": 3, "interval": [0.333333, None]}
    assert compare.rounded([answer]) == [shown]


def test_the_command_that_trains_the_best_is_the_run_of_its_cell(inputs, tmp_path):
    config = compare.Config(
        checkpoint=inputs.checkpoint("bert_mlm_tied", 1),
        train=inputs.train,
        test=inputs.test,
        strategies=("bitfit",),
        rates=(3.0,),
        seeds=1,
        min_steps=4,
        epochs=1,
        batch_size=8,
        import_=("json",),
        out=tmp_path / "out",
    )
    found = prepare_and_run(config)
    command = compare.training_command(config, found)
    words = command.split()
    assert words[:2] == ["adapt", "finetune"]
    for flags in ("--import json", "--epochs 1", "--strategy bitfit", "--rate-factor 3"):
        assert flags in command
    read = read_flags(
        finetune.Config, "adapt finetune", None, [*words[2:], "--out", str(tmp_path / "run")]
    )
    result = finetune.main(read)
    assert result["accuracy"] == found.cells[0].scores["test"]["accuracy"]


def prepare_and_run(config: compare.Config):
    of_fits = {name: getattr(config, name) for name in ("checkpoint", "epochs", "batch_size")}
    prepared = comparing.prepare(
        config.checkpoint,
        config.train,
        None,
        FinetuningOptions(**of_fits),
        config,
        test=config.test,
    )
    return prepared.run(config.out)


@pytest.mark.slow
def test_the_flag_of_budgets_is_labels(command, inputs, tmp_path):
    done = command(
        "compare",
        *("--checkpoint", inputs.checkpoint("bert_mlm_tied", 1), "--train", inputs.train),
        *("--labels", "9999", "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--labels 9999 must be all, or from 4" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_table_says_how_many_fits_trained_together(inputs, tmp_path, capsys):
    config = compare.Config(
        checkpoint=inputs.checkpoint("bert_mlm_tied", 1),
        train=inputs.train,
        test=inputs.test,
        strategies=("frozen", "centroid"),
        rates=(1.0, 3.0),
        seeds=2,
        min_steps=4,
        epochs=1,
        out=tmp_path / "out",
    )
    compare.main(config)
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if line.startswith("strategy")]
    assert head.split()[-1] == "together"
    last = {line.split()[0]: line.split()[-1] for line in lines if line}
    assert last["frozen"] == "4" and last["centroid"] == "1"
