"""Work beside the device's: batches are made, and programs compiled, while it computes.

    for batch in ahead(batches): ...            # made by a thread, up to four ahead

    with compiling_beside([lower, ...]) as wait:      # in a thread, one after the other
        ...                                     # train
        wait()                                  # before the programs are called

On a CPU nothing of this is used: the threads would take from the device what they give it.
"""

import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from adapt.devices import this_device

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

AHEAD = 4  # items that are ready before they are asked for
PATIENCE = 0.1  # seconds between looks at whether anybody still wants an item


def ahead(items: Iterable[Item], size: int = AHEAD) -> Iterator[Item]:
    """The same items in the same order, made by a thread, up to ``size`` of them before they are
    asked for.

    What ``items`` raises is raised here, after the items before it. Where the items are no longer
    wanted, the thread closes ``items`` and ends.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    unwanted = threading.Event()

    def put(is_item: bool, value: Any) -> bool:
        """Whether somebody will take it."""
        while not unwanted.is_set():
            try:
                ready.put((is_item, value), timeout=PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(True, item):
                    return
            put(False, None)
        except BaseException as error:  # it belongs to whoever asks for the item
            put(False, error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=make, name="adapt-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        unwanted.set()
        thread.join()


def fed(items: Iterable[Item]) -> Iterator[Item]:
    """The same items: on an accelerator made by a thread ahead of use, on a CPU as they are."""
    return ahead(items) if this_device().is_accelerator else iter(items)


def peek(items: Iterable[Item]) -> tuple[Item | None, Iterator[Item]]:
    """(the first item, or None where there is none; all items)."""
    iterator = iter(items)
    for first in iterator:
        return first, itertools.chain([first], iterator)
    return None, iterator


@contextlib.contextmanager
def compiling_beside(programs: Iterable[Callable[[], Any]]) -> Iterator[Callable[[], None]]:
    """Inside, a thread calls ``programs`` one after the other, each of which compiles one; yields
    what waits until it has done so.

    XLA compiles without Python's lock, so a step runs meanwhile. What is compiled lies in JAX's
    caches; a program that can't be compiled here is left to its first call, which says why.
    """

    def compile_all() -> None:
        for compile_program in programs:
            try:
                compile_program()
            except Exception as error:
                logger.debug("a program did not compile ahead of time: %s", error)

    thread = threading.Thread(target=compile_all, name="adapt-compiling", daemon=True)
    thread.start()
    try:
        yield thread.join
    finally:
        thread.join()
