"""Checks on a plan: what its flags freeze, and whether its rates suit what trains."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapt import tree
from adapt.doctor.cases import SettingsCase
from adapt.doctor.findings import Finding
from adapt.models import is_kept
from adapt.training import optim
from adapt.training.optim import FROZEN
from adapt.training.phases import CompiledPhase, default_rate

# Adam moves a weight by about its rate in a step. A fresh head begins near 0 and has to reach weights
# of about 0.1 before it says anything.
LEAST_REACH = 0.01
# The peak rate of a pre-trained group over the root mean square of its kernels. 1e-3 is usual; from
# a few hundredths on a few steps rewrite what was pre-trained.
MOST_CHANGE = 0.03
# The least that all steps together should be able to change of a pre-trained kernel, and how far
# below the default a rate is that may be too low.
LEAST_CHANGE = 1e-3
LOW_RATE = 10.0
LARGEST_KERNEL = 65536  # numbers of a kernel whose root mean square is taken, from its beginning


def frozen_head(case: SettingsCase) -> Iterator[Finding]:
    """A new head that no phase trains: it stays as random as it began."""
    if is_kept(case.plan.model.head):  # pre-trained, so not random
        return
    trained = set()
    head = set()
    for phase in case.plan.phases:
        for path, group in tree.paths(phase.labels).items():
            if not path.startswith("head/"):
                continue
            head.add(path)
            if group != FROZEN:
                trained.add(path)
    if not head or trained:
        return
    yield Finding(
        severity="error",
        seen=f"the new head ({len(head)} leaves) is frozen in every phase",
        cause="a rule of `strategy` before the one that trains the head wins its leaves",
        fix='put ("head/.*", "head") before the other rules',
        evidence={"leaves": sorted(head), "phases": len(case.plan.phases)},
    )


def head_rate_too_low(case: SettingsCase) -> Iterator[Finding]:
    """A new head whose rate times the steps can't move its weights: often the encoder's rate."""
    if is_kept(case.plan.model.head):  # pre-trained, so not far from where it has to go
        return
    reach = 0.0
    peak = 0.0
    for phase in case.plan.phases:
        group = phase.groups.get("head")
        if group is None:
            continue
        peak = max(peak, group.peak_rate)
        reach += sum_of_rates(case, phase, "head")
    usual = default_rate("head", is_probe=False, width=0)
    if not 0 < peak < usual / 5 or reach >= LEAST_REACH:
        return
    yield Finding(
        severity="warning",
        seen=f"the head's rate {peak:.2g} moves a weight by at most {reach:.2g} in {case.plan.steps:,} "
        f"steps, and a new head needs {LEAST_REACH:g} or more",
        cause="the encoder's rate on a head that begins at random",
        fix="give a larger `head_learning_rate` (1e-3, and 1e-2 where only the head trains) or more "
        "`epochs`",
        evidence={"rate": peak, "reach": reach, "steps": case.plan.steps},
    )


def encoder_rate_too_low(case: SettingsCase) -> Iterator[Finding]:
    """A rate that can't move the pre-trained kernels that train, in all steps together."""
    kernels = {"encoder": case.plan.pretrained.params["encoder"]}
    sizes = {path: leaf for path, leaf in tree.paths(kernels).items() if path.endswith("/kernel")}
    width = case.plan.pretrained.config.width
    most: tuple[float, float, float] | None = None  # of a group: change, reach, peak rate
    for phase in case.plan.phases:
        for group, size in smallest_kernels(phase, sizes).items():
            peak = phase.groups[group].peak_rate
            if peak >= default_rate(group, is_probe=False, width=width) / LOW_RATE:
                return
            reach = sum_of_rates(case, phase, group)
            if most is None or reach / size > most[0]:
                most = (reach / size, reach, peak)
    if most is None or most[0] >= LEAST_CHANGE or case.options.random_weights:
        return
    change, reach, peak = most
    yield Finding(
        severity="warning",
        seen=f"the encoder's rate {peak:.2g} moves a weight by at most {reach:.2g} in "
        f"{case.plan.steps:,} steps, {change:.2%} of the size of its weights",
        cause="a rate so small that the encoder stays as it was pre-trained, at the cost of training",
        fix="give a larger `learning_rate`, or `strategy` frozen, which costs less",
        certainty="likely",
        evidence={"rate": peak, "reach": reach, "update_to_weight": change},
    )


def smallest_kernels(phase: CompiledPhase, kernels: Mapping[str, Any]) -> dict[str, float]:
    """The smallest root mean square of the pre-trained kernels of each group that trains."""
    smallest: dict[str, float] = {}
    for path, group in tree.paths(phase.labels).items():
        if group in phase.groups and path in kernels:
            size = root_mean_square(kernels[path])
            if size:
                smallest[group] = min(size, smallest.get(group, size))
    return smallest


def sum_of_rates(case: SettingsCase, phase: CompiledPhase, group: str) -> float:
    """A group's learning rates over the steps of a phase, summed."""
    first = phase.epochs.start * case.plan.steps_per_epoch
    last = phase.epochs.stop * case.plan.steps_per_epoch
    steps = np.unique(np.linspace(first, max(last - 1, first), 64).astype(int))
    schedule = phase.groups[group]
    rates = [optim.rate_at(schedule.schedule, step - schedule.schedule_start) for step in steps]
    return float(np.mean(rates)) * (last - first)


def rate_too_high(case: SettingsCase) -> Iterator[Finding]:
    """A rate so large beside pre-trained kernels that a few steps rewrite them."""
    pretrained = tree.paths({"encoder": case.plan.pretrained.params["encoder"]})
    worst: dict[str, tuple[float, float, float]] = {}
    for phase in case.plan.phases:
        for path, group in tree.paths(phase.labels).items():
            leaf = pretrained.get(path)
            if group not in phase.groups or leaf is None or not path.endswith("/kernel"):
                continue
            size = root_mean_square(leaf)
            rate = phase.groups[group].peak_rate
            if size and rate / size > worst.get(group, (0.0, 0.0, 0.0))[0]:
                worst[group] = (rate / size, rate, size)
    changes = {group: values for group, values in worst.items() if values[0] > MOST_CHANGE}
    if not changes or case.options.random_weights:
        return
    group = max(changes, key=lambda one: changes[one][0])
    change, rate, size = changes[group]
    yield Finding(
        severity="warning",
        seen=f"a single step at the peak rate {rate:.2g} of group {group} changes its pre-trained "
        f"weights by about {change:.2g} times their size ({size:.2g}, root mean square)",
        cause="a rate for weights that begin at random",
        fix=f"give a smaller `learning_rate`: {MOST_CHANGE * size / 10:.0e} is usual for such weights",
        certainty="likely",
        evidence={"group": group, "rate": rate, "update_to_weight": change, "size": size},
    )


def root_mean_square(leaf: np.ndarray) -> float:
    """The root mean square of a kernel's first 65,536 numbers."""
    values = np.asarray(leaf).reshape(-1)[:LARGEST_KERNEL].astype(np.float32)
    return float(np.sqrt(np.mean(values * values)))


def other_pooling(case: SettingsCase) -> Iterator[Finding]:
    """A frozen encoder pooled in another way than its checkpoint says of itself."""
    depth = min(phase.step.prefix.depth if phase.step.prefix else 0 for phase in case.plan.phases)
    pretrained = case.plan.pretrained
    pooling = getattr(pretrained.head, "pooling", None)
    own = case.own_pooling
    asked = case.options.pooling
    if asked is None or own is None or pooling == own or case.options.layers:
        return
    if depth <= pretrained.config.layers:  # a block trains, and learns the other pooling
        return
    yield Finding(
        severity="warning",
        seen=f"the frozen encoder is pooled by {pooling}, and {pretrained.source} was trained with "
        f"{own}",
        cause=f"`pooling` {asked}, which the checkpoint's own files contradict",
        fix=f"leave `pooling` out, or give {own}",
        certainty="likely",
        evidence={"pooling": pooling, "own": own},
    )


def cache_off(case: SettingsCase) -> Iterator[Finding]:
    """A frozen encoder that every epoch computes anew, because the cache was turned off."""
    if case.options.cache != "off" or case.options.augment:
        return
    layers = case.plan.pretrained.config.layers
    for phase in case.plan.phases:
        depth = phase.step.prefix.depth if phase.step.prefix else 0
        if depth <= layers or len(phase.epochs) < 3:
            continue
        yield Finding(
            severity="note",
            seen=f"the whole encoder is frozen and computed again in each of {len(phase.epochs)} "
            "epochs",
            cause="`cache` off",
            fix="leave `cache` out: its outputs are then computed once, where that pays",
            evidence={"depth": depth, "epochs": len(phase.epochs)},
        )
