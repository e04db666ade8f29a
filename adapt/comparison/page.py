"""The page that tells what a comparison found, in Markdown."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapt.comparison.options import ALL
from adapt.comparison.summary import Answer, Row
from adapt.markdown import markdown_table

if TYPE_CHECKING:
    from adapt.comparison.comparing import Comparison


def results_page(
    found: "Comparison",
    command: str,
    training: str | None = None,
    plots: Sequence[tuple[str, str]] = (),
) -> str:
    """Answers, links to plots (title, file), a table a budget.

    ``command`` is what made the page, ``training`` a command that trains the best strategy.
    """
    options = found.options
    date = time.strftime("%Y-%m-%d", time.gmtime())
    rates = ", ".join(f"{rate:g}" for rate in options.rates)
    lines = [
        f"# Which way of adapting {found.source}?",
        "",
        f"Written by `{command}` on {date}.",
        "",
        f"Task: {found.task}. The score is {found.metric} on {found.tested}; {floor_text(found)}. "
        f"Seeds: {options.seeds}, each with other examples, another head and another order; the "
        f"same for every strategy. Rates: {rates} times a strategy's own. One is chosen by "
        f"{found.chosen_by}. Intervals are of 95%, over "
        "seeds and test examples, by the bootstrap; differences are paired.",
        "",
        "## Answer",
        "",
        *(answer_line(answer, found) for answer in found.answers),
        "",
    ]
    if training:
        lines += ["To train the best on all examples:", "", f"    {training}", ""]
    for title, file in plots:
        lines += [f"![{title}]({file})", ""]
    for budget in options.budgets:
        lines += budget_table(found, budget)
    lines += [
        "Seconds and GFLOP are of one fit with the rate that was chosen, the encoding of its "
        "examples included; trying rates costs as many times more. Seconds of fits that trained "
        "together are their mean. GFLOP of steps are the compiler's, of encoding a count by hand of "
        "the matrix products. What is called best is so on this test; intervals are not widened "
        "for the number of strategies. A probe tries strengths of its penalty in place of rates; a "
        "centroid has none.",
        "",
    ]
    return "\n".join(lines)


def floor_text(found: "Comparison") -> str:
    """What scores without a look at any input, in words."""
    floors = [f"{name} {value:.3f}" for name, value in found.floors.items()]
    return f"without a look at any input: {', '.join(floors)}"


def budget_label(row_labels: str, found: "Comparison") -> str:
    """``all 6,000`` or ``128``, for a heading."""
    if row_labels != ALL:
        return f"{int(row_labels):,}"
    of_budget = next(row for row in found.rows if row.labels == ALL)
    return f"all {of_budget.labelled:,}"


def answer_line(answer: Answer, found: "Comparison") -> str:
    """What is best, and what is as good for less."""
    if math.isnan(answer.score):
        label = budget_label(answer.labels, found)
        return f"* {label} labels: {found.metric} is not defined on the test of every seed"
    if answer.best == answer.cheapest:
        rest = "nothing cheaper is as good"
    else:
        times = answer.times_cheaper
        cheaper = f", {times:.0f} times cheaper" if times >= 2 else ""
        score = f"{answer.cheapest_score:.3f}"
        rest = f"**{answer.cheapest}** ({score}{cheaper}) can't be told from it"
    label = budget_label(answer.labels, found)
    return f"* {label} labels: **{answer.best}** ({answer.score:.3f}); {rest}"


def budget_table(found: "Comparison", budget: str) -> list[str]:
    """A heading and a table with a row a strategy."""
    rows = [row for row in found.rows if row.labels == budget]
    first = rows[0].strategy
    elsewhere = list(rows[0].elsewhere)
    others = [name for name in rows[0].metrics if name != found.metric][:2]
    head = ["strategy", found.metric, "95%", f"against {first}", "worst seed", "rates"]
    head += [*others, *elsewhere, "trained", "s", "GFLOP"]
    table = []
    for row in rows:
        cells = [
            row.strategy,
            f"{row.score:.3f}",
            f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
            "" if row.strategy == first else difference_text(row),
            f"{row.worst:.3f}",
            "" if row.strategy == "centroid" else " ".join(f"{rate:g}" for rate in row.rates),
        ]
        cells += [f"{row.metrics[name]:.3f}" for name in others]
        cells += [f"{row.elsewhere[name]:.3f}" for name in elsewhere]
        cells += [f"{row.parameters:,}", f"{row.seconds:.2g}", f"{row.flops / 1e9:.3g}"]
        table.append(cells)
    return [f"## {budget_label(budget, found)} labels", "", *markdown_table(head, table), ""]


def difference_text(row: Row) -> str:
    """``+0.012 (-0.003 to +0.027)``."""
    less, more = row.difference_interval
    return f"{row.difference:+.3f} ({less:+.3f} to {more:+.3f})"
