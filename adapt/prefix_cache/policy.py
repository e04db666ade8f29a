"""The cache of the frozen prefix in a training run: whether it pays, and the sets with it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.cli import console
from adapt.cost import clock, flops
from adapt.data.examples import Examples
from adapt.errors import OutputError, StrategyError
from adapt.models import EncoderConfig
from adapt.parallel.multihost import all_processes, broadcast_from_lead
from adapt.prefix_cache import states, store
from adapt.prefix_cache.store import Entry
from adapt.training.frozen_prefix import Cut
from adapt.training.phases import Run
from adapt.tree import Tree

Entries = dict[str, Entry]  # by set
WRITE = 200e6  # bytes/s to and from a file of the cache, where they were not measured: a slow disk
READ = 1e9
EFFICIENCY = 0.7  # of the machine's matrix products that an encoder reaches


def check(config: Any, runs: Sequence[Run]) -> None:
    """Raise :class:`StrategyError` where ``--cache on`` can't be: no phase has a stage that stands still."""
    if config.cache == "on" and all(run.step.prefix is None for run in runs):
        raise StrategyError(
            f"--cache on: with --strategy {config.strategy} the embedding trains, so nothing before it stands still; "
            "give top:K or frozen, or --cache auto"
        )


def choose(
    config: Any, phase: Run, params: Tree, sets: dict[str, Examples], before: bool | None = None
) -> Entries:
    """Where the cache keeps what the prefix makes of each set; nothing where the cache is off, or would not pay.

    A phase that began before a stop does as it did then. Raises :class:`OutputError` where the disk can't hold what
    ``--cache on`` asks for.
    """
    cut = phase.step.prefix
    asked = config.cache if before is None else "on" if before else "off"
    if cut is None or asked == "off":
        console.chat.print(
            "cache     off" + ("" if cut else ": the embedding trains, so nothing stands still")
        )
        return {}
    dtype = config.cache_dtype or config.dtype
    entries = {}
    kept = {}
    for name, part in sets.items():
        entry = states.entry(params, cut.model, cut.depth, part, dtype)
        entries[name] = kept.setdefault(entry.folder, entry)  # sets of one file share it
    saved = broadcast_from_lead(
        float(sum(saves(phase, cut, name, sets, entries) for name in entries))
    )
    there = size(entries, True)
    missing = size(entries, False)
    what = ", ".join(
        f"{nbytes / 1e6:.0f} MB {state}"
        for nbytes, state in ((there, "there"), (missing, "to write"))
        if nbytes
    )
    verdict = f"{'saves' if saved > 0 else 'would cost'} about {abs(saved):.1f} s"
    if asked == "auto" and saved <= 0:
        console.chat.print(f"cache     off: {what}, {verdict}")
        return {}
    fault = None
    try:
        store.need_space(list(entries.values()))
    except OutputError as found:
        fault = found
    if not all_processes(fault is None):
        fault = fault or OutputError(
            "another process has no room for the cache: see what it says, or give --cache off"
        )
        if asked == "on":
            raise fault
        console.warn(f"no cache: {fault}")
        return {}
    console.chat.print(
        f"cache     {cut.depth} of {cut.model.stages} stages stand still: {what}, {verdict}"
    )
    return entries


def saves(phase: Run, cut: Cut, name: str, sets: dict[str, Examples], entries: Entries) -> float:
    """Seconds that the cache of one set saves; a file that two sets share is written for the first of them."""
    part = sets[name]
    entry = entries[name]
    passes = (phase.last - phase.first if name != "test" else 1) * part.rows.size / len(part.whole)
    first = next(other for other in entries if entries[other] == entry)
    return cache_saves(
        cut.model.encoder.config,
        cut.depth,
        part.whole.lengths,
        passes,
        entry.nbytes,
        entry.filled or first != name,
    )


def cache_saves(
    c: EncoderConfig, cut: int, lengths: np.ndarray, passes: float, nbytes: int, filled: bool
) -> float:
    """Seconds that keeping the prefix's output saves; negative where it costs more than it saves.

    ``lengths`` [N] are the tokens of every example of the file, ``passes`` how often it is gone through, as a share of
    the file (nine tenths in training, five times: 4.5), ``nbytes`` the size of what is kept, ``filled`` if it is there.
    """
    once = flops.prefix_flops(c, cut, float(lengths.sum()), float(lengths.mean())) / (
        clock.matmul_rate() * EFFICIENCY
    )
    reading = passes * nbytes / READ
    return passes * once - reading if filled else (passes - 1) * once - reading - nbytes / WRITE


def size(entries: Entries, filled: bool) -> int:
    """Bytes of the entries that are filled, or that are not; sets that share one count once."""
    return sum(
        {
            entry.folder: entry.nbytes for entry in entries.values() if entry.filled == filled
        }.values()
    )


def with_states(
    cut: Cut | None, params: Tree, sets: dict[str, Examples], entries: Entries, asked: str = "on"
) -> dict[str, Examples]:
    """The sets with what the prefix makes of them, computed now where the cache does not have it.

    Where it can't be kept, ``entries`` is emptied and training goes on without. Raises :class:`OutputError` under ``on``.
    """
    if cut is None or not entries:
        return sets
    made = {}
    found = {}
    wholes = {
        entries[name].folder: len(sets[name].whole) for name in entries if not entries[name].filled
    }
    try:
        with console.progress("encoding", sum(wholes.values())) as bar:
            done = 0
            for name, part in sets.items():
                entry = entries[name]
                if entry.folder not in found:
                    told = lambda n, done=done: bar.update(done + n)
                    found[entry.folder] = states.states(params, cut, part, entry, told, waiting)
                    done += wholes.get(entry.folder, 0)
                made[name] = dataclasses.replace(part, states=found[entry.folder])
    except OutputError as fault:
        if asked == "on":
            raise
        console.warn(f"no cache: {fault}")
        entries.clear()
        return sets
    if error := max(entry.relative_error for entry in entries.values()):
        dtype = next(iter(entries.values())).dtype
        console.console.print(
            f"cache     {dtype} keeps the states to a relative error of {error:.1e} (root mean square)"
        )
    return made


def waiting() -> None:
    console.console.print("cache     another process is computing it: waiting")


def summary(entries: Entries) -> dict[str, Any] | None:
    """What result.json says of the cache; None where it was off."""
    if not entries:
        return None
    return {
        "bytes": size(entries, True) + size(entries, False),
        "dtype": str(next(iter(entries.values())).dtype),
        "relative_error": max(entry.relative_error for entry in entries.values()),
        "folders": sorted({str(entry.folder) for entry in entries.values()}),
    }
