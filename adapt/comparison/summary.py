"""What a grid of fits says: means with intervals, paired differences, costs, and the cheapest way
that is as good.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 2000

Correct = Mapping[tuple[str, int], dict[str, np.ndarray]]
"""(way, budget) -> for each set 0 or 1 of every seed's every test example, float64 [seeds, N]."""


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95% interval of the mean of [seeds, examples], resampling seeds and examples at once."""
    seeds, examples = values.shape
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    example_weights = rng.multinomial(examples, np.full(examples, 1 / examples), DRAWS) / examples
    means = ((seed_weights @ values) * example_weights).sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summarise(
    cells: Sequence[dict[str, Any]], folder: Path, ways: Sequence[str], budgets: Sequence[int]
) -> dict[str, Any]:
    """A row a way and budget, and the answer for every budget.

    ``folder`` has the cells' files. Every row has its paired difference to the first way, a probe
    on the frozen encoder.
    """
    rng = np.random.default_rng(0)
    rows = []
    correct: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for way in ways:
        for budget in budgets:
            of_row = [cell for cell in cells if (cell["way"], cell["budget"]) == (way, budget)]
            of_row.sort(key=lambda cell: cell["seed"])
            correct[way, budget] = read_correct(folder, of_row)
            baseline = correct[ways[0], budget]["test"]
            rows.append(make_row(way, budget, of_row, correct[way, budget], baseline, rng))
    same_encoder = [row for row in rows if encoder_of(row["way"]) == encoder_of(ways[0])]
    return {
        "ways": list(ways),
        "budgets": list(budgets),
        "rows": rows,
        "answer": find_answers(rows, correct, budgets, rng),
        "answer_on_one": find_answers(same_encoder, correct, budgets, rng),
    }


def make_row(
    way: str,
    budget: int,
    cells: Sequence[dict[str, Any]],
    correct: Mapping[str, np.ndarray],
    baseline: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Means over the seeds, with intervals, of one way at one budget."""
    accuracy = correct["test"].mean(1)
    outside = {name: float(values.mean()) for name, values in correct.items() if name != "test"}
    row: dict[str, Any] = {
        "way": way,
        "budget": budget,
        "accuracy": float(accuracy.mean()),
        "worst": float(accuracy.min()),
        "interval": bootstrap(correct["test"], rng),
        "ece": mean(cell["sets"]["test"]["ece"] for cell in cells),
        "outside": outside,
    }
    for name in ("seconds", "flops", "steps"):
        row[name] = mean(cell[name] for cell in cells)
    row["difference"] = float(accuracy.mean() - baseline.mean())
    row["difference_interval"] = bootstrap(correct["test"] - baseline, rng)
    return row


def read_correct(folder: Path, cells: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """For each set, which test examples every seed got right: float64 [seeds, N]."""
    seeds = []
    for cell in cells:
        name = cell_name(cell["way"], cell["budget"], cell["seed"])
        seeds.append(np.load(folder / f"{name}.npz"))
    correct = {}
    for set_name in seeds[0].files:
        correct[set_name] = np.stack([arrays[set_name] for arrays in seeds]).astype(float)
    return correct


def cell_name(way: str, budget: int, seed: int) -> str:
    """The name of a cell's files, without suffix."""
    name = way.replace(", ", "-").replace(":", "").replace("/", "-")
    return f"{name}-{budget}-{seed}"


def encoder_of(way: str) -> str:
    """``minilm`` of ``probe, minilm``."""
    return way.rpartition(", ")[2]


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def find_answers(
    rows: Sequence[dict[str, Any]],
    correct: Correct,
    budgets: Sequence[int],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """For each budget the most accurate way, and the cheapest of those that it does not beat beyond
    the interval.
    """
    answers = []
    for budget in budgets:
        of_budget = [row for row in rows if row["budget"] == budget]
        best = max(of_budget, key=lambda row: row["accuracy"])
        best_correct = correct[best["way"], budget]["test"]
        as_good = []
        for row in of_budget:
            difference = best_correct - correct[row["way"], budget]["test"]
            if row is best or bootstrap(difference, rng)[0] <= 0:
                as_good.append(row)
        cheapest = min(as_good, key=lambda row: (row["flops"], row["seconds"]))
        answers.append(
            {
                "budget": budget,
                "best": best["way"],
                "accuracy": best["accuracy"],
                "cheapest": cheapest["way"],
                "cheapest_accuracy": cheapest["accuracy"],
                "as_good": [row["way"] for row in as_good],
                "times_cheaper": best["flops"] / max(cheapest["flops"], 1.0),
            }
        )
    return answers
