"""`--help` says what is typed, every option in its own words; parameters in sentences become flags."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from adapt import options
from adapt.__main__ import COMMANDS
from adapt.cli import flags, launch
from adapt.errors import AdaptError

GROUPS = [
    getattr(options, name)
    for name in dir(options)
    if dataclasses.is_dataclass(getattr(options, name))
]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def help_of(name: str, capsys) -> str:
    command = importlib.import_module(f"adapt.cli.{name}")
    with pytest.raises(SystemExit) as exit:
        flags.read_flags(command.Config, f"adapt {name}", command.__doc__, ["--help"])
    assert not exit.value.code
    return capsys.readouterr().out


def test_adapt_alone_lists_the_commands_without_jax():
    code = (
        "import sys; sys.argv = ['adapt']; from adapt.__main__ import main; main(); "
        "print('jax' in sys.modules)"
    )
    *lines, jax = python("-c", code).stdout.splitlines()
    assert jax == "False"
    for name, what in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, what] for line in lines)
    assert python("-m", "adapt", "--help").stdout.splitlines() == lines


def test_an_unknown_command_is_answered_with_the_nearest():
    done = python("-m", "adapt", "finetun")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no command 'finetun': did you mean finetune?\n"
    assert "give one of finetune, pretrain" in python("-m", "adapt", "zzz").stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_is_typed_and_no_default_contradicts_it(name, capsys):
    said = help_of(name, capsys)
    assert said.startswith(f"usage: adapt {name} [-h]")
    assert "None" not in said and "(default: )" not in said and "False" not in said
    assert not re.search(r"--no-\w+[ ,]", said)  # one flag a switch


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_of_help_are_in_order(name, capsys):
    shown = re.findall(r"^\W*(\w+) options\b", help_of(name, capsys), re.MULTILINE)
    known = [title for title in shown if title in flags.GROUPS]
    assert known == sorted(known, key=flags.GROUPS.index)
    assert "devices" not in shown or shown[-1] == "devices"


def test_finetune_has_all_groups_and_nothing_beside(capsys):
    shown = re.findall(r"^\W*(\w+) options\b", help_of("finetune", capsys), re.MULTILINE)
    assert [title for title in shown if title in flags.GROUPS] == list(flags.GROUPS)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_option_has_a_help_of_its_own(group):
    texts = flags.help_of_fields(group)
    assert set(texts) == {field.name for field in dataclasses.fields(group)}
    assert len(set(texts.values())) == len(texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(options.RunOptions):
    data: str  # beside it
    # above it,
    # in two lines
    rate: float | None = None

    bare: tuple[int, ...] = ()
    kind: Literal["a", "b"] | None = None  # one of two
    out: Path = Path("elsewhere")


def test_a_comment_belongs_to_its_field_alone():
    texts = flags.help_of_fields(Example)
    assert texts["data"] == "beside it" and texts["rate"] == "above it, in two lines"
    assert "bare" not in texts and texts["kind"] == "one of two"
    assert texts["out"] == flags.help_of_fields(options.RunOptions)["out"]


def test_a_group_in_parts_is_described_as_a_whole():
    for command, title, group in (
        ("finetune", "model", options.ModelOptions),
        ("finetune", "optimizer", options.OptimizerOptions),
        ("plan", "data", options.LabelledColumnOptions),
    ):
        config = importlib.import_module(f"adapt.cli.{command}").Config
        assert flags.description_of(config, title) == group.__doc__.splitlines()[0]


def test_a_terminal_gets_the_description_in_lines_of_its_width(monkeypatch):
    text = "What it does.\n\n    adapt x --flag  # once\n\n" + "``word`` and " * 20
    assert flags.help_text(text).splitlines()[4] == ("word and " * 20).strip()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = flags.help_text(text).replace(flags.RESET, "").splitlines()
    assert lines[:4] == ["What it does.", "", "    adapt x --flag  # once", ""]
    assert all(0 < len(line) <= 40 for line in lines[4:])


def test_flags_are_read_into_the_config():
    words = ["--data", "x", "--rate", "0.5", "--bare", "1", "2", "--resume", "--kind", "b"]
    read = flags.read_flags(Example, "example", None, words)
    assert read == Example(data="x", rate=0.5, bare=(1, 2), resume=True, kind="b")
    read = flags.read_flags(Example, "example", None, ["--data", "x", "--out", "gs://bucket/run"])
    assert str(read.out / "config.json") == "gs://bucket/run/config.json"
    assert flags.first_nondefault_flag(options.RunOptions(seed=3), ["out", "seed"]) == "--seed"
    assert flags.first_nondefault_flag(options.RunOptions(), ["out", "seed"]) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs abc", "--epochs abc: give a whole number"),
        ("--epochs=1.5 --seed 1", "--epochs 1.5: give a whole number"),
        ("--learning-rate fast", "--learning-rate fast: give a number"),
        ("--epoch 3", "there is no flag --epoch: did you mean --epochs?"),
        ("--zzzzzz", "there is no flag --zzzzzz: see adapt finetune --help"),
        ("mine.csv", "'mine.csv' belongs to no flag: see adapt finetune --help"),
        ("--strategy", "--strategy has no value: give a value"),
        ("--batch-size", "--batch-size has no value: give a whole number"),
        ("--cache maybe", "--cache maybe: give one of auto, on, off"),
    ],
)
def test_a_mistyped_flag_is_one_sentence(words, said, capsys):
    module = importlib.import_module("adapt.cli.finetune")
    with pytest.raises(AdaptError) as error:
        flags.read_flags(module.Config, "adapt finetune", None, words.split())
    assert str(error.value) == said
    assert capsys.readouterr() == ("", "")


def test_a_choice_that_may_be_left_open_is_yes_or_no():
    module = importlib.import_module("adapt.cli.extract")
    with pytest.raises(AdaptError, match="--normalize maybe: maybe is neither"):
        flags.read_flags(module.Config, "adapt extract", None, ["--normalize", "maybe"])


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("`batch_size` 0 must be at least 1", "--batch-size 0 must be at least 1"),
        ('give `cache="off"`, or `resume=True`', "give --cache off, or --resume"),
        ("give `epochs=3`", "give --epochs 3"),
        ("`neighbours` of `probe`", "neighbours of probe"),
        ("`inputs` is empty", "--train is empty"),
        ("a lone ` stays", "a lone ` stays"),
        ("`pip install x`", "pip install x"),
    ],
)
def test_parameters_in_backticks_become_flags(sentence, shown):
    from adapt.cli.finetune import Config

    assert flags.name_flags(sentence, Config) == shown


@pytest.mark.parametrize(
    ("platforms", "plugins", "files", "is_cpu"),
    [
        ("cpu", ["xla_cuda12"], ["/dev/nvidia0"], True),
        ("cuda,cpu", [], [], False),
        ("", [], ["/dev/nvidia0"], True),  # JAX was installed for CPUs
        ("", ["xla_cuda12"], [], True),  # no GPU
        ("", ["xla_cuda12"], ["/dev/nvidia0"], False),
        ("", ["libtpu"], ["/dev/nvidia0"], True),
        ("", ["libtpu"], ["/dev/accel0"], False),
        ("", ["somebody_elses"], [], False),
    ],
)
def test_malloc_is_left_alone_where_an_accelerator_is(
    monkeypatch, platforms, plugins, files, is_cpu
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "jax_plugins", lambda: plugins)
    found = lambda pattern: [file for file in files if file.startswith(pattern.split("[")[0][:9])]
    monkeypatch.setattr(launch.glob, "glob", found)
    assert launch.computes_on_cpu() == is_cpu


def test_hidden_gpus_are_none(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(launch, "jax_plugins", lambda: ["xla_cuda13"])
    assert launch.computes_on_cpu()


def test_the_question_starts_no_backend():
    code = (
        "from adapt.cli.launch import computes_on_cpu; computes_on_cpu(); "
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    assert python("-c", code).stdout == "False\n"


@pytest.mark.parametrize(
    "command", ["compare", "evaluate", "extract", "finetune", "plan", "predict", "probe"]
)
def test_every_command_that_reads_tables_takes_their_quoting(command):
    config = importlib.import_module(f"adapt.cli.{command}").Config
    assert "quoting" in {field.name for field in dataclasses.fields(config)}
