"""The largest micro-batch, and the cheapest rematerialisation, whose step fits a device's memory.

What a step needs is what its compiled program says, which is exact. A compilation takes some 20
seconds on an accelerator, so few are made: bytes grow almost linearly with the examples, and a line
through two measurements says where to look next.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from adapt.errors import StrategyError

# From the cheapest in time to the cheapest in memory.
REMAT_KINDS = ("none", "dots", "block")
MOST_COMPILATIONS = 4  # that look for the largest batch, of one kind

# (kind of remat, examples of a micro-batch, micro-batches) -> bytes that the step needs at once;
# infinite where the compiler refuses it.
Measure = Callable[[str, int, int], float]


@dataclasses.dataclass(frozen=True)
class MemoryFit:
    """What to type for a batch of so many examples, and what would fit besides.

    ``remat`` and ``accumulate`` (micro-batches a step) are options of a run. ``nbytes`` is what the
    step then needs of ``memory``, both in bytes. ``tokens`` are those of a micro-batch, padding
    among them. ``largest`` is the most examples of a step that fit without micro-batches and with
    this ``remat``: a whole batch could be as large. ``measured`` has the bytes of each program that
    was compiled, by kind, examples of a micro-batch and micro-batches.
    """

    strategy: str
    batch_size: int
    accumulate: int
    remat: str
    nbytes: int
    memory: int
    tokens: int
    largest: int
    measured: Mapping[tuple[str, int, int], float]

    @property
    def micro_batch(self) -> int:
        """Examples that are computed at once."""
        return self.batch_size // self.accumulate

    @property
    def options(self) -> dict[str, Any]:
        """What :func:`adapt.finetune` takes for it."""
        return {
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "remat": self.remat,
        }

    def to_json(self) -> dict[str, Any]:
        """The fields by name, with a list of what was measured."""
        measured = []
        for key, nbytes in self.measured.items():
            measured.append([*key, None if nbytes == float("inf") else nbytes])
        return dataclasses.asdict(self) | {"measured": measured}


class Measured:
    """Bytes of the steps that were compiled, each once."""

    def __init__(self, measure: Measure, memory: float) -> None:
        self.measure = measure
        self.memory = memory
        self.found: dict[tuple[str, int, int], float] = {}

    def nbytes(self, remat: str, micro_batch: int, accumulate: int) -> float:
        """The bytes that a step needs; infinite where the compiler refuses it."""
        key = (remat, micro_batch, accumulate)
        if key not in self.found:
            self.found[key] = self.measure(*key)
        return self.found[key]

    def fits(self, remat: str, micro_batch: int, accumulate: int) -> bool:
        """Whether a step needs no more than the device's memory."""
        return self.nbytes(remat, micro_batch, accumulate) <= self.memory


def fit_memory(
    measure: Measure,
    memory: int,
    batch_size: int,
    *,
    strategy: str = "full",
    tokens_of: Callable[[int], int],
    busy_tokens: float = 0.0,
    most_examples: int | None = None,
) -> MemoryFit:
    """How a step of ``batch_size`` examples fits ``memory`` bytes.

    The first of :data:`REMAT_KINDS` is taken whose largest micro-batch that fits is the whole batch,
    or has ``busy_tokens`` at least: as many as keep a device busy, so that computing the rest again
    would cost more than smaller matrices. Else it is the kind with the largest micro-batch.
    Micro-batches are equal parts of the batch. ``tokens_of`` are the tokens of one of so many
    examples; ``most_examples`` bounds ``largest``, by default at 64 batches.

    Raises :class:`StrategyError` where not even one example fits.
    """
    steps = Measured(measure, memory)
    best: tuple[int, str] | None = None  # micro-batch, kind
    for remat in REMAT_KINDS:
        micro_batch = largest_part(steps, remat, batch_size)
        if micro_batch is None:
            continue
        if best is None or micro_batch > best[0]:
            best = (micro_batch, remat)
        if micro_batch == batch_size or tokens_of(micro_batch) >= busy_tokens > 0:
            break
    if best is None:
        least = min(steps.found.values())
        raise StrategyError(
            f"a step of {strategy} with one example at a time needs {gib(least)} GiB, and there are "
            f"{gib(memory)}: give fewer tokens an example (`max_length`), a smaller encoder, or a "
            "strategy that trains less"
        )
    micro_batch, remat = best
    accumulate = batch_size // micro_batch
    largest = micro_batch
    if accumulate == 1:
        most = most_examples if most_examples is not None else 64 * batch_size
        largest = largest_batch(steps, remat, batch_size, max(most, batch_size))
    return MemoryFit(
        strategy=strategy,
        batch_size=batch_size,
        accumulate=accumulate,
        remat=remat,
        nbytes=int(steps.nbytes(remat, micro_batch, accumulate)),
        memory=memory,
        tokens=tokens_of(micro_batch),
        largest=largest,
        measured=steps.found,
    )


def gib(nbytes: float) -> str:
    """Bytes as a number of GiB."""
    return f"{nbytes / 2**30:.3g}"


def largest_part(steps: Measured, remat: str, batch_size: int) -> int | None:
    """The largest equal part of a batch whose step fits, or None where not even one example does."""
    if steps.fits(remat, batch_size, 1):
        return batch_size
    parts = [size for size in range(1, batch_size) if batch_size % size == 0]
    fitting = -1  # the index of the largest part that is known to fit
    refused = len(parts)  # and of the smallest that is known not to
    points = {batch_size: steps.nbytes(remat, batch_size, 1)}
    while refused - fitting > 1:
        guess = guess_part(parts, points, steps.memory, fitting, refused)
        size = parts[guess]
        points[size] = steps.nbytes(remat, size, batch_size // size)
        if points[size] <= steps.memory:
            fitting = guess
        else:
            refused = guess
    return parts[fitting] if fitting >= 0 else None


def guess_part(
    parts: list[int], points: Mapping[int, float], memory: float, fitting: int, refused: int
) -> int:
    """The index of the part to compile next, between ``fitting`` and ``refused``: the largest that
    should fit by :func:`line_at`; the middle one where there is no line.
    """
    examples = line_at(points, memory)
    if examples is None:
        return (fitting + refused) // 2 if fitting >= 0 else refused // 2
    inside = range(fitting + 1, refused)
    below = [index for index in inside if parts[index] <= examples]
    return below[-1] if below else inside[0]


def line_at(points: Mapping[int, float], memory: float) -> float | None:
    """How many examples should need ``memory``, by the line through the two measurements nearest to
    it; None without two finite ones, or where the bytes do not grow with the examples.
    """
    finite = [(size, nbytes) for size, nbytes in points.items() if nbytes < float("inf")]
    nearest = sorted(finite, key=lambda point: abs(point[1] - memory))[:2]
    if len(nearest) < 2:
        return None
    (small, of_small), (large, of_large) = sorted(nearest)
    if of_large <= of_small:
        return None
    return small + (memory - of_small) * (large - small) / (of_large - of_small)


def largest_batch(steps: Measured, remat: str, fitting: int, most: int) -> int:
    """The most examples that a step takes at once: ``fitting`` at least, a multiple of it from there
    on, and not more than ``most``.
    """
    points = {fitting: steps.nbytes(remat, fitting, 1)}
    refused = most + 1
    guess = min(2 * fitting, most)
    for _ in range(MOST_COMPILATIONS):
        if not fitting < guess < refused:
            break
        points[guess] = steps.nbytes(remat, guess, 1)
        if points[guess] <= steps.memory:
            fitting = guess
        else:
            refused = guess
        examples = line_at(points, steps.memory)
        if examples is None:
            break
        guess = min(int(examples), refused - 1)
    return fitting
