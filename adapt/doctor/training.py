"""Checks on how a run trained: its losses, its rates, and what its weights did."""

from collections.abc import Iterator

import numpy as np

from adapt.doctor.cases import TrainingCase
from adapt.doctor.findings import Finding
from adapt.doctor.settings import LEAST_REACH

FEW_STEPS = 30  # after which a loss says something
FEWEST_STEPS = 3  # after which a matrix has moved: one of LoRA's gets no gradient in the first
LEARNED = 0.99  # of the loss of the prior: below it something was learned
MEMORISED = 0.9  # of the loss of the prior: below it the training rows were learned
ABOVE = 1.1  # times the loss of the prior, or of the first epoch: above it training did harm
ROUNDED = 0.5  # of the updates
# What is left of a leaf besides decay, relative to it, by the square root of the steps: each of them
# rounds off 3e-8, and a rate of 1e-7 moves weights of 0.07 by 1e-6 and more.
UNMOVED = 2e-7
# Programs that a loop of one's own may have: batches of a few shapes, the last of an epoch among them.
USUAL_PROGRAMS = 8
COMPILING = 0.05  # of the time of training


def diverged(case: TrainingCase) -> Iterator[Finding]:
    """A loss that was not finite."""
    if case.outcome != "diverged":
        return
    last = case.records[-1] if case.records else {}
    rates = {name: value for name, value in last.items() if name.startswith("rate_")}
    yield Finding(
        severity="error",
        seen=f"the loss was not finite after step {case.steps:,}",
        cause="the rate is too high, or a row's label or input is no number",
        fix="give a smaller `rate_factor` or `clip_norm`, and look at the data of that step",
        certainty="likely",
        evidence={"step": case.steps, "loss": last.get("loss"), **rates},
    )


def loss_above_prior(case: TrainingCase) -> Iterator[Finding]:
    """A training loss that ends above that of an answer without any input, or of the first epoch."""
    if case.steps < FEW_STEPS or not case.losses:
        return
    last = case.losses[-1]
    floor = case.prior_loss if case.has_new_head else None
    what = "that of answering with the shares of the labels, whatever the input"
    if floor is None and len(case.losses) > 1:
        floor = case.losses[0]
        what = "that of the first epoch"
    if floor is None or last <= ABOVE * floor:
        return
    yield Finding(
        severity="error",
        seen=f"the training loss of the last epoch is {last:.3g}, above {what}, {floor:.3g}",
        cause="the rate is too high",
        fix="give a smaller `learning_rate` or `rate_factor`: try a tenth",
        certainty="likely",
        evidence={"loss": last, "prior_loss": case.prior_loss, "losses": case.losses},
    )


def nothing_learned(case: TrainingCase) -> Iterator[Finding]:
    """A loss that stays at that of the labels' shares, in training and in validation."""
    prior = case.prior_loss
    if prior is None or case.steps < FEW_STEPS or not case.losses:
        return
    last = case.losses[-1]
    best = min(case.validation_losses, default=None)
    has_learned = last <= LEARNED * prior or (best is not None and best < LEARNED * prior)
    if has_learned or last > ABOVE * prior:  # the latter is what loss_above_prior names
        return
    reach = case.reach("head")
    evidence = {"loss": last, "prior_loss": prior, "steps": case.steps, "reach": reach}
    seen = (
        f"after {case.steps:,} steps the training loss is {last:.3g}, and answering with the shares "
        f"of the labels, whatever the input, has {prior:.3g}"
    )
    if case.has_new_head and reach is not None and reach < LEAST_REACH:
        yield Finding(
            severity="error",
            seen=seen,
            cause=f"the rates of all steps move a weight of the head by {reach:.2g} at most",
            fix="give larger rates or more `epochs`",
            certainty="likely",
            evidence=evidence,
        )
        return
    moved = float(np.mean(list(changes(case).values()))) if case.after else None
    yield Finding(
        severity="error",
        seen=seen,
        cause="the labels do not belong to the inputs (shuffled, or another column), the rate is too "
        "high, or the frozen features do not have the answer",
        fix="look at some rows; then try a tenth of the rate, and then a strategy that trains more",
        certainty="possible",
        evidence=evidence | {"update_to_weight": moved},
    )


def memorised(case: TrainingCase) -> Iterator[Finding]:
    """A training loss that falls, and a validation loss that never falls below that of the labels'
    shares.
    """
    prior = case.prior_loss
    if prior is None or case.steps < FEW_STEPS or not case.losses or not case.validation_losses:
        return
    last = case.losses[-1]
    best = min(case.validation_losses)
    if last > MEMORISED * prior or best < prior:
        return
    yield Finding(
        severity="error",
        seen=f"the training loss falls to {last:.3g} and the validation loss to {best:.3g} at best, "
        f"where answering with the shares of the labels, whatever the input, has {prior:.3g}",
        cause="the training rows were learned by heart: labels that do not belong to the inputs "
        "(shuffled, or another column), other rows in validation, or too few rows",
        fix="look at some rows of both sets; then train less of the encoder",
        certainty="possible",
        evidence={"loss": last, "validation_loss": best, "prior_loss": prior},
    )


def updates_rounded_away(case: TrainingCase) -> Iterator[Finding]:
    """Updates below one unit in the last place of the weights' dtype, which change nothing."""
    shares = [float(r["rounded_away"]) for r in case.records if "rounded_away" in r]
    if not shares or np.mean(shares) <= ROUNDED:
        return
    share = float(np.mean(shares))
    yield Finding(
        severity="error",
        seen=f"{share:.0%} of the updates are rounded away",
        cause="weights that train are stored in bfloat16, whose numbers lie 0.4% apart",
        fix="store what trains in float32, and compute in bfloat16 (`dtype`)",
        evidence={"share": share, "records": len(shares)},
    )


def leaves_without_gradient(case: TrainingCase) -> Iterator[Finding]:
    """Matrices that train and that no gradient reached: decay alone moved them, or nothing did.

    Vectors are passed over: the bias of an attention's keys cancels in its softmax.
    """
    if case.best_step < FEWEST_STEPS:
        return
    most = UNMOVED * np.sqrt(case.best_step)
    matrices = {path: change for path, change in changes(case).items() if is_matrix(case, path)}
    unmoved = [path for path, change in matrices.items() if change <= most]
    if not unmoved:
        return
    count = sum(case.after[path].size for path in unmoved)
    shown = ", ".join(unmoved[:3]) + (", ..." if len(unmoved) > 3 else "")
    severity = "warning"
    cause = (
        "no output reads them: a head left in the tree, a second head, or blocks above the highest "
        "layer that is read"
    )
    if len(unmoved) == len(matrices):
        severity = "error"
        cause = "a rate of 0, or a loss that does not depend on them"
    yield Finding(
        severity=severity,
        seen=f"{len(unmoved)} of {len(matrices)} matrices that train got no gradient: {shown}",
        cause=cause,
        fix="freeze them or drop them from the tree, or have the head read them",
        evidence={"leaves": unmoved, "parameters": count},
    )


def recompilation(case: TrainingCase) -> Iterator[Finding]:
    """Steps that go on meeting new shapes, each of which compiles a program. A run that goes on
    compiles anew, so the records are those of its last session.
    """
    records = [record for record in case.records if int(record["step"]) > case.first_step]
    times = [float(record.get("compile_seconds", 0.0)) for record in records]
    compiled = sum(seconds > 0 for seconds in times)
    usual = USUAL_PROGRAMS if case.programs is None else case.programs
    total = sum(times) + sum(float(record.get("seconds", 0.0)) for record in records)
    share = sum(times) / total if total else 0.0
    if compiled <= usual or share <= COMPILING:
        return
    yield Finding(
        severity="warning",
        seen=f"{compiled} of {len(times)} records have a step of a new shape, where {usual} programs "
        f"are enough, and compiling takes {share:.0%} of the time",
        cause="batches of ever new shapes; or a run that was stopped and went on many times",
        fix="pad or pack batches to a few shapes, as adapt does its own",
        certainty="likely",
        evidence={"records": compiled, "of": len(times), "programs": usual, "share": share},
    )


def is_matrix(case: TrainingCase, path: str) -> bool:
    return case.after[path].ndim > 1


def changes(case: TrainingCase) -> dict[str, float]:
    """How far each leaf that trained lies from where it began, decay left out, relative to its size
    there: 0 where no gradient reached it.
    """
    return {path: change_of(case.before[path], leaf) for path, leaf in case.after.items()}


def change_of(before: np.ndarray, after: np.ndarray) -> float:
    """The distance of ``after`` from the nearest multiple of ``before``, relative to its size."""
    one = np.asarray(before, np.float32).reshape(-1)
    other = np.asarray(after, np.float32).reshape(-1)
    size = float(np.linalg.norm(one))
    if not size:
        return float(np.linalg.norm(other))
    factor = float(one @ other) / size**2
    return float(np.linalg.norm(other - factor * one)) / size
