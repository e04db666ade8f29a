"""What a compiled program does, read from its optimized HLO text: matrix products, collectives,
loops times their trips.

Pure functions of a :class:`Program`, which :func:`read` makes of the text of
``jax.stages.Compiled.as_text()``. On a CPU products are dots; on a
GPU also calls of cuBLAS and of cuDNN's attention; on a TPU they are convolutions, with batch
dimensions as spatial ones, and collectives may be spread over several fusions that overlap them
with products.
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
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}
BYTES |= {"s8": 1, "s16": 2, "s32": 4, "s64": 8, "u8": 1, "u16": 2, "u32": 4, "u64": 8}
WORDS = "|".join(
    (
        "calls",
        "to_apply",
        "body",
        "condition",
        "branch_computations",
        "called_computations",
        "true_computation",
        "false_computation",
    )
)
CALLS = re.compile(rf"(?:{WORDS})=(\{{[^}}]*\}}|%[\w.-]+)")
# The kernels of adapt.models.packed_attention: how many matrix products of queries by keys each has,
# and how many of them another kernel has had before.
ATTENTION = re.compile(r"packed_attention_(forward|dq|dkv|dbias)")
ATTENTION_PRODUCTS = {"forward": (2, 0), "dq": (3, 1), "dkv": (4, 2), "dbias": (2, 2)}
JOINT = re.compile(r"packed_attention_\w+_joint")
NORM = re.compile(r"norm_of_sum_(forward|backward)")  # kernels of adapt.models.norm_kernels
PALLAS_TARGETS = ("__gpu$xla.gpu.triton", "tpu_custom_call")
SEEN_THROUGH = ("copy", "copy-start", "copy-done", "bitcast", "convert", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    operation: str
    # (type, sizes) of the result, or of each part of a tuple
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    text: str  # the whole line
    root: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shapes[0][1]

    @property
    def constant(self) -> int | None:
        match = re.search(r"[su]\d+\[\]\S* constant\((-?\d+)\)", self.text)
        return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(line for line in self.instructions.values() if line.root)

    def behind(self, name: str) -> Instruction:
        """The instruction whose value ``name`` is, through copies."""
        instruction = self.instructions[name]
        while instruction.operation in SEEN_THROUGH and instruction.operands:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


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
        """Bytes that leave a device each time, with the usual ring: both halves of an all-reduce,
        each but its own share.
        """
        share = (self.group - 1) / self.group
        shares = {
            "all-reduce": 2 * share,
            "collective-permute": 1.0,
            "collective-broadcast": 1.0,
        }
        return self.nbytes * shares.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a program by name, and the name of the one that it begins with."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def times(self) -> dict[str, int | None]:
        """How often each computation runs; None where a loop around it has no trip count that can
        be read.
        """
        counts: dict[str, int | None] = dict.fromkeys(self.computations, 0)

        def enter(name: str, times: int | None) -> None:
            before = counts[name]
            if before is None or times is None:
                counts[name] = None
            else:
                counts[name] = before + times
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                inner = times
                if instruction.operation == "while" and times is not None:
                    trips = self.trips(computation, instruction)
                    inner = None if trips is None else times * trips
                for target in called_computations(instruction):
                    enter(target, inner)

        enter(self.entry, 1)
        return counts

    def trips(self, where: Computation, loop: Instruction) -> int | None:
        """The trips of a loop: as XLA writes them, or from a counter that its condition compares
        with a constant.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
        if known:
            return int(known[1])
        called = dict(re.findall(r"(condition|body)=(%[\w.-]+)", loop.text))
        condition = self.computations[called["condition"]]
        body = self.computations[called["body"]]
        test = condition.root
        state = where.behind(loop.operands[0])
        counts_up = test.operation == "compare" and "direction=LT" in test.text
        if not counts_up or state.operation != "tuple":
            return None
        counter, limit = (condition.behind(name) for name in test.operands)
        index = re.search(r"index=(\d+)", counter.text)
        if index is None or limit.constant is None or body.root.operation != "tuple":
            return None
        first = where.behind(state.operands[int(index[1])]).constant
        added = body.behind(body.root.operands[int(index[1])])
        if first is None or added.operation != "add":
            return None
        step = None
        adds_to_counter = False
        for name in added.operands:
            term = body.behind(name)
            if term.operation == "get-tuple-element" and f"index={index[1]}" in term.text:
                adds_to_counter = True
            elif step is None:
                step = term.constant
        if step is None or step < 1 or not adds_to_counter:
            return None
        return max(-(-(limit.constant - first) // step), 0)


def called_computations(instruction: Instruction) -> list[str]:
    """The names of the computations that an instruction runs."""
    names = []
    for called in CALLS.findall(instruction.text):
        names += re.findall(r"%[\w.-]+", called)
    return names


def read(text: str) -> Program:
    """The computations of a program. Raises :class:`ValueError` where there is no entry."""
    computations: dict[str, Computation] = {}
    entry = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line)
        if header:
            instructions = {}
            computations[header[2]] = Computation(header[2], instructions)
            if header[1]:
                entry = header[2]
            continue
        instruction = read_instruction(line)
        if instruction:
            instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("there is no entry computation in this text")
    return Program(computations, entry)


def read_instruction(line: str) -> Instruction | None:
    """One line of a computation; None for a line that is no instruction."""
    match = re.match(r"\s+(ROOT )?(%[\w.-]+) = (.*)$", line)
    if match is None:
        return None
    result, rest = split(match[3])
    operation, _, operands = rest.partition("(")
    shapes = []
    for kind, dims in re.findall(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]", result):
        sizes = tuple(int(size) for size in dims.split(",") if size)
        shapes.append((kind, sizes))
    names = tuple(re.findall(r"%[\w.-]+", closed("(" + operands)))
    is_root = bool(match[1])
    return Instruction(match[2], operation.strip(), tuple(shapes), names, line, is_root)


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


def dot_flops(program: Program, named: str = "") -> int:
    """FLOPs of all matrix products that run: 2 x the output's sizes x the contracted sizes.

    With ``named``, only those count in whose line it stands. Raises :class:`ValueError` for what
    would be counted wrongly: a product in a library call, a loop with products in it and no trip
    count that can be read.
    """
    total = 0
    for name, computation in program.computations.items():
        once = 0
        for instruction in computation.instructions.values():
            if named in instruction.text:
                once += product_flops(instruction, computation)
        times = program.times[name]
        if once and times is None:
            raise ValueError(f"a loop of unknown length around {name} multiplies matrices")
        total += once * (times or 0)
    return total


def called_library(instruction: Instruction) -> str:
    """The target of a custom call, "" for anything else."""
    target = re.search(r'custom_call_target="(.*?)"', instruction.text)
    return target[1] if target else ""


def attention_kernel(instruction: Instruction) -> str | None:
    """Which kernel of :data:`ATTENTION` an instruction calls; None where it calls none."""
    if called_library(instruction) not in PALLAS_TARGETS:
        return None
    named = ATTENTION.search(instruction.text)
    return named[1] if named else None


def is_norm_kernel(instruction: Instruction) -> bool:
    """Whether an instruction calls a kernel of :data:`NORM`, which multiplies no matrices."""
    is_kernel = called_library(instruction) in PALLAS_TARGETS
    return is_kernel and NORM.search(instruction.text) is not None


def attention_sizes(instruction: Instruction, where: Computation) -> tuple[int, int]:
    """(how many scores a kernel of attention computes if it skips none, the width of a head)."""
    # dkv reads the gradient of the outputs between the queries and the keys.
    keys_at = 2 if attention_kernel(instruction) == "dkv" else 1
    queries, keys = (where.instructions[instruction.operands[at]].sizes for at in (0, keys_at))
    is_gpu = called_library(instruction) == PALLAS_TARGETS[0]
    tokens_at = -3 if is_gpu else -2  # [R, C, H, K], or [R, H, C, K]
    width = queries[-1]
    # Queries, keys and values may lie in one array, [R, C, 3 H, K].
    arrays = 3 if JOINT.search(instruction.text) else 1
    return math.prod(queries) // (arrays * width) * keys[tokens_at], width


def attention_flops_again(program: Program) -> int:
    """FLOPs of the products that kernels of attention compute although another has had them."""
    total = 0
    for name, computation in program.computations.items():
        for instruction in computation.instructions.values():
            kernel = attention_kernel(instruction)
            if kernel:
                scores, width = attention_sizes(instruction, computation)
                again = ATTENTION_PRODUCTS[kernel][1]
                total += 2 * again * scores * width * (program.times[name] or 0)
    return total


def product_flops(instruction: Instruction, where: Computation) -> int:
    """FLOPs of one dot, convolution or call of a library or kernel, run once; 0 for anything else.

    Of attention's kernels as if they skipped no block: what is skipped is in the data.
    """
    library = called_library(instruction)
    kernel = attention_kernel(instruction)
    if kernel:
        scores, width = attention_sizes(instruction, where)
        return 2 * ATTENTION_PRODUCTS[kernel][0] * scores * width
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)(.*?)[\]}]', instruction.text)
    is_cublas = library.startswith("__cublas") and contracted is not None
    is_attention = library.startswith("__cudnn$fmha")
    is_product = instruction.operation in ("dot", "convolution")
    if not is_product and not is_cublas and not is_attention:
        if not is_norm_kernel(instruction):
            refuse_unknown_product(instruction, library)
        return 0
    left, right = (where.instructions[name].sizes for name in instruction.operands[:2])
    if is_attention:
        # Queries [R, C, H, K], keys [R, T, H, K]: two products; backward five, the scores again.
        per_pair = 10 if "Backward" in library else 4
        return per_pair * math.prod(left) * right[1]
    if instruction.operation == "convolution":
        return convolution_flops(instruction, left, right)
    dims = re.findall(r"\d+", contracted[1]) if contracted else []
    contracted_size = math.prod(left[int(dim)] for dim in dims)
    return 2 * math.prod(instruction.sizes) * contracted_size


def refuse_unknown_product(instruction: Instruction, library: str) -> None:
    """Raise :class:`ValueError` for an instruction that looks like a product which is not counted
    here.
    """
    looks_like_one = re.search(r"(?i)matmul|gemm|dot|conv(?!ert)|triton", library)
    if looks_like_one or instruction.operation in ("scaled-dot", "ragged-dot"):
        line = instruction.text.strip()[:200]
        raise ValueError(f"a matrix product in a library call: {line}")


def convolution_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> int:
    """FLOPs of a convolution, by the names of its dimensions; padding and holes are not work."""
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    if names is None:
        line = instruction.text.strip()[:200]
        raise ValueError(f"a convolution without the names of its dimensions: {line}")
    left_names, right_names, out_names = names.groups()
    sizes = instruction.sizes
    window_entries = re.findall(r"(\w+)=([0-9x_-]+)", braces(instruction.text, "window"))
    pairs = 1
    for dim in filter(str.isdigit, out_names):
        window = {word: value.split("x")[int(dim)] for word, value in window_entries}
        length = left[left_names.index(dim)]
        kernel = right[right_names.index(dim)]
        pairs *= met(length, kernel, sizes[out_names.index(dim)], window)
    outside = sizes[out_names.index("b")] * sizes[out_names.index("f")]
    return 2 * outside * right[right_names.index("i")] * pairs


def met(length: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Pairs of an output and a place of the kernel, along one dimension, that meet an element:
    neither padding nor a hole.
    """
    stride = int(window.get("stride", 1))
    holes = int(window.get("lhs_dilate", 1))
    spread = int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * spread
    meets = (position >= 0) & (position % holes == 0) & (position // holes < length)
    return int(meets.sum())


def braces(text: str, word: str) -> str:
    """What stands in ``word={...}``, or nothing."""
    match = re.search(rf"{word}=\{{([^}}]*)\}}", text)
    return match[1] if match else ""


def collectives(program: Program) -> list[Collective]:
    """Every collective that runs. One that is spread over fusions bears one channel there: it is
    counted once.

    Channels begin anew where TPU programs fuse a sum with its scatter, so kind and size must be the
    same too.

    Raises :class:`ValueError` for one in a loop with no trip count that can be read.
    """
    distinct: dict[tuple, Collective] = {}
    for name, computation in program.computations.items():
        times = program.times[name]
        for instruction in computation.instructions.values():
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS or times == 0:
                continue
            if times is None:
                raise ValueError(f"a loop of unknown length around {name} has a collective in it")
            collective = read_collective(instruction, computation, times)
            channel = re.search(r"channel_id=(\d+)", instruction.text)
            if channel:
                key = (channel[1], collective.kind, collective.nbytes, collective.group)
            else:
                key = (name, instruction.name)
            if key not in distinct or distinct[key].times < times:
                distinct[key] = collective
    return list(distinct.values())


def read_collective(instruction: Instruction, where: Computation, times: int) -> Collective:
    """A collective by its line, in the computation ``where``."""
    inputs = []
    for name in instruction.operands:
        inputs += where.instructions[name].shapes
    if instruction.operation in ("all-reduce-start", "collective-permute-start"):
        outputs = inputs
    elif instruction.operation == "all-gather-start":  # its result is (inputs, outputs)
        outputs = list(instruction.shapes[len(inputs) :])
    else:
        outputs = list(instruction.shapes)
    larger = max(inputs, outputs, key=nbytes)
    kind = instruction.operation.removesuffix("-start")
    if where.name.startswith("%all-reduce-scatter"):  # as TPU programs spell it
        kind = "reduce-scatter"
    types = tuple(sorted({type_name for type_name, _ in larger}))
    return Collective(kind, types, nbytes(larger), group_size(instruction.text), times)


def nbytes(shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(BYTES.get(kind, 0) * math.prod(sizes) for kind, sizes in shapes)


def group_size(text: str) -> int:
    """How many devices a collective's groups have, in any of HLO's spellings. Raises
    :class:`ValueError` for others.
    """
    if "source_target_pairs=" in text:
        return 2
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", text
    )
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        size = 1
        # 'axis':(before)size is a part of an axis
        for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]):
            size *= int(part) if part else axes[name]
        return size
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", text)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([0-9,]+)\}", text)
    if listed:
        return len(listed[1].split(","))
    raise ValueError(f"a collective whose groups can't be read: {text.strip()[:300]}")
