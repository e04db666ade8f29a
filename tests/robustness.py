"""How adapt takes damaged inputs, killed processes and full disks, in figures.

    python -m tests.robustness --mutations 1000 --kills 100 --disks 20 --seed 0 --out build/robustness

Every damaged file goes through the library and through a command. It is refused in one line, or
taken: then what was read is what it was before the damage, or what a reader of its own finds in the
file. A killed command runs again and ends as the undisturbed one, bit for bit. OUT gets
robustness.md and stops.md, and for every fault the damaged input; ``--kinds Parquet --only 7`` tries
one input again. Status 1 where there is a fault.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# A first use of a shape compiles; what is checked does not depend on how well.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402

from tests.helpers import forks  # noqa: E402
from tests.helpers.robustness import (  # noqa: E402
    disks,
    inputs,
    kills,
    kinds,
    made_up,
    report,
    workers,
)


def main(words: Sequence[str] | None = None) -> int:
    """Run everything, write the tables; 1 where there is a fault."""
    options = read_options(words)
    out = options.out.resolve()
    out.mkdir(parents=True)
    base = out / "base"
    keep_compiled(out / "compiled")
    forks.import_all()
    workers.forked(make_base, base, options.mutations, options.seed)

    jobs = jobs_of(options)
    damaged = workers.run_all(jobs, base, out / "work", options.workers)
    outcomes = noted(damaged, out / "outcomes.jsonl")
    killed = kills.kill_all(base, out / "kills", options.kills, options.seed)
    stops = noted(killed, out / "kills.jsonl")
    full = noted(
        disks.fill_all(base, out / "disks", options.disks, options.seed), out / "disks.jsonl"
    )
    if options.disks:
        full += noted(disks.two_at_once(base, out / "two"), out / "disks.jsonl")

    line = f"python -m tests.robustness --mutations {options.mutations} --kills {options.kills}"
    line += f" --disks {options.disks} --seed {options.seed}"
    source = report.source_line(line, time.strftime("%Y-%m-%d", time.gmtime()))
    report.write(out, (source, source), outcomes, stops, full)
    for name in ("robustness", "stops"):
        print((out / f"{name}.md").read_text())
    wrong = [one for one in outcomes if one.outcome in workers.FAULTS]
    wrong += [one for one in (*stops, *full) if one.fault]
    return 1 if wrong else 0


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=1000, help="damaged inputs")
    parser.add_argument("--kills", type=int, default=100, help="commands that are killed")
    parser.add_argument("--disks", type=int, default=20, help="commands whose disk is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="*", help="beginnings of the names of kinds")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of damaged inputs of a kind")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    return parser.parse_args(words)


def noted(found: Iterable[Any], path: Path) -> list[Any]:
    """What is found, written to a file as it comes; a fault is said."""
    kept = []
    for one in found:
        kept.append(one)
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(one)) + "\n")
        why = one.why if isinstance(one, workers.Outcome) else one.fault
        is_fault = not isinstance(one, workers.Outcome) or one.outcome in workers.FAULTS
        if why and is_fault:
            print(f"FAULT {dataclasses.asdict(one)}"[:2000], flush=True)
    return kept


def keep_compiled(folder: Path) -> None:
    """Have all processes share what they compile, unless the environment names a folder for it."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_traceback_in_locations_limit", 0)


def jobs_of(options: argparse.Namespace) -> list[workers.Job]:
    """The mutations, shared out among the kinds, mixed."""
    if not options.mutations:
        return []
    total = sum(kind.share for kind in kinds.KINDS)
    jobs = []
    for index, kind in enumerate(kinds.KINDS):
        if options.kinds and not kind.name.startswith(tuple(options.kinds)):
            continue
        count = max(round(options.mutations * kind.share / total), 1)
        for number in options.only or range(count):
            jobs.append((number / count, workers.Job(index, number, options.seed)))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def make_base(base: Path, mutations: int, seed: int) -> None:
    """The intact inputs."""
    base.mkdir()
    os.environ["ADAPT_CACHE"] = str(base / "cache")
    inputs.make_all(base)
    made_up.write_all(base / "memory", max(mutations // 10, 4), seed)


if __name__ == "__main__":
    sys.exit(main())
