"""What a grid of fits says: means with intervals, paired differences, costs, and the page that tells it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import console

DRAWS = 2000
FEW = 500  # labels: what the question asks about
COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#000000",
    "#997700",
)


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95% interval of the mean of values [seeds, examples], resampling seeds and examples at once."""
    seeds, examples = values.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    by_example = rng.multinomial(examples, np.full(examples, 1 / examples), DRAWS) / examples
    means = ((by_seed @ values) * by_example).sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summary(
    cells: list[dict[str, Any]], folder: Path, ways: list[str], budgets: Sequence[int]
) -> dict[str, Any]:
    """A row a way and budget, and its paired difference to the first way, a probe on the frozen encoder."""
    rng = np.random.default_rng(0)
    rows = []
    right: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for way in ways:
        for budget in budgets:
            chosen = sorted(
                (c for c in cells if (c["way"], c["budget"]) == (way, budget)),
                key=lambda c: c["seed"],
            )
            loaded = [np.load(folder / f"{stem(way, budget, c['seed'])}.npz") for c in chosen]
            found = {
                name: np.stack([one[name] for one in loaded]).astype(float)
                for name in loaded[0].files
            }
            right[way, budget] = found
            accuracy = found["test"].mean(1)
            outside = [name for name in found if name != "test"]
            row = {
                "way": way,
                "budget": budget,
                "accuracy": float(accuracy.mean()),
                "worst": float(accuracy.min()),
            }
            row |= {
                "interval": bootstrap(found["test"], rng),
                "ece": mean(c["sets"]["test"]["ece"] for c in chosen),
            }
            row |= {"outside": {name: float(found[name].mean()) for name in outside}}
            row |= {name: mean(c[name] for c in chosen) for name in ("seconds", "flops", "steps")}
            base = right[ways[0], budget]["test"]
            row |= {"difference": float(accuracy.mean() - base.mean())}
            row |= {"difference_interval": bootstrap(found["test"] - base, rng)}
            rows.append(row)
    own = [
        row for row in rows if encoder(row["way"]) == encoder(ways[0])
    ]  # ways of adapting, the encoder being the same
    found = {
        "ways": ways,
        "budgets": list(budgets),
        "rows": rows,
        "answer": answer(rows, right, budgets, rng),
    }
    return found | {"answer_on_one": answer(own, right, budgets, rng)}


def stem(way: str, budget: int, seed: int) -> str:
    """The name of a cell's files."""
    return f"{way.replace(', ', '-').replace(':', '').replace('/', '-')}-{budget}-{seed}"


def encoder(way: str) -> str:
    """``minilm`` of ``probe, minilm``."""
    return way.rpartition(", ")[2]


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def answer(
    rows: list[dict[str, Any]], right: Any, budgets: Sequence[int], rng: Any
) -> list[dict[str, Any]]:
    """For each budget the most accurate way, and the cheapest of those that it does not beat beyond the interval."""
    found = []
    for budget in budgets:
        there = [row for row in rows if row["budget"] == budget]
        best = max(there, key=lambda row: row["accuracy"])
        as_good = []
        for row in there:
            less = right[best["way"], budget]["test"] - right[row["way"], budget]["test"]
            if row is best or bootstrap(less, rng)[0] <= 0:
                as_good.append(row)
        cheapest = min(as_good, key=lambda row: (row["flops"], row["seconds"]))
        found.append(
            {
                "budget": budget,
                "best": best["way"],
                "accuracy": best["accuracy"],
                "cheapest": cheapest["way"],
            }
        )
        found[-1] |= {
            "cheapest_accuracy": cheapest["accuracy"],
            "as_good": [row["way"] for row in as_good],
        }
        found[-1] |= {"times_cheaper": best["flops"] / max(cheapest["flops"], 1.0)}
    return found


def write(config: Any, result: dict[str, Any], every: int) -> Path:
    """compare.md and its plots."""
    config.page.mkdir(parents=True, exist_ok=True)
    label = lambda budget: f"{budget or every:,}"
    lines = ["# Which way of adapting, with few labels and little compute?", ""]
    lines += [f"Written by `{command(config)}` on {time.strftime('%Y-%m-%d', time.gmtime())}."]
    lines += [
        f"Task: {config.data}, column {config.label_column}; tested on its own test part"
        f"{' and on ' + ', '.join(config.out_of_domain) if config.out_of_domain else ''}. Always answering the most frequent"
        f" label of training is right in {result['majority_accuracy']:.3f} of it."
        f" {config.seeds} seeds, {config.tries} rates or penalties tried by each way on a fifth of its labels."
        " Intervals: 95%, bootstrapped over seeds and test examples at once.",
        "",
        "## Answer",
        "",
    ]
    lines += few(result)
    lines += sentences(result["answer"], label)
    if {encoder(way) for way in result["ways"]} != {encoder(result["ways"][0])}:
        lines += [
            "",
            f"Among the ways on {encoder(result['ways'][0])}, all on the same encoder:",
            "",
        ]
        lines += sentences(result["answer_on_one"], label)
    lines += [
        "",
        "![Accuracy by labels](compare_labels.png)",
        "",
        "![Accuracy by cost](compare_cost.png)",
        "",
    ]
    for budget in result["budgets"]:
        rows = [row for row in result["rows"] if row["budget"] == budget]
        names = list(rows[0]["outside"])
        lines += [f"## {label(budget)} labels", ""]
        head = [
            "way",
            "accuracy",
            "95%",
            f"against {result['ways'][0]}",
            "worst seed",
            "ECE",
            *names,
            "s",
            "GFLOP",
        ]
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for row in rows:
            low, high = row["interval"]
            less, more = row["difference_interval"]
            cells = [row["way"], f"{row['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]
            cells += [
                f"{row['difference']:+.3f} ({less:+.3f} to {more:+.3f})"
                if row["way"] != result["ways"][0]
                else "",
                f"{row['worst']:.3f}",
                f"{row['ece']:.3f}",
            ]
            cells += [f"{row['outside'][name]:.3f}" for name in names]
            cells += [f"{row['seconds']:.2g}", f"{row['flops'] / 1e9:.3g}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "Seconds and GFLOP are of one fit, the encoding of its own training examples included; trying rates costs as many"
        " times more. GFLOP of steps are the compiler's, of encoding a count by hand of the matrix products. What is called best"
        " is so on this test set; intervals are not widened for the number of ways that were compared.",
        "",
    ]
    page = config.page / "compare.md"
    page.write_text("\n".join(lines), "utf-8")
    plot_labels(config, result, every)
    plot_cost(config, result)
    for one in result["answer"]:
        console.console.print(
            f"{label(one['budget']):>6} labels: {one['best']} {one['accuracy']:.3f}", soft_wrap=True
        )
    return page


def sentences(answers: list[dict[str, Any]], label: Any) -> list[str]:
    """A line a budget: what is best, and what is as good for less."""
    lines = []
    for one in answers:
        cheaper = f", {one['times_cheaper']:.0f} times cheaper" if one["times_cheaper"] >= 2 else ""
        rest = (
            f"**{one['cheapest']}** ({one['cheapest_accuracy']:.3f}{cheaper}) can't be told from it"
        )
        rest = "nothing cheaper is as good" if one["best"] == one["cheapest"] else rest
        lines.append(
            f"* {label(one['budget'])} labels: **{one['best']}** ({one['accuracy']:.3f}); {rest}"
        )
    return lines


def few(result: dict[str, Any]) -> list[str]:
    """With few labels and little compute, which way? A paragraph on those that are never beaten."""
    budgets = [one["budget"] for one in result["answer"] if 0 < one["budget"] <= FEW]
    answers = [one for one in result["answer"] if one["budget"] in budgets]
    never_beaten = [
        way for way in result["ways"] if answers and all(way in one["as_good"] for one in answers)
    ]
    cost = lambda way: [r for r in result["rows"] if r["way"] == way and r["budget"] in budgets]
    if not never_beaten:
        return []
    least = min(
        never_beaten,
        key=lambda way: [sum(row[name] for row in cost(way)) for name in ("flops", "seconds")],
    )
    most = max(cost(least), key=lambda row: row["budget"])
    others = [way for way in never_beaten if way != least]
    also = f" (nor {'is' if len(others) == 1 else 'are'} {'; '.join(others)})" if others else ""
    return [
        f"With {FEW} labels or fewer and little compute: **{least}**. No way beats it beyond the interval at any such "
        f"budget{also}, and a fit takes at most {most['seconds']:.2g} s here, {most['flops'] / 1e9:.3g} GFLOP.",
        "",
    ]


def command(config: Any) -> str:
    """The command that makes the page again: the flags that are not the default."""
    import dataclasses

    words = ["adapt compare"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("out", "page", "resume", "overwrite") and value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{field.name.replace('_', '-')} {shown}")
    return " ".join(words)


def figure(width: float = 7.5, height: float = 4.4) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return made, axis


def styles(ways: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """A colour a way; dashed and hollow where the encoder is another than that of most."""
    own = encoder(ways[0])
    other = {"linestyle": "--", "marker": "s", "markersize": 4, "markerfacecolor": "white"}
    look = lambda way: (
        {"linestyle": "-", "marker": "o", "markersize": 3.5} if encoder(way) == own else other
    )
    return [
        (way, look(way) | {"color": COLORS[place % len(COLORS)]}) for place, way in enumerate(ways)
    ]


def plot_labels(config: Any, result: dict[str, Any], every: int) -> None:
    """Accuracy by labels, a line a way, with its interval as a band."""
    made, axis = figure()
    for place, (way, style) in enumerate(styles(result["ways"])):
        rows = sorted(
            (r for r in result["rows"] if r["way"] == way), key=lambda r: r["budget"] or every
        )
        middle = place - (len(result["ways"]) - 1) / 2  # side by side, so that no bar hides another
        x = [(row["budget"] or every) * 1.05**middle for row in rows]
        y = np.array([row["accuracy"] for row in rows])
        ends = np.transpose([row["interval"] for row in rows])
        axis.errorbar(x, y, (y - ends[0], ends[1] - y), label=way, lw=1.4, elinewidth=0.8, **style)
    axis.axhline(
        result["majority_accuracy"], color="#888888", lw=1, ls=":", label="most frequent label"
    )
    axis.set_xscale("log")
    ticks = sorted(budget or every for budget in result["budgets"])
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("labelled examples")
    axis.set_ylabel(f"test accuracy on {config.data}")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    made.savefig(config.page / "compare_labels.png", dpi=130)


def plot_cost(config: Any, result: dict[str, Any]) -> None:
    """Accuracy by FLOPs of a fit: a line a way, its budgets as points."""
    made, axis = figure()
    for way, style in styles(result["ways"]):
        rows = sorted((r for r in result["rows"] if r["way"] == way), key=lambda r: r["flops"])
        y = np.array([row["accuracy"] for row in rows])
        ends = np.transpose([row["interval"] for row in rows])
        x = [row["flops"] / 1e9 for row in rows]
        axis.errorbar(x, y, (y - ends[0], ends[1] - y), label=way, lw=1.4, elinewidth=0.5, **style)
    axis.axhline(
        result["majority_accuracy"], color="#888888", lw=1, ls=":", label="most frequent label"
    )
    axis.set_xscale("log")
    axis.set_xlabel("GFLOP of a fit (encoding included)")
    axis.set_ylabel(f"test accuracy on {config.data}")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    made.savefig(config.page / "compare_cost.png", dpi=130)
