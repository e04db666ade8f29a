"""Fits that train together: each has the figures of a fit alone, whatever the others do."""

import dataclasses

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.comparison import material, together, trained
from adapt.comparison.comparing import compare
from adapt.comparison.options import CompareOptions
from adapt.data import packing
from adapt.data.inputs import Columns, make_parts
from adapt.errors import OutputError
from adapt.options import FinetuningOptions
from adapt.tasks import TASKS
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(40), strict=True))
NEW = tuple(map(list, zip(*tiny.sentences(14, seed=1), strict=True)))
TAGS = [["x" if len(word) > 3 else "y" for word in text.split()] for text in TEXTS]
CHANCE = [str(number) for number in np.random.default_rng(0).integers(0, 2, len(TEXTS))]
DATA = {
    "classification": (TEXTS, LABELS),
    "tags": ([text.split() for text in TEXTS], TAGS),
    "choice": ([(text, "a film", "a book") for text in TEXTS], [n % 2 for n in range(40)]),
    "contrastive": ([(text, text) for text in TEXTS], None),
}


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", 1))


def make_trainer(
    bert, strategy, wanted, task="classification", labels=None, **options
) -> trained.Trainer:
    """A trainer for three seeds and two rates."""
    inputs, own_labels = DATA[task]
    labels = own_labels if labels is None else labels
    are_words = TASKS[task].takes_words
    parts = make_parts(inputs, labels, Columns(), are_words=are_words)
    compared = CompareOptions(rates=(1.0, 3.0), seeds=3, min_steps=4, together=wanted)
    options = FinetuningOptions(
        strategy=strategy, task=task, batch_size=8, **({"epochs": 3} | options)
    )
    data = material.read_material(parts, {}, TASKS[task], options, bert, compared)
    return trained.Trainer(data, options, compared)


def assert_same(group, alone) -> None:
    """The fits of a group are those that trained alone, to round-off."""
    for (tried, made), (own_try, own) in zip(group, alone, strict=True):
        assert (tried.rate, tried.steps, tried.best_step) == (
            own_try.rate,
            own_try.steps,
            own_try.best_step,
        )
        assert tried.score == pytest.approx(own_try.score, abs=1e-5)
        assert tried.loss == pytest.approx(own_try.loss, abs=1e-5)
        for path, leaf in tree.paths(own.params).items():
            if path.endswith("key/bias"):
                continue  # softmax does not see it: its gradient is rounding, which Adam scales up
            np.testing.assert_allclose(tree.get(made.params, path), leaf, atol=2e-4, err_msg=path)
        for name, outputs in own.test_outputs().items():
            np.testing.assert_allclose(made.test_outputs()[name], outputs, atol=1e-3)


def both_ways(bert, strategy, task="classification", seeds=(0, 1, 2), **options):
    """For every seed (the fits of all rates together, the same one after the other)."""
    group = make_trainer(bert, strategy, "on", task, **options)
    alone = make_trainer(bert, strategy, "off", task, **options)
    assert group.group_size >= 6 and alone.group_size == 1
    draws = {seed: material.draw_rows(group.material, "all", seed) for seed in seeds}
    found = group.fit_seeds(draws)
    for seed, draw in draws.items():
        yield found[seed], [alone.fit(draw, seed, rate) for rate in (1.0, 3.0)]


@pytest.mark.parametrize("strategy", ["frozen", "lora:2", "bitfit", "top:1", "full+l2sp:0.1"])
def test_fits_of_seeds_and_rates_are_those_of_fits_alone(bert, strategy):
    for group, alone in both_ways(bert, strategy):
        assert {tried.together for tried, _ in group} == {6}
        assert {tried.together for tried, _ in alone} == {1}
        assert_same(group, alone)


@pytest.mark.parametrize("task", ["tags", "choice", "contrastive"])
def test_fits_of_every_kind_of_batch_are_those_of_fits_alone(bert, task):
    for group, alone in both_ways(bert, "lora:2", task, seeds=(0, 1)):
        assert_same(group, alone)


def test_a_fit_that_ends_early_keeps_its_best_and_the_others_go_on(bert):
    ends = set()
    options = {"patience": 2, "epochs": 12, "labels": CHANCE}
    for group, alone in both_ways(bert, "frozen", **options):
        assert_same(group, alone)
        ends |= {tried.steps for tried, _ in group}
    assert len(ends) > 1


def test_a_fit_that_diverges_leaves_the_others_as_they_are(bert):
    trainer = make_trainer(bert, "frozen", "on")
    draws = {seed: material.draw_rows(trainer.material, "all", seed) for seed in (0, 1)}
    expected = trainer.fit_seeds(draws)
    rows = []
    for seed, draw in draws.items():
        rows.append([trainer.begin(draw, seed, rate) for rate in (1.0, 3.0)])
    broken = rows[0][1]
    params = tree.map_paths(
        lambda path, leaf: leaf * np.nan if path.startswith("head/") else leaf, broken.plan.params
    )
    rows[0][1] = dataclasses.replace(broken, plan=dataclasses.replace(broken.plan, params=params))
    found = trainer.fit_group(rows)
    assert found[0][1][1] is None and np.isnan(found[0][1][0].loss)
    for seed, number in ((0, 0), (1, 0), (1, 1)):
        made = found[seed][number][1]
        assert tree.digest(made.params) == tree.digest(expected[seed][number][1].params)


@pytest.mark.parametrize(("size", "counts"), [(4, [4, 4, 2]), (2, [2, 2, 2]), (1, [1, 1, 1])])
def test_what_has_no_room_together_trains_in_several_groups(bert, monkeypatch, size, counts):
    monkeypatch.setattr(together, "most_together", lambda cost: size)
    trainer = make_trainer(bert, "frozen", "on")
    cells = [cell for cell, _ in trainer.cells("all", (0, 1, 2))]
    assert [cell.seed for cell in cells] == [0, 1, 2]
    assert [cell.best.together for cell in cells] == counts
    whole = make_trainer(bert, "frozen", "off")
    for cell, (alone, _) in zip(cells, whole.cells("all", (0, 1, 2)), strict=True):
        assert cell.scores["test"] == pytest.approx(alone.scores["test"], abs=1e-5)


def test_more_rates_than_have_room_train_in_several_groups(bert, monkeypatch):
    monkeypatch.setattr(together, "most_together", lambda cost: 2)
    trainer = make_trainer(bert, "frozen", "on")
    trainer.compared = dataclasses.replace(trainer.compared, rates=(1.0, 3.0, 0.3))
    ((cell, _),) = trainer.cells("all", (0,))
    assert [(tried.rate, tried.together) for tried in cell.tries] == [(1, 2), (3, 2), (0.3, 1)]


def test_the_size_of_a_group_is_what_the_device_has_room_for(bert, monkeypatch):
    cost = together.StepCost(flops=1e9, bytes=1 << 30)
    assert together.most_together(cost) == together.BYTES_ON_A_CPU >> 30

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 80 << 30, "bytes_in_use": 30 << 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert together.most_together(cost) == 30
    assert together.most_together(together.StepCost(1e9, 1 << 40)) == 1
    assert together.most_together(together.StepCost(1e9, 1)) == together.MOST_FITS


def test_fits_train_together_where_that_is_quicker(bert, monkeypatch):
    plan = make_trainer(bert, "lora:2", "on").begin_first().plan
    small, large = together.StepCost(1e6, 1), together.StepCost(1e10, 1)
    assert together.pays(small, plan) and not together.pays(large, plan)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert together.pays(large, plan)
    full = make_trainer(bert, "full", "on").begin_first().plan
    assert not together.pays(small, full)


def test_phases_that_follow_each_other_train_alone(bert):
    assert make_trainer(bert, "lp-ft", "on").group_size == 1


def test_batches_get_the_rows_of_the_largest(bert):
    trainer = make_trainer(bert, "lora:2", "on", "tags")
    data = trainer.begin_first().data
    batch = next(iter(data.batches(0, 0)))
    rows, width = batch["segments"].shape
    same, wider = packing.with_common_rows([packing.with_rows(batch, rows + 2), batch])
    assert same["segments"].shape == wider["segments"].shape == (rows + 2, width)
    assert all(np.array_equal(same[name], wider[name]) for name in batch)
    assert (wider["segments"][rows:] == len(batch["first"])).all()
    assert wider["weight"].sum() == batch["weight"].sum()


def test_a_comparison_goes_on_in_groups_and_says_how_many_trained_together(bert, tmp_path):
    arguments = {
        "strategies": ("frozen", "lp-ft"),
        "rates": (1, 3),
        "seeds": 3,
        "epochs": 2,
        "batch_size": 8,
        "min_steps": 4,
        "test": NEW,
    }
    whole = compare(bert, TEXTS, LABELS, **arguments)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Stopped

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        compare(bert, TEXTS, LABELS, out=out, on_progress=stop, **arguments)
    with pytest.raises(OutputError, match="`together` was 'auto'"):
        compare(bert, TEXTS, LABELS, out=out, resume=True, together="off", **arguments)
    again = compare(bert, TEXTS, LABELS, out=out, resume=True, **arguments)
    counts = again.to_pandas().groupby(["strategy", "seed"])["together"].first()
    assert counts["frozen"].tolist() == [6, 4, 4]
    assert set(counts["lp-ft"]) == {1}
    for one, other in zip(whole.rows, again.rows, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.metrics == pytest.approx(other.metrics, abs=1e-5)
