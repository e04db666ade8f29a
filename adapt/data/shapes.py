"""Which shapes batches have on a device: several where their programs compile at once, one or two
where that takes long.

    shape_rule(config)                  # for this process's device
    shape_rule(config, Device("gpu"))   # for another one

On a CPU a forward pass compiles in a moment, so evaluation has up to three shapes of 1,024 tokens; a
train step compiles for seconds, so a short run has one shape. On an accelerator every program
compiles for some 20 seconds, in which a step computes millions of tokens.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt.devices import Device, this_device
from adapt.models import EncoderConfig

BUDGET = 1024  # tokens of a batch that is only computed forward, on a CPU
SHORT = 128  # tokens of the rows of short texts
COMPILE_SECONDS = 20.0  # of a program on an accelerator; 18 for a step of MiniLM on an H100
RATE = 50e12  # FLOP/s of an encoder on an accelerator: less than half of MiniLM's on an H100
CPU_COMPILE_SECONDS = 3.0  # of a train step on a CPU; of MiniLM on two cores
CPU_RATE = 100e9  # FLOP/s of an encoder on two cores
ELEMENTS = 32_768 * 384  # of a matrix of states that keeps an accelerator busy
MOST = 65_536  # tokens of an evaluation batch, however narrow the model
MEMORY_SHARE = 1 / 8  # of the memory of an accelerator that an evaluation batch may take
MEMORY = 16 << 30  # bytes of an accelerator that does not say what it has
CHUNKS = 4  # of 4,096 texts, which are packed together on an accelerator
# What attention costs more in the longest rows than in short ones, as a share of all that a token
# costs: 4 C of 24 D + 4 C products for rows of C = 512 and states of D = 384.
LONG_ROWS = 0.2


@dataclasses.dataclass(frozen=True)
class ShapeRule:
    """How batches are shaped; the default is that of a CPU on which compiling costs nothing.

    ``tokens`` are those of an evaluation batch, R * C. ``compile_tokens`` are how many tokens a
    train step computes in the time in which its program compiles. With ``is_sparing`` evaluation,
    too, pads rather than have another shape.
    """

    tokens: int = BUDGET
    compile_tokens: float = 0.0
    is_sparing: bool = False

    def row_widths(self, lengths: np.ndarray, max_length: int) -> tuple[int, ...]:
        """The widths of rows for sequences of ``lengths``, in growing order.

        Short sequences do not pay for the attention of long rows, unless they are so few that this
        takes less time than a program of their own.
        """
        longest = round_up(max_length, 8)
        long = long_widths(longest)
        if not self.is_sparing:
            return tuple(sorted({min(64, longest), min(128, longest), *long}))
        longest = next(width for width in long if width >= lengths.max(initial=0))
        if longest <= SHORT:
            return (longest,)
        is_short = lengths <= SHORT
        if is_short.all():
            return (SHORT,)
        if LONG_ROWS * lengths[is_short].sum() < self.compile_tokens:
            return (longest,)
        return (SHORT, longest)

    def row_budgets(self, needed: np.ndarray, width: int) -> tuple[int, ...]:
        """Up to three budgets of rows of ``width`` tokens for batches that need so many, in growing
        order: those that pad least, of as many as cost less to compile than they save.
        """
        best: tuple[int, ...] = ()
        least = np.inf
        for count in (3, 2, 1):
            budgets, padded = least_padding(needed, count)
            cost = padded * width + len(budgets) * self.compile_tokens
            if cost < least:
                best = budgets
                least = cost
        return best

    def joined(self, chunks: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Chunks of texts, joined where a batch is so large that few of them would leave the last
        one of a chunk half empty.
        """
        if not self.is_sparing:
            yield from chunks
            return
        several: list[Any] = []
        for number, chunk in enumerate(chunks, 1):
            several += chunk
            if number % CHUNKS == 0:
                yield several
                several = []
        if several:
            yield several

    def images(self, tokens: int) -> int:
        """The images of an evaluation batch, of ``tokens`` each."""
        if not self.is_sparing:
            return 32
        return max(self.tokens // tokens // 8 * 8, 8)


CPU_SHAPES = ShapeRule()


def shape_rule(config: EncoderConfig, device: Device | None = None) -> ShapeRule:
    """How batches for an encoder are shaped on a device, by default on that of this process."""
    device = this_device() if device is None else device
    if not device.is_accelerator:
        return ShapeRule(compile_tokens=CPU_COMPILE_SECONDS * CPU_RATE / step_flops(config))
    memory = MEMORY_SHARE * (device.memory or MEMORY)
    most = min(MOST, ELEMENTS / config.width, memory / token_bytes(config))
    tokens = 1 << max(int(np.log2(most)), BUDGET.bit_length() - 1)
    return ShapeRule(tokens, COMPILE_SECONDS * RATE / step_flops(config), is_sparing=True)


def busy_tokens(config: EncoderConfig, device: Device | None = None) -> float:
    """How many tokens of a batch keep a device busy, by default that of this process."""
    device = this_device() if device is None else device
    return ELEMENTS / config.width if device.is_accelerator else BUDGET


def token_bytes(config: EncoderConfig) -> int:
    """Bytes that a token of a forward pass takes at once, at most: what a block computes of it in
    float32, and its weights of attention where these are written to memory; DeBERTa's terms have
    twice as many scores, for differences, and are added up before.
    """
    of_attention = 2 * (config.query_width + config.key_width)
    states = 2 * config.width + of_attention + config.mlp_kernels * config.mlp_width
    arrays = 2 + 3 * len(config.relative_terms)
    weights = arrays * config.heads * config.positions
    return 4 * (states + weights)


def step_flops(config: EncoderConfig) -> float:
    """FLOPs of a train step a token, without attention and the head; where there are no blocks, of the
    norm of the embedding.
    """
    of_attention = 2 * (config.query_width + config.key_width)
    weights = config.width * (of_attention + config.mlp_kernels * config.mlp_width)
    return 6.0 * max(config.layers * weights, config.width)


def long_widths(longest: int) -> list[int]:
    """The widths of rows for sequences of more than 128 tokens: 512, each double up to ``longest``,
    and that. A row of 40,960 tokens for a text of 200 would be computed, and kept, in vain.
    """
    widths = []
    width = 4 * SHORT
    while width < longest:
        widths.append(width)
        width *= 2
    return [*widths, longest]


def least_padding(needed: np.ndarray, count: int = 3) -> tuple[tuple[int, ...], int]:
    """(up to ``count`` budgets of rows, at most three, that pad batches of ``needed`` rows least, in
    growing order; the rows of all batches in these budgets).
    """
    values, counts = np.unique(needed, return_counts=True)
    batches_in = np.cumsum(counts)  # batches that a budget of values[i] holds
    most = values[-1]
    low, middle = np.triu_indices(len(values))  # every pair of budgets below the largest
    if count == 2:
        low, middle = low[low == middle], middle[low == middle]
    if count == 1:
        low = middle = np.array([len(values) - 1])
    padded = (
        values[low] * batches_in[low]
        + values[middle] * (batches_in[middle] - batches_in[low])
        + most * (batches_in[-1] - batches_in[middle])
    )
    best = padded.argmin()
    budgets = tuple(sorted({int(values[low[best]]), int(values[middle[best]]), int(most)}))
    return budgets, int(padded[best])


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-number // multiple) * multiple
