"""`--help` of the measurements: groups in their order, every flag with words of its own."""

import dataclasses
import re
import sys

import pytest

from adapt.cli import flags
from experiments import prompting
from experiments.benchmark import benchmark, shape_steps, tuning, whole_runs
from experiments.benchmark.accelerator import command
from experiments.benchmark.aot import compile_check

GROUPS = {
    benchmark: ["rounds", "peers", "extraction", "host", "data", "run"],
    whole_runs: ["rounds", "peers", "growth", "data", "training", "run"],
    shape_steps: ["peers", "rounds", "steps", "run"],
    tuning: ["tuning", "run"],
    command: ["accelerator", "run"],
    prompting: ["study", "run"],
    compile_check: ["step", "more", "run"],
}


@pytest.mark.parametrize("command", GROUPS, ids=lambda command: command.__name__.split(".")[-1])
def test_help_is_in_order_at_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        flags.read_flags(command.Config, "command", None, ["--help"])
    said = capsys.readouterr().out
    assert re.findall(r"^\W*(\w+) options\b", said, re.MULTILINE) == GROUPS[command]
    assert max(map(len, said.splitlines())) <= 80
    assert "None" not in said and "(default: True)" not in said and sys.executable not in said


@pytest.mark.parametrize("command", GROUPS, ids=lambda command: command.__name__.split(".")[-1])
def test_every_flag_has_a_help_of_its_own(command):
    texts = flags.help_of_fields(command.Config)
    assert set(texts) == {field.name for field in dataclasses.fields(command.Config)}
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("command", GROUPS, ids=lambda command: command.__name__.split(".")[-1])
def test_an_example_of_the_help_fits_into_80_columns(command):
    examples = [line for line in command.__doc__.splitlines() if line.startswith("    ")]
    assert examples and max(map(len, examples)) <= 80
