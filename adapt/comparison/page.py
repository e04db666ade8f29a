"""The page that tells what a comparison found, in Markdown."""

import time
from collections.abc import Sequence
from typing import Any

from adapt.comparison.grid import CompareOptions
from adapt.comparison.summary import encoder_of
from adapt.markdown import markdown_table

FEW = 500  # labels: what the question asks about


def results_page(
    options: CompareOptions, result: dict[str, Any], num_train: int, command: str
) -> str:
    """Answers, links to two plots, a table a budget. ``num_train`` is what the budget 0 means."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    outside = f" and on {', '.join(options.out_of_domain)}" if options.out_of_domain else ""
    lines = [
        "# Which way of adapting, with few labels and little compute?",
        "",
        f"Written by `{command}` on {date}.",
        f"Task: {options.data}, column {options.label_column}; tested on its own test "
        f"part{outside}. "
        "Always answering the most frequent label of training is right in "
        f"{result['majority_accuracy']:.3f} of it. {options.seeds} seeds, {options.tries} rates or "
        "penalties tried by each way on a fifth of its labels. Intervals: 95%, bootstrapped over "
        "seeds and test examples at once.",
        "",
        "## Answer",
        "",
        *few_labels(result),
        *answer_lines(result["answer"], num_train),
    ]
    first_encoder = encoder_of(result["ways"][0])
    if any(encoder_of(way) != first_encoder for way in result["ways"]):
        lines += ["", f"Among the ways on {first_encoder}, all on the same encoder:", ""]
        lines += answer_lines(result["answer_on_one"], num_train)
    lines += ["", "![Accuracy by labels](compare_labels.png)"]
    lines += ["", "![Accuracy by cost](compare_cost.png)", ""]
    for budget in result["budgets"]:
        lines += budget_table(result, budget, num_train)
    lines += [
        "Seconds and GFLOP are of one fit, the encoding of its own training examples included; "
        "trying rates costs as many times more. GFLOP of steps are the compiler's, of encoding a "
        "count by hand of the matrix products. What is called best is so on this test set; "
        "intervals are not widened for the number of ways that were compared.",
        "",
    ]
    return "\n".join(lines)


def budget_label(budget: int, num_train: int) -> str:
    return f"{budget or num_train:,}"


def answer_lines(answers: Sequence[dict[str, Any]], num_train: int) -> list[str]:
    """A line a budget: what is best, and what is as good for less."""
    lines = []
    for answer in answers:
        cheapest = answer["cheapest"]
        if answer["best"] == cheapest:
            rest = "nothing cheaper is as good"
        else:
            times = answer["times_cheaper"]
            cheaper = f", {times:.0f} times cheaper" if times >= 2 else ""
            accuracy = f"{answer['cheapest_accuracy']:.3f}"
            rest = f"**{cheapest}** ({accuracy}{cheaper}) can't be told from it"
        label = budget_label(answer["budget"], num_train)
        lines.append(f"* {label} labels: **{answer['best']}** ({answer['accuracy']:.3f}); {rest}")
    return lines


def few_labels(result: dict[str, Any]) -> list[str]:
    """With few labels and little compute, which way? A paragraph on those that are never beaten."""
    answers = [answer for answer in result["answer"] if 0 < answer["budget"] <= FEW]
    if not answers:
        return []
    budgets = [answer["budget"] for answer in answers]
    never_beaten = []
    for way in result["ways"]:
        if all(way in answer["as_good"] for answer in answers):
            never_beaten.append(way)
    if not never_beaten:
        return []

    def rows_of(way: str) -> list[dict[str, Any]]:
        rows = [row for row in result["rows"] if row["way"] == way]
        return [row for row in rows if row["budget"] in budgets]

    def cost(way: str) -> list[float]:
        rows = rows_of(way)
        return [sum(row[name] for row in rows) for name in ("flops", "seconds")]

    cheapest = min(never_beaten, key=cost)
    most = max(rows_of(cheapest), key=lambda row: row["budget"])
    others = [way for way in never_beaten if way != cheapest]
    verb = "is" if len(others) == 1 else "are"
    also = f" (nor {verb} {'; '.join(others)})" if others else ""
    return [
        f"With {FEW} labels or fewer and little compute: **{cheapest}**. No way beats it beyond "
        f"the interval at any such budget{also}, and a fit takes at most {most['seconds']:.2g} s "
        f"here, {most['flops'] / 1e9:.3g} GFLOP.",
        "",
    ]


def budget_table(result: dict[str, Any], budget: int, num_train: int) -> list[str]:
    """A heading and a table with a row a way."""
    rows = [row for row in result["rows"] if row["budget"] == budget]
    baseline = result["ways"][0]
    outside = list(rows[0]["outside"])
    head = ["way", "accuracy", "95%", f"against {baseline}", "worst seed", "ECE"]
    head += [*outside, "s", "GFLOP"]
    table = []
    for row in rows:
        low, high = row["interval"]
        less, more = row["difference_interval"]
        difference = f"{row['difference']:+.3f} ({less:+.3f} to {more:+.3f})"
        cells = [
            row["way"],
            f"{row['accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if row["way"] == baseline else difference,
            f"{row['worst']:.3f}",
            f"{row['ece']:.3f}",
        ]
        cells += [f"{row['outside'][name]:.3f}" for name in outside]
        cells += [f"{row['seconds']:.2g}", f"{row['flops'] / 1e9:.3g}"]
        table.append(cells)
    heading = f"## {budget_label(budget, num_train)} labels"
    return [heading, "", *markdown_table(head, table), ""]
