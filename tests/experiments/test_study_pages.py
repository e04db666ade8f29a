"""The pages of studies: the index says what they say, and each names the command that wrote it."""

import importlib.util
import re
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


def verdicts(text: str) -> set[str]:
    """The verdicts of a page's claims."""
    return set(re.findall(rf"\| ({WORDS}) \|$", text, re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_the_index_has_the_verdicts_of_a_page(name):
    found = verdicts((STUDIES / f"{name}.md").read_text("utf-8"))
    assert set(re.findall(WORDS, outcome(name))) == found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_the_module_that_wrote_it_and_has_its_figure(name):
    text = (STUDIES / f"{name}.md").read_text("utf-8")
    modules = re.findall(r"`python -m (experiments\.[\w.]+)", text)
    assert len(modules) == 1 and modules[0].split(".")[-1] == name
    assert importlib.util.find_spec(modules[0])
    assert f"(../img/{name}.png)" in text
    assert (STUDIES.parent / "img" / f"{name}.png").exists()
