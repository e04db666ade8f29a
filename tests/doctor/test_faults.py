"""The table of faults is complete: every check is in it, every test that it names plants two ways, and
the documentation has a row for each.
"""

import ast
import math

import pytest

from adapt.doctor.checks import CHECKS
from tests.helpers.faults import FAULTS
from tests.helpers.tiny import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")


def test_every_check_is_planted():
    named = {check for fault in FAULTS.values() for check in fault.checks}
    assert named == {check.__name__ for checks in CHECKS.values() for check in checks}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_planted_in_two_ways(name):
    assert sum(ways(test) for test in FAULTS[name].planted) >= 2


@pytest.mark.parametrize("name", FAULTS)
def test_the_documentation_has_the_fault(name):
    fault = FAULTS[name]
    assert fault.checks or fault.refused or fault.why_not
    assert all(f"`{check}`" in PAGE for check in fault.checks)
    assert fault.refused in PAGE and fault.why_not in PAGE


def ways(test):
    """In how many ways a test plants its fault: the product of what its decorators list."""
    path, _, name = test.partition("::")
    module = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    (function,) = [one for one in module.body if getattr(one, "name", None) == name]
    lists = [call.args[1] for call in function.decorator_list if isinstance(call, ast.Call)]
    return math.prod(len(one.elts) for one in lists if isinstance(one, ast.List))
