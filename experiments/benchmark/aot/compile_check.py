"""What would a train step cost on TPUs or GPUs that nobody has at hand? It is compiled for them
here, without one.

    pip install -e '.[tpu-compile,gpu-compile]'
    python -m experiments.benchmark.aot.compile_check --model bert-large --strategy full --topology v5e:4x4
    python -m experiments.benchmark.aot.compile_check --model bert-large --strategy full --topology h100:1
    python -m experiments.benchmark.aot.compile_check --model gpt2-xl --topology v5e:16x16 --mesh data=4,fsdp=64 --next-batch
    python -m experiments.benchmark.aot.compile_check --table --out runs/compile_check            # resumes where it stopped

The programs are those of ``train.make_step``: bfloat16 compute, AdamW, clipping, dropout. Printed
for each chip: matrix products against the model's own count, memory against the chip's, collectives
with what a chip sends, and how much of a step would be computing if nothing overlapped. Expect one
or two minutes a program on two cores; the table has 48 of them, or with --topology the 12 of that
slice.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax

from adapt.cli import console
from adapt.cli.flags import first_nondefault_flag
from adapt.cli.launch import launch
from adapt.cli.run_folder import write_json
from adapt.errors import MeshError, StrategyError
from adapt.parallel import sharding
from experiments.benchmark.aot.chips import Topology, topology
from experiments.benchmark.aot.compiling import (
    Case,
    compile_case,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.aot.shapes import MODELS, SHAPES, STRATEGIES

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


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "bert-large"  # one of bert-tiny, bert-base, bert-large, vit-l16, gpt2-xl
    strategy: str = (
        "full"  # of one phase and without additions; top:25% is the last quarter of the blocks
    )
    topology: str = (
        "v5e:4x4"  # v5e or v5p and the sides of the slice; h100 or a100 and how many of one host
    )
    mesh: str | None = (
        None  # as data=16,fsdp=16; default: fsdp over all chips, or data where the whole encoder is frozen
    )
    batch_size: int | None = None  # examples over all chips; default: by the model
    tokens: int | None = None  # an example; default: as many as the model has positions
    remat: Literal["none", "block", "dots"] | None = (
        None  # default: block, none where the encoder is frozen
    )
    scan: bool = True  # blocks as a loop
    compare_unrolled: bool = False  # compile with unrolled blocks too, for its time
    next_batch: bool = False  # compile for twice the batch too, for its memory
    table: bool = False  # every model, strategy and slice, a file each in --out; those that are there are kept
    out: Path = Path("runs/compile_check")  # of --table


def main(config: Config) -> Any:
    jax.config.update("jax_enable_compilation_cache", False)  # or the second run would time a file
    if config.table:
        if flag := first_nondefault_flag(
            config, ("model", "strategy", "mesh", "scan", "compare_unrolled", "next_batch")
        ):
            raise StrategyError(f"{flag} is not of --table, which has every model and strategy")
        return table(config)
    if config.compare_unrolled and not config.scan:
        raise StrategyError(
            "--compare-unrolled compares with the blocks as a loop: leave --no-scan out"
        )
    case = case_of(config)
    slice = topology(config.topology)
    found = compile_case(case, slice)
    show(found, slice)
    if config.next_batch:
        more = compile_case(dataclasses.replace(case, batch_size=2 * case.batch_size), slice)
        console.say(f"next batch       {2 * case.batch_size} examples: {fit(more)}")
    if config.compare_unrolled:
        flat = compile_case(dataclasses.replace(case, scan=False), slice)
        took = flat["compile_seconds"]
        ratio = found["compile_seconds"] / flat["compile_seconds"]
        said = (
            f"compiles in {took:.0f} s: the loop takes {ratio:.2f} of that"
            if flat["fits"] and found["fits"]
            else fit(flat)
        )
        console.say(f"unrolled         {said}")
    return found


def case_of(config: Config) -> Case:
    """The flags with what they leave open, checked as far as can be without libtpu."""
    spec = resolve_strategy(config.model, config.strategy)
    slice = topology(config.topology)
    still = spec == "frozen"
    mesh = config.mesh or (
        f"data={slice.chips}" if still else SLICES.get(config.topology, f"fsdp={slice.chips}")
    )
    axes = sharding.axis_sizes(mesh, slice.chips)
    groups = axes["data"] * axes["fsdp"]
    batch_size = (
        groups * SHAPES[config.model].examples if config.batch_size is None else config.batch_size
    )
    tokens = tokens_per_example(config.model, batch_size, config.tokens)
    if batch_size % groups:
        raise MeshError(
            f"--batch-size {batch_size} can't be divided over {mesh}: give a multiple of {groups}"
        )
    remat = config.remat or ("none" if still else "block")
    return Case(config.model, spec, config.topology, mesh, batch_size, tokens, remat, config.scan)


def show(found: dict[str, Any], slice: Topology) -> None:
    """What there is to say of one case."""
    case = found["case"]
    say = console.say
    loop = "blocks as a loop" if case["scan"] else "blocks unrolled"
    say(
        f"{case['model']}, {case['strategy']}: {case['batch_size']} examples of {case['tokens']} "
        f"tokens over {slice.name}"
    )
    chips = f"{slice.chips} chips as {case['mesh']}" if slice.chips > 1 else "one chip"
    say(f"                 {chips}, rematerialisation {case['remat']}, {loop}")
    say(f"memory           {fit(found)}")
    if "flops" in found:
        once, again = (
            (found["flops"] - less) / found["flops_model"] for less in (found["flops_again"], 0)
        )
        say(
            f"matrix products  {found['flops'] / 1e12:.4g} TFLOP a chip: {again:.3f} of the "
            "model's own count"
        )
        if found["flops_again"]:
            say(
                f"                 {once:.3f} of it without what is computed again for the "
                "backward pass"
            )
        for row in found["collectives"]:
            where = (
                "to a neighbour"
                if row["kind"] == "collective-permute"
                else f"in groups of {row['group']}"
            )
            what = f"{row['times']} {row['kind']} of {row['types']} {where}"
            say(f"{row['program']:16} {what}: a chip sends {row['sent'] / MIB:.4g} MiB")
        times = (
            f"{found['computing'] * 1e3:.4g} ms of products, {found['sending'] * 1e3:.3g} ms of "
            "sending"
        )
        least = f", at least {found['least']:.1%}" if slice.chip.dimensions > 1 else ""
        say(f"on paper         {times}: {found['share']:.1%} is computing{least}")
    say(f"{'compiled' if 'flops' in found else 'refused':16} in {found['compile_seconds']:.0f} s")
    say(assumptions(slice))


def assumptions(slice: Topology) -> str:
    chip = slice.chip
    rate = (
        f"one {chip.name} does {chip.flops / 1e12:.0f} TFLOP/s in bfloat16, has "
        f"{chip.memory / GIB:.4g} GiB to use"
    )
    if chip.gpu:
        rate += (
            " (three quarters of its memory, as JAX takes if XLA_PYTHON_CLIENT_MEM_FRACTION says "
            "nothing else)"
        )
        return (
            f"assumed          {rate}, sends {chip.links / 1e9:.0f} GB/s ({chip.source}); products "
            "at peak, nothing overlaps"
        )
    links = f"sends {chip.links / 1e9:.0f} GB/s over {2 * chip.dimensions} links ({chip.source})"
    least = "nothing overlaps; at least: all goes over the two links of one dimension"
    return f"assumed          {rate} and {links}; products at peak, {least}"


def fit(found: dict[str, Any]) -> str:
    used = found["used"]
    limit = found["limit"]
    parts = (
        f" ({found['arguments'] / GIB:.2f} arguments, {found['temporary'] / GIB:.2f} temporary)"
        if "arguments" in found
        else ""
    )
    room = f"{abs(limit - used) / GIB:.2f} GiB {'to spare' if found['fits'] else 'too much'}"
    verdict = "fits" if found["fits"] else "does not fit"
    return f"{used / GIB:.2f} of {limit / GIB:.2f} GiB a chip{parts}: {verdict}, {room}"


def table(config: Config) -> list[dict[str, Any]]:
    """Every cell, those that matter most first; a file each, so that it goes on where it stopped."""
    slices = [config.topology] if first_nondefault_flag(config, ("topology",)) else list(SLICES)
    every = [
        (model, strategy, name) for name in slices for strategy in STRATEGIES for model in MODELS
    ]
    folder = config.out / "cells"
    results = {}
    folder.mkdir(parents=True, exist_ok=True)
    cases = {
        (model, strategy, name): case_of(
            dataclasses.replace(config, model=model, strategy=strategy, topology=name)
        )
        for model, strategy, name in dict.fromkeys(
            (*(key for key in FIRST if key in every), *every)
        )
    }
    for (model, strategy, name), case in cases.items():
        path = folder / f"{model}-{strategy}-{name}.json".replace(":", "").replace("%", "")
        if (found := kept(path, case, topology(name).compiler)) is None:
            found = compile_case(case, topology(name))
            write_json(path, found)
            jax.clear_caches()
        results[model, strategy, name] = found
        console.say(f"{model} {strategy} {name}: {fit(found)}")
    page = markdown([(key, results[key]) for key in every])
    (config.out / "table.md").write_text(page, "utf-8")
    console.say(page)
    return list(results.values())


def kept(path: Path, case: Case, compiler: str) -> dict[str, Any] | None:
    """What an earlier run wrote of this very case, with this compiler, if it did."""
    try:
        found = json.loads(path.read_text("utf-8"))
        fit(found)
        return (
            found
            if (found["case"], found["compiler"]) == (dataclasses.asdict(case), compiler)
            else None
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ):  # not there, or damaged: it is compiled again
        return None


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
    "compiled",
)


def markdown(results: list[tuple[tuple[str, str, str], dict[str, Any]]]) -> str:
    """The table, and under it what it assumes."""
    rows = []
    for (model, strategy, name), found in results:
        case = found["case"]
        cells = [
            model,
            strategy,
            name,
            case["mesh"],
            case["remat"],
            f"{case['batch_size']} x {case['tokens']}",
        ]
        cells += [
            f"{found['used'] / GIB:.2f}"
            if found["fits"]
            else f"does not fit, by {(found['used'] - found['limit']) / GIB:.2f}"
        ]
        if "flops" in found:
            sent = sum(row["sent"] for row in found["collectives"])
            cells += [
                f"{found['flops'] / found['flops_model']:.3f}",
                f"{sent / MIB:.4g}",
                f"{found['least']:.1%}",
            ]
        else:
            cells += [""] * 3
        rows.append((*cells, f"{found['compile_seconds']:.0f} s"))
    slices = [topology(name) for name in dict.fromkeys(name for (*_, name), _ in results)]
    notes = dict.fromkeys(assumptions(slice) for slice in slices)  # one of each chip
    notes |= dict.fromkeys(f"compiled by      {slice.compiler}" for slice in slices)
    return "\n".join([*console.markdown_table(COLUMNS, rows, right=6), "", *notes, ""])


if __name__ == "__main__":
    launch(Config, main)
