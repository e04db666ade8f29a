"""What would a train step cost on TPUs or GPUs that nobody has at hand? It is compiled for them
here, without one.

    pip install -e '.[tpu-compile,gpu-compile]'
    python -m experiments.benchmark.aot.compile_check --topology v5e:4x4
    python -m experiments.benchmark.aot.compile_check --topology h100:1
    python -m experiments.benchmark.aot.compile_check --model gpt2-xl \\
        --topology v5e:16x16 --mesh data=4,fsdp=64 --next-batch
    python -m experiments.benchmark.aot.compile_check --table

The programs are those of ``training.make_step``: bfloat16 compute, AdamW, clipping, dropout.
Printed for each chip: matrix products against the model's own count, memory against the chip's,
collectives with what a chip sends, and how much of a step would be computing if nothing overlapped.
Expect one or two minutes a program on two cores; the table has 60 of them, or with --topology the
15 of that slice. It is written after each of them, and goes on where it stopped.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax

from adapt.cli import console
from adapt.cli.flags import first_nondefault_flag
from adapt.cli.launch import launch
from adapt.cost.memory import fit_memory, gib
from adapt.data.shapes import ELEMENTS
from adapt.errors import MeshError, StrategyError
from adapt.files import write_text
from adapt.markdown import markdown_table
from adapt.options import FrozenDType, Remat
from adapt.parallel import sharding
from adapt.planning import MEMORY_SHARE
from adapt.run_folder import write_json
from experiments.benchmark import sides
from experiments.benchmark.aot.chips import Topology, topology
from experiments.benchmark.aot.compiling import (
    Case,
    compile_case,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.aot.shapes import MODELS, SHAPES, STRATEGIES
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    table_text,
    write_table,
)

GIB = 2**30
MIB = 2**20
SLICES = {
    "v5e:2x2": "fsdp=4",
    "v5e:4x4": "fsdp=16",
    "v5e:16x16": "data=16,fsdp=16",
    "v5p:8x8x8": "data=8,fsdp=64",
}
FIRST = (  # the rows of the table that matter most
    ("bert-large", "full", "v5e:4x4"),
    ("gpt2-xl", "full", "v5e:4x4"),
    ("vit-l16", "full", "v5e:2x2"),
    ("bert-large", "full", "v5e:16x16"),
    ("bert-large", "frozen", "v5e:4x4"),
)
FIRST_OF_ONE = (  # the same of a table of one slice
    ("minilm", "full"),
    ("bert-base", "full"),
    ("bert-base", "frozen"),
    ("bert-base", "top:25%"),
    ("vit-l16", "full"),
    ("minilm", "frozen"),
    ("minilm", "top:25%"),
    ("vit-l16", "frozen"),
)
COLUMNS = (
    "model",
    "trains",
    "slice",
    "mesh",
    "remat",
    "examples",
    "GiB a chip",
    "products",
    "MiB sent",
    "computing",
    "roofline",
    "compiled",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """Which step is compiled, and for what."""

    title: ClassVar[str] = "step"

    # bert-tiny, minilm, bert-base, bert-large, vit-l16, gpt2-xl or qwen3-8b
    model: str = "bert-large"
    # of one phase; top:25% is the last quarter of the blocks
    strategy: str = "full"
    # v5e or v5p and the sides of the slice; h100 or a100 and how many of one host
    topology: str = "v5e:4x4"
    # as data=16,fsdp=16; default: fsdp over all chips, or data where the whole encoder is frozen
    mesh: str | None = None
    # examples over all chips; default: by the model
    batch_size: int | None = None
    # of an example; default: as many as the model has positions
    tokens: int | None = None
    # default: block, none where the encoder is frozen
    remat: Remat | None = None
    # unrolled blocks in place of a loop
    scan: bool = True
    # of frozen kernels; a run of bfloat16 keeps them in that by default
    frozen_dtype: FrozenDType = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreOptions:
    """What else is compiled."""

    title: ClassVar[str] = "more"

    # the step with unrolled blocks too, for its time
    compare_unrolled: bool = False
    # the step of twice the batch too, for its memory
    next_batch: bool = False
    # the kernels of the step that take longest, by a roofline
    kernels: bool = False
    # micro-batches and remat that fit the chip's memory, as flags of finetune; of one chip
    fit: bool = False
    # every model, strategy and slice in place of one step; what was compiled before is kept
    table: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Where the table goes."""

    title: ClassVar[str] = "run"

    # the folder to write with --table, a file a step
    out: Path = Path("runs/compile_check")
    # also write the table that the pages include into this folder: docs/tables
    tables: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MoreOptions, CaseOptions, TableOptions):
    """The flags of the command."""


# What --table decides by itself.
NOT_OF_TABLE = (
    "model",
    "strategy",
    "mesh",
    "scan",
    "frozen_dtype",
    "compare_unrolled",
    "next_batch",
    "kernels",
    "fit",
)


def main(config: Config) -> Any:
    jax.config.update("jax_enable_compilation_cache", False)  # or the second run would time a file
    if config.table:
        if flag := first_nondefault_flag(config, NOT_OF_TABLE):
            raise StrategyError(f"{flag} is not of --table, which has every model and strategy")
        return table(config)
    if config.tables is not None:
        raise StrategyError("--tables goes with --table: give that too")
    if config.compare_unrolled and not config.scan:
        raise StrategyError(
            "--compare-unrolled compares with the blocks as a loop: leave --no-scan out"
        )
    case = make_case(config)
    slice = topology(config.topology)
    if config.fit and slice.chips > 1:
        raise StrategyError("--fit is of one chip: give a topology such as h100:1 or v5e:1x1")
    found = compile_case(case, slice)
    show(found, slice)
    if config.kernels and "longest" in found:
        console.say(kernels_table(found))
    if config.fit:
        console.say(fit_flags(case, found, slice))
    if config.next_batch:
        larger = dataclasses.replace(case, batch_size=2 * case.batch_size)
        said = fit_text(compile_case(larger, slice))
        console.say(f"next batch       {larger.batch_size} examples: {said}")
    if config.compare_unrolled:
        unrolled = compile_case(dataclasses.replace(case, scan=False), slice)
        console.say(f"unrolled         {unrolled_text(found, unrolled)}")
    return found


def make_case(config: CaseOptions) -> Case:
    """The flags with what they leave open, checked as far as can be without libtpu."""
    strategy = resolve_strategy(config.model, config.strategy)
    slice = topology(config.topology)
    is_frozen = strategy == "frozen"
    mesh = config.mesh
    if mesh is None:
        mesh = f"data={slice.chips}"
        if not is_frozen:
            mesh = SLICES.get(config.topology, f"fsdp={slice.chips}")
    axes = sharding.axis_sizes(mesh, slice.chips)
    groups = axes["data"] * axes["fsdp"]
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = groups * SHAPES[config.model].examples
    tokens = tokens_per_example(config.model, batch_size, config.tokens)
    if batch_size % groups:
        raise MeshError(
            f"--batch-size {batch_size} can't be divided over {mesh}: give a multiple of {groups}"
        )
    remat = config.remat or ("none" if is_frozen else "block")
    return Case(
        config.model,
        strategy,
        config.topology,
        mesh,
        batch_size,
        tokens,
        remat,
        config.scan,
        config.frozen_dtype,
    )


def show(found: Mapping[str, Any], slice: Topology) -> None:
    """Print what there is to say of one case."""
    case = found["case"]
    console.say(
        f"{case['model']}, {case['strategy']}: {case['batch_size']} examples of {case['tokens']} "
        f"tokens over {slice.name}"
    )
    loop = "blocks as a loop" if case["scan"] else "blocks unrolled"
    chips = f"{slice.chips} chips as {case['mesh']}" if slice.chips > 1 else "one chip"
    console.say(f"                 {chips}, rematerialisation {case['remat']}, {loop}")
    console.say(f"memory           {fit_text(found)}")
    if "flops" in found:
        show_work(found, slice)
    compiled = "compiled" if "flops" in found else "refused"
    console.say(f"{compiled:16} in {found['compile_seconds']:.0f} s")
    console.say(assumptions(slice))


def show_work(found: Mapping[str, Any], slice: Topology) -> None:
    """Print what a chip multiplies and sends, and its share of the time."""
    case = found["case"]
    share = found["flops"] / found["flops_model"]
    console.say(
        f"matrix products  {found['flops'] / 1e12:.4g} TFLOP a chip: {share:.3f} of the "
        "model's own count"
    )
    if found["flops_again"]:
        once = (found["flops"] - found["flops_again"]) / found["flops_model"]
        console.say(
            f"                 {once:.3f} of it without what is computed again for the "
            "backward pass"
        )
    for row in found["collectives"]:
        where = f"in groups of {row['group']}"
        if row["kind"] == "collective-permute":
            where = "to a neighbour"
        what = f"{row['times']} {row['kind']} of {row['types']} {where}"
        console.say(f"{row['program']:16} {what}: a chip sends {row['sent'] / MIB:.4g} MiB")
    computing = f"{found['computing'] * 1e3:.4g} ms of products"
    sending = f"{found['sending'] * 1e3:.3g} ms of sending"
    seconds = found["kernel_seconds"] * 1e3
    rate = case["batch_size"] / slice.chips / found["kernel_seconds"]
    console.say(
        f"roofline         {seconds:.4g} ms in {found['kernels']:,} kernels: "
        f"{rate:,.0f} examples/s a chip"
    )
    least = f", at least {found['least']:.1%}" if slice.chip.dimensions > 1 else ""
    console.say(
        f"on paper         {computing}, {sending}: {found['share']:.1%} is computing{least}"
    )


def fit_flags(case: Case, found: Mapping[str, Any], slice: Topology) -> str:
    """What to type for the batch of a case, and the most examples that would fit at once."""

    def measure(remat: str, micro_batch: int, accumulate: int) -> float:
        part = dataclasses.replace(case, remat=remat, batch_size=micro_batch, accumulate=accumulate)
        return found["used"] if part == case else compile_case(part, slice)["used"]

    width = SHAPES[case.model].config.width
    fit = fit_memory(
        measure,
        int(MEMORY_SHARE * slice.chip.memory),
        case.batch_size,
        strategy=case.strategy,
        tokens_of=lambda examples: examples * case.tokens,
        busy_tokens=ELEMENTS / width,
    )
    flags = f"--batch-size {fit.batch_size} --accumulate {fit.accumulate} --remat {fit.remat}"
    return (
        f"flags            {flags}: {gib(fit.nbytes)} of {gib(fit.memory)} GiB; at once would fit "
        f"{fit.largest} examples"
    )


def kernels_table(found: Mapping[str, Any]) -> str:
    """The kernels that take longest, those of all blocks together."""
    rows = []
    for row in found["longest"]:
        milliseconds = row["seconds"] * 1e3
        share = row["seconds"] / found["kernel_seconds"]
        name = row["source"].removeprefix("jit(step)/")
        rows.append(
            [f"{milliseconds:.3f}", f"{share:.1%}", str(row["kernels"]), row["limit"], name]
        )
    columns = ("ms", "share", "kernels", "takes", "of")
    return "\n".join(markdown_table(columns, rows))


def unrolled_text(found: Mapping[str, Any], unrolled: Mapping[str, Any]) -> str:
    """What unrolled blocks are to the loop in ``found``: times, or why there are none."""
    if not found["fits"] or not unrolled["fits"]:
        return fit_text(unrolled)
    seconds = unrolled["compile_seconds"]
    ratio = found["compile_seconds"] / seconds
    return f"compiles in {seconds:.0f} s: the loop takes {ratio:.2f} of that"


def assumptions(slice: Topology) -> str:
    """The figures of a chip that times are computed with."""
    chip = slice.chip
    rate = (
        f"one {chip.name} does {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, has "
        f"{chip.memory / GIB:.4g} GiB to use"
    )
    links = f"{chip.links / 1e9:.0f} GB/s"
    if chip.gpu:
        return (
            f"assumed          {rate} (three quarters of its memory, as JAX takes if "
            "XLA_PYTHON_CLIENT_MEM_FRACTION says nothing else), sends "
            f"{links} ({chip.source}); products at peak, nothing overlaps"
        )
    return (
        f"assumed          {rate} and sends {links} over {2 * chip.dimensions} links "
        f"({chip.source}); products at peak, nothing overlaps; at least: all goes over the two "
        "links of one dimension"
    )


def fit_text(found: Mapping[str, Any]) -> str:
    """Whether a case fits the memory of a chip, and by how much."""
    used = found["used"] / GIB
    limit = found["limit"] / GIB
    parts = ""
    if "arguments" in found:
        arguments = found["arguments"] / GIB
        temporary = found["temporary"] / GIB
        parts = f" ({arguments:.2f} arguments, {temporary:.2f} temporary)"
    room = abs(limit - used)
    verdict = f"fits, {room:.2f} GiB to spare"
    if not found["fits"]:
        verdict = f"does not fit, {room:.2f} GiB too much"
    return f"{used:.2f} of {limit:.2f} GiB a chip{parts}: {verdict}"


Cell = tuple[str, str, str]  # of the table: model, strategy, topology


def table(config: Config) -> list[dict[str, Any]]:
    """Compile every cell, those that matter most first; a file each, so that it goes on where it
    stopped. The table is written after each.
    """
    slices = list(SLICES)
    first = list(FIRST)
    if first_nondefault_flag(config, ("topology",)):
        slices = [config.topology]
        first = [(*row, config.topology) for row in FIRST_OF_ONE]
    cells: list[Cell] = []
    for name in slices:
        for strategy in STRATEGIES:
            cells += [(model, strategy, name) for model in MODELS]
    cases = {}
    for cell in dict.fromkeys([*first, *cells]):
        model, strategy, name = cell
        flags = {"model": model, "strategy": strategy, "topology": name}
        cases[cell] = make_case(dataclasses.replace(config, **flags))

    folder = config.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[Cell, dict[str, Any]] = {}
    for cell, case in cases.items():
        results[cell] = compile_cell(folder, cell, case)
        console.say(f"{' '.join(cell)}: {fit_text(results[cell])}")
        results = {cell: results[cell] for cell in cells if cell in results}
        write_pages(config, slices, results)
    console.say(results_page(results))
    return list(results.values())


def write_pages(
    config: Config, slices: list[str], results: Mapping[Cell, Mapping[str, Any]]
) -> None:
    """Write the table of what was compiled so far, and with --tables that of the pages."""
    write_text(config.out / "table.md", results_page(results))
    if config.tables is not None:
        name = "aot" if slices == list(SLICES) else f"aot_{config.topology.replace(':', '_')}"
        write_table(config.tables, name, aot_table(config, results))


def compile_cell(folder: Path, cell: Cell, case: Case) -> dict[str, Any]:
    """What came of a cell, from its file if an earlier run compiled this very case."""
    slice = topology(case.topology)
    path = folder / f"{'-'.join(cell)}.json".replace(":", "").replace("%", "")
    found = read_cell(path, case, slice.compiler)
    if found is None:
        found = compile_case(case, slice)
        found["machine"] = sides.machine(os.cpu_count() or 1)
        write_json(path, found)
        jax.clear_caches()
    return found


def read_cell(path: Path, case: Case, compiler: str) -> dict[str, Any] | None:
    """What an earlier run wrote of this very case, with this compiler, if it did."""
    try:
        found = json.loads(path.read_text("utf-8"))
        fit_text(found)
        machine_text(found["machine"])
        is_same = (found["case"], found["compiler"]) == (dataclasses.asdict(case), compiler)
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        return None
    return found if is_same else None


def results_page(results: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The table, and under it what it assumes."""
    assumed = []
    compiled = []
    for _, _, name in results:
        slice = topology(name)
        assumed.append(assumptions(slice))
        compiled.append(f"compiled by      {slice.compiler}")
    notes = dict.fromkeys([*assumed, *compiled])  # each once
    lines = markdown_table(COLUMNS, table_rows(results), right=7)
    return "\n".join([*lines, "", *notes, ""])


def aot_table(config: Config, results: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The table as the pages include it."""
    command = command_line("experiments.benchmark.aot.compile_check", config)
    machines = [found["machine"] for found in results.values()]
    latest = max(machines, key=lambda machine: machine["date"])
    compilers = dict.fromkeys(found["compiler"] for found in results.values())
    what = "bfloat16, blocks as a loop"
    source = source_line(command, what, machine_text(latest), ", ".join(compilers))
    return table_text(source, COLUMNS, table_rows(results), right=7)


def table_rows(results: Mapping[Cell, Mapping[str, Any]]) -> list[list[str]]:
    """A row a cell."""
    rows = []
    for cell, found in results.items():
        case = found["case"]
        size = f"{case['batch_size']} x {case['tokens']}"
        used = found["used"] / GIB
        memory = f"{used:.2f}"
        if not found["fits"]:
            missing = used - found["limit"] / GIB
            memory = f"does not fit, by {missing:.2f}"
        work = ["", "", "", ""]
        if "flops" in found:
            products = found["flops"] / found["flops_model"]
            sent = sum(row["sent"] for row in found["collectives"]) / MIB
            seconds = f"{found['kernel_seconds'] * 1e3:,.3g} ms"
            work = [f"{products:.3f}", f"{sent:.4g}", f"{found['least']:.1%}", seconds]
        compiled = f"{found['compile_seconds']:.0f} s"
        rows.append([*cell, case["mesh"], case["remat"], size, memory, *work, compiled])
    return rows


if __name__ == "__main__":
    launch(Config, main)
