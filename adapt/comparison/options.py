"""What a comparison compares, and how often."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from adapt.errors import StrategyError
from adapt.options import check_types
from adapt.tasks.metrics import check_direction
from adapt.training import strategies

CLOSED_FORM = ("probe", "centroid")  # heads on frozen features that no step trains
ALL = "all"
MOST_RATES = 20
RATE_LIMITS = (0.001, 1000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and how often."""

    title: ClassVar[str] = "comparison"

    # what trains; for classes also probe (logistic regression on frozen features) and centroid
    strategies: tuple[str, ...] = ("frozen", "top:1", "lora:8", "full")
    # factors of a strategy's own learning rates; validation examples choose one of them; a probe
    # has strengths of its own
    rates: tuple[float, ...] = (1.0, 3.0, 0.3)
    # labelled examples, numbers or all; those that choose are among them
    labels: tuple[str, ...] = (ALL,)
    # each draws other examples, another head and another order
    seeds: int = 5
    # at least, of a fit on few examples
    min_steps: int = 60
    # the metric that chooses and is reported; default: the task's own
    score: str | None = None
    # seeds and rates that train in one program; auto: where they are quicker so
    together: Literal["auto", "on", "off"] = "auto"

    @property
    def budgets(self) -> tuple[str, ...]:
        """Numbers of labelled examples, or all: what the library calls the flag ``labels``."""
        return self.labels

    def check(self, layers: int, epochs: int) -> None:
        """Raise :class:`StrategyError` for options that make no sense, of an encoder with
        ``layers`` blocks.
        """
        check_types(self)
        lists = {"strategies": self.strategies, "rates": self.rates, "budgets": self.budgets}
        for name, values in lists.items():
            check_list(name, values)
        for name in self.strategies:
            if name not in CLOSED_FORM:
                check_strategy(name, layers, epochs)
        low, high = RATE_LIMITS
        for rate in self.rates:
            if not low <= rate <= high:
                raise StrategyError(
                    f"`rates` {rate:g}: give factors of a strategy's own learning rates, such as "
                    "0.3 1 3"
                )
        if len(self.rates) > MOST_RATES:
            raise StrategyError(f"`rates` are {len(self.rates)}: give {MOST_RATES} at most")
        for name in ("seeds", "min_steps"):
            if not 1 <= getattr(self, name) <= 10_000:
                raise StrategyError(f"`{name}` {getattr(self, name)} must be 1 to 10000")
        check_list("budgets", [count_of(budget) for budget in self.budgets])
        check_direction(self.score)
        if self.score == "loss":
            raise StrategyError("`score` loss: less of it is better; give a metric of the task")


def check_list(name: str, values: Sequence[object]) -> None:
    """Raise :class:`StrategyError` for an empty list, or a value that it has twice."""
    if not values:
        raise StrategyError(f"`{name}` is empty: give at least one")
    for value in values:
        if list(values).count(value) > 1:
            raise StrategyError(f"`{name}` has {value} twice: leave one out")


def count_of(budget: str) -> int | None:
    """The number of labelled examples of a budget; None for all there are.

    Raises :class:`StrategyError` for what is neither a number nor ``all``.
    """
    if budget == ALL:
        return None
    if budget.isascii() and budget.isdecimal() and int(budget) > 0:
        return int(budget)
    raise StrategyError(f"`budgets` {budget}: give numbers of labelled examples, or all")


def check_strategy(name: str, layers: int, epochs: int) -> None:
    """Raise :class:`StrategyError` for a strategy that is not there, naming those of a comparison
    alone, too.
    """
    try:
        strategies.strategy(name, layers, max(epochs, 2))
    except StrategyError as error:
        also = " or ".join(CLOSED_FORM)
        raise StrategyError(f"`strategies`: {error}; or {also}, which a comparison has") from None
