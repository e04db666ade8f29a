"""Rates are data: other rates, lengths, decays, norms and seeds compile nothing again."""

import jax
import numpy as np
import pytest

import adapt
from adapt import models
from adapt.cost.clock import COMPILE_EVENTS
from adapt.errors import StrategyError
from adapt.training import optim

TEXTS = [f"{word} film number {number}" for number in range(12) for word in ("good", "bad")]
LABELS = ["good", "bad"] * 12

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def programs():
    """A list that gets an entry for every program that is compiled, or read from the cache."""
    events = []

    def count(event: str, duration_secs: float, **_) -> None:
        if event == COMPILE_EVENTS[0]:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield events
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.mark.parametrize(
    ("strategy", "cache"), [("full", "off"), ("top:1", "on"), ("lora:2", "off"), ("lp-ft", "on")]
)
def test_other_rates_seeds_and_epochs_compile_nothing(inputs, programs, strategy, cache):
    """Whether a cache pays is measured, and may come out otherwise on a busy machine."""
    checkpoint = adapt.load(inputs.checkpoint("bert_mlm_tied"))

    def train(**options):
        settings = {"strategy": strategy, "cache": cache, "epochs": 2, "batch_size": 8}
        settings |= {"patience": 0} | options
        return adapt.finetune(checkpoint, TEXTS, LABELS, split_seed=0, **settings)

    before = train().predict(TEXTS).outputs
    programs.clear()
    for options in (
        {"head_learning_rate": 0.1, "learning_rate": 1e-3},
        {"weight_decay": 0.1, "warmup": 0.5, "clip_norm": 0.5},
        {"epochs": 4},
        {"seed": 1},
    ):
        after = train(**options).predict(TEXTS).outputs
        assert not np.array_equal(before, after), options
    assert programs == []


def test_a_rate_in_the_state_is_the_rate_of_the_step():
    params = {"kernel": np.ones((2, 2), np.float32)}
    step = jax.jit(optim.adamw(optim.schedule(1.0, 10)).update)
    for tx in (optim.adamw(optim.schedule(0.5, 20, 0.2), 0.3), optim.adamw(0.25, 0.0)):
        state = jax.device_put(tx.init(params))
        apart = tx.init(params)
        for _ in range(8):
            updates, state = step(params, state, params)
            expected, apart = tx.update(params, apart, params)
            np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-6)
    assert step._cache_size() == 2  # a schedule, and a number


def test_without_bias_correction_the_averages_of_adam_are_taken_as_they_are():
    weights = np.array([[0.5, -1.0]], np.float32)
    params = {"kernel": weights}
    tx = optim.adamw(0.1, weight_decay=0.3, bias_correction=False)
    state = tx.init(params)
    mean = np.zeros_like(weights)
    square = np.zeros_like(weights)
    for number in range(1, 6):
        grad = np.float32([[number, -0.01 * number]])
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad**2
        expected = -0.1 * (mean / np.sqrt(square) + 0.3 * weights)
        updates, state = tx.update({"kernel": grad}, state, params)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-4)
    corrected = optim.adamw(0.1, weight_decay=0.0)
    updates, _ = corrected.update({"kernel": grad}, corrected.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * np.sign(grad), rtol=1e-4)


def test_a_rate_of_ones_own_has_bias_correction():
    with pytest.raises(StrategyError, match="a number or a schedule"):
        optim.adamw(lambda count: 0.1, bias_correction=False)


def test_bertadam_takes_longer_first_steps_with_the_same_program(inputs, programs):
    checkpoint = adapt.load(inputs.checkpoint("bert_mlm_tied"))

    def moved(strategy):
        run = adapt.finetune(checkpoint, TEXTS, LABELS, strategy=strategy, epochs=1, warmup=0.0)
        after = run.pretrained.params["encoder"]["block_00"]["mlp"]["up"]["kernel"]
        before = checkpoint.params["encoder"]["block_00"]["mlp"]["up"]["kernel"]
        return np.abs(np.asarray(after) - before).mean()

    plain = moved("full")
    programs.clear()
    assert 3 < moved("full+bertadam") / plain < 6.6
    assert programs == []


def test_a_pooling_that_is_registered_anew_is_the_new_one(inputs, monkeypatch):
    """As in a notebook, whose cell is run again after a change: no program of the old one is taken."""
    checkpoint = adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))
    features = []
    outputs = []
    for scale in (1.0, 2.0):

        def scaled(x, batch, scale=scale):
            return scale * models.POOLINGS["mean"](x, batch)

        monkeypatch.setitem(models.POOLINGS, "scaled", scaled)
        features.append(adapt.encode(checkpoint, TEXTS, pooling="scaled"))
        run = adapt.finetune(checkpoint, TEXTS, LABELS, pooling="scaled", epochs=1, strategy="full")
        outputs.append(run.predict(TEXTS).outputs)
    np.testing.assert_allclose(features[1], 2 * features[0], rtol=1e-5)
    assert not np.allclose(outputs[0], outputs[1])
