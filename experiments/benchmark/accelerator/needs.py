"""What this Python lacks of all that adapt imports, and the wheels that were carried along for it.

Only the standard library is imported here: this runs before anything else can.
"""

import atexit
import importlib
import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
Wanted = tuple[str, tuple[str, ...]]  # a distribution and its extras


def complete(arguments: Sequence[str]) -> None:
    """Put the wheels of ``--wheels`` on the path of this process and of those that it starts.

    Ends the process with one line and status 2 where a distribution is still missing.
    """
    folder = wheels_folder(arguments)
    if folder is not None:
        install(folder)
    absent = missing(project_requirements())
    if absent:
        names = ", ".join(absent)
        print(
            f"error: {sys.executable} lacks {names}: carry their wheels along and name the folder "
            "with --wheels (docs/benchmarks.md says how)",
            file=sys.stderr,
        )
        sys.exit(2)


def wheels_folder(arguments: Sequence[str]) -> Path | None:
    """The folder that ``--wheels`` names; the flags themselves are read later."""
    for word, following in itertools.pairwise([*arguments, ""]):
        if word == "--wheels" and following:
            return Path(following)
        if word.startswith("--wheels="):
            return Path(word.partition("=")[2])
    return None


def install(folder: Path) -> None:
    """Install the wheels of a folder, none of what they require, into one that goes at the end of
    the process. Processes that it starts find them by PYTHONPATH.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        print(f"error: --wheels {folder} has no .whl file", file=sys.stderr)
        sys.exit(2)
    target = tempfile.mkdtemp(prefix="adapt-wheels-")
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", target, *map(str, wheels)], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        print(f"error: --wheels {folder} could not be installed: {reason}", file=sys.stderr)
        sys.exit(2)
    sys.path.insert(0, target)
    importlib.invalidate_caches()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = target if not before else f"{target}{os.pathsep}{before}"


def project_requirements() -> list[str]:
    """What pyproject.toml says that adapt needs."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]


def missing(requirements: Iterable[str]) -> list[str]:
    """The names of distributions that are required, directly or by what is installed, and are not
    installed.

    What a missing one requires itself is not known before it is there.
    """
    absent = set()
    waiting = wanted(requirements, ())
    seen: set[Wanted] = set()
    while waiting:
        want = waiting.pop()
        if want in seen:
            continue
        seen.add(want)
        name, extras = want
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            absent.add(name)
            continue
        waiting += wanted(found.requires or (), extras)
    return sorted(absent)


def wanted(requirements: Iterable[str], extras: Sequence[str]) -> list[Wanted]:
    """The distributions that these requirements ask for on this machine, for a package with these
    extras. Without ``packaging`` those with a condition are left out.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        unconditional = [line for line in requirements if ";" not in line]
        return [(re.split(r"[^\w.-]", line.strip())[0], ()) for line in unconditional]
    found = []
    for line in requirements:
        requirement = Requirement(line)
        marker = requirement.marker
        environments = [{"extra": extra} for extra in extras or ("",)]
        if marker is None or any(marker.evaluate(environment) for environment in environments):
            found.append((requirement.name, tuple(sorted(requirement.extras))))
    return found
