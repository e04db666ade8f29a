"""Checks that compute for seconds to minutes, and run where they are asked for.

They look at a sample of the training rows, by scikit-learn's classifiers on features and on words.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from adapt import features, tree
from adapt.doctor.cases import DeepCase
from adapt.doctor.findings import Finding
from adapt.options import ModelOptions
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.training import optim, phases
from adapt.training.step import init_trainable

ROWS = 1000  # of the sample
FOLDS = 5
SURE = 2.0  # standard errors
NEAR = 0.98  # the cosine from which two texts count as copies
NEAR_SHARE = 0.05
STEPS = 3


def no_better_than_random_weights(case: DeepCase) -> Iterator[Finding]:
    """Features that classify no better than those of the same encoder with random weights."""
    if case.has_random_weights:
        return
    own = right_by_features(case, case.pretrained)
    random = right_by_features(case, with_random_weights(case.pretrained))
    no_gain = compared(own, random, "random", "with random weights")
    if no_gain is None:
        return
    yield Finding(
        **no_gain,
        severity="warning",
        cause="the weights were not loaded as they were trained, the tokenizer is another model's, or "
        "words alone have the answer",
        fix="look at the checkpoint's checks; where they find nothing, a smaller model may do",
        certainty="possible",
    )


def no_better_than_bag_of_words(case: DeepCase) -> Iterator[Finding]:
    """Features that classify no better than the words and pairs of words of the texts."""
    own = right_by_features(case, case.pretrained)
    no_gain = compared(own, right_by_words(case), "words", "words and pairs of words")
    if no_gain is None:
        return
    yield Finding(
        **no_gain,
        severity="note",
        cause="single words have the answer, or the features do not suit the task",
        fix="train more of the encoder, or take the words",
        certainty="possible",
    )


def compared(
    own: np.ndarray, other: np.ndarray, name: str, description: str
) -> dict[str, Any] | None:
    """``seen`` and ``evidence`` where features have no more rows right than something else has;
    None where they have.
    """
    gain, error = paired(own, other)
    if gain > SURE * error:
        return None
    seen = (
        f"frozen features get {own.mean():.3f} of {len(own):,} rows right, and {description} "
        f"{other.mean():.3f} (difference {gain:+.3f}, standard error {error:.3f})"
    )
    evidence = {"own": float(own.mean()), name: float(other.mean()), "error": error}
    return {"seen": seen, "evidence": evidence}


def labels_not_learnable(case: DeepCase) -> Iterator[Finding]:
    """Labels that neither features nor words predict: as if they were shuffled."""
    majority = np.bincount(case.labels).max() / len(case.labels)
    tried = {
        "features": right_by_features(case, case.pretrained).mean(),
        "words": right_by_words(case).mean(),
    }
    error = float(np.sqrt(majority * (1 - majority) / len(case.labels)))
    best = float(max(tried.values()))
    if best > majority + SURE * error:
        return
    yield Finding(
        severity="error",
        seen=f"{' and '.join(tried)} get at most {best:.3f} of {len(case.labels):,} rows right, and the "
        f"largest class has {majority:.3f}",
        cause="the labels do not belong to the texts: shuffled, or another column",
        fix="look at some rows",
        certainty="likely",
        evidence={"majority": float(majority), **{name: float(x) for name, x in tried.items()}},
    )


def near_copies(case: DeepCase) -> Iterator[Finding]:
    """Rows of another part whose embedding is all but that of a training row."""
    train = unit(features_of_sample(case, case.pretrained))
    for name, texts in case.others.items():
        cosines = unit(features.encode(case.pretrained, texts)) @ train.T
        rows = np.flatnonzero(cosines.max(1) >= NEAR)
        share = len(rows) / max(len(texts), 1)
        if share <= NEAR_SHARE:
            continue
        first = case.other_rows[name][rows[:5]] + 1
        yield Finding(
            severity="warning",
            seen=f"{len(rows):,} of {len(texts):,} {name} rows are all but a row of "
            f"{len(case.texts):,} training rows (cosine {NEAR} or more)",
            cause="copies with small changes, or an encoder for which all texts are alike",
            fix="take such rows out of one of the sets",
            certainty="possible",
            evidence={"set": name, "rows": len(rows), "share": share, "first": first.tolist()},
        )


def two_runs_differ(case: DeepCase) -> Iterator[Finding]:
    """The first steps, taken twice from the same seed, with other results."""
    digests = {first_steps(case) for _ in range(2)}
    if len(digests) == 1:
        return
    yield Finding(
        severity="warning",
        seen=f"{STEPS} steps from the same seed gave other parameters when they were taken again",
        cause="a loss, head or data of one's own that draw from another source, or kernels of the "
        "device that add in any order",
        fix="draw from the key of the step; on a GPU XLA_FLAGS=xla_gpu_deterministic_ops",
        evidence={"steps": STEPS},
    )


def first_steps(case: DeepCase) -> str:
    """The digest of what trains after some steps from the beginning."""
    plan = case.plan
    phase = plan.phases[0]
    key = jax.random.fold_in(plan.key, 1)
    state = init_trainable(plan.params, phase.labels, phase.tx, key, plan.layout)
    frozen = phase.place_frozen(optim.frozen(plan.params, phase.labels))
    inputs = phases.with_anchor(frozen, phase, plan.pretrained.params)
    for batch in itertools.islice(case.data.batches(0, 0), STEPS):
        state, _ = phase.step(inputs, state, batch)
    return tree.digest(jax.device_get(state.params))


def with_random_weights(pretrained: Pretrained) -> Pretrained:
    """The same encoder, newly initialised."""
    return hub.with_options(pretrained, ModelOptions(random_weights=True), seed=0)


def right_by_features(case: DeepCase, pretrained: Pretrained) -> np.ndarray:
    """Whether a logistic regression on the features of the other folds has each row right, [N]."""
    key = f"features {'own' if pretrained is case.pretrained else 'random'}"
    if key not in case.memo:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x = features_of_sample(case, pretrained)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        case.memo[key] = right_out_of_fold(model, x, case.labels)
    return case.memo[key]


def features_of_sample(case: DeepCase, pretrained: Pretrained) -> np.ndarray:
    """The features of the texts, float32 [N, D]."""
    if pretrained is not case.pretrained:
        return features.encode(pretrained, case.texts)
    if "encoded" not in case.memo:
        case.memo["encoded"] = features.encode(pretrained, case.texts)
    return case.memo["encoded"]


def right_by_words(case: DeepCase) -> np.ndarray:
    """The same on the words and pairs of words of the texts."""
    if "words" not in case.memo:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
        model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=200))
        case.memo["words"] = right_out_of_fold(model, list(case.texts), case.labels)
    return case.memo["words"]


def right_out_of_fold(model: Any, x: Any, labels: np.ndarray) -> np.ndarray:
    """Whether the model has each row right, fitted on the other folds: float64 [N]."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    predicted = cross_val_predict(model, x, labels, cv=folds)
    return (np.asarray(predicted) == labels).astype(np.float64)


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(the mean difference of two sets of right answers to the same rows, its standard error)."""
    difference = one - other
    return float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def sample(count: int) -> np.ndarray:
    """The rows of a sample, ascending: all where there are few."""
    order = np.random.RandomState(0).permutation(count)
    return np.sort(order[:ROWS])
