"""Checks on several runs: are their scores further apart than another seed would put them?"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adapt.doctor.cases import RunsCase, ScoredRun
from adapt.doctor.findings import Finding

CONFIDENCE = 0.95
MOST_SPREAD = 0.1  # of a score between 0 and 1, from the worst seed to the best
FEWEST_SEEDS = 3  # from which a spread says something


def same_run_differs(case: RunsCase) -> Iterator[Finding]:
    """Runs of the same settings, data and seed with other scores."""
    for group in groups_of(case).values():
        pair = first_pair_that_differs(group)
        if pair is None:
            continue
        one, other = pair
        yield Finding(
            severity="warning",
            seen=f"{one.name} and {other.name} have the same settings, data and seed, and "
            f"{case.metric} {one.score:.6g} and {other.score:.6g}",
            cause="other versions or another device, kernels that add in any order, or a loss, head "
            "or data of one's own that draw from another source",
            fix="compare `versions` in lineage.json; on a GPU switch on "
            "xla_gpu_deterministic_ops in XLA_FLAGS; draw from the key of the step",
            certainty="possible",
            evidence={"runs": [one.name, other.name], "scores": [one.score, other.score]},
        )


def first_pair_that_differs(group: Sequence[ScoredRun]) -> tuple[ScoredRun, ScoredRun] | None:
    """Two runs with one seed, on data that are known to be the same, and with two scores."""
    for one, other in itertools.combinations(group, 2):
        is_same_data = one.data_digest is not None and one.data_digest == other.data_digest
        if is_same_data and one.seeds == other.seeds and one.score != other.score:
            return one, other
    return None


def varies_by_seed(case: RunsCase) -> Iterator[Finding]:
    """Runs that differ by their seed alone, and by much in a score between 0 and 1."""
    if not case.is_share:
        return
    for group in groups_of(case).values():
        by_seed = scores_by_seed(group)
        scores = list(by_seed.values())
        if len(scores) < FEWEST_SEEDS or max(scores) - min(scores) <= MOST_SPREAD:
            continue
        yield Finding(
            severity="warning",
            seen=f"{case.metric} of {len(scores)} runs that differ by their seed alone is "
            f"{min(scores):.3f} to {max(scores):.3f}",
            cause="few training rows, few steps, or a rate too high",
            fix="report the mean over seeds; try more `epochs`, a smaller `learning_rate`, or "
            "`strategy` full+reinit:1",
            certainty="likely",
            evidence={"scores": {str(seed): score for seed, score in by_seed.items()}},
        )


def difference_within_seeds(case: RunsCase) -> Iterator[Finding]:
    """A difference between settings that is smaller than what another seed makes."""
    groups = groups_of(case)
    if len(groups) < 2:
        return
    names = named(groups)
    means = {key: np.mean(list(scores_by_seed(group).values())) for key, group in groups.items()}
    best = max(means, key=lambda key: case.sign * means[key])
    for key, group in groups.items():
        if key == best:
            continue
        one = scores_by_seed(groups[best])
        other = scores_by_seed(group)
        difference = float(means[best] - means[key])
        margin = margin_of(one, other)
        if margin is not None and abs(difference) > margin:
            continue
        seen = (
            f"{case.metric} is {means[best]:.3f} with {names[best]} ({seeds(one)}) and "
            f"{means[key]:.3f} with {names[key]} ({seeds(other)}): a difference of "
            f"{abs(difference):.3f}, "
        )
        if margin is None:
            seen += "and a run each does not tell how much another seed changes"
        else:
            seen += f"where other seeds change it by up to {margin:.3f} ({CONFIDENCE:.0%} interval)"
        yield Finding(
            severity="warning",
            seen=seen,
            cause="the difference may be that of the seeds",
            fix="train each with five seeds or more; adapt compare does, and gives intervals",
            certainty="possible" if margin is None else "likely",
            evidence={
                "difference": difference,
                "margin": margin,
                "scores": [list(one.values()), list(other.values())],
            },
        )


def margin_of(one: Mapping[Any, float], other: Mapping[Any, float]) -> float | None:
    """Half the interval of the difference of two means over seeds; None for one seed each.

    The difference is taken seed by seed where both have the same; else by Welch's interval. Where
    one of them has one seed, it is that of another run of the other.
    """
    from scipy import stats

    count = min(len(one), len(other))
    if one.keys() == other.keys() and count > 1:
        differences = np.array([one[seed] - other[seed] for seed in one])
        error = differences.std(ddof=1) / np.sqrt(count)
        freedom = count - 1.0
    elif count > 1:
        squares = [np.var(list(some.values()), ddof=1) / len(some) for some in (one, other)]
        error = np.sqrt(sum(squares))
        below = squares[0] ** 2 / (len(one) - 1) + squares[1] ** 2 / (len(other) - 1)
        freedom = sum(squares) ** 2 / below if below else 1.0
    else:
        several = one if len(one) > 1 else other
        if len(several) < 2:
            return None
        error = np.std(list(several.values()), ddof=1) * np.sqrt(1 + 1 / len(several))
        freedom = len(several) - 1.0
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error)


def groups_of(case: RunsCase) -> dict[str, list[ScoredRun]]:
    """The runs by their settings and data, without the seeds."""
    groups: dict[str, list[ScoredRun]] = {}
    for run in case.runs:
        key = repr((sorted(run.settings.items()), sorted(run.data.items())))
        groups.setdefault(key, []).append(run)
    return groups


def scores_by_seed(group: Sequence[ScoredRun]) -> dict[Any, float]:
    """The score of each seed, by (seed, split_seed) in their order; of a seed that was trained
    twice that of the first run.
    """
    scores: dict[Any, float] = {}
    for run in group:
        scores.setdefault(run.seeds, run.score)
    return dict(sorted(scores.items(), key=lambda item: str(item[0])))


def named(groups: Mapping[str, Sequence[ScoredRun]]) -> dict[str, str]:
    """What tells each group from the others: ``strategy frozen``, and the data where settings don't
    tell: ``training data 1f0c2a9b``, the beginning of their digest.
    """
    settings = {key: group[0].settings for key, group in groups.items()}
    first = next(iter(settings.values()))
    differing = []
    for name in first:
        values = {repr(one.get(name)) for one in settings.values()}
        if len(values) > 1:
            differing.append(name)
    names = {}
    for key, own in settings.items():
        names[key] = ", ".join(f"{name} {own.get(name)}" for name in differing)
    if len(set(names.values())) == len(names):
        return names
    for key, group in groups.items():
        of_data = []
        for what, digest in group[0].data.items():
            of_data.append(f"{what} {digest[:8] if digest else 'unknown'}")
        names[key] = ", ".join([names[key], *of_data] if names[key] else of_data)
    return names


def seeds(scores: Mapping[Any, float]) -> str:
    """How many seeds, and from which score to which."""
    if len(scores) == 1:
        return "1 seed"
    return f"{len(scores)} seeds, {min(scores.values()):.3f} to {max(scores.values()):.3f}"
