"""An objective is one file: no other file asks which objective it has."""

from adapt.objectives import OBJECTIVES
from tests.helpers.names import compared_words
from tests.helpers.tiny import ROOT

# A field of EncoderConfig, too.
FIELDS = {"causal"}


def test_no_objective_s_name_is_compared_outside_its_file():
    objectives = ROOT / "adapt/objectives"
    for room in ("adapt", "experiments"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if objectives not in path.parents:
                named = compared_words(path.read_text("utf-8")) & OBJECTIVES.keys()
                assert named <= FIELDS, path
