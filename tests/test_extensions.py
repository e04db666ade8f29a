"""Modules of one's own: what they register is found, and a mistake in one is an error that names it."""

import sys

import pytest

from adapt import extensions, files
from adapt.errors import ExtensionError
from adapt.models import POOLINGS
from adapt.pretrained.families import FAMILIES

MODULE = """
from adapt.models import HEADS, POOLINGS, Classifier
from adapt.tasks import TASKS
from adapt.tasks.classification import Classification


class Mine(Classifier):
    pass


POOLINGS["double"] = lambda x, batch: 2 * POOLINGS["mean"](x, batch)
HEADS["Mine"] = Mine
TASKS["plain"] = Classification()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(name, text)` is a module in the current folder; what it registers is gone after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(extensions, "_modules", {})
    for registry in extensions.REGISTRIES.values():
        for name in registry:
            monkeypatch.setitem(registry, name, registry[name])
    before = {kind: set(registry) for kind, registry in extensions.REGISTRIES.items()}
    written = []

    def module(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield module
    for name in written:
        sys.modules.pop(name, None)
    for kind, registry in extensions.REGISTRIES.items():
        for name in set(registry) - before[kind]:
            del registry[name]


def test_an_entry_is_known_with_the_module_that_was_imported_for_it(write):
    write("of_one_s_own", MODULE)
    extensions.import_modules(["of_one_s_own"])
    used = [("pooling", "double"), ("head", "Mine"), ("task", "plain"), ("pooling", "mean")]
    assert extensions.modules_of(used) == {
        "pooling double": "of_one_s_own",
        "head Mine": "of_one_s_own",
        "task plain": "of_one_s_own",
    }


def test_an_entry_of_a_program_is_known_by_the_module_that_defines_it(write, monkeypatch):
    write("helper", "def squared(x, batch):\n    return x**2\n")
    monkeypatch.syspath_prepend(".")
    import helper  # pyright: ignore

    POOLINGS["squared"] = helper.squared
    assert extensions.modules_of([("pooling", "squared")]) == {"pooling squared": "helper"}


def test_a_family_of_a_program_is_known_by_the_module_of_any_of_its_functions(write, monkeypatch):
    text = "import dataclasses\nfrom adapt.pretrained.families.bert import FAMILY\n\n\n"
    text += "def complete(hf, fields):\n    return fields\n\n\n"
    write("rocks", text + "FAMILY = dataclasses.replace(FAMILY, complete=complete)\n")
    monkeypatch.syspath_prepend(".")
    import rocks  # pyright: ignore

    FAMILIES["rocks"] = rocks.FAMILY  # whose `recognise` is adapt's
    assert extensions.modules_of([("family", "rocks")]) == {"family rocks": "rocks"}
    FAMILIES["rocks"] = "rocks"
    assert extensions.modules_of([("family", "rocks")]) == {"family rocks": "rocks"}


def test_a_second_import_changes_nothing(write, caplog):
    write("twice", MODULE)
    extensions.import_modules(["twice", "twice"])
    assert extensions.modules_of([("task", "plain")]) == {"task plain": "twice"}
    assert not caplog.messages


def test_the_current_folder_comes_first_and_afterwards_last(write, tmp_path):
    write("tabnanny", "from adapt.models import POOLINGS\nPOOLINGS['tab'] = POOLINGS['mean']\n")
    extensions.import_modules(["tabnanny"])
    assert "tab" in POOLINGS
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_library\n", "broken.py, line 1: No module named 'no_such_library'"),
        ("x = 1\ny = z\n", "broken.py, line 2: NameError: name 'z' is not defined"),
        ("def f(:\n", "SyntaxError: "),
        (
            "from adapt.tasks import TASKS\nTASKS['choice'] = TASKS['span']\n",
            "it replaces the task 'choice' of adapt: give it a name of its own",
        ),
        (
            "import dataclasses\nfrom adapt.pretrained.families.bert import FAMILY\n"
            "FAMILY = dataclasses.replace(FAMILY, pooling='meen')\n",
            "broken.py, line 3: the family pools by 'meen', which there is not: choose mean",
        ),
    ],
)
def test_a_mistake_in_a_module_is_one_line_that_names_it(write, text, words):
    write("broken", text)
    with pytest.raises(ExtensionError) as error:
        extensions.import_modules(["broken"])
    assert str(error.value).startswith("`import` broken: ") and words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.module"])
def test_a_module_that_is_nowhere_is_named_with_the_folder(write, tmp_path, name):
    with pytest.raises(ExtensionError, match=f"there is no module of this name in {tmp_path}"):
        extensions.import_modules([name])


def test_a_module_that_registers_nothing_is_a_warning(write, caplog):
    write("idle", "x = 1\n")
    extensions.import_modules(["idle"])
    assert caplog.messages == [
        "`import` idle: it registers no strategy, modifier, pooling, head, task, objective or family"
    ]


def test_the_names_of_a_run_that_are_not_registered_are_named_with_their_module(tmp_path):
    files.write_json(tmp_path / "model.json", {"imports": {"task choice": "elsewhere"}})
    extensions.check_run(tmp_path)
    files.write_json(tmp_path / "model.json", {"imports": {"task comets": "mine"}})
    with pytest.raises(
        ExtensionError, match="has the task 'comets' of the module mine: `import` mine first"
    ):
        extensions.check_run(tmp_path)
