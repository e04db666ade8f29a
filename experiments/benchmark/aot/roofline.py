"""How long a compiled program takes at least, kernel by kernel, read from its optimized HLO text.

A kernel is what the device starts as one: a fusion, a call of a library, or an instruction of its
own. It takes as long as the slowest of what it does, and what starting it costs: its matrix
products at the rate of the matrix units, its other operations at that of the vector units, its
bytes at the bandwidth of the memory.

What this can't see: how well a kernel does what it does, data that another kernel left in a cache,
kernels and copies that run beside each other, what a fusion computes twice, and which blocks the
kernels of attention skip, which is in the data. Collectives are left out:
:func:`experiments.benchmark.aot.hlo.collectives` has them.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from experiments.benchmark.aot import hlo
from experiments.benchmark.aot.chips import Chip
from experiments.benchmark.aot.hlo import Computation, Instruction, Program

# Nothing is computed or moved for these.
FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
# Whose computations are entered, and which are not counted themselves.
CONTROL = {"while", "conditional", "call", "async-start", "async-update"}
# Only moved or looked up: their bytes count, and no operation.
MOVED = FREE | {
    "broadcast",
    "concatenate",
    "copy",
    "dynamic-slice",
    "dynamic-update-slice",
    "fusion",
    "gather",
    "iota",
    "pad",
    "reshape",
    "reverse",
    "slice",
    "transpose",
}
PRODUCTS = ("dot", "convolution", "custom-call")
REDUCTIONS = ("reduce", "reduce-window", "scatter", "sort")
# Operations of one element where it is more than one: those of the usual polynomials.
DEAR = {
    "divide": 8,
    "erf": 16,
    "exponential": 8,
    "exponential-minus-one": 8,
    "log": 8,
    "log-plus-one": 8,
    "power": 16,
    "rsqrt": 4,
    "sqrt": 4,
    "tanh": 16,
}
# What the kernels of adapt.models.packed_attention do with a score beside the products, as counted
# in the PTX of an H100's: operations on floats without the exponential (scale, mask, sums, dropout,
# conversions), and on integers (comparing segments and places, dropout's product).
OF_A_SCORE = {"forward": (9, 4), "dq": (7, 4), "dkv": (9, 5), "dbias": (7, 4)}
# What those of adapt.models.norm_kernels do with an element of what they read first.
OF_A_NORM = 16
BITS_OF_A_NORM = 14
# How often the size of the array of gradients is counted and not touched: one and two thirds of it
# not written, and the second kernel reads none of it.
JOINT_UNTOUCHED = {"dq": 2 / 3, "dkv": 1 / 3 + 1}
SLICES = ("dynamic-slice", "gather", "slice")
IN_PLACE = {"dynamic-update-slice": 1, "scatter": -1}  # which operand is the update
WORKSPACE = "s8"  # what a library call has for itself
ON_CHIP = "S(1)"  # in a layout: a TPU keeps it in its fast memory
BLOCK = re.compile(r"block_\d+")  # of the model; the blocks of one kind are listed together
NUMBER = re.compile(r"[._]\d+$")  # that XLA gives a name which is there already


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one kernel does each time, and how often it runs."""

    name: str
    source: str  # the operation of the model that it is made from
    times: int
    products: float  # FLOPs of matrix products
    float_ops: float
    integer_ops: float
    nbytes: float  # read and written

    def parts(self, chip: Chip) -> dict[str, float]:
        """Seconds of one run by what takes them; the largest counts."""
        rates = chip.rates
        return {
            "products": self.products / rates.products,
            "operations": self.float_ops / rates.floats + self.integer_ops / rates.integers,
            "bytes": self.nbytes / rates.bandwidth,
        }

    def seconds(self, chip: Chip) -> float:
        """The seconds of all its runs together."""
        return self.times * (chip.rates.start + max(self.parts(chip).values()))

    def limit(self, chip: Chip) -> str:
        """What takes longest: products, operations, bytes; or start, which is paid beside it."""
        parts = self.parts(chip) | {"start": chip.rates.start}
        return max(parts, key=lambda name: parts[name])


def kernels(program: Program) -> list[Kernel]:
    """The kernels of a program. Raises :class:`ValueError` for one in a loop with no trip count that
    can be read, and for a product that is not known.
    """
    found = []
    for name in started(program):
        times = program.times[name]
        if times is None:
            raise ValueError(f"a loop of unknown length runs {name}")
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            operation = instruction.operation
            is_kernel = operation not in FREE | CONTROL and not operation.endswith("-done")
            if times and is_kernel and operation.removesuffix("-start") not in hlo.KINDS:
                found.append(read_kernel(program, computation, instruction, times))
    return found


def started(program: Program) -> list[str]:
    """The computations whose instructions are kernels: the entry, and what control flow runs."""
    names = [program.entry]
    for name in names:
        for instruction in program.computations[name].instructions.values():
            if instruction.operation in CONTROL:
                called = hlo.called_computations(instruction)
                names += [each for each in called if each not in names]
    return names


def read_kernel(
    program: Program, where: Computation, instruction: Instruction, times: int
) -> Kernel:
    """One kernel, by its line in the computation ``where``."""
    inside = [(instruction, where)]
    if instruction.operation == "fusion":
        inside = list(fused(program, instruction))
    products = 0.0
    float_ops = 0.0
    integer_ops = 0.0
    for part, computation in inside:
        if part.operation in PRODUCTS:
            products += hlo.product_flops(part, computation)
            kernel = hlo.attention_kernel(part)
            if kernel:
                scores, _ = hlo.attention_sizes(part, computation)
                floats, integers = OF_A_SCORE[kernel]
                float_ops += (floats + DEAR["exponential"]) * scores
                integer_ops += integers * scores
            if hlo.is_norm_kernel(part):
                elements = math.prod(computation.instructions[part.operands[0]].sizes)
                float_ops += OF_A_NORM * elements
                integer_ops += BITS_OF_A_NORM * elements
            continue
        count = operations(part, computation)
        if part.shapes and is_float(part.shapes[0][0]):
            float_ops += count
        else:
            integer_ops += count
    source = re.search(r'op_name="([^"]*)"', instruction.text)
    return Kernel(
        name=instruction.name.lstrip("%"),
        source=source[1] if source else "",
        times=times,
        products=products,
        float_ops=float_ops,
        integer_ops=integer_ops,
        nbytes=moved_bytes(program, where, instruction),
    )


def fused(program: Program, fusion: Instruction) -> Iterable[tuple[Instruction, Computation]]:
    """Every instruction of a fusion, with the computation that it stands in."""
    for name in hlo.called_computations(fusion):
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            yield instruction, computation
            if instruction.operation == "fusion":
                yield from fused(program, instruction)


def is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


def operations(instruction: Instruction, where: Computation) -> float:
    """Operations of the vector units; a reduction has one for each element that it takes."""
    if instruction.operation in MOVED or not instruction.shapes:
        return 0.0
    elements = math.prod(instruction.sizes)
    if instruction.operation in REDUCTIONS:
        taken = [where.instructions[name].shapes[0][1] for name in instruction.operands]
        elements = max(math.prod(sizes) for sizes in taken)
    return float(elements * DEAR.get(instruction.operation, 1))


def moved_bytes(program: Program, where: Computation, instruction: Instruction) -> float:
    """Bytes that a kernel reads and writes: its operands and results, and of one that is sliced,
    looked up or written in place only what is touched.
    """
    if instruction.operation == "fusion":
        (called, *_) = hlo.called_computations(instruction)
        body = program.computations[called]
        total = outside_bytes(instruction)
        for inner in body.instructions.values():
            if inner.operation == "parameter":
                total += touched_bytes(inner, body)
            elif inner.operation in IN_PLACE:
                update = inner.operands[IN_PLACE[inner.operation]]
                written = outside_bytes(body.instructions[update])
                total += 2 * written - outside_bytes(inner)
        return max(total, 0.0)
    if instruction.operation.endswith("-start"):  # a TPU copies between its memories
        arriving = instruction.shapes[-2 if instruction.operation == "slice-start" else 0]
        return float(hlo.nbytes([arriving]))
    if instruction.operation in SLICES:
        return 2 * outside_bytes(instruction)
    # An array that is given twice is read once: attention's kernels read a third of it each time.
    operands = [where.instructions[name] for name in dict.fromkeys(instruction.operands)]
    moved = outside_bytes(instruction) + sum(outside_bytes(operand) for operand in operands)
    return moved - untouched_bytes(instruction)


def untouched_bytes(instruction: Instruction) -> float:
    """Bytes of the results of a kernel of attention, and of what they overwrite, that it leaves as
    they are: where queries, keys and values lie in one array, one kernel writes the first third of
    its gradient, and another the rest into the same memory.
    """
    kernel = hlo.attention_kernel(instruction)
    if kernel not in JOINT_UNTOUCHED or not hlo.JOINT.search(instruction.text):
        return 0.0
    return JOINT_UNTOUCHED[kernel] * hlo.nbytes(list(instruction.shapes[:1]))


def is_on_chip(instruction: Instruction) -> bool:
    """Whether a result stays in the fast memory of a TPU."""
    result, _ = hlo.split(instruction.text.partition(" = ")[2])
    return ON_CHIP in result


def outside_bytes(instruction: Instruction) -> float:
    """Bytes of a result in the device's large memory; the workspace of a library is not counted."""
    if is_on_chip(instruction):
        return 0.0
    shapes = [shape for shape in instruction.shapes if shape[0] != WORKSPACE]
    return float(hlo.nbytes(shapes))


def touched_bytes(parameter: Instruction, body: Computation) -> float:
    """Bytes of a fusion's operand that it reads."""
    whole = outside_bytes(parameter)
    touched = 0.0
    for user in body.instructions.values():
        if parameter.name not in user.operands:
            continue
        is_subject = user.operands[0] == parameter.name
        if is_subject and user.operation in SLICES:
            touched += hlo.nbytes(list(user.shapes))
        elif not is_subject or user.operation not in IN_PLACE:
            return whole
        # What is written in place is counted with its update.
    return min(touched, whole)


@dataclasses.dataclass(frozen=True)
class Row:
    """Kernels that are alike: of every block, say."""

    source: str
    kernels: int  # that run, each time counted
    seconds: float
    limit: str


def rows(found: Iterable[Kernel], chip: Chip) -> list[Row]:
    """Kernels of one source and one limit together; the longest first."""
    together: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in found:
        key = (source_of(kernel), kernel.limit(chip))
        together.setdefault(key, []).append(kernel)
    listed = []
    for (source, limit), alike in together.items():
        count = sum(kernel.times for kernel in alike)
        seconds = total_seconds(alike, chip)
        listed.append(Row(source, count, seconds, limit))
    return sorted(listed, key=lambda row: row.seconds, reverse=True)


def source_of(kernel: Kernel) -> str:
    """The operation of the model that a kernel is made from, that of every block the same; where it
    has none, the kernel's name without its number.
    """
    if kernel.source:
        return BLOCK.sub("block_*", kernel.source)
    return NUMBER.sub("", kernel.name)


def total_seconds(found: Iterable[Kernel], chip: Chip) -> float:
    """Seconds of all kernels, one after the other."""
    return sum(kernel.seconds(chip) for kernel in found)
