"""`import adapt` is cheap, complete, and touches no device."""

import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

import adapt

ROOT = Path(__file__).parents[1]
EXCEPTIONS = ("AdaptError", "FROZEN")
# What a type checker refuses: an argument of another type, and a keyword that there is not.
WRONG = ("adapt.load(3)", 'adapt.diagnose("tiny-bert", learning_rat=1e-3)')
FUNCTIONS = [name for name in adapt.__all__ if name not in EXCEPTIONS]


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_loads_no_library_and_no_room():
    code = "import sys; before = set(sys.modules); import adapt; print(*sorted(set(sys.modules) - before))"
    loaded = python(code).split()
    assert [name for name in loaded if name.startswith("adapt")] == ["adapt"]
    assert {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) == {"adapt"}


def test_what_opens_a_data_set_or_a_checkpoint_is_imported_when_it_is_used():
    late = (
        "datasets",
        "orbax",
        "sklearn",
        "scipy",
        "pandas",
        "matplotlib",
        "huggingface_hub",
        "PIL",
        "torch",
        "tensorflow",
    )
    everything = "; ".join(f"adapt.{name}" for name in adapt.__all__)
    found = python(
        f"import sys, adapt; {everything}; print(*(name for name in {late} if name in sys.modules))"
    )
    assert found == ""


def test_no_device_is_touched_by_any_import():
    rooms = [room.name for room in pkgutil.walk_packages(adapt.__path__, "adapt.")]
    rooms = [room for room in rooms if not room.endswith("__main__")]
    code = f"import adapt, {', '.join(rooms)}"
    code += f"; {'; '.join(f'adapt.{name}' for name in adapt.__all__)}"
    probe = "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    assert python(f"{code}; {probe}") == "False"


def test_every_name_that_is_promised_is_there_and_no_other():
    assert dir(adapt) == adapt.__all__ == sorted(adapt.__all__)
    for name in adapt.__all__:
        assert name == "FROZEN" or getattr(adapt, name).__name__ == name
    assert not hasattr(adapt, "train_everything")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_completion_shows_the_signature(name):
    code = f"import adapt\nadapt.{name}("
    script = jedi.Script(code, path=ROOT / "somebody.py", project=jedi.Project(ROOT))
    (signature, *_) = script.get_signatures(2, len(f"adapt.{name}("))
    shown = {parameter.name for parameter in signature.params}
    expected = set(inspect.signature(getattr(adapt, name)).parameters)
    assert shown >= expected - {"args", "kwargs", "parent", "name"}  # Flax adds the last two


def test_a_type_checker_knows_every_name(tmp_path):
    """None of them is Any, and a wrong argument is an error."""
    lines = ["import adapt", *(f"reveal_type(adapt.{name})" for name in adapt.__all__)]
    (tmp_path / "names.py").write_text("\n".join([*lines, *WRONG]))
    argv = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    settings = {"include": ["names.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "basic"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [*argv, "--project", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    shown = [entry["message"] for entry in found if entry["severity"] == "information"]
    assert len(shown) == len(adapt.__all__)
    assert not [message for message in shown if "Any" in message.partition("(")[0]]
    assert not [message for message in shown if "Unknown" in message]
    errors = [entry for entry in found if entry["severity"] == "error"]
    assert [entry["rule"] for entry in errors] == ["reportArgumentType", "reportCallIssue"]
