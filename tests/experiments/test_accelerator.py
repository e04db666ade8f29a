"""The measurement on an accelerator, in small on the CPU: to its end, and when something is wrong."""

import dataclasses
import json
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from adapt.errors import DataError, StrategyError
from adapt.models import Model
from experiments.benchmark.accelerator import (
    attention_checks,
    command,
    inputs,
    kernel_checks,
    needs,
    parts,
    rows,
    settings,
    tables,
)
from tests.helpers import tiny

LEAK = """
from adapt.models import Model

true = Model.head_input


def leaky(self, params, x, batch, depth=0, key=None):
    states = true(self, params, x, batch, depth, key)
    return states + 1e-3 * states.mean(1, keepdims=True)


Model.head_input = leaky
"""


@pytest.fixture
def on_cpu(own_cache, forked_python):
    """Processes of parts find this code, and what this session has compiled."""
    return own_cache


def config(tmp_path: Path, cache: Path, **options) -> command.Config:
    return command.Config(out=tmp_path / "out", tiny=True, cache=cache, **options)


def statuses(found: list[rows.Row]) -> dict[str, str]:
    """What came of each part."""
    return {row["part"]: row["status"] for row in found if row.get("row") == "part"}


@pytest.mark.slow
def test_everything_is_done_in_small_without_peers(on_cpu, tmp_path, capsys):
    bare = str(tiny.bare_python(tmp_path / "python"))
    folder = tmp_path / "tables"
    found = command.main(config(tmp_path, on_cpu, peers=bare, tables=folder, minutes=20))
    lacks = "lacks torch, transformers, sentence_transformers"
    said = capsys.readouterr()
    assert said.err.count(lacks) == 1 and "name another with --peers" in said.err
    expected = dict.fromkeys(parts.NAMES, "measured")
    expected |= {"finetune-peers": "skipped", "extract-peers": "skipped"}
    assert statuses(found) == expected

    checks = {row["check"]: row["status"] for row in found if "check" in row}
    assert checks.pop("attention against plain JAX") == "skipped"  # it needs an accelerator
    assert checks.pop("kernel against plain JAX") == "skipped"
    assert len(checks) == 9 and set(checks.values()) == {"passed"}
    runs = [row for row in found if row["part"] == "finetune" and row.get("side") == "adapt"]
    assert [row["which"] for row in runs] == ["first run", "again"]
    assert all(row["wall"] > 0 and row["examples_per_second"] > 0 for row in runs)
    (step,) = [row for row in found if "flops_per_example" in row]
    assert step["speed"] > 0 and step["peak_bytes"] is None

    page = (tmp_path / "out/accelerator.md").read_text()
    assert said.out.endswith(page + "\n")
    for name in ("checks", "finetune", "extract", "steps"):
        text = (folder / f"accelerator_{name}.md").read_text()
        assert text == (tmp_path / f"out/tables/accelerator_{name}.md").read_text()
        assert text.startswith("Source: `python -m experiments.benchmark.accelerator --minutes 20")
        assert str(tmp_path) not in text and text in page


@pytest.mark.slow
def test_a_planted_leak_is_found(on_cpu, tmp_path, monkeypatch, capsys):
    """By a module that every process of Python imports first."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(
        "import sys\nif sys.argv[0] == '-m':\n    import planted_leak\n"
    )
    (planted / "planted_leak.py").write_text(LEAK)
    monkeypatch.setenv("PYTHONPATH", f"{planted}:{tiny.ROOT}")
    with pytest.raises(SystemExit) as ended:
        command.main(config(tmp_path, on_cpu, parts=("attention",)))
    assert ended.value.code == 1
    found = rows.read(tmp_path / "out/rows.jsonl")
    leaks = [row for row in found if row.get("check", "").startswith("leaks")]
    assert len(leaks) == 8 and {row["status"] for row in leaks} == {"failed"}
    assert "attention, leaks into other examples" in " ".join(capsys.readouterr().err.split())
    assert "| failed |" in (tmp_path / "out/tables/accelerator_checks.md").read_text()


@pytest.mark.slow
def test_a_part_over_its_limit_is_ended_and_the_rest_goes_on(on_cpu, tmp_path, monkeypatch):
    limits = {"inputs": 60.0, "attention": 0.1, "kernel": 60.0}
    short = [parts.Part(name, limit) for name, limit in limits.items()]
    monkeypatch.setattr(parts, "PARTS", short)
    monkeypatch.setattr(parts, "LEAST", 0.05)
    found = command.main(config(tmp_path, on_cpu, parts=("attention", "kernel")))
    assert statuses(found) == {
        "inputs": "measured",
        "attention": "over its limit",
        "kernel": "measured",
    }


def test_what_there_is_no_time_for_is_said(own_cache, tmp_path):
    found = command.main(config(tmp_path, own_cache, minutes=1e-4))
    assert set(statuses(found).values()) == {"not started", "skipped"}
    assert "| the time was up |" in (tmp_path / "out/accelerator.md").read_text()


def test_a_part_that_ends_at_its_limit_leaves_no_process(tmp_path, own_cache, monkeypatch):
    """What it had started is killed with it."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S -c "$PROGRAM"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PROGRAM", program)
    monkeypatch.setattr(sys, "executable", str(script))
    told = types.SimpleNamespace(cache=own_cache, file=tmp_path / "settings.json")
    log = tmp_path / "log"
    outcome = parts.run(parts.Part("rate", 9), told, log, limit=2)
    assert outcome.status == "over its limit" and outcome.seconds < 20
    child = int(log.read_text())
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# Checks


def test_attention_is_compared_with_plain_jax():
    """On a CPU with itself: bfloat16 is as far off as plain JAX is."""
    text, _, image = attention_checks.make_cases(1, 32, 32)
    found = list(attention_checks.attention_rows([text, image]))
    assert len(found) == 8 and {row["status"] for row in found} == {"passed"}
    in_half = [row["value"] for row in found if row["case"].endswith("bfloat16")]
    assert min(in_half) > 1e-3


def test_the_kernel_is_compared_with_plain_jax(monkeypatch):
    """Interpreted; and one whose dropout is another's is found."""
    case = kernel_checks.Case(32, jnp.bfloat16, dropout=0.1, causal=True)
    monkeypatch.setattr(kernel_checks, "HEADS", 1)
    monkeypatch.setattr(kernel_checks, "TOKENS", 40)
    monkeypatch.setattr(kernel_checks, "LENGTHS", (20, 1, 19))
    found = list(kernel_checks.kernel_rows([case], "gpu", interpret=True))
    assert len(found) == 4 and {row["status"] for row in found} == {"passed"}

    def of_other_words(q, k, v, case):
        drop = kernel_checks.counter_dropout.drop_weights(jnp.array([8, 11], jnp.uint32), 0.1)
        mask = case.pattern.mask(40, 40)
        return kernel_checks.attention.reference_attention(q, k, v, mask, drop)

    monkeypatch.setattr(kernel_checks, "by_plain_jax", of_other_words)
    found = list(kernel_checks.kernel_rows([case], "gpu", interpret=True))
    assert {row["status"] for row in found} == {"failed"}


def test_checks_are_done_side_by_side_and_nothing_else():
    groups = [[part.name for part in group] for group in parts.side_by_side(parts.PARTS)]
    assert groups[:4] == [["inputs"], ["rate"], ["kernel", "attention", "training"], ["finetune"]]
    assert max(len(group) for group in groups[3:]) == 1


def test_wrong_attention_is_found(monkeypatch):
    """Where only the device's is wrong, not plain JAX's."""
    true = Model.head_input

    def wrong(self, params, x, batch, depth=0, key=None):
        states = true(self, params, x, batch, depth, key)
        is_plain = attention_checks.target_device.get() is attention_checks.PLAIN
        return states if is_plain else states * 1.1

    monkeypatch.setattr(Model, "head_input", wrong)
    text, *_ = attention_checks.make_cases(1, 32, 32)
    found = list(attention_checks.attention_rows([text]))
    assert {row["status"] for row in found} == {"failed"}


def test_dropout_that_differs_between_the_passes_is_found(monkeypatch):
    """A gradient of other dropout than the loss had."""
    _, causal, _ = attention_checks.make_cases(1, 32, 32)
    (row,) = attention_checks.slope_rows([causal])
    assert row["status"] == "passed"
    monkeypatch.setattr(attention_checks, "slopes", lambda case: (1.0, 0.9))
    (row,) = attention_checks.slope_rows([causal])
    assert row["status"] == "failed"


def test_a_case_in_which_nothing_moves_proves_nothing():
    text, *_ = attention_checks.make_cases(1, 32, 32)
    still = dataclasses.replace(text, owners=np.full_like(text.owners, -1))
    with pytest.raises(RuntimeError, match="does not reach its own tokens"):
        attention_checks.leaks(still, jnp.float32)


# Rows and tables


def test_half_a_row_of_a_process_that_was_killed_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, {"part": "a", "status": "measured"})
    with path.open("a") as file:
        file.write('{"part": "b", "sta')
    rows.append(path, {"part": "c", "status": "measured"})
    assert [row["part"] for row in rows.read(path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("row", "is_bad"),
    [
        ({"part": "attention", "status": "failed"}, True),
        ({"part": "steps", "status": "error", "side": "adapt"}, True),
        ({"part": "steps", "status": "error", "side": "torch"}, False),
        ({"part": "extract-peers", "status": "error"}, False),
        ({"part": "steps", "status": "over its limit"}, False),
    ],
)
def test_a_failure_of_a_peer_is_not_one_of_adapt(row, is_bad):
    assert rows.is_bad(row) == is_bad


def test_the_rows_of_all_tables():
    run = {"part": "finetune", "status": "measured", "strategy": "full", "batch_size": 32}
    ours = run | {"side": "adapt", "which": "first run", "wall": 40.0}
    again = run | {"side": "adapt", "which": "again", "wall": 20.0, "examples_per_second": 6385.0}
    torch = run | {"side": "torch", "wall": 60.04, "examples_per_second": 1373.4}
    failed = run | {"side": "torch.compile", "status": "error", "note": "torch failed: no compiler"}
    assert tables.run_cells([ours, again, torch, failed]) == [
        ["full", "32", "40.0", "20.0", "6,385", "60.0", "1,373", "failed", "failed", "1.50", ""]
    ]

    common = {"part": "extract", "dtype": "bfloat16", "status": "measured"}
    extracted = common | {"side": "adapt", "which": "again", "wall": 9.0}
    extracted["examples_per_second"] = 18000.0
    peer = common | {"which": "best batch", "batch_size": 256, "examples_per_second": 9000.0}
    assert tables.extraction_cells([extracted, peer | {"cosine": 0.99996}]) == [
        ["bfloat16", "", "9.0", "18,000", "9,000", "256", "2.00", "1.0000"]
    ]

    case = {"model": "gpt2-xl", "strategy": "full", "remat": "block", "scan": True}
    case |= {"batch_size": 8, "tokens": 1024}
    step = {"part": "steps", "case": case, "flops_per_example": 1e12, "status": "measured"}
    fast = step | {"side": "adapt", "speed": 400.0, "peak_bytes": 14.4 * 2**30}
    full = step | {"side": "torch", "status": "error", "note": "OutOfMemoryError: no more"}
    rate = {"part": "rate", "flops": 8e14, "status": "measured"}
    assert tables.step_cells([rate, fast, full]) == [
        ["gpt2-xl", "full", "block, loop", "8 x 1024", "400.0", "50%", "14.4"]
        + ["out of memory", "", "", ""]
    ]


def test_sides_on_different_devices_have_no_ratio():
    case = {"model": "bert-tiny", "strategy": "full", "remat": "none", "scan": False}
    case |= {"batch_size": 2, "tokens": 16}
    step = {"part": "steps", "case": case, "flops_per_example": 1e9, "speed": 10.0}
    rate = {"part": "rate", "flops": 1e11, "platform": "cpu", "status": "measured"}
    here = step | {"side": "adapt", "status": "measured"}
    there = step | {"side": "torch", "status": "measured", "platform": "cuda"}
    faster = rate | {"part": "steps", "flops": 1e12, "platform": "cuda"}
    ((*_, ours, _, _, theirs, _, ratio),) = tables.step_cells([rate, faster, here, there])
    assert (ours, theirs, ratio) == ("10%", "1%", "")
    there["platform"] = "cpu"
    ((*_, ours, _, _, theirs, _, ratio),) = tables.step_cells([rate, faster, here, there])
    assert (ours, theirs, ratio) == ("10%", "10%", "1.00")


# What it is given


def test_texts_that_are_carried_along_are_used(tmp_path):
    carried = tmp_path / "carried"
    carried.mkdir()
    with pytest.raises(DataError, match=r"has no train\.csv"):
        inputs.check(carried, tiny=False)
    for part in inputs.PARTS:
        tiny.write_table(carried / f"{part}.csv", tiny.sentences(12))
    inputs.check(carried, tiny=False)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    told = types.SimpleNamespace(scratch=scratch, tokenizer=scratch / "tokenizer.json", tiny=False)
    inputs.gather(carried, told)
    assert inputs.read_examples(scratch / "train.csv") == tiny.sentences(12)
    assert not told.tokenizer.exists()


def test_a_part_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(StrategyError, match="`parts` finetuning: give some of inputs, rate"):
        command.main(command.Config(parts=("finetuning",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_found_through_what_is_there():
    assert needs.missing(needs.project_requirements()) == []
    wanted = ["jax", "no-such-package>=1", "other-package; python_version < '3'"]
    assert needs.missing(wanted) == ["no-such-package"]


def test_a_python_that_lacks_packages_is_told_in_one_line(tmp_path):
    bare = tiny.bare_python(tmp_path / "python")
    script = f"import sys; sys.path[:0] = [{str(tiny.ROOT)!r}]\n"
    script += f"import runpy; runpy.run_module({settings.PROGRAM!r}, run_name='__main__')"
    done = subprocess.run([bare, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert " lacks datasets, " in done.stderr and "tyro" in done.stderr
    assert "--wheels" in done.stderr


def test_wheels_are_carried_along(tmp_path, monkeypatch):
    """One is enough to be found by this process and by those that it starts."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit):
        needs.install(empty)
    wheels = tmp_path / "wheels"
    write_wheel(wheels, "carried_along")
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert needs.missing(["carried-along"]) == ["carried-along"]
    needs.install(needs.wheels_folder(["--tiny", "--wheels", str(wheels)]))
    assert needs.missing(["carried-along"]) == []
    found = subprocess.run(
        [sys.executable, "-c", "import carried_along; print(carried_along.HERE)"],
        capture_output=True,
        text=True,
    )
    assert found.stdout == "True\n"


def write_wheel(folder: Path, name: str) -> None:
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "HERE = True\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_peers_that_lack_something_are_described(tmp_path):
    assert parts.lacking(str(tmp_path / "absent")).startswith(f"{tmp_path}/absent can't be used")
    bare = str(tiny.bare_python(tmp_path / "python"))
    assert parts.lacking(bare) == f"{bare} lacks torch, transformers, sentence_transformers"


def test_settings_are_read_as_they_were_written(tmp_path):
    told = settings.Settings(
        out=tmp_path / "out",
        scratch=tmp_path,
        peers=None,
        peers_lack="no",
        tiny=True,
        cache=tmp_path / "cache",
    )
    told.write()
    assert settings.read(told.file) == told
    assert json.loads(told.file.read_text())["tiny"] is True
