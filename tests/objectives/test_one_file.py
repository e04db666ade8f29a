"""An objective is one file: no other file asks which objective it has."""

from adapt.objectives import OBJECTIVES
from tests.helpers.names import compared_words
from tests.helpers.tiny import ROOT

# A field of EncoderConfig, too.
FIELDS = {"causal"}

# Studies that compare the objectives with each other, and say what each of them is.
STUDIES_OF_OBJECTIVES = {
    "experiments/keep_the_head.py",
    "experiments/pretrain_and_probe.py",
    "experiments/study/near_tasks.py",
    "experiments/study/small_encoders.py",
    "experiments/study/subjects.py",
}


def test_no_objective_s_name_is_compared_outside_its_file():
    objectives = ROOT / "adapt/objectives"
    naming = set()
    for room in ("adapt", "experiments"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if objectives not in path.parents:
                named = compared_words(path.read_text("utf-8")) & OBJECTIVES.keys()
                if not named <= FIELDS:
                    naming.add(path.relative_to(ROOT).as_posix())
    assert naming == STUDIES_OF_OBJECTIVES
