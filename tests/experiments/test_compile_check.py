"""Steps compiled for TPU slices: what they multiply, send and hold is what the model asks for.

ADAPT_TPU_PYTHON names a Python with libtpu, which is best in an environment of its own: `make tpu`.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from adapt.cli import launch
from adapt.errors import StrategyError
from adapt.models import Classifier
from experiments.benchmark.aot import chips, compile_check, compiling, hlo
from experiments.benchmark.aot.shapes import SHAPES, Shape
from tests.helpers.small import GROUPED
from tests.helpers.tiny import ROOT, TPU_PYTHON, with_gpu_compiler, with_libtpu

PLUGIN = re.compile("All log messages before absl|Could not find cuda drivers")
# The forward pass of a block again, and the scores again in each gradient of attention.
MOST_PRODUCTS = 1.42
SMALL = ("--model", "bert-tiny", "--topology", "v5e:2x2", "--tokens", 128)


def said(*flags: object, status: int = 0) -> str:
    """What the command prints, in a process with libtpu and the plugin for GPUs, which says at once
    that there are none.
    """
    command = [str(TPU_PYTHON), "-m", "experiments.benchmark.aot.compile_check", *map(str, flags)]
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.returncode == status, done.stderr[-2000:]
    return (
        done.stdout
        if status == 0
        else "".join(line for line in done.stderr.splitlines(True) if not PLUGIN.search(line))
    )


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.fixture(scope="module")
def full():
    return said(*SMALL)


@with_libtpu
def test_a_full_step_multiplies_what_the_model_asks_for(full):
    assert number(r"products .*: ([\d.]+) of the model's own count", full) <= MOST_PRODUCTS
    assert 0.98 <= number(r" ([\d.]+) of it without what is computed again", full) <= 1.03


@with_libtpu
def test_the_count_without_what_is_computed_again_is_that_of_the_unrolled_twin(full):
    twin = said(*SMALL, "--remat", "none", "--no-scan")
    # What attention's kernels compute again, with dropout on.
    assert number(r"products .*: ([\d.]+) of the model's own count", twin) <= 1.08
    pattern = r" ([\d.]+) of it without what is computed again"
    assert number(pattern, full) == pytest.approx(number(pattern, twin), abs=0.002)


@with_libtpu
def test_memory_collectives_and_times_are_said(full):
    assert re.search(
        r"memory +[\d.]+ of 15.75 GiB a chip \([\d.]+ arguments, [\d.]+ temporary\): fits, ", full
    )
    assert re.search(
        r"suffix +\d+ all-gather of bf16 in groups of 4: a chip sends [\d.]+ MiB", full
    )
    assert "197 TFLOP/s" in full and "200 GB/s over 4 links (cloud.google.com/tpu/docs/v5e)" in full


@with_libtpu
def test_a_frozen_step_reduces_its_head_and_gathers_nothing():
    found = said(*SMALL, "--strategy", "frozen")
    assert 0.98 <= number(r"products .*: ([\d.]+) of the model's own count", found) <= 1.03
    sent = re.findall(
        r"(\w+) +(\d+) ([\w-]+) of (\S+) in groups of 4: a chip sends ([\d.e-]+) MiB", found
    )
    assert [(program, kind) for program, _, kind, _, _ in sent] == [("suffix", "all-reduce")] * len(
        sent
    )
    assert 1 <= len(sent) <= 2 and sum(float(mib) for *_, mib in sent) < 0.01


@with_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "why"),
    [
        ("v5e:16x16", "fsdp=256", "which fsdp=256 does not divide"),
        (
            "v5p:8x8x8",
            "data=32,fsdp=16",
            "--mesh data=32,fsdp=16 does not fit the links between these devices",
        ),
        ("v5e:3x5", "fsdp=15", "--topology v5e:3x5: libtpu can't make it"),
    ],
)
def test_a_mesh_or_a_slice_that_can_not_be_is_one_line(topology, mesh, why):
    fault = said(
        "--model", "bert-tiny", "--topology", topology, "--mesh", mesh, status=2
    ).splitlines()
    assert len(fault) == 1 and why in fault[0]


@pytest.fixture
def refused(monkeypatch, capsys):
    def run(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["compile_check", *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            launch.launch(compile_check.Config, compile_check.main)
        line = capsys.readouterr().err
        assert stopped.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
        return line.removeprefix("error: ").strip()

    return run


WRONG = [
    (
        "--topology v6x:2x2",
        "there is no such slice: give one of v5e, v5p, h100, a100 and its sides",
    ),
    ("--topology h100:2x8", "a slice of h100 has a single number"),
    ("--topology h100:16", "a host with h100 has at most 8 chips"),
    ("--topology v5e:4", "a slice of v5e has 2 sides"),
    ("--model bert-huge", "--model bert-huge: unknown: give one of bert-tiny, minilm, bert-base"),
    ("--topology v5e:32x32", "a side of a v5e slice has at most 16 chips"),
    ("--tokens 0", "bert-large takes 1 to 512"),
    ("--strategy top:0%", "top:0%"),
    ("--table --model bert-tiny", "--model is not of --table"),
    ("--table --tokens 64", "--tokens 64: vit-l16 takes 197"),
    ("--no-scan --compare-unrolled", "leave --no-scan out"),
    ("--strategy all", "unknown strategy 'all'"),
    ("--strategy lora:8+lp-ft", "give 2 or more"),
    ("--strategy adapters:8", "adds what is not counted here"),
    ("--mesh fsdp=3", "takes 3 devices and there are 16"),
    ("--batch-size 24", "can't be divided over fsdp=16: give a multiple of 16"),
    ("--tokens 513", "bert-large takes 1 to 512"),
]


@pytest.mark.parametrize(("flags", "why"), WRONG)
def test_a_mistake_is_one_line(refused, flags, why):
    assert why in refused(*flags.split())


@pytest.mark.parametrize(
    ("topology", "extra"), [("v5e:4x4", "tpu-compile"), ("h100:8", "gpu-compile")]
)
def test_without_the_compiler_one_line_says_what_to_install(refused, monkeypatch, topology, extra):
    def version(package):
        raise chips.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(chips.metadata, "version", version)
    assert f"pip install -e '.[{extra}]'" in refused("--topology", topology)


@pytest.mark.parametrize(
    ("message", "needs", "says"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
            "Used 20.50G of 15.75G hbm. Exceeded by 4.75G.",
            {"used": 20.5},
            "20.50 of 15.75 GiB a chip: does not fit, 4.75 GiB too much",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (16.50G) exceeds available HBM (15.75G).",
            {"used": 18.5, "arguments": 2, "temporary": 16.5},
            "18.50 of 15.75 GiB a chip (2.00 arguments, 16.50 temporary): "
            "does not fit, 2.75 GiB too much",
        ),
        ("INTERNAL: something else", None, None),
    ],
)
def test_what_the_compiler_says_of_a_program_that_does_not_fit(message, needs, says):
    found = compiling.refused_bytes(message, 2 * 2**30)
    assert found == (needs and {name: size * 2**30 for name, size in needs.items()})
    if found:
        assert compile_check.fit_text(found | {"limit": 15.75 * 2**30, "fits": False}) == says


@with_libtpu
def test_a_step_that_does_not_fit_says_by_how_much():
    out = said(*SMALL, "--remat", "none", "--batch-size", 65536)
    assert number(r"memory +([\d.]+) of 15.75 GiB a chip", out) > 15.75
    too_much = number(r"does not fit, ([\d.]+) GiB too much", out)
    assert too_much == pytest.approx(number(r"memory +([\d.]+) of", out) - 15.75, abs=0.02)
    held, temporary = number(r"\(([\d.]+) arguments", out), number(r"([\d.]+) temporary\)", out)
    assert held + temporary == pytest.approx(number(r"memory +([\d.]+) of", out), abs=0.02)


def invented(case, topology, fits=True):
    """What :func:`compiled` says of a case."""
    sizes = {
        "used": 2**30,
        "arguments": 2**29,
        "temporary": 2**29,
        "limit": topology.chip.memory,
        "fits": fits,
    }
    paper = {"computing": 0.2, "sending": 0.01, "share": 0.95, "least": 0.9}
    paper |= {"flops": 2.0, "flops_again": 0.5, "flops_model": 1.5, "collectives": []}
    longest = {"source": "jit(step)/block_*/mul", "kernels": 24, "seconds": 0.05, "limit": "bytes"}
    paper |= {"kernels": 100, "kernel_seconds": 0.2, "longest": [longest]}
    seconds = {"compile_seconds": 40.0 if case.scan else 100.0}
    found = {"case": compiling.dataclasses.asdict(case), "compiler": topology.compiler}
    return found | sizes | seconds | (paper if fits else {})


def test_what_fits_a_chip_is_said_as_flags(monkeypatch, capsys):
    compiled = []

    def measured(case, topology):
        compiled.append(case)
        of_example = {"none": 4, "dots": 2, "block": 1}[case.remat] * 2**30
        found = invented(case, topology)
        return found | {"used": 2**30 + case.batch_size * of_example}

    monkeypatch.setattr(compile_check, "compile_case", measured)
    monkeypatch.setattr(chips.metadata, "version", lambda package: "1")
    flags = {"model": "bert-base", "batch_size": 64, "remat": "none", "fit": True}
    compile_check.main(compile_check.Config(topology="h100:1", **flags))
    out = capsys.readouterr().out
    # 53.4 GiB hold 13 examples without rematerialisation, 26 with dots, 52 with blocks; those of the
    # first two are fewer tokens than keep the chip busy.
    assert "flags            --batch-size 64 --accumulate 2 --remat block: 33 of 53.4 GiB" in out
    assert compiled[0].accumulate == 1 and compiled[-1].remat == "block"
    with pytest.raises(StrategyError, match="one chip"):
        compile_check.main(compile_check.Config(topology="h100:8", **flags))


def test_twice_the_batch_and_the_unrolled_twin_are_compiled_when_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(compile_check, "compile_case", invented)
    monkeypatch.setattr(chips.metadata, "version", lambda package: "1")
    compile_check.main(compile_check.Config(next_batch=True, compare_unrolled=True, kernels=True))
    out = capsys.readouterr().out
    assert "next batch       1024 examples: 1.00 of 15.75 GiB a chip" in out
    assert "unrolled         compiles in 100 s: the loop takes 0.40 of that" in out
    assert "roofline         200 ms in 100 kernels: 160 examples/s a chip" in out
    assert "| 50.000 | 25.0% | 24 | bytes | block_*/mul |" in out
    assert "1.333 of the model's own count" in out and "1.000 of it without" in out


def test_the_table_resumes_and_has_the_named_cells_first(monkeypatch, tmp_path):
    asked = []

    def compiled(case, topology):
        asked.append((case.model, case.strategy, case.topology))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return invented(case, topology, fits=len(asked) != 2)

    monkeypatch.setattr(compile_check, "compile_case", compiled)
    monkeypatch.setattr(chips.metadata, "version", lambda package: "1")
    config = compile_check.Config(table=True, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compile_check.table(config)
    assert asked[:2] == [("bert-large", "full", "v5e:4x4"), ("gpt2-xl", "full", "v5e:4x4")]
    assert (tmp_path / "table.md").read_text().count("\n| ") == 1 + 2
    for name, damaged in (
        ("large-full-v5e4x4", ""),
        ("large-full-v5e16x16", "[]"),
        ("large-frozen-v5e4x4", "{}"),
    ):
        (tmp_path / "cells" / f"bert-{name}.json").write_text(
            damaged
        )  # the first had been compiled
    compile_check.table(config)
    assert len(asked) == 60 + 2 and len(set(asked)) == 60
    page = (tmp_path / "table.md").read_text()
    assert page.count("\n| ") == 1 + 60 and "does not fit, by" in page and "90.0%" in page
    assert "| 200 ms |" in page
    assert "compiled by      libtpu 1, jax " in page
    cells = [
        json.loads(path.read_text())["case"]["mesh"] for path in (tmp_path / "cells").iterdir()
    ]
    assert len(cells) == 60 and {"fsdp=16", "data=16", "data=16,fsdp=16", "data=8,fsdp=64"} <= set(
        cells
    )


def test_another_compiler_compiles_again_and_a_topology_is_a_table_of_its_own(
    monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        compile_check,
        "compile_case",
        lambda case, topology: asked.append(case) or invented(case, topology),
    )
    config = compile_check.Config(table=True, topology="h100:8", out=tmp_path)
    for version, cells in (("1", 15), ("1", 15), ("2", 30)):
        monkeypatch.setattr(chips.metadata, "version", lambda package, version=version: version)
        compile_check.table(config)
        assert len(asked) == cells and {case.topology for case in asked} == {"h100:8"}
    page = (tmp_path / "table.md").read_text()
    assert page.count("\n| ") == 1 + 15 and "compiled by      jax-cuda12-plugin 2, jax " in page


@with_gpu_compiler
@pytest.mark.parametrize(
    "flags", [("v5e:1x1", "--no-scan"), ("h100:1", "--no-scan"), ("h100:1",), ("a100:4",)]
)
def test_a_single_chip_and_gpus_multiply_what_the_model_asks_for(flags):
    found = said("--model", "bert-tiny", "--tokens", 128, "--topology", *flags)
    assert number(r"products .*: ([\d.]+) of the model's own count", found) <= MOST_PRODUCTS
    assert 0.98 <= number(r" ([\d.]+) of it without what is computed again", found) <= 1.03
    many = flags[0].endswith("4")
    assert ("in groups of 4: a chip sends" in found) == many and (
        "one chip, remat" in found
    ) != many
    assert number(r"memory +([\d.]+) of", found) < 0.2


@with_gpu_compiler
@pytest.mark.parametrize(
    ("topology", "mesh", "calls"),
    [
        ("h100:1", "data=1", 2),
        ("h100:2", "tensor=2", 2),
        ("a100:4", "data=2,tensor=2", 2),
        ("h100:4", "tensor=4", 0),
    ],
)
def test_a_frozen_encoder_on_a_gpu_attends_by_its_library_and_that_is_counted(
    topology, mesh, calls
):
    found = said(
        "--model",
        "bert-tiny",
        "--tokens",
        128,
        "--topology",
        topology,
        "--strategy",
        "frozen",
        "--mesh",
        mesh,
    )
    assert 0.98 <= number(r"products .*: ([\d.]+) of the model's own count", found) <= 1.03
    program = f"""
from experiments.benchmark.aot import chips, compiling
from adapt.models import set_contextvar, target_device
devices = chips.topology("{topology}").devices()
with set_contextvar(target_device, devices[0]):
    case = compiling.Case("bert-tiny", "frozen", "{topology}", "{mesh}", 4, 128, "none", scan=False)
    step, *arguments = compiling.abstract_inputs(case, devices)
    print(step.programs(*arguments)["prefix"].as_text().count('custom_call_target="__cudnn$fmha'))
"""
    done = subprocess.run(
        [str(TPU_PYTHON), "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert int(done.stdout) == calls, done.stderr[
        -2000:
    ]  # one a block, none where a head would be divided


def test_a_step_with_lora_multiplies_what_is_counted(monkeypatch):
    """On the CPU: of a frozen kernel there is the gradient of its input alone."""
    config = dataclasses.replace(
        GROUPED, layers=2, width=64, mlp_width=160, dropout=0.0, attention_dropout=0.0
    )
    monkeypatch.setitem(SHAPES, "tiny", Shape(config, Classifier(2, "last", bias=False), 4))
    case = compiling.Case("tiny", "lora:4", "h100:1", "data=1", 4, 24, "none", scan=False)
    step, *arguments = compiling.abstract_inputs(case, jax.devices()[:1])
    programs = step.programs(*arguments).values()
    multiplied = sum(hlo.dot_flops(hlo.read(program.as_text())) for program in programs)
    assert multiplied == pytest.approx(compiling.model_flops(case, 1), rel=0.02)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("bert-base", 109),
        ("bert-large", 334),
        ("roberta-base", 124),
        ("modernbert-base", 149),
        ("vit-l16", 304),
        ("gpt2-xl", 1558),
        ("qwen3-8b", 7568),  # without its LM head
    ],
)
def test_the_shapes_are_those_of_the_published_models(name, millions):
    from adapt import tree
    from adapt.models import Encoder, Model

    shapes = Model(Encoder(SHAPES[name].config), Classifier(0)).shapes()
    assert round(tree.count(shapes) / 1e6) in (millions, millions - 1), jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
