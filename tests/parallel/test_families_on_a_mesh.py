"""Every family on eight virtual devices: the states are those that the original library recorded."""

import json

import filelock
import pytest

from adapt.pretrained.families import FAMILIES, get_family
from tests.helpers import tiny


def one_case_a_family() -> dict[str, str]:
    """{``model_type``: its first recorded case}."""
    found: dict[str, str] = {}
    for file in sorted(tiny.REFERENCES.glob("*/config.json")):
        model_type = json.loads(file.read_text("utf-8"))["model_type"]
        found.setdefault(model_type, file.parent.name)
    return found


CASES = one_case_a_family()


@pytest.fixture(scope="module")
def reports(shared_folder, forks, keeps_compiled):
    """What tests/helpers/sharded_families.py says of all cases, run once for all workers."""
    path = shared_folder / "sharded_families.json"
    names = list(CASES.values())
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            words = ["tests.helpers.sharded_families", json.dumps(names)]
            running = forks.start(words, forks.env | keeps_compiled)
            out, errors = running.communicate(timeout=900)
            assert running.returncode == 0, errors[-2000:]
            path.write_text(json.dumps(dict(zip(names, out.splitlines(), strict=True))))
    return {name: json.loads(line) for name, line in json.loads(path.read_text()).items()}


def test_every_family_is_among_the_cases():
    recorded = {id(get_family(model_type).table) for model_type in CASES}
    assert {id(get_family(model_type).table) for model_type in FAMILIES} == recorded


@pytest.mark.parametrize("case", CASES.values())
def test_the_states_on_a_mesh_are_those_of_the_original_library(reports, case):
    assert reports[case]["error"] < 1e-4
    assert reports[case]["split"] > 5
