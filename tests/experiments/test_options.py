"""A wrong flag of a study is refused before anything is done, and blocks no folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adapt.errors import OutputError, StrategyError
from experiments import keep_the_head, pretrain_and_probe, prompting
from experiments.findings import bitfit, few_samples, guillotine, setfit
from experiments.study.options import StudyRunOptions, open_study

CONFIGS = {
    module.__name__: module.Config
    for module in (
        keep_the_head,
        pretrain_and_probe,
        prompting,
        bitfit,
        few_samples,
        guillotine,
        setfit,
    )
}


def wrong_values(config: type[StudyRunOptions]) -> list[dict[str, Any]]:
    """For every flag a value that says nothing: no number, no name, none of the choices."""
    wrong = []
    defaults = config()
    for field in dataclasses.fields(config):
        value = getattr(defaults, field.name)
        kind = type(value[0]) if isinstance(value, tuple) and value else type(value)
        values: list[Any] = [-1] if kind in (int, float) else []
        if kind in (int, float) and field.name not in config.may_be_empty:
            values.append(0)
        if field.name in config.choices:
            values.append("nosuch")
        for one in values:
            wrong.append({field.name: (one,) if isinstance(value, tuple) else one})
        if isinstance(value, tuple) and field.name not in config.may_be_empty:
            wrong.append({field.name: ()})
    return wrong


CASES = [(name, wrong) for name, config in CONFIGS.items() for wrong in wrong_values(config)]


@pytest.mark.parametrize(("name", "wrong"), CASES, ids=str)
def test_a_flag_that_says_nothing_is_refused_by_its_name(name, wrong: Mapping[str, Any]):
    with pytest.raises(StrategyError, match=f"^`{next(iter(wrong))}`"):
        CONFIGS[name](**wrong)


def test_every_study_with_flags_has_wrong_ones():
    assert {name for name, _ in CASES} == set(CONFIGS) and len(CASES) > 50


@pytest.mark.parametrize("flags", [{"labels": 601}, {"docs": Path("nosuch")}])
def test_flags_that_do_not_fit_are_refused(flags):
    with pytest.raises(StrategyError, match=r"are drawn from|is no folder"):
        guillotine.Config(**flags)


def test_a_short_run_writes_no_page(tmp_path):
    with pytest.raises(StrategyError, match="a page shows the whole study"):
        guillotine.Config(short=True, docs=tmp_path)


def test_a_folder_that_a_wrong_flag_began_takes_the_right_one(tmp_path):
    """Until there is a result in it; another command's is not taken."""
    out = tmp_path / "out"
    open_study("experiments.setfit", setfit.Config(out=out, checkpoint="nosuch"))
    open_study("experiments.setfit", setfit.Config(out=out))
    with pytest.raises(OutputError):
        open_study("experiments.other", setfit.Config(out=out))
    (out / "reviews-0.npz").touch()
    with pytest.raises(OutputError):
        open_study("experiments.setfit", setfit.Config(out=out))
