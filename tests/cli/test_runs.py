"""runs: what differs between runs, at 80 columns; all of it in a log's last line."""

import json

import pytest

from adapt.cli import flags, runs
from adapt.cli.runs import Config, main


def write_run(folder, settings, scores=None) -> None:
    folder.mkdir(parents=True)
    content = {"experiment": "finetune", "out": str(folder), "layers": [], **settings}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.json").write_text("{}")
    if scores:
        result = {"primary_metric": "accuracy", "scores": scores, "seconds": {"total": 1234.5}}
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def folder(tmp_path):
    scores = {"validation": {"accuracy": 0.75}, "test": {"accuracy": 0.8125}}
    for seed in (0, 1):
        settings = {"strategy": "full", "seed": seed, "epochs": 3}
        write_run(tmp_path / f"runs/full_{seed}", settings, scores)
    write_run(tmp_path / "runs/lora", {"strategy": "lora:8", "seed": 0, "epochs": 3})
    return tmp_path


def test_a_table_of_what_differs_and_json_as_the_last_line(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    table = main(Config())
    title, header, *rows, blank, last = capsys.readouterr().out.splitlines()
    assert title == "3 runs in runs/" and not blank
    assert header.split() == ["run", "strategy", "seed", "metric", "validation", "test", "seconds"]
    assert rows[0].split() == ["full_0", "full", "0", "accuracy", "0.75", "0.8125", "1,234"]
    assert rows[2].split() == ["lora", "lora:8", "0", "stopped"]
    assert json.loads(last) == list(table.rows)
    assert max(map(len, rows)) <= 80


def test_folders_are_typed_without_a_flag(folder):
    words = [str(folder / "runs/lora"), str(folder / "runs/full_0")]
    config = flags.read_flags(runs.Config, "adapt runs", None, words)
    assert list(map(str, config.paths)) == words


def test_a_folder_without_runs_is_one_line(command, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command("runs", "empty", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: paths empty holds no run: give what finetune")
