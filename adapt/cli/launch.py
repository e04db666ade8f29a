"""One file, one job: ``python -m experiments.NAME``.

A frozen dataclass ``Config`` is the flags, and ``main`` reads top to bottom.
"""

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.cli.cluster import DIED, LOST, join
from adapt.errors import AdaptError, OutputError
from adapt.options import DeviceOptions
from adapt.parallel.multihost import assert_same, barrier, is_lead_process, is_multiprocess

# Flags that may differ between a run and its resumption.
UNCOMPARED = (
    "out",
    "resume",
    "overwrite",
    "stop_after",
    *(field.name for field in dataclasses.fields(DeviceOptions)),
)


def launch(config: type, main: Callable[[Any], Any]) -> None:
    """Read the flags, run ``main``; a user's mistake ends in one line ``error: ...`` and status 2, without a traceback."""
    keep_memory()
    wide_vectors()
    flags = read_flags(config, sys.modules[main.__module__].__doc__)
    compilation_cache()
    signal.signal(signal.SIGINT, interrupt)  # Ctrl-C counts even where a shell had it ignored
    signal.signal(signal.SIGALRM, interrupt)
    try:
        if hasattr(flags, "coordinator"):
            join(flags)
        main(flags)
    except AdaptError as fault:
        fail(str(fault))
    except OSError as fault:
        if fault.errno is None:
            raise
        fail(f"{f'{fault.filename}: ' if fault.filename else ''}{fault.strerror}")
    except (RuntimeError, ValueError) as fault:  # of a collective whose other side is gone
        if not is_multiprocess():
            raise
        if not LOST.search(str(fault)):
            traceback.print_exc()
            os._exit(1)  # it would wait for the others
        fail(f"{DIED} ({str(fault).splitlines()[0][:200]})")
    except KeyboardInterrupt:
        print(
            "interrupted; what was saved stays, go on with --resume where the command has it",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130)  # Python would now and then end by the signal itself, after the line above


def read_flags(
    config: type, description: str | None, arguments: Sequence[str] | None = None
) -> Any:
    """A ``config`` from the flags; ``--help`` shows the fields of each of its bases under the base's title."""
    import tyro

    groups: list[Any] = [base for base in config.__bases__ if dataclasses.is_dataclass(base)]
    grouped = {field.name for group in groups for field in dataclasses.fields(group)}
    if any(field.name not in grouped for field in dataclasses.fields(config)):
        return tyro.cli(config, description=description, args=arguments)
    defaults = {field.name: default_of(field) for field in dataclasses.fields(config)}
    entries = []
    for group in groups:
        names = [field.name for field in dataclasses.fields(group)]
        default = group(**{name: defaults.pop(name) for name in names})
        entries.append((group.title, group, dataclasses.field(default=default)))
    flags = dataclasses.make_dataclass("Flags", entries, frozen=True)
    read = tyro.cli(tyro.conf.OmitArgPrefixes[flags], description=description, args=arguments)
    values = {}
    for group in groups:
        options = getattr(read, group.title)
        values |= {field.name: getattr(options, field.name) for field in dataclasses.fields(group)}
    return config(**values)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a flag; tyro's mark for none where it has to be given."""
    import tyro

    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


def fail(why: str) -> None:
    """The one line of a mistake, and status 2; of several processes this one does not wait for the others."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(2) if is_multiprocess() else sys.exit(2)


def interrupt(number: int, frame: Any) -> None:
    """Ctrl-C, put off while JAX's callback of the garbage collector runs: what is raised in there, Python drops."""
    if frame is None or "gc_callback" not in frame.f_code.co_name:
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def keep_memory() -> None:
    """Have the C library keep what is freed, so that a step's buffers are not mapped and zeroed anew at every step.

    By default glibc maps each large buffer and unmaps it when it is freed: for a step of MiniLM on the CPU 114,000 page
    faults, a fifth of its time. Elsewhere than on glibc nothing is done.
    """
    arena_max = -8  # malloc.h
    mmap_max = -4
    trim_threshold = -1
    top_pad = -2
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in (
            (arena_max, 1),
            (mmap_max, 0),
            (trim_threshold, 2**31 - 1),
            (top_pad, 512 << 20),
        ):
            mallopt(option, value)


def wide_vectors() -> None:
    """Have XLA use a CPU's 512-bit vectors where there are any; it stays at 256 by itself, which took extraction 4% longer."""
    flags = os.environ.get("XLA_FLAGS", "")
    cpu = Path("/proc/cpuinfo")
    if flags and "--" not in flags:
        return  # they are in a file
    if "xla_cpu_prefer_vector_width" not in flags and cpu.exists() and "avx512f" in cpu.read_text():
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()


def compilation_cache() -> None:
    """Compiled programs persist between processes, in the cache folder, so that a second start does not compile."""
    import jax

    from adapt.pretrained.assets import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # A cache that can't be written saves no time; it is no reason to trouble anybody.
    warnings.filterwarnings(
        "ignore", "Error (reading|writing) persistent compilation cache", UserWarning
    )


def given(config: Any, names: Iterable[str]) -> str | None:
    """The first of these flags, as ``--batch-size``, that is not at its default."""
    name = next(
        (name for name in names if getattr(config, name) != getattr(type(config)(), name)), None
    )
    return name and f"--{name.replace('_', '-')}"


def check_out(out: Path, resume: bool | None, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done. ``resume`` is None where a command has no such flag."""
    if not is_lead_process():  # the first process makes the folder, perhaps by now
        return
    if resume and overwrite:
        raise OutputError(
            "--resume goes on with a run and --overwrite deletes it: give one of them"
        )
    if resume and not (out / "config.json").exists():
        raise OutputError(f"--resume: there is no run in {out} (no config.json)")
    if out.exists() and not resume and not overwrite and (not out.is_dir() or any(out.iterdir())):
        go_on = "" if resume is None else "--resume to go on with it, "
        raise OutputError(
            f"the output folder {out} exists: give {go_on}--overwrite to replace it, or another --out"
        )


@contextlib.contextmanager
def open_run(out: Path, config: Any) -> Iterator[None]:
    """Make the run's folder with config.json, or check on ``--resume`` that the flags are those of the run.

    What goes wrong inside leaves nothing half-written: the new folder goes, and what ``--overwrite`` was to replace
    comes back. Raises :class:`OutputError`; only a folder that the same experiment wrote is ever replaced.
    """
    flags = {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(config).items()
    }
    flags = {"experiment": Path(sys.modules[type(config).__module__].__file__ or "").stem, **flags}
    flags = json.loads(json.dumps(flags))  # as they are read back: lists for tuples
    shared = {
        name: repr(value)
        for name, value in flags.items()
        if name not in ("coordinator", "process_id", "join_timeout")
    }
    assert_same(
        "their flags", {f"--{name.replace('_', '-')}": text for name, text in shared.items()}
    )
    if getattr(config, "resume", False):
        check_flags_of(out, flags)
        yield
        return
    if not is_lead_process():
        barrier("folder")
        if not (out / "config.json").exists():
            raise OutputError(
                f"--out {out} is not on a disk that every host sees: the first process made it elsewhere"
            )
        yield
        return
    out = out.resolve()
    this = flags["experiment"]
    before = out.with_name(f".{out.name}.before")
    filled = out.exists() and any(out.iterdir())
    empty = out.exists()
    if filled and not config.overwrite:  # it was not there when check_out looked
        raise OutputError(
            f"the output folder {out} is being filled by another process: give another --out"
        )
    if (
        filled
        and before.exists()
        and not any((out / name).exists() for name in ("result.json", "checkpoints/index.json"))
    ):
        shutil.rmtree(out)  # what was to replace it was stopped before it had saved anything
        before.rename(out)
    if filled and experiment_of(out) != this:
        raise OutputError(
            f"{out} is not a folder that {this} wrote, so --overwrite leaves it alone: remove it yourself"
        )
    try:
        if filled:
            shutil.rmtree(before, ignore_errors=True)
            out.rename(before)
        out.mkdir(parents=True, exist_ok=empty and not filled)
        write_json(out / "config.json", flags)
        barrier("folder")
        yield
    except BaseException:
        for path in out.iterdir() if out.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if filled:
            before.replace(out)
        elif not empty and out.exists():
            out.rmdir()
        raise
    if filled:
        shutil.rmtree(before, ignore_errors=True)


def experiment_of(out: Path) -> str | None:
    """The experiment that wrote the folder ``out``, by its config.json; None if none did."""
    try:
        return json.loads((out / "config.json").read_text("utf-8")).get("experiment")
    except (OSError, ValueError, AttributeError):
        return None


def check_same_origin(out: Path, origin: dict[str, Any]) -> None:
    """Raise :class:`OutputError` on ``--resume`` when the encoder or the data are not those that the run began with."""
    before = read_lineage(out)
    for name, what in (
        ("encoder_digest", "the encoder of --checkpoint"),
        ("data_digest", "the training data"),
    ):
        if before.get(name) != origin[name]:
            raise OutputError(
                f"--resume: {what} changed since the run in {out} began: start anew with --overwrite"
            )


def read_lineage(out: Path) -> dict[str, Any]:
    """Of the run in ``out``. Raises :class:`OutputError` where there is none that can be read."""
    try:
        return dict(json.loads((out / "lineage.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as fault:
        raise OutputError(
            f"--resume: {out / 'lineage.json'} can't be read ({fault}): start anew with --overwrite"
        ) from None


def check_flags_of(out: Path, flags: dict[str, Any]) -> None:
    """Raise :class:`OutputError` naming the first flag that is not as it was when the run in ``out`` began."""
    try:
        before = json.loads((out / "config.json").read_text("utf-8"))
        known = dict(before)
    except (ValueError, TypeError) as fault:
        raise OutputError(
            f"--resume: {out / 'config.json'} is not what adapt wrote: {fault}"
        ) from None
    for name, value in flags.items():
        if name not in UNCOMPARED and known.get(name) != value:
            flag = "--" + name.replace("_", "-")
            old = known.get(name)
            raise OutputError(
                f"--resume: {flag} was {old!r} in {out} and is {value!r} now: give the same flags"
            )


def write_json(path: Path, content: Any) -> None:
    """JSON, written atomically, by the lead process alone."""
    if is_lead_process():
        files.write_json(path, content)


def lineage(config: Any, pretrained: Any, **more: Any) -> dict[str, Any]:
    """Where a run's parameters come from: the source, its encoder's digest, and what the experiment adds."""
    import jax

    from adapt.tree import digest

    return {
        "source": pretrained.source,
        "family": pretrained.config.family,
        "random_weights": config.random_weights,
        "encoder_digest": digest(pretrained.params["encoder"]),
        **more,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "backend": jax.default_backend(),
    }


def versions() -> dict[str, str]:
    """Of the packages that decide numbers, for lineage.json."""
    names = ("adapt", "jax", "flax", "optax", "orbax-checkpoint", "datasets", "tokenizers", "numpy")
    found = {name: next(iter(importlib.metadata.distributions(name=name)), None) for name in names}
    return {"python": sys.version.split()[0]} | {
        name: package.version for name, package in found.items() if package
    }
