"""Run a command: ``launch(Config, main)`` reads the flags, prepares the process and calls ``main``.

A user's mistake ends in one line ``error: ...`` on stderr and status 2, without a traceback. What
the library warns of becomes a line ``note: ...``.
"""

import contextlib
import ctypes
import glob
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from adapt.cli.cluster import LOST, join
from adapt.cli.console import notes_on_stderr
from adapt.cli.flags import name_flags, read_flags
from adapt.cli.watcher import DIED
from adapt.errors import AdaptError
from adapt.files import is_remote
from adapt.parallel.multihost import is_multiprocess

# Files of the devices that a plugin of JAX computes on, by the beginning of the plugin's name.
DEVICE_FILES = {
    "xla_cuda": ("/dev/nvidia[0-9]*", "/dev/dxg"),
    "xla_rocm": ("/dev/kfd",),
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
}

COMMAND_LINE: ContextVar[str | None] = ContextVar("command line", default=None)


def launch(config: type, main: Callable[[Any], Any], program: str | None = None) -> None:
    """Read the flags, run ``main``. ``program`` is what is typed before the flags, by default
    ``python -m MODULE``.
    """
    module = sys.modules[main.__module__]
    program = program or f"python -m {module_name(main)}"
    line = f"{program} {shlex.join(sys.argv[1:])}".rstrip()
    prepare_cpu()
    if {"-h", "--help"} & set(sys.argv):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # --help | head ends without a traceback
    try:
        flags = read_flags(config, program, module.__doc__)
    except AdaptError as error:
        fail(name_flags(str(error), config))
    from adapt.program_cache import keep_programs

    keep_programs()
    signal.signal(signal.SIGINT, interrupt)  # Ctrl-C counts even where a shell had it ignored
    signal.signal(signal.SIGALRM, interrupt)
    with running(line), notes_on_stderr(lambda sentence: name_flags(sentence, config)):
        try:
            if hasattr(flags, "coordinator"):
                join(flags)
            if getattr(flags, "import_", ()):
                from adapt.extensions import import_modules

                import_modules(flags.import_)
            check_buckets(flags)
            main(flags)
        except AdaptError as error:
            fail(name_flags(str(error), config))
        except OSError as error:
            if error.errno is None:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror}")
        except (RuntimeError, ValueError) as error:  # of a collective whose other side is gone
            if not is_multiprocess():
                raise
            if not LOST.search(str(error)):
                traceback.print_exc()
                os._exit(1)  # it would wait for the others
            fail(f"{DIED} ({str(error).splitlines()[0][:200]})")
        except KeyboardInterrupt:
            print(
                "interrupted; what was saved stays, go on with --resume where the command has it",
                file=sys.stderr,
                flush=True,
            )
            # Python would now and then end by the signal itself, after the line above.
            os._exit(130)


@contextlib.contextmanager
def running(line: str) -> Iterator[None]:
    """Inside, :func:`command_line` is this one."""
    token = COMMAND_LINE.set(line)
    try:
        yield
    finally:
        COMMAND_LINE.reset(token)


def command_line() -> str | None:
    """The command line of the command that runs now; None where a program calls its ``main``."""
    return COMMAND_LINE.get()


def check_buckets(flags: Any) -> None:
    """Raise :class:`BucketError` for a flag that names a bucket which can't be read here."""
    for value in vars(flags).values():
        for name in value if isinstance(value, tuple) else (value,):
            if is_remote(name):
                from adapt import buckets

                buckets.check(name)


def module_name(main: Callable[..., Any]) -> str:
    """The module of ``main`` as ``python -m`` takes it."""
    spec = sys.modules[main.__module__].__spec__
    return spec.name.removesuffix(".__main__") if spec else main.__module__


def fail(why: str) -> NoReturn:
    """The one line of a mistake, and status 2; of several processes this one does not wait for the
    others.
    """
    print(f"error: {why}", file=sys.stderr, flush=True)
    if is_multiprocess():
        os._exit(2)
    sys.exit(2)


def interrupt(number: int, frame: Any) -> None:
    """Ctrl-C, put off while JAX's callback of the garbage collector runs: what is raised in there,
    Python drops.
    """
    if frame is None or "gc_callback" not in frame.f_code.co_name:
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def prepare_cpu() -> None:
    """Set up the process for computing on a CPU; where JAX will use an accelerator, leave
    everything alone.

    There sixteen threads compile at once, and with the one arena of :func:`keep_memory` they wait
    for each other: a step of MiniLM on an H100 compiled for 79 seconds, and for 18 without.
    """
    if computes_on_cpu():
        keep_memory()
        wide_vectors()


def computes_on_cpu() -> bool:
    """Whether JAX will compute on the CPU, judged without starting its backends.

    By JAX_PLATFORMS where it is set. Otherwise an accelerator needs a plugin of JAX, and a device
    file.
    """
    platforms = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if platforms:
        return platforms.split(",")[0].strip().lower() == "cpu"
    return not any(has_device(plugin) for plugin in jax_plugins())


def jax_plugins() -> list[str]:
    """The names of the installed plugins that bring JAX a device: ``xla_cuda12``, ``libtpu``, ..."""
    names = [point.name for point in importlib.metadata.entry_points(group="jax_plugins")]
    with contextlib.suppress(ImportError):  # a namespace package: it is there if a plugin is
        package = importlib.import_module("jax_plugins")
        names += [module.name for module in pkgutil.iter_modules(package.__path__)]
    if importlib.util.find_spec("libtpu"):
        names.append("libtpu")
    return names


def has_device(plugin: str) -> bool:
    """Whether this machine has a device for a plugin of JAX; of an unknown plugin it is taken for
    granted.
    """
    if "cuda" in plugin and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    for name, patterns in DEVICE_FILES.items():
        if plugin.startswith(name):
            return any(glob.glob(pattern) for pattern in patterns)
    return True


def keep_memory() -> None:
    """Have the C library keep what is freed, so that a step's buffers are not mapped and zeroed
    anew at every step.

    By default glibc maps each large buffer and unmaps it when it is freed: for a step of MiniLM on
    the CPU 114,000 page faults, a fifth of its time. Elsewhere than on glibc nothing is done.
    """
    arena_max = -8  # malloc.h
    mmap_max = -4
    trim_threshold = -1
    top_pad = -2
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never; a size would be an int's at the most, 2 GiB
        mallopt(top_pad, 512 << 20)


def wide_vectors() -> None:
    """Have XLA use a CPU's 512-bit vectors where there are any; it stays at 256 by itself, which
    took extraction 4% longer.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    cpu = Path("/proc/cpuinfo")
    if flags and "--" not in flags:
        return  # they are in a file
    if "xla_cpu_prefer_vector_width" not in flags and cpu.exists() and "avx512f" in cpu.read_text():
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()
