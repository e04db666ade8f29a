"""TPU slices that there are only on paper: their chips' figures, and topologies to compile for without a TPU.

The figures are those of the vendor's pages "TPU v5e" and "TPU v5p" (cloud.google.com/tpu/docs/v5e and /v5p): dense bfloat16
FLOP/s, memory, and the bandwidth of the links between chips, all links of a chip together, read as what leaves it. Of a
v5e's 16 GB the compiler leaves 15.75 GiB to a program.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from adapt.errors import MeshError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a slice."""

    name: str
    flops: float  # a second, bfloat16
    memory: float  # bytes that a program may use
    links: float  # bytes a second that leave a chip over all its links
    dimensions: int  # of the torus: there are two links for each
    longest: int  # side of a slice


CHIPS = {
    "v5e": Chip("v5e", 197e12, 15.75 * 2**30, 1600e9 / 8, 2, 16),
    "v5p": Chip("v5p", 459e12, 95e9, 4800e9 / 8, 3, 28),
}
ENVIRONMENT = {  # libtpu asks no server what machine this is, and does not keep others from it
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process holds a chip here
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """``v5e:4x4``: a kind of chip and the sides of the slice."""

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    def devices(self) -> list[Any]:
        """The devices to compile for. Raises :class:`MeshError` without libtpu, or where it knows no such slice."""
        if importlib.util.find_spec("libtpu") is None:
            raise MeshError("compiling for a TPU takes libtpu, which is not installed here: pip install 'adapt[tpu-compile]'")
        from jax.experimental import topologies

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not os.environ.get("JAX_PLATFORMS"):
            jax.config.update("jax_platforms", "cpu")  # there is no TPU to look for
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name).devices)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as fault:  # by what is wrong with the name
            said = " ".join(str(fault).split())[:150]
            raise MeshError(f"--topology {self.name}: libtpu can't make it ({said}): give one as v5e:4x4") from None


def topology(name: str) -> Topology:
    """Read ``v5e:4x4``. Raises :class:`MeshError` for anything else."""
    kind, _, sides = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise MeshError(f"--topology {name}: there is no such slice: give one of {', '.join(CHIPS)} and its sides, as in v5e:4x4")
    found = Topology(name, CHIPS[kind], tuple(map(int, sides.split("x"))))
    if len(found.sides) != found.chip.dimensions:
        raise MeshError(f"--topology {name}: a slice of {kind} has {found.chip.dimensions} sides, as in v5e:4x4 or v5p:8x8x8")
    if max(found.sides) > found.chip.longest:  # libtpu would end the process
        raise MeshError(f"--topology {name}: a side of a {kind} slice has at most {found.chip.longest} chips")
    return found
