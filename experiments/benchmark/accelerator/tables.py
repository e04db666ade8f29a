"""What was measured as tables: a page of all of them, and a file each for the pages in docs/."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from adapt.cli.flags import Options, changed_flags
from adapt.files import write_text
from adapt.markdown import markdown_table
from experiments.benchmark.accelerator import rows
from experiments.benchmark.accelerator.finetuning import COMPILED, NOTHING_COMPILED
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import PROGRAM, Settings
from experiments.benchmark.table_files import UNNAMED, source_line, table_text, versions_text

CHECK_COLUMNS = ("check", "of", "value", "limit", "result")
RUN_COLUMNS = (
    "trains",
    "batch",
    "adapt, s",
    "again, s",
    "examples/s",
    "torch, s",
    "examples/s",
    "compiled, s",
    "examples/s",
    "torch / adapt",
    "compiled / adapt",
)
EXTRACTION_COLUMNS = (
    "computed in",
    "adapt, s",
    "again, s",
    "sentences/s",
    "sentence-transformers: sentences/s",
    "its batch",
    "ratio",
    "cosine",
)
STEP_COLUMNS = (
    "model",
    "trains",
    "remat",
    "examples",
    "adapt: examples/s",
    "of the rate",
    "GiB",
    "torch: examples/s",
    "of the rate",
    "GiB",
    "adapt / torch",
)
PART_COLUMNS = ("part", "s", "result", "note")
# What JAX and torch say when the memory of a device does not suffice.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
NOT_OF_A_FIGURE = (*UNNAMED, "inputs", "wheels", "cache", "write_inputs")

Cells = list[list[str]]


class Flags(Options, Protocol):
    """The flags that are read here."""

    @property
    def out(self) -> Path: ...

    @property
    def tables(self) -> Path | None: ...


def write(config: Flags, told: Settings) -> None:
    """Write accelerator.md and the files in tables/, of what there is so far."""
    found = rows.read(told.rows)
    sizes = told.sizes
    texts = {
        "accelerator_checks": ("Correctness", CHECK_COLUMNS, check_cells(found), 0),
        "accelerator_finetune": (
            f"{sizes.model}'s shape, {sizes.epochs} epochs, bfloat16: seconds of whole runs, and "
            "examples/s of their steps",
            RUN_COLUMNS,
            run_cells(found),
            10,
        ),
        "accelerator_extract": (
            f"{sizes.model}'s shape, {sizes.sentences:,} sentences: seconds of whole commands",
            EXTRACTION_COLUMNS,
            extraction_cells(found),
            7,
        ),
        "accelerator_steps": (
            "bfloat16, examples of full length; the rate is that of matrix products",
            STEP_COLUMNS,
            step_cells(found),
            8,
        ),
    }
    page = []
    for name, (what, columns, cells, right) in texts.items():
        if not cells:
            continue
        text = table_text(source(config, found, what), columns, cells, right)
        page += [f"## {name.removeprefix('accelerator_')}", "", text]
        for folder in (told.out / "tables", config.tables):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / f"{name}.md", text)
    page += ["## parts", "", *markdown_table(PART_COLUMNS, part_cells(found)), ""]
    write_text(told.out / "accelerator.md", "\n".join(page))


def source(config: Flags, found: Sequence[Row], what: str) -> str:
    """The first line of a table: the command, what, on which device, when, with which versions."""
    words = " ".join(["python -m", PROGRAM, *changed_flags(config, NOT_OF_A_FIGURE)])
    rates = [row["flops"] for row in found if "flops" in row]
    devices = [row["device"] for row in found if "device" in row]
    device = f"One {devices[0]}" if devices else "A device that said nothing of itself"
    rate = f" ({max(rates) / 1e12:.3g} TFLOP/s)" if rates else ""
    date = next((row["date"] for row in found if "date" in row), "no date")
    versions = versions_text(row["versions"] for row in found if "versions" in row)
    return source_line(words, what, f"{device}{rate}, {date}", versions or "no versions")


def is_on_cpu(found: Sequence[Row], row: Row) -> bool:
    """Whether a row was measured on the CPU; those of adapt are from where its rate is."""
    platform = row.get("platform", first(found, part="rate").get("platform"))
    return platform == "cpu"


def sentence(row: Row) -> str:
    """What a row says, in a line."""
    what = [row["part"]]
    for name in ("check", "side", "strategy", "batch_size", "dtype"):
        if name in row:
            what.append(str(row[name]))
    if "case" in row:
        case = row["case"]
        what.append(case if isinstance(case, str) else f"{case['model']} {case['strategy']}")
    note = f": {row['note']}" if row.get("note") else ""
    return f"{', '.join(what)} {row['status']}{note}"


# Cells


def check_cells(found: Iterable[Row]) -> Cells:
    """A row a check."""
    cells = []
    for row in found:
        if "check" in row:
            result = row["status"]
            if row.get("note"):
                result += f": {row['note']}"
            numbers = [number_text(row["value"]), number_text(row["limit"])]
            cells.append([row["check"], row["case"], *numbers, result])
    return cells


def number_text(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def first(found: Iterable[Row], **values: Any) -> Row:
    """The first row that has these values; an empty one if none has."""
    for row in found:
        if all(row.get(name) == value for name, value in values.items()):
            return row
    return {}


def ratio(found: Sequence[Row], above: Row, below: Row, name: str) -> str:
    """One side's figure by another's; nothing where one is missing, or they are from different
    devices.
    """
    has_both = above.get(name) is not None and below.get(name) is not None
    if not has_both or is_on_cpu(found, above) != is_on_cpu(found, below):
        return ""
    return f"{above[name] / below[name]:.2f}"


def figure(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    """A figure of a row with its thousands; what became of the row where it has none."""
    if row.get(name) is not None:
        return f"{row[name]:,.{digits}f}"
    if row.get("status") == "error":
        is_memory = any(words in row["note"] for words in OUT_OF_MEMORY)
        return "out of memory" if is_memory else "failed"
    return ""


def run_cells(found: Sequence[Row]) -> Cells:
    """A row a strategy and batch; ratios are of whole runs in which nothing was compiled before."""
    kinds = []
    for row in found:
        if "strategy" in row and "batch_size" in row:
            kinds.append((row["strategy"], row["batch_size"]))
    cells = []
    for strategy, batch_size in dict.fromkeys(kinds):
        case = {"strategy": strategy, "batch_size": batch_size}
        ours = first(found, **case, side="adapt", which=NOTHING_COMPILED)
        again = first(found, **case, side="adapt", which=COMPILED)
        eager = first(found, **case, side="torch")
        compiled = first(found, **case, side="torch.compile")
        line = [strategy, str(batch_size), figure(ours, "wall", 1), figure(again, "wall", 1)]
        line.append(figure(again or ours, "examples_per_second"))
        for peer in (eager, compiled):
            line += [figure(peer, "wall", 1), figure(peer, "examples_per_second")]
        line += [ratio(found, peer, ours, "wall") for peer in (eager, compiled)]
        cells.append(line)
    return cells


def extraction_cells(found: Sequence[Row]) -> Cells:
    """A row a precision; the ratio is of sentences/s, when everything is compiled."""
    cells = []
    for dtype in dict.fromkeys(row["dtype"] for row in found if "dtype" in row):
        ours = first(found, dtype=dtype, side="adapt", which=NOTHING_COMPILED)
        again = first(found, dtype=dtype, side="adapt", which=COMPILED)
        peer = first(found, dtype=dtype, which="best batch")
        speed = "examples_per_second"
        line = [dtype, figure(ours, "wall", 1), figure(again, "wall", 1), figure(again, speed)]
        line += [figure(peer, speed), figure(peer, "batch_size")]
        line.append(ratio(found, again, peer, speed))
        line.append(figure(peer, "cosine", 4))
        cells.append(line)
    return cells


def step_cells(found: Sequence[Row]) -> Cells:
    """A row a case."""
    measured = [row for row in found if "flops_per_example" in row]
    cells = []
    for row in measured:
        case = row["case"]
        if row["side"] != "adapt":
            continue
        torch = first(measured, case=case, side="torch")
        remat = f"{case['remat']}, loop" if case["scan"] else case["remat"]
        size = f"{case['batch_size']} x {case['tokens']}"
        line = [case["model"], case["strategy"], remat, size]
        for side in (row, torch):
            line += [figure(side, "speed", 1), share_text(found, side), peak_text(side)]
        line.append(ratio(found, row, torch, "speed"))
        cells.append(line)
    return cells


def share_text(found: Sequence[Row], row: Row) -> str:
    """The share of its device's rate that a step reaches; the rate is the fastest of both sides."""
    rates = []
    for other in found:
        if "flops" in other and is_on_cpu(found, other) == is_on_cpu(found, row):
            rates.append(other["flops"])
    if not rates or "speed" not in row:
        return ""
    return f"{row['speed'] * row['flops_per_example'] / max(rates):.0%}"


def peak_text(row: Row) -> str:
    peak = row.get("peak_bytes")
    return "" if peak is None else f"{peak / 2**30:.1f}"


def part_cells(found: Iterable[Row]) -> Cells:
    """A row a part: how long it took, and what came of it."""
    cells = []
    for row in found:
        if row.get("row") == "part":
            line = [row["part"], f"{row['seconds']:.1f}", row["status"], row.get("note", "")]
            cells.append(line)
    return cells
