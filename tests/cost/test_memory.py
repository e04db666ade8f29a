"""The largest micro-batch and the cheapest rematerialisation that fit, with few compilations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.cost.memory import REMAT_KINDS, fit_memory
from adapt.errors import StrategyError

FIXED = 1000  # bytes of parameters and moments
BYTES = {"none": 100, "dots": 50, "block": 20}  # of an example


def needed(remat, micro_batch, accumulate):
    """A step's bytes: a little more than linear, and the sums of gradients with micro-batches."""
    return FIXED + BYTES[remat] * micro_batch + micro_batch**1.5 + 200 * (accumulate > 1)


def fitted(memory, batch_size, measure=needed, **options):
    options = {"tokens_of": lambda examples: 10 * examples} | options
    return fit_memory(measure, memory, batch_size, **options)


def parts(batch_size):
    return [size for size in range(batch_size, 0, -1) if batch_size % size == 0]


@given(st.integers(1, 96), st.integers(900, 20_000), st.sampled_from([0, 80, 10_000]))
def test_what_is_named_fits_and_nothing_larger_of_its_kind_does(batch_size, memory, busy_tokens):
    def fits(remat, micro_batch):
        return needed(remat, micro_batch, batch_size // micro_batch) <= memory

    if not any(fits("block", size) for size in parts(batch_size)):
        with pytest.raises(StrategyError, match="one example at a time"):
            fitted(memory, batch_size)
        return
    fit = fitted(memory, batch_size, busy_tokens=busy_tokens)
    assert fit.micro_batch * fit.accumulate == batch_size
    assert fit.nbytes == int(needed(fit.remat, fit.micro_batch, fit.accumulate)) <= memory
    largest = {}
    for remat in REMAT_KINDS:
        largest[remat] = next((size for size in parts(batch_size) if fits(remat, size)), 0)
    assert fit.micro_batch == largest[fit.remat]
    cheaper = REMAT_KINDS[: REMAT_KINDS.index(fit.remat)]
    # A cheaper kind is passed over for a larger micro-batch alone, and where its own is too small.
    for remat in cheaper:
        assert largest[remat] < fit.micro_batch
        assert not busy_tokens or 10 * largest[remat] < busy_tokens


def test_a_batch_that_fits_is_compiled_first_and_a_line_finds_the_largest():
    fit = fitted(20_000, 32)
    assert (fit.remat, fit.accumulate) == ("none", 1)
    assert next(iter(fit.measured)) == ("none", 32, 1)
    assert len(fit.measured) <= 5
    assert needed("none", fit.largest, 1) <= 20_000
    assert fit.largest >= 0.97 * max(n for n in range(1000) if needed("none", n, 1) <= 20_000)
    assert fitted(20_000, 32, most_examples=40).largest == 40
    assert fitted(20_000, 32, most_examples=20).largest == 32  # of a batch with empty slots


def test_a_micro_batch_that_keeps_the_device_busy_needs_no_rematerialisation():
    memory = int(needed("none", 8, 4)) + 1
    busy = fitted(memory, 32, busy_tokens=80)
    assert (busy.remat, busy.accumulate, busy.tokens) == ("none", 4, 80)
    assert busy.options == {"batch_size": 32, "accumulate": 4, "remat": "none"}
    idle = fitted(memory, 32, busy_tokens=320)
    assert (idle.remat, idle.accumulate) == ("block", 1)
    assert len(idle.measured) <= 12


def test_what_the_compiler_refuses_does_not_fit():
    def measure(remat, micro_batch, accumulate):
        nbytes = needed(remat, micro_batch, accumulate)
        return nbytes if nbytes <= 3000 else float("inf")

    fit = fitted(3000, 64, measure)
    assert fit.nbytes <= 3000
    assert fit.micro_batch == fitted(3000, 64).micro_batch
    assert None in [nbytes for *_, nbytes in fit.to_json()["measured"]]
