"""Matrix-product FLOPs of a compiled program, counted in its optimized HLO text: loops times their trip counts."""

import math
import re

SHAPE = r"\(?[a-z]+[0-9]*\[([0-9,]*)\]"
INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?(%[\w.-]+) = {SHAPE}.*?[ )}}]([a-z][\w-]*)\(")


def dot_flops(text: str) -> int:
    """2 x the product of the output's sizes x the product of the contracted sizes, over every dot that runs.

    Raises AssertionError for what it would count wrongly: a convolution, a matrix product in a library call, a loop
    with products in it and no known trip count.
    """
    own: dict[str, int] = {}  # FLOPs of each computation itself
    calls: dict[str, list[tuple[str, int | None]]] = {}  # what it calls, how often (None: unknown)
    shapes: dict[str, list[int]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line):
            name, shapes = header[2], {}
            own[name], calls[name] = 0, []
            entry = name if header[1] else entry
            continue
        if not (found := INSTRUCTION.match(line)):
            continue
        result, dims, operation = found.groups()
        shapes[result] = [int(size) for size in dims.split(",") if size]
        assert operation != "convolution" and not re.search(r'target="[^"]*(matmul|gemm|dot)', line), line
        if operation == "dot":
            left = re.search(r" dot\((?:[^%()]*)(%[\w.-]+)", line)
            contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", line)
            assert left and contracted, line
            sizes = [shapes[left[1]][int(dim)] for dim in contracted[1].split(",") if dim]
            own[name] += 2 * math.prod(shapes[result]) * math.prod(sizes)
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        times = (int(trips[1]) if trips else None) if operation == "while" else 1
        for called in re.findall(
            r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.-]+)", line
        ):
            calls[name] += [(each, times) for each in re.findall(r"%[\w.-]+", called)]

    def total(computation: str) -> int:
        flops = own[computation]
        for called, times in calls[computation]:
            inner = total(called)
            assert not inner or times is not None, f"a loop of unknown length in {computation} multiplies matrices"
            flops += inner * (times or 0)
        return flops

    assert entry, "there is no entry computation in this text"
    return total(entry)
