"""The command: from a file to a page, and on after a stop."""

import pytest

from adapt.cli import compare, launch
from adapt.errors import OutputError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_short_comparison_ends_in_a_page_and_resumes(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "typed", "adapt compare --train mine.csv")
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
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
    result = compare.main(compare.Config(**flags))
    assert len(result["rows"]) == 2 * 2
    page = (tmp_path / "out/compare.md").read_text()
    assert "Written by `adapt compare --train mine.csv`" in page
    assert page.count("| lora:2 |") == 2
    for name in ("labels.png", "cost.png", "cells.parquet", "comparison.json"):
        assert (tmp_path / "out" / name).stat().st_size, name
    assert "adapt finetune" in page
    printed = capsys.readouterr().out
    assert "8 labels" in printed and "to train the best: adapt finetune" in printed
    with pytest.raises(OutputError, match="exists"):
        compare.main(compare.Config(**flags))
    again = compare.main(compare.Config(**flags, resume=True))
    assert again == result


@pytest.mark.slow
def test_the_flag_of_budgets_is_labels(command, inputs, tmp_path):
    done = command(
        "compare",
        *("--checkpoint", inputs.checkpoint("bert_mlm_tied"), "--train", inputs.train),
        *("--labels", "9999", "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--labels 9999 must be all, or from 4" in done.stderr
    assert not (tmp_path / "out").exists()
