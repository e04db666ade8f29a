"""All checks in one list, by what they look at, and how they are run.

A check is a function of a case that yields findings. Its name is the function's, the first line of
its docstring what it names.

    findings = run_checks(CHECKS["checkpoint"], CheckpointCase(pretrained=pretrained))
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from adapt.doctor import (
    checkpoint,
    data,
    deep,
    feature_scales,
    result,
    settings,
    several_runs,
    training,
)
from adapt.doctor.findings import Command, Finding
from adapt.errors import StrategyError

logger = logging.getLogger(__name__)

Check = Callable[[Any], Iterator[Finding]]  # of a case of its subject

CHECKS: Mapping[str, Sequence[Check]] = {
    "checkpoint": (
        checkpoint.newly_initialised,
        checkpoint.tokenizer_of_another_model,
        checkpoint.special_tokens_missing,
        checkpoint.case_mismatch,
    ),
    "data": (
        data.repeated_rows,
        data.held_out_rows_in_training,
        data.contradictory_labels,
        data.same_inputs,
        data.unknown_tokens,
        data.truncated_texts,
        data.answers_cut_off,
        data.imbalance,
        data.absent_classes,
        data.missing_classes,
        data.constant_values,
    ),
    "settings": (
        settings.frozen_head,
        settings.head_rate_too_low,
        settings.encoder_rate_too_low,
        settings.rate_too_high,
        settings.other_pooling,
        settings.cache_off,
    ),
    "training": (
        training.diverged,
        training.loss_above_prior,
        training.nothing_learned,
        training.memorised,
        training.updates_rounded_away,
        training.leaves_without_gradient,
        training.recompilation,
    ),
    "result": (
        result.no_better_than_baseline,
        result.one_class_for_all,
        result.labels_in_another_order,
        result.sets_disagree,
        result.overconfident,
        result.padding,
    ),
    "runs": (
        several_runs.same_run_differs,
        several_runs.varies_by_seed,
        several_runs.difference_within_seeds,
    ),
    "features": (
        feature_scales.not_finite,
        feature_scales.features_not_standardised,
        feature_scales.constant_features,
    ),
    # They compute for seconds to minutes: where they are asked for.
    "deep": (
        deep.no_better_than_random_weights,
        deep.no_better_than_bag_of_words,
        deep.labels_not_learnable,
        deep.near_copies,
        deep.two_runs_differ,
    ),
}


def check_names(names: Iterable[str]) -> frozenset[str]:
    """The names as a set. Raises :class:`StrategyError` for one that is no check."""
    known = [check.__name__ for checks in CHECKS.values() for check in checks]
    wanted = frozenset(names)
    unknown = sorted(wanted - set(known))
    if unknown:
        raise StrategyError(f"unknown `checks` {unknown[0]}: give one of {', '.join(known)}")
    return wanted


def run_checks(
    checks: Iterable[Check],
    case: Any,
    shown_by: Command | None = None,
) -> list[Finding]:
    """What the checks find. ``shown_by`` is the command that shows it, unless a check knows better."""
    found = []
    for check in checks:
        for finding in check(case):
            named = dataclasses.replace(
                finding, check=check.__name__, shown_by=finding.shown_by or shown_by
            )
            found.append(named)
    return found


def run_safely(
    subject: str,
    make_case: Callable[[], Any],
    shown_by: Command | None = None,
) -> list[Finding]:
    """All checks of a subject beside a run, which they must not end: one that fails is logged, and
    so is a case that can't be made.
    """
    try:
        case = make_case()
    except Exception as error:  # the run is worth more than the checks
        logger.warning(
            f"the checks of the {subject} failed ({type(error).__name__}: {error}): please report "
            "this"
        )
        return []
    found = []
    for check in CHECKS[subject]:
        try:
            found += run_checks([check], case, shown_by)
        except Exception as error:  # the run is worth more than the check
            logger.warning(
                f"the check {check.__name__} failed ({type(error).__name__}: {error}): "
                "please report this"
            )
    return found


def log_findings(findings: Iterable[Finding]) -> None:
    """Warn of each finding in one line, unless the library has done so already."""
    for finding in findings:
        if not finding.is_logged:
            logger.warning(finding.line)
