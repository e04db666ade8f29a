"""The comparison: every way gets the same examples, nothing is chosen by the test, intervals and answers are what they say."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.cli import compare
from adapt.comparison import grid, summary
from adapt.comparison.trials import Arm, adjust, adjustable
from adapt.data import tables
from adapt.errors import DataError, OutputError, StrategyError
from adapt.pretrained import hub
from adapt.tasks import TASKS
from adapt.training import strategies
from adapt.training.step import State

pytestmark = pytest.mark.usefixtures("own_cache")


def noisy(accuracy: float, seeds: int = 5, examples: int = 400, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, examples)) < accuracy).astype(float)


def test_the_interval_is_that_of_seeds_and_examples_together():
    rng = np.random.default_rng(0)
    low, high = summary.bootstrap(noisy(0.8), rng)
    assert low < 0.8 < high and high - low < 0.08
    apart = np.repeat(np.array([[0.6], [0.7], [0.8], [0.9], [1.0]]), 4000, 1)  # only seeds differ
    low, high = summary.bootstrap(apart, rng)
    assert high - low == pytest.approx(
        2 * 1.96 * np.std([0.6, 0.7, 0.8, 0.9, 1.0]) / 5**0.5, rel=0.15
    )


def test_as_many_of_each_class_while_there_are_few_and_the_same_for_every_way():
    labels = np.repeat([0, 1], [900, 100])
    for budget in (8, 32, 128):
        kept, held = grid.draw_rows(labels, budget, seed=3)
        both = np.concatenate([kept, held])
        assert len(set(both)) == budget and np.bincount(labels[both]).tolist() == [budget // 2] * 2
        assert set(labels[kept]) == {0, 1}
        again = grid.draw_rows(labels, budget, seed=3)
        assert all(
            np.array_equal(one, other) for one, other in zip((kept, held), again, strict=True)
        )
        assert not np.array_equal(kept, grid.draw_rows(labels, budget, seed=4)[0])
    kept, held = grid.draw_rows(labels, grid.ALL, seed=0)
    assert sorted([*kept, *held]) == list(range(1000))


def rows_of(folder, ways: dict[str, tuple[float, float]]) -> tuple[list[dict], list[str]]:
    """Cells of ways with an accuracy and a cost."""
    cells = []
    for way, (accuracy, flops) in ways.items():
        for seed in range(5):
            right = noisy(accuracy, 1, seed=seed)[0] > 0
            np.savez(folder / f"{summary.cell_name(way, 8, seed)}.npz", test=right, away=right)
            sets = {name: {"accuracy": right.mean(), "ece": 0.1} for name in ("test", "away")}
            cells.append(
                {
                    "way": way,
                    "budget": 8,
                    "seed": seed,
                    "sets": sets,
                    "seconds": 1.0,
                    "flops": flops,
                    "steps": 1,
                }
            )
    return cells, list(ways)


def test_the_answer_is_the_best_and_the_cheapest_that_is_as_good(tmp_path):
    cells, ways = rows_of(
        tmp_path, {"probe": (0.7, 1e9), "full": (0.8, 1e12), "lora": (0.795, 1e11)}
    )
    result = summary.summarise(cells, tmp_path, ways, [8])
    (answer,) = result["answer"]
    assert (answer["best"], answer["cheapest"]) == ("full", "lora")
    assert answer["times_cheaper"] == pytest.approx(10) and answer["as_good"] == ["full", "lora"]
    probe, full, _ = result["rows"]
    assert probe["difference"] == 0 and full["difference_interval"][0] > 0.05
    assert (
        full["worst"] <= full["accuracy"]
        and full["interval"][0] < full["accuracy"] < full["interval"][1]
    )


def test_of_ways_that_cost_the_same_flops_the_faster_one_is_the_cheapest(tmp_path):
    cells, ways = rows_of(tmp_path, {"probe": (0.7, 1e9), "centroid": (0.699, 1e9)})
    for cell in cells:
        cell["seconds"] = {"probe": 0.8, "centroid": 0.1}[cell["way"]]
    (answer,) = summary.summarise(cells, tmp_path, ways, [8])["answer"]
    assert (answer["best"], answer["cheapest"]) == ("probe", "centroid")


@pytest.fixture
def arm(inputs):
    source = hub.load(inputs.checkpoint("bert_mlm_tied"))
    config = compare.Config()
    sets = {}
    for name, path in (("train", inputs.train), ("test", inputs.test)):
        table = tables.read(path)
        labels = np.array([value == "positive" for value in table.rows["label"]], np.int32)
        sets[name] = TASKS["classification"].examples(source, table, [config.text_column], labels)
    return lambda name: Arm(name, source, sets, 2)


def test_a_rate_that_is_data_is_the_schedule_that_finetune_has():
    from adapt.training import optim

    params = {"head": {"kernel": np.ones((2, 2), np.float32)}}
    labels = tree.label(params, [("head/.*", "head")])
    schedule = optim.schedule(3e-3, 40, 0.1, "linear")
    made = [
        optim.by_label({"head": tx}, labels)
        for tx in (optim.adamw(schedule, 0.01), adjustable(0.01))
    ]
    state = State(np.int32(0), params, made[1].init(params), jax.random.key(0), np.bool_(False))
    states = [made[0].init(params), adjust(state, {"head": 3e-3}, 40, {"head": 0}).opt_state]
    grads = jax.tree.map(np.ones_like, params)
    for _ in range(40):
        updates = []
        for number, tx in enumerate(made):
            update, states[number] = tx.update(grads, states[number], params)
            updates.append(np.asarray(update["head"]["kernel"]))
        np.testing.assert_allclose(*updates, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["full", "lp-ft", "top:1", "lora:2", "full+l2sp:0.1", "gradual"])
def test_fits_of_one_arm_compile_once_and_repeat_exactly(arm, name):
    made = arm(name)
    first = made.fit(np.arange(20), 0, 1.0, 4)
    other = made.fit(np.arange(4, 24), 1, 3.0, 6)
    again = made.fit(np.arange(20), 0, 1.0, 4)
    assert all(phase.step.suffix._cache_size() <= 1 for phase in made.phases)
    assert tree.digest(first.params) == tree.digest(again.params) != tree.digest(other.params)
    assert first.steps == 4 and made.score(first.params, "test").shape == (14, 2)
    frozen = strategies.label_phase(made.strategy.phases[-1], first.params, 2)[0]
    start = made.start(0)
    for path, group in tree.paths(frozen).items():
        if group == "frozen":
            assert np.array_equal(tree.get(first.params, path), tree.get(start, path)), path
    assert made.flops(20, 4) > 0


def test_a_short_grid_ends_in_a_page_and_resumes(inputs, tmp_path, monkeypatch, capsys):
    files = {"train": inputs.train, "test": inputs.test}
    read = tables.read
    monkeypatch.setattr(tables, "read", lambda spec, split: read(files[split]))
    flags = {
        "checkpoint": inputs.checkpoint("bert_mlm_tied"),
        "features": inputs.checkpoint("bert_mlm_relu"),
    }
    flags |= {
        "out_of_domain": ("away",),
        "strategies": ("full", "lora:2"),
        "budgets": (8, 0),
        "seeds": 2,
        "tries": 2,
    }
    config = compare.Config(
        **flags, steps=4, epochs=1, page=tmp_path / "results", out=tmp_path / "out"
    )
    result = compare.main(config)
    assert (
        len(result["rows"]) == 2 * 6
        and len(list((tmp_path / "out/cells").glob("*.json"))) == 6 * 2 * 2
    )
    page = (tmp_path / "results/compare.md").read_text()
    assert "adapt compare --checkpoint" in page and page.count("| full, ") == 2
    assert (tmp_path / "results/compare_labels.png").stat().st_size and (
        tmp_path / "results/compare_cost.png"
    ).stat().st_size
    with pytest.raises(OutputError, match="exists"):
        compare.main(config)
    gone = sorted((tmp_path / "out/cells").glob("full*-8-1.*"))
    before = json.loads(next(path for path in gone if path.suffix == ".json").read_text())
    for path in gone:
        path.unlink()
    again = compare.main(dataclasses.replace(config, resume=True))
    after = json.loads(next(path for path in gone if path.suffix == ".json").read_text())
    assert (after["sets"], after["tried"]) == (before["sets"], before["tried"])
    still = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert still(again["rows"]) == still(result["rows"])


@pytest.mark.parametrize(
    ("flags", "fault", "message"),
    [
        (
            {"budgets": (9999,)},
            DataError,
            "`budgets` 9999 must be 0 .all. or 4 .two for each of 2 classes. to 32 examples",
        ),
        ({"budgets": (2,)}, DataError, "`budgets` 2"),
        ({"strategies": ("best",)}, StrategyError, "unknown strategy 'best'"),
        (
            {"strategies": ("bitfit", "bitfit")},
            StrategyError,
            "`strategies` has one of bitfit, bitfit twice",
        ),
        ({"tries": 0}, StrategyError, "`tries` must be 1 to 5"),
    ],
)
def test_bad_flags_are_one_line_before_anything_is_written(
    inputs, tmp_path, monkeypatch, flags, fault, message
):
    files = {"train": inputs.train, "test": inputs.test}
    read = tables.read
    monkeypatch.setattr(tables, "read", lambda spec, split: read(files[split]))
    name = inputs.checkpoint("bert_mlm_tied")
    config = {
        "checkpoint": name,
        "features": name,
        "out_of_domain": (),
        "budgets": (8,),
        "out": tmp_path / "out",
    } | flags
    with pytest.raises(fault, match=message):
        compare.main(compare.Config(**config))
    assert not (tmp_path / "out").exists()
