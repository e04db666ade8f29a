"""Whether the cache pays: a decision with its reason, and the sets that follow from it."""

import dataclasses

import numpy as np
import pytest

from adapt.data.examples import Examples
from adapt.data.sources import TokenSource
from adapt.errors import OutputError, StrategyError
from adapt.models import EncoderConfig
from adapt.options import StrategyOptions
from adapt.prefix_cache import policy, states, store
from adapt.training import frozen_prefix
from tests.helpers import small

MINILM = EncoderConfig("bert", 6, 384, 12, 1536, 512, vocabulary=30522, types=2)
SLOW = 1e3  # FLOP/s of a machine on which every prefix takes long
FAST = 1e18


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def cut() -> frozen_prefix.Cut:
    return frozen_prefix.cut_at(small.classifier(), 2)


@pytest.fixture
def params(cut):
    return small.params(cut.model)


@pytest.fixture
def sets() -> dict[str, Examples]:
    """Training and validation rows of one file, and another file to test on."""
    whole = Examples(TokenSource(small.texts(10), 24), np.arange(10), np.zeros(10, np.int32))
    test = Examples(TokenSource(small.texts(4, seed=1), 24), np.arange(4), np.zeros(4, np.int32))
    return {
        "train": whole.take(np.arange(8)),
        "validation": whole.take(np.arange(8, 10)),
        "test": test,
    }


def options(cache: str = "auto", **fields) -> StrategyOptions:
    return StrategyOptions(cache=cache, **fields)


def test_nothing_frozen_is_a_reason(params, sets):
    decision = policy.choose(None, params, sets, options("auto"), epochs=3, matmul_rate=SLOW)
    assert not decision.enabled and decision.summary() is None
    assert decision.reason == "the embedding trains, so nothing is frozen"


def test_required_without_a_frozen_stage_is_refused_in_any_phase(cut):
    policy.check(options("on"), [None, cut])
    policy.check(options("auto"), [None, None])
    with pytest.raises(StrategyError, match="`cache` on: with `strategy` full"):
        policy.check(options("on"), [None, None])


def test_auto_decides_by_the_speed_of_the_machine(cut, params, sets):
    slow = policy.choose(cut, params, sets, options(), epochs=3, matmul_rate=SLOW)
    fast = policy.choose(cut, params, sets, options(), epochs=3, matmul_rate=FAST)
    assert slow.enabled and slow.seconds_saved > 0 and "2 of 3 stages are frozen" in slow.reason
    assert not fast.enabled and fast.seconds_saved < 0 and "would cost about" in fast.reason
    assert not slow.required


def test_without_a_measured_machine_nothing_is_estimated_and_auto_takes_the_cache(
    cut, params, sets
):
    decision = policy.choose(cut, params, sets, options(), epochs=3)
    assert decision.enabled and decision.seconds_saved is None


def test_a_resumed_run_decides_as_before_whatever_it_is_asked(cut, params, sets):
    def choose(cache, earlier):
        return policy.choose(
            cut, params, sets, options(cache), epochs=3, matmul_rate=FAST, earlier=earlier
        )

    assert choose("auto", True).enabled and not choose("auto", True).required
    assert not choose("on", False).enabled
    assert choose("on", None).required


def test_choosing_computes_and_prints_nothing(cut, params, sets, home, capsys):
    policy.choose(cut, params, sets, options(), epochs=3, matmul_rate=SLOW)
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert capsys.readouterr() == ("", "")


def test_sets_of_one_file_share_an_array(cut, params, sets):
    decision = policy.choose(cut, params, sets, options("on"), epochs=3)
    arrays = decision.arrays
    assert arrays["train"] is arrays["validation"] and arrays["test"] is not arrays["train"]
    assert decision.nbytes == arrays["train"].nbytes + arrays["test"].nbytes


def test_the_dtype_of_the_cache_is_by_default_that_of_the_encoder(cut, params, sets):
    decision = policy.choose(cut, params, sets, options("on"), epochs=3)
    half = policy.choose(cut, params, sets, options("on", cache_dtype="float16"), epochs=3)
    assert decision.arrays["test"].dtype == np.float32
    assert half.arrays["test"].dtype == np.float16 and 2 * half.nbytes == decision.nbytes


def test_the_sets_come_with_states_and_the_arguments_stay(cut, params, sets):
    decision = policy.choose(
        cut, params, sets, options("on", cache_dtype="float16"), epochs=3, matmul_rate=SLOW
    )
    before = dataclasses.replace(decision)
    told = []
    cached, final = policy.with_states(
        cut, params, sets, decision, on_progress=lambda done, total: told.append((done, total))
    )
    assert all(examples.states is None for examples in sets.values())
    assert all(examples.states is not None for examples in cached.values())
    assert cached["train"].states is cached["validation"].states
    assert decision == before and decision.relative_error is None
    assert 0 < final.relative_error < 1e-2 and final.seconds_saved == decision.seconds_saved
    assert told[-1] == (14, 14)  # ten examples of one file, four of the other
    assert set(final.summary()) == {"bytes", "dtype", "relative_error", "folders"}
    assert len(final.summary()["folders"]) == 2

    # What is there is not computed again.
    told.clear()
    policy.with_states(cut, params, sets, decision, on_progress=lambda *_: told.append(1))
    assert told == []


def test_two_calls_are_enough_for_a_loop_of_ones_own(cut, params, sets):
    cached, decision = policy.with_states(cut, params, sets)
    assert decision.enabled and decision.required and decision.relative_error == 0
    shapes = cached["train"].batch_shapes(4, 0, 1)
    for batch in cached["train"].batches(shapes, 0, 0):
        assert "hidden" in batch and "tokens" not in batch
    same, nothing = policy.with_states(None, params, sets)
    assert same == sets and not nothing.enabled


@pytest.mark.parametrize("cache", ["auto", "on"])
def test_states_that_cannot_be_written_are_missed_or_an_error(
    cut, params, sets, monkeypatch, caplog, cache
):
    def full(*_, **__):
        raise OutputError("no room now")

    monkeypatch.setattr(states, "compute_states", full)
    decision = policy.choose(cut, params, sets, options(cache), epochs=3)
    if cache == "on":
        with pytest.raises(OutputError, match="no room now"):
            policy.with_states(cut, params, sets, decision)
        return
    cached, final = policy.with_states(cut, params, sets, decision)
    assert cached == sets and decision.enabled and not final.enabled
    assert final.reason == "no room now" and "no cache: no room now" in caplog.text


def test_no_room_is_known_before_anything_is_computed(cut, params, sets, monkeypatch, caplog):
    def too_small(arrays):
        raise OutputError("the disk is too small")

    monkeypatch.setattr(store, "need_space", too_small)
    with pytest.raises(OutputError, match="too small"):
        policy.choose(cut, params, sets, options("on"), epochs=3)
    with pytest.raises(OutputError, match="too small"):
        policy.choose(cut, params, sets, options("auto"), epochs=3, earlier=True)
    decision = policy.choose(cut, params, sets, options("auto"), epochs=3)
    assert not decision.enabled and "too small" in decision.reason
    assert "no cache: the disk is too small" in caplog.text


def test_a_cache_pays_from_the_second_pass_on_and_one_that_is_there_from_the_first():
    lengths = np.full(1000, 27)
    pooled, states = 1000 * 384 * 4, 27_000 * 384 * 4

    def saves(depth, passes, nbytes, is_written=False):
        return policy.prefix_seconds_saved(
            MINILM, depth, lengths, passes, nbytes, is_written, matmul_rate=200e9
        )

    assert saves(7, 1, pooled) < 0 < saves(7, 1, pooled, is_written=True)
    assert saves(7, 2, pooled) > 0 and saves(7, 10, pooled) > 8 * saves(7, 2, pooled)
    assert saves(1, 10, states) < 0  # an embedding is looked up faster than its states are read
    assert 0 < saves(6, 5, states) < saves(7, 5, pooled)
