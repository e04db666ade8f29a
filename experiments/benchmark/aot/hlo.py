"""What a compiled program does, read from its optimized HLO text: matrix products, collectives, loops times their trips.

Pure functions of the text of ``jax.stages.Compiled.as_text()``. On a CPU products are dots; on a GPU also calls of cuBLAS
and of cuDNN's attention; on a TPU they are convolutions, with batch dimensions as spatial ones, and collectives may be
spread over several fusions that overlap them with products.
"""

import dataclasses
import functools
import math
import re

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8} | {
    f"{s}{n}": n // 8 for s in "su" for n in (8, 16, 32, 64)
}
WORDS = "calls|to_apply|body|condition|branch_computations|called_computations|true_computation|false_computation"
CALLS = re.compile(rf"(?:{WORDS})=(\{{[^}}]*\}}|%[\w.-]+)")
SEEN_THROUGH = ("copy", "copy-start", "copy-done", "bitcast", "convert", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    operation: str
    shapes: tuple[
        tuple[str, tuple[int, ...]], ...
    ]  # (type, sizes) of the result, or of each part of a tuple
    operands: tuple[str, ...]
    text: str  # the whole line
    root: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shapes[0][1]

    @property
    def constant(self) -> int | None:
        found = re.search(r"[su]\d+\[\]\S* constant\((-?\d+)\)", self.text)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(each for each in self.instructions.values() if each.root)

    def behind(self, name: str) -> Instruction:
        """The instruction whose value ``name`` is, through copies."""
        found = self.instructions[name]
        while found.operation in SEEN_THROUGH and found.operands:
            found = self.instructions[found.operands[0]]
        return found


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as one device sees it."""

    kind: str  # of KINDS
    types: tuple[str, ...]
    nbytes: int  # of the larger side: what a gather puts out, what a reduction takes
    group: int  # devices that take part with one another
    times: int  # that it runs

    @property
    def sent(self) -> float:
        """Bytes that leave a device each time, with the usual ring: both halves of an all-reduce, each but its own share."""
        share = (self.group - 1) / self.group
        return self.nbytes * {
            "all-reduce": 2 * share,
            "collective-permute": 1.0,
            "collective-broadcast": 1.0,
        }.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def times(self) -> dict[str, int | None]:
        """How often each computation runs; None where a loop around it has no trip count that can be read."""
        found: dict[str, int | None] = dict.fromkeys(self.computations, 0)

        def enter(name: str, times: int | None) -> None:
            before = found[name]
            found[name] = None if before is None or times is None else before + times
            for each in self.computations[name].instructions.values():
                inner = times
                if each.operation == "while" and times is not None:
                    trips = self.trips(self.computations[name], each)
                    inner = None if trips is None else times * trips
                for called in CALLS.findall(each.text):
                    for target in re.findall(r"%[\w.-]+", called):
                        enter(target, inner)

        enter(self.entry, 1)
        return found

    def trips(self, where: Computation, loop: Instruction) -> int | None:
        """Of a loop: as XLA writes it, or from a counter that its condition compares with a constant."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
            return int(found[1])
        called = dict(re.findall(r"(condition|body)=(%[\w.-]+)", loop.text))
        condition = self.computations[called["condition"]]
        body = self.computations[called["body"]]
        test = condition.root
        state = where.behind(loop.operands[0])
        if (
            test.operation != "compare"
            or "direction=LT" not in test.text
            or state.operation != "tuple"
        ):
            return None
        counter, limit = (condition.behind(name) for name in test.operands)
        index = re.search(r"index=(\d+)", counter.text)
        if index is None or limit.constant is None or body.root.operation != "tuple":
            return None
        first = where.behind(state.operands[int(index[1])]).constant
        added = body.behind(body.root.operands[int(index[1])])
        parts = [body.behind(name) for name in added.operands]
        goes_on = any(
            each.operation == "get-tuple-element" and f"index={index[1]}" in each.text
            for each in parts
        )
        step = next((each.constant for each in parts if each.constant is not None), None)
        if first is None or step is None or added.operation != "add" or not goes_on or step < 1:
            return None
        return max(-(-(limit.constant - first) // step), 0)


def read(text: str) -> Program:
    """The computations of a program. Raises :class:`ValueError` where there is no entry."""
    computations: dict[str, Computation] = {}
    entry = ""
    inside = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line):
            inside: dict[str, Instruction] = {}
            computations[header[2]] = Computation(header[2], inside)
            entry = header[2] if header[1] else entry
        elif found := re.match(r"\s+(ROOT )?(%[\w.-]+) = (.*)$", line):
            result, rest = split(found[3])
            operation, _, operands = rest.partition("(")
            shapes = re.findall(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]", result)
            sizes = tuple(
                (kind, tuple(int(size) for size in dims.split(",") if size))
                for kind, dims in shapes
            )
            names = tuple(re.findall(r"%[\w.-]+", closed("(" + operands)))
            inside[found[2]] = Instruction(
                found[2], operation.strip(), sizes, names, line, bool(found[1])
            )
    if not entry:
        raise ValueError("there is no entry computation in this text")
    return Program(computations, entry)


def split(text: str) -> tuple[str, str]:
    """``"(f32[2], s32[]) while(...), ..."`` -> the type, the rest."""
    end = len(closed(text)) if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].strip()


def closed(text: str) -> str:
    """From the parenthesis that ``text`` begins with to the one that closes it."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: index + 1]
    return text


def dot_flops(text: str, named: str = "") -> int:
    """Of all matrix products that run: 2 x the output's sizes x the contracted sizes.

    With ``named``, only of those in whose line it stands. Raises :class:`ValueError` for what would be counted wrongly: a
    product in a library call, a loop with products in it and no trip count that can be read.
    """
    program = read(text)
    total = 0
    for name, computation in program.computations.items():
        own = sum(
            product(each, computation)
            for each in computation.instructions.values()
            if named in each.text
        )
        times = program.times[name]
        if own and times is None:
            raise ValueError(f"a loop of unknown length around {name} multiplies matrices")
        total += own * (times or 0)
    return total


def product(each: Instruction, where: Computation) -> int:
    """FLOPs of one dot, convolution or call of a GPU's library, run once; 0 for anything else."""
    target = re.search(r'custom_call_target="(.*?)"', each.text)
    called = target[1] if target else ""
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)(.*?)[\]}]', each.text)
    known = (called.startswith("__cublas") and contracted) or called.startswith("__cudnn$fmha")
    if each.operation not in ("dot", "convolution") and not known:
        if re.search(r"(?i)matmul|gemm|dot|conv(?!ert)|triton", called) or each.operation in (
            "scaled-dot",
            "ragged-dot",
        ):
            raise ValueError(f"a matrix product in a library call: {each.text.strip()[:200]}")
        return 0
    left, right = (where.instructions[operand].sizes for operand in each.operands[:2])
    if called.startswith(
        "__cudnn"
    ):  # queries [R, C, H, K], keys [R, T, H, K]: two products, backward five, the scores again
        return (10 if "Backward" in called else 4) * math.prod(left) * right[1]
    if each.operation != "convolution":
        dims = re.findall(r"\d+", contracted[1]) if contracted else []
        return 2 * math.prod(each.sizes) * math.prod(left[int(dim)] for dim in dims)
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
    if names is None:
        raise ValueError(
            f"a convolution without the names of its dimensions: {each.text.strip()[:200]}"
        )
    size = lambda sizes, word, letter: sizes[word.index(letter)]
    pairs = 1
    for dim in filter(str.isdigit, names[3]):
        window = {
            word: part.split("x")[int(dim)]
            for word, part in re.findall(r"(\w+)=([0-9x_-]+)", braces(each.text, "window"))
        }
        pairs *= met(
            size(left, names[1], dim),
            size(right, names[2], dim),
            size(each.sizes, names[3], dim),
            window,
        )
    outside = size(each.sizes, names[3], "b") * size(each.sizes, names[3], "f")
    return 2 * outside * size(right, names[2], "i") * pairs


def met(length: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Pairs of an output and a place of the kernel, along one dimension, that meet an element: neither padding nor a hole."""
    stride, holes, spread = (
        int(window.get(word, 1)) for word in ("stride", "lhs_dilate", "rhs_dilate")
    )
    low = int(window.get("pad", "0_0").split("_")[0])
    at = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * spread
    return int(((at >= 0) & (at % holes == 0) & (at // holes < length)).sum())


def braces(text: str, word: str) -> str:
    """What stands in ``word={...}``, or nothing."""
    found = re.search(rf"{word}=\{{([^}}]*)\}}", text)
    return found[1] if found else ""


def collectives(text: str) -> list[Collective]:
    """Every collective that runs. One that is spread over fusions bears one channel there: it is counted once.

    Channels begin anew where TPU programs fuse a sum with its scatter, so kind and size must be the same too.

    Raises :class:`ValueError` for one in a loop with no trip count that can be read.
    """
    program = read(text)
    found = {}
    for name, computation in program.computations.items():
        for each in computation.instructions.values():
            kind = each.operation.removesuffix("-start")
            if kind not in KINDS or program.times[name] == 0:
                continue
            times = program.times[name]
            if times is None:
                raise ValueError(f"a loop of unknown length around {name} has a collective in it")
            taken = [
                shape
                for operand in each.operands
                for shape in computation.instructions[operand].shapes
            ]
            given = list(
                taken
                if each.operation in ("all-reduce-start", "collective-permute-start")
                else each.shapes
            )
            if each.operation == "all-gather-start":  # (what it takes, what it gives)
                given = given[len(taken) :]
            larger = max(taken, given, key=nbytes)
            kind = (
                "reduce-scatter" if name.startswith("%all-reduce-scatter") else kind
            )  # as TPU programs spell it
            channel = re.search(r"channel_id=(\d+)", each.text)
            made = Collective(
                kind, tuple(sorted({t for t, _ in larger})), nbytes(larger), group(each.text), times
            )
            place = (channel[1], kind, made.nbytes, made.group) if channel else (name, each.name)
            if place not in found or found[place].times < times:
                found[place] = made
    return list(found.values())


def nbytes(shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(BYTES.get(kind, 0) * math.prod(sizes) for kind, sizes in shapes)


def group(text: str) -> int:
    """How many devices a collective's groups have, in any of the spellings of HLO. Raises :class:`ValueError` for others."""
    if "source_target_pairs=" in text:
        return 2
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", text
    ):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        parts = re.findall(
            r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]
        )  # 'axis':(before)size is a part of an axis
        return math.prod(int(size) if size else axes[name] for name, size in parts)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([0-9,]+)\}", text):
        return len(found[1].split(","))
    raise ValueError(f"a collective whose groups can't be read: {text.strip()[:300]}")
