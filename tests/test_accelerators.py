"""Runs that are decided as on an accelerator, computed by this machine's CPU: few programs, the same
numbers, bit for bit the same after a stop.
"""

import logging
import re

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.devices import Device, pretend
from adapt.training import events
from tests.helpers import tiny
from tests.helpers.runs import stored_digest

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.slow]

H100 = Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0), 60 << 30)
TEXTS, LABELS = map(list, zip(*tiny.sentences(96), strict=True))
OPTIONS = {"batch_size": 8, "learning_rate": 0.003, "patience": 0, "dtype": "float32"}


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


class Programs(logging.Handler):
    """The names of the programs that JAX compiles, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"Compiling (?:jit\()?(\w+)", record.getMessage())
        if found:
            self.names.append(found[1])


@pytest.fixture
def programs():
    """What is compiled from here on, with no program of another test in JAX's caches."""
    jax.clear_caches()
    handler = Programs()
    logger = logging.getLogger("jax._src.interpreters.pxla")
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    jax.config.update("jax_log_compiles", True)
    yield handler.names
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(handler)
    logger.propagate = propagates


def test_a_run_compiles_three_programs_of_the_model_and_eleven_tiny_ones(bert, programs):
    with pretend(H100):
        adapt.finetune(bert, TEXTS, LABELS, epochs=3, test=(TEXTS[:30], LABELS[:30]), **OPTIONS)
    large = [name for name in programs if name in ("run", "forward", "step", "init")]
    assert sorted(large) == ["forward", "init", "run"]
    assert len(programs) <= 14, programs


def test_an_extraction_compiles_one_program(bert, programs):
    with pretend(H100):
        adapt.encode(bert, TEXTS * 20, dtype="float32")
    assert programs == ["forward"]


@pytest.mark.parametrize("strategy", ["full", "top:1", "frozen"])
def test_a_fed_run_has_the_numbers_of_one_that_is_not(bert, strategy):
    options = OPTIONS | {"epochs": 2, "strategy": strategy, "test": (TEXTS[:30], LABELS[:30])}
    if strategy == "frozen":
        del options["learning_rate"]
    alone = adapt.finetune(bert, TEXTS, LABELS, **options)
    seen: list[events.Event] = []
    with pretend(H100):
        fed = adapt.finetune(bert, TEXTS, LABELS, callbacks=[seen.append], **options)
    assert fed.result["steps"] == alone.result["steps"]
    for part, scores in alone.scores.items():
        for name in ("loss", "accuracy"):
            assert fed.scores[part][name] == pytest.approx(scores[name], rel=1e-3), (part, name)
    stepped = [event.step for event in seen if isinstance(event, events.Stepped)]
    assert stepped == sorted(set(stepped)) and stepped[-1] == fed.result["steps"]
    compiling = [event for event in seen if isinstance(event, events.Compiling)]
    assert [(event.what, event.is_beside) for event in compiling] == [
        ("evaluation", True),
        ("step", False),
    ]


@pytest.mark.parametrize("save_every", [0, 3])
def test_a_fed_run_goes_on_after_a_stop_bit_for_bit(bert, tmp_path, save_every):
    options = OPTIONS | {"epochs": 2, "save_every": save_every}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with pretend(H100):
        adapt.finetune(bert, TEXTS, LABELS, out=whole, **options)
        adapt.finetune(bert, TEXTS, LABELS, out=parts, stop_after=5, **options)
        run = adapt.finetune(bert, TEXTS, LABELS, out=parts, resume=True, **options)
    assert run.outcome == "complete"
    assert stored_digest(whole) == stored_digest(parts)


def test_vectors_from_large_batches_are_those_from_small_ones(bert):
    texts = [text * (1 + number % 3) for number, text in enumerate(TEXTS)]
    alone = adapt.encode(bert, texts, dtype="float32")
    with pretend(H100):
        fed = adapt.encode(bert, texts, dtype="float32")
    np.testing.assert_allclose(fed, alone, atol=2e-6)


def test_a_run_in_half_precision_keeps_the_encoder_that_it_froze(bert):
    with pretend(H100):
        run = adapt.finetune(
            bert, TEXTS, LABELS, epochs=1, strategy="frozen", batch_size=8, cache="off"
        )
    assert run.result["dtype"] == "bfloat16"
    assert run.result["frozen_digest_before"] == run.result["frozen_digest_after"]
    assert tree.digest(run.pretrained.params["encoder"]) == tree.digest(bert.params["encoder"])


def test_a_loop_of_blocks_that_does_not_pay_is_noted(bert, caplog):
    options = {"epochs": 1, "batch_size": 8, "dtype": "float32", "scan": True}
    with pretend(H100):
        adapt.finetune(bert, TEXTS[:16], LABELS[:16], **options, remat="block")
        assert "`scan`" not in caplog.text
        adapt.finetune(bert, TEXTS[:16], LABELS[:16], **options)
    assert "`scan` without `remat`" in caplog.text
