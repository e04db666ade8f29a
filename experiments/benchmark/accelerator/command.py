"""Is it right and fast on this accelerator? Everything that says so, in a few minutes, on a machine
without network and weights.

    python -m experiments.benchmark.accelerator --write-inputs inputs
    python -m experiments.benchmark.accelerator --inputs inputs \\
        --peers python --wheels wheels --out "$OUT/measured"
    python -m experiments.benchmark.accelerator --tiny --peers torch/bin/python

First come checks, side by side: attention and its kernels against plain JAX, leaks between the texts
of a row, bfloat16 against float32, the same run twice, a run that goes on, what is frozen. Then whole runs of `adapt finetune`
and `adapt extract` beside transformers + torch and sentence-transformers, and at last steps of
well-known encoders. Weights are random, in real shapes. Each part is a process with a time limit,
and its rows are written as they come: rows.jsonl, the tables in tables/, the logs in logs/. The
status is 1 where a check fails, or something of adapt's breaks.

The first line, where there is a package registry, writes the texts and the tokenizer that are to be
carried along. With --tiny everything is small: to try it out on a CPU.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar

from adapt.cli import console
from adapt.cli.run_folder import open_run
from adapt.errors import StrategyError
from adapt.run_folder import check_out
from experiments.benchmark.accelerator import inputs, parts, rows, tables
from experiments.benchmark.accelerator.parts import Part
from experiments.benchmark.accelerator.settings import Settings

PEERS_LACK = "no Python of the peers was named"
MARGIN = 5.0  # seconds in which this process starts and ends
TINY_FACTOR = (
    5  # of the limits with --tiny, which is for CPUs: they compile as long for small shapes
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is measured, and with what."""

    title: ClassVar[str] = "accelerator"

    # a Python with torch, transformers and sentence-transformers; default: none
    peers: str | None = None
    # a folder with train.csv, test.csv (columns text and label) and, if wanted, tokenizer.json;
    # default: the bundled reviews
    inputs: Path | None = None
    # write such a folder, and do nothing else
    write_inputs: Path | None = None
    # a folder of wheels that this Python lacks
    wheels: Path | None = None
    # those to do; the inputs are always made
    parts: tuple[str, ...] = parts.NAMES
    # for everything together
    minutes: float = 6.0
    # a folder for compiled programs that stays; default: a new one, so that all are compiled
    cache: Path | None = None
    # small shapes and few steps, to try it out
    tiny: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Where results go."""

    title: ClassVar[str] = "run"

    # the folder to write
    out: Path = Path("runs/accelerator")
    # replace a measurement that is there
    overwrite: bool = False
    # also write the tables that the pages include into this folder: docs/tables
    tables: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MeasureOptions, WriteOptions):
    """The flags of the command."""


def main(config: Config) -> list[rows.Row]:
    """All rows. Ends the process with status 1 where one of them is bad."""
    if config.write_inputs is not None:
        inputs.write_inputs(config.write_inputs)
        console.say(f"inputs    {config.write_inputs}: carry it along, and name it with --inputs")
        return []
    check_flags(config)
    check_out(config.out, None, config.overwrite)
    inputs.check(config.inputs, config.tiny)
    with open_run(config.out, config) as folder:
        folder.keep()  # what was measured stays, whatever comes after
        found = measure(config)
    console.say((config.out / "accelerator.md").read_text("utf-8"))
    bad = [row for row in found if rows.is_bad(row)]
    if bad:
        console.warn(f"{len(bad)} rows are bad; the first: {tables.sentence(bad[0])}")
        sys.exit(1)
    return found


def check_flags(config: Config) -> None:
    """Raise :class:`StrategyError` for a part that there is not, or no time."""
    for name in config.parts:
        if name not in parts.NAMES:
            raise StrategyError(f"`parts` {name}: give some of {', '.join(parts.NAMES)}")
    if not config.minutes > 0:
        raise StrategyError(f"`minutes` {config.minutes} must be above 0")


def measure(config: Config) -> list[rows.Row]:
    """Do the parts, one after the other; after each the tables are written anew."""
    deadline = time.monotonic() + 60 * config.minutes - MARGIN
    scratch = Path(tempfile.mkdtemp(prefix="adapt-accelerator-"))
    try:
        told = prepare(config, scratch)
        todo = [part for part in parts.PARTS if part.name in ("inputs", *config.parts)]
        do_all(config, told, todo, deadline)
        return rows.read(told.rows)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def prepare(config: Config, scratch: Path) -> Settings:
    """What the parts are told; the inputs are where they look for them."""
    peers_lack = PEERS_LACK
    if config.peers is not None:
        peers_lack = parts.lacking(config.peers)
        if peers_lack:
            console.warn(f"{peers_lack}: nothing is compared with it, name another with --peers")
    told = Settings(
        out=config.out.absolute(),
        scratch=scratch,
        peers=None if peers_lack else config.peers,
        peers_lack=peers_lack,
        tiny=config.tiny,
        cache=(config.cache or scratch / "cache").absolute(),
    )
    told.logs.mkdir()
    inputs.gather(config.inputs, told)
    told.write()
    return told


def do_all(config: Config, told: Settings, todo: Sequence[Part], deadline: float) -> None:
    """Do these parts while there is time."""
    ahead = None
    if told.peers is not None and any(part.of_peers for part in todo):
        ahead = parts.import_ahead(told.peers, told.logs / "import_ahead.log")
    try:
        for group in parts.side_by_side(todo):
            with ThreadPoolExecutor(len(group)) as pool:
                done = [pool.submit(do, part, told, deadline) for part in group]
                for future in as_completed(done):
                    record(config, told, future.result())
    finally:
        if ahead is not None:
            parts.end(ahead)


def record(config: Config, told: Settings, row: dict[str, Any]) -> None:
    """Write what came of a part, and the tables anew."""
    rows.append(told.rows, row)
    tables.write(config, told)
    note = f" ({row['note']})" if row.get("note") else ""
    console.say(f"{row['part']:15} {row['seconds']:6.1f} s  {row['status']}{note}")


def do(part: Part, told: Settings, deadline: float) -> dict[str, Any]:
    """Do one part if that is possible: the row that says what came of it."""
    row: dict[str, Any] = {"part": part.name, "row": "part", "seconds": 0.0}
    if part.of_peers and told.peers is None:
        return row | {"status": "skipped", "note": told.peers_lack}
    limit = part.limit
    if told.tiny:
        limit *= TINY_FACTOR
    seconds_left = deadline - time.monotonic()
    limit = min(limit, seconds_left)
    if limit < parts.LEAST:
        return row | {"status": "not started", "note": "the time was up"}
    log = told.logs / f"{part.name}.log"
    outcome = parts.run(part, told, log, limit)
    for name, value in dataclasses.asdict(outcome).items():
        if value:
            row[name] = value
    return row
