"""What is printed: whole numbers at 80 columns, and lines in a log while something runs."""

import io
import json
import logging
import re
import time

import jax
import pytest
from rich.console import Console

from adapt.cli import console, plots
from adapt.cli.training_report import training_report
from adapt.training import events

NUMBERS = ("1,234,567,890", "0.8213 (0.7901 to 0.8517)", "2.3e-05")
COLUMNS = ("strategy", "parameters trained", "test accuracy, 95%", "learning rate")


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(80)` makes stdout a terminal of so many columns; what is printed is in its `getvalue()`."""

    def make(width: int) -> io.StringIO:
        file = io.StringIO()
        wide = Console(file=file, force_terminal=True, width=width, no_color=True, **console.STYLE)
        monkeypatch.setattr(console, "console", wide)
        return file

    return make


def plain(text: str) -> list[str]:
    """The lines of what a terminal was sent."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_cell_of_a_table_breaks(terminal, width):
    out = terminal(width)
    console.table("a title", COLUMNS, [("full", *NUMBERS), ("a very long name " * 3, *NUMBERS)])
    lines = plain(out.getvalue())
    assert all(len(line) <= width for line in lines)
    for number in NUMBERS:
        assert sum(number in line for line in lines) == 2


def test_a_table_that_fits_is_one_block(terminal):
    out = terminal(80)
    console.table("a title", ("name", "count"), [("a", 1234), ("b", 0.5)])
    assert plain(out.getvalue()) == ["a title", "name  count", "a     1,234", "b       0.5", ""]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (71360.4, "71,360"),
        (1146.2, "1,146"),
        (0.71962, "0.7196"),
        (2.3e-5, "2.3e-05"),
        (True, "True"),
    ],
)
def test_a_large_number_is_shown_whole(cell, shown):
    assert console.cell_text(cell) == shown


def test_lines_of_a_terminal_break_between_words(terminal):
    out = terminal(30)
    console.say("loaded    bert, 4,369,408 parameters, and 22,565,376 more")
    assert all(len(line) <= 30 for line in plain(out.getvalue()))
    for number in ("4,369,408", "22,565,376"):
        assert number in out.getvalue()


@pytest.mark.parametrize(
    ("line", "wrapped"),
    [
        ("discarded 47,290 parameters: a, b", ["discarded 47,290 parameters:", "          a, b"]),
        ("top:2       not worth it, is it?", ["top:2       not worth it, is", "            it?"]),
        ("epoch 1   loss 0.5012   ece 0.04", ["epoch 1   loss 0.5012", "ece 0.04"]),
        ("a line   of its width, no more", ["a line   of its width, no more"]),
        ("runs/a-folder/with-a-name-that-is-long", ["runs/a-folder/with-a-name-that-is-long"]),
        ("", [""]),
    ],
)
def test_a_line_goes_on_below_its_text_and_a_value_stays_beside_its_name(line, wrapped):
    assert console.wrap_line(line, 30) == wrapped


def test_lines_of_a_log_do_not_break(capsys):
    console.say("word " * 100)
    console.table("t", ("name", "count"), [("a" * 200, 1)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == ("word " * 100).rstrip() or said[0] == "word " * 100
    assert said[3] == "a" * 200 + "      1"


def test_the_result_is_for_logs_alone(terminal, capsys):
    console.result("{}")
    assert capsys.readouterr().out == "{}\n"
    out = terminal(80)
    console.result("{}")
    assert not out.getvalue()


def test_a_silent_log_gets_a_line_of_where_a_job_is(monkeypatch, capsys):
    monkeypatch.setattr(console, "MINUTE", 0.2)
    with console.progress("extracting", 5000) as bar:
        bar.update(1200, loss="0.5")
        time.sleep(0.7)
    said = capsys.readouterr().out.splitlines()
    assert 1 <= len(said) <= 4 and set(said) == {"extracting 1,200 of 5,000  loss 0.5"}


def test_warnings_of_the_library_are_notes(capsys):
    logger = logging.getLogger("adapt.data.tables")
    with console.notes_on_stderr(str.upper):
        logger.warning("two of %d words", 3)
        logger.info("nothing")
    assert capsys.readouterr().err == "note: TWO OF 3 WORDS\n"
    logger.warning("no more")
    assert not capsys.readouterr().err


PHASES = (
    events.PhaseSummary(
        0,
        range(1),
        (events.GroupSummary("head", 258, 0.01), events.GroupSummary("frozen", 9, None)),
    ),
    events.PhaseSummary(1, range(1, 3), (events.GroupSummary("encoder", 4_369_408, 1e-4),)),
)
RECORD = {"step": 3, "loss": 0.51234, "timed_examples": 80.0, "seconds": 0.1}
RUN = (
    events.Started(PHASES, 9, 0),
    events.PhaseStarted(PHASES[0], 0),
    events.FrozenStored(0, "int8", 252, 10_699_776, 14 * 2**30, 0.00812, 0.0129),
    events.CacheChosen(0, False, "12 MB to write"),
    events.Compiling("step", (6, 64)),
    events.Stepped(0, RECORD, {"head": 0.01}),
    events.Evaluating("validation"),
    events.Compiling("evaluation"),
    events.Validated(0, 3, 0.4, {"accuracy": 0.75}, True),
    events.Saved(3, True),
    events.PhaseStarted(PHASES[1], 3),
    events.CacheWaiting(),
    events.CacheProgress(4, 8),
    events.Finished(9, 3, "complete"),
)


def test_a_log_says_what_a_run_does(capsys):
    with training_report("strategy lp-ft") as report:
        for event in RUN:
            report(event)
    said = capsys.readouterr().out
    assert "strategy lp-ft, 1 of 2, epochs 1 to 1\n" in said
    assert "frozen           9         frozen\n" in said
    assert "frozen    252 kernels in int8, 10.7 MB in place of 14 GiB; they differ by 0.81%" in said
    assert "cache     off: 12 MB to write\n" in said
    assert "compiling a step of shape 6 x 64\ncompiling the evaluation\n" in said
    assert "epoch 1, step 3   validation loss 0.4000   accuracy 0.7500\n" in said
    assert "phase     2 of 2, epochs 2 to 3\n" in said


def test_compiling_is_shown_while_it_lasts(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(console.Progress, "show_compiling", lambda job, now: shown.append(now))
    with console.progress("extracting", 10):
        jax.jit(lambda x: 3 * x + 0.1234)(1.0)
    count = len(shown)
    assert count and shown == [True, False] * (count // 2)
    jax.jit(lambda x: 4 * x + 0.1234)(1.0)
    assert len(shown) == count

    monkeypatch.undo()
    job = console.Progress("extracting", 10)
    job.show_compiling(True)
    assert job.line() == "compiling 0 of 10"
    job.show_compiling(False)
    assert job.line() == "extracting 0 of 10"


def test_a_terminal_shows_what_a_run_does(terminal):
    out = terminal(80)
    with training_report("strategy lp-ft") as report:
        for event in RUN:
            report(event)
            if report.bar.bar:
                report.bar.bar.refresh()
    said = "\n".join(plain(out.getvalue().replace("\r", "\n")))
    assert "training" in said and "encoding" in said and "loss 0.5123  examples/s 800" in said
    assert "validating" in said
    assert "epoch 1, step 3   validation loss 0.4000   accuracy 0.7500" in said


@pytest.mark.usefixtures("drawn")
def test_a_history_needs_no_score(tmp_path):
    records = [{"step": 1, "loss": 1.0}, {"step": 1, "validation_loss": 1.0, "validation_x": None}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert plots.plot_history(tmp_path, "x").read_bytes().startswith(b"\x89PNG")
