"""Work beside the device's: items made ahead in a thread, programs compiled in one."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.cost.clock import Compiling
from adapt.training import feeding


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_items_come_in_order_and_from_another_thread():
    made_by = []

    def items():
        for number in range(50):
            made_by.append(threading.current_thread().name)
            yield number

    assert list(feeding.ahead(items(), size=3)) == list(range(50))
    assert set(made_by) == {"adapt-ahead"}


def test_no_more_items_are_made_than_fit_the_queue():
    made = []

    def items():
        for number in range(50):
            made.append(number)
            yield number

    stream = feeding.ahead(items(), size=3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, in the queue, in the thread's hand
    stream.close()
    assert len(made) <= 5 and "adapt-ahead" not in threads()


def test_what_the_items_raise_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("row 3")

    seen = []
    with pytest.raises(ValueError, match="row 3"):
        seen.extend(iter_into(seen, feeding.ahead(items())))
    assert seen == [1, 2]


def iter_into(seen: list, stream):
    for item in stream:
        seen.append(item)
    return []


def test_items_that_nobody_wants_any_more_are_closed():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    stream = feeding.ahead(items())
    next(stream)
    stream.close()
    assert closed.is_set() and "adapt-ahead" not in threads()


def test_peeking_takes_nothing_away():
    assert feeding.peek([])[0] is None
    first, items = feeding.peek(range(3))
    assert (first, list(items)) == (0, [0, 1, 2])


def test_a_cpu_is_fed_without_a_thread():
    made_by = []

    def items():
        made_by.append(threading.current_thread())
        yield 0

    list(feeding.fed(items()))
    assert made_by == [threading.current_thread()]


def test_a_program_that_was_compiled_beside_is_not_compiled_by_its_call():
    program = jax.jit(lambda x: jnp.sin(x) @ x + 17)
    x = jax.device_put(np.ones((5, 5), np.float32), jax.local_devices()[0])

    def fails() -> None:
        raise RuntimeError("its first call will say why")

    shape = tree.shapes({"x": x})["x"]
    programs = [fails, lambda: program.lower(shape).compile()]
    with feeding.compiling_beside(programs) as wait:
        wait()
    counter = Compiling()
    program(x)
    assert counter.seconds == 0
