"""What is installed: one package and one command, which a folder called `experiments` or `adapt` does not disturb."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import adapt
from adapt.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = ("adapt", "experiments", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the paths of an environment are POSIX's"),
]


def pip(*words: object) -> None:
    """Run pip on a build of this project; the test is skipped where the build's own requirements can't be had."""
    setuptools = importlib.metadata.version("setuptools")
    flags = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    if int(setuptools.split(".")[0]) >= 77:
        flags.append("--no-build-isolation")
    argv = [sys.executable, "-m", "pip", *map(str, words), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if done.returncode and "setuptools>=77" in done.stdout + done.stderr:
        pytest.skip(
            f"setuptools {setuptools} is too old to build with, and no newer one is at hand"
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the project in a folder called adapt, as git makes it."""
    folder = tmp_path_factory.mktemp("projects") / "adapt"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", clone, "--wheel-dir", folder)
    (path,) = folder.glob("*.whl")
    return path


def environment(folder: Path) -> Path:
    """A fresh environment that sees the packages of the present one behind its own: the folder of its programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    home = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    argv = list(map(str, words))
    return subprocess.run(argv, cwd=cwd, env=home, capture_output=True, text=True, timeout=300)


def test_the_wheel_has_one_package(wheel):
    assert wheel.name == f"adapt_jax-{adapt.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "adapt",
        f"adapt_jax-{adapt.__version__}.dist-info",
    }
    assert {"adapt/py.typed", "adapt/__init__.pyi"} <= set(names)


def test_a_wheel_works_where_a_package_experiments_is(wheel, tmp_path):
    programs = environment(tmp_path / "fresh")
    pip("--python", programs / "python", "install", "--no-index", wheel)
    project = tmp_path / "project"
    (project / "experiments").mkdir(parents=True)
    (project / "experiments" / "__init__.py").write_text("raise SystemExit('the wrong package')")

    done = run(programs / "adapt", cwd=project)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    done = run(programs / "adapt", "--version", cwd=project)
    assert done.stdout == f"adapt-jax {adapt.__version__}\n"
    done = run(programs / "python", "-m", "adapt", "finetune", "--help", cwd=project)
    assert done.returncode == 0 and "usage: adapt finetune" in done.stdout, done.stderr
    code = "import adapt, json, sys; adapt.load; print(json.dumps([adapt.__file__, sys.prefix]))"
    done = run(programs / "python", "-c", code, cwd=project)
    file, prefix = json.loads(done.stdout)
    assert file.startswith(prefix)


def test_an_editable_install_works_from_a_script_beside_the_clone(clone, tmp_path):
    programs = environment(tmp_path / "fresh")
    pip("--python", programs / "python", "install", "--editable", clone)
    script = clone.parent / "script.py"
    script.write_text("import adapt\nprint(adapt.__file__, adapt.load.__name__)")
    done = run(programs / "python", script, cwd=tmp_path)
    assert done.stdout.split() == [str(clone / "adapt/__init__.py"), "load"], done.stderr
    assert run(programs / "adapt", "--version", cwd=clone.parent).returncode == 0
