"""The pages of studies: the index says what they say, and each names the command that wrote it."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from experiments.study.page import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
INDEX = (STUDIES / "index.md").read_text("utf-8")
PAGES = sorted(path.stem for path in STUDIES.glob("*.md") if path.stem != "index")
WORDS = f"{NOT_REPRODUCED}|{NOT_DECIDABLE}|{REPRODUCED}"  # the longest that fits comes first


def outcome(name: str) -> str:
    """What the index says came out of a study."""
    rows = [line for line in INDEX.splitlines() if f"({name}.md)" in line]
    assert len(rows) == 1, f"docs/studies/index.md has {len(rows)} rows of {name}"
    return rows[0].strip("|").split("|")[-1].strip()


def counted(text: str) -> Counter[str]:
    """How often each verdict stands in the claims of a page."""
    return Counter(re.findall(rf"\| ({WORDS}) \|$", text, re.MULTILINE))


def said(outcome: str) -> Counter[str]:
    """How many of each verdict the index says: 1 reproduced (longer training), 3 not reproduced."""
    found: Counter[str] = Counter()
    for number, verdict in re.findall(rf"(\d+) ({WORDS})", outcome):
        found[verdict] += int(number)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_the_index_counts_the_verdicts_of_a_page(name):
    found = counted((STUDIES / f"{name}.md").read_text("utf-8"))
    assert found and said(outcome(name)) == found


def test_a_wrong_number_of_verdicts_is_seen():
    claims = "| a | +1 | reproduced |\n| b | 0 | not reproduced |\n| c | 0 | not reproduced |\n"
    assert said("1 reproduced (a), 2 not reproduced") == counted(claims)
    assert said("2 reproduced, 1 not reproduced") != counted(claims)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_the_module_that_wrote_it_and_has_its_words_and_figure(name):
    text = (STUDIES / f"{name}.md").read_text("utf-8")
    modules = re.findall(r"^Source: `python -m (experiments\.[\w.]+)", text, re.MULTILINE)
    assert len(modules) == 1 and modules[0].split(".")[-1] == name
    study = importlib.import_module(modules[0])
    assert study.WHY, f"{modules[0]} says nothing of its figures"
    for paragraph in study.WHY:
        assert f"\n{paragraph}\n" in text, f"the page was written before WHY of {modules[0]}"
    assert f"(../img/{name}.png)" in text
    assert (STUDIES.parent / "img" / f"{name}.png").exists()
