"""TPU slices and hosts with GPUs that there are only on paper: their chips' figures, and topologies
to compile for.

The figures are the vendors' (cloud.google.com/tpu/docs/v5e and /v5p; NVIDIA's data sheets of A100
SXM 80 GB and H100 SXM): dense bfloat16 FLOP/s, memory, and the bandwidth of the links between
chips, all links of a chip together, read as what leaves it. Of a v5e's 16 GB the compiler leaves
15.75 GiB to a program; of a GPU's memory JAX takes three quarters if XLA_PYTHON_CLIENT_MEM_FRACTION
says nothing else. What the compiler has to know of a GPU is as in openxla/xla,
xla/backends/gpu/target_config/specs.
"""

import dataclasses
import math
import os
import re
from importlib import metadata
from typing import Any

import jax

from adapt.errors import MeshError


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a kernel reaches on one chip, a second."""

    products: float  # FLOPs of bfloat16 matrix products
    floats: float  # other operations on float32, in the vector units
    integers: float
    bandwidth: float  # bytes of the memory
    start: float = 0.0  # seconds that each kernel costs beside its work


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a slice, or one GPU of a host."""

    name: str
    flops: float  # a second, bfloat16
    memory: float  # bytes that a program may use
    links: float  # bytes a second that leave a chip over all its links
    dimensions: int  # of the torus: there are two links for each; 1: every chip reaches every other
    longest: int  # side of a slice
    source: str
    rates: Rates
    # what a GPU's compiler asks of it, beside what is the same for all
    gpu: dict[str, Any] | None = None


# Fields of XLA's GpuDeviceInfoProto.
GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}
H100 = {
    "cuda_compute_capability": "{ major: 9 }",
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "memory_bandwidth": 3352320000000,
    "device_memory_size": 84942979072,
}
A100 = {
    "cuda_compute_capability": "{ major: 8 }",
    "core_count": 108,
    "fpus_per_core": 64,
    "shared_memory_per_core": 167936,
    "shared_memory_per_block_optin": 166912,
    "l2_cache_size": 41943040,
    "clock_rate_ghz": 1.41,
    "memory_bandwidth": 2039040000000,
    "device_memory_size": 85100068864,
}
# A vector unit of a TPU has 8 x 128 lanes and four operations at once in each (jax-ml.github.io/
# scaling-book/tpus); the bandwidths are the vendors'. A kernel reaches these only at its best.
V5E_VECTOR = 8 * 128 * 4 * 1.5e9
V5P_VECTOR = 2 * 8 * 128 * 4 * 1.75e9
# An H100 was measured at 766 TFLOP/s of products. Four fifths of its bandwidth and 2 microseconds a
# kernel are assumed, so that two steps that were measured there come out (docs/aot.md).
A100_VECTOR = 108 * 64 * 1.41e9
H100_VECTOR = 132 * 128 * 1.98e9
CHIPS = {
    "v5e": Chip(
        name="v5e",
        flops=197e12,
        memory=15.75 * 2**30,
        links=1600e9 / 8,
        dimensions=2,
        longest=16,
        source="cloud.google.com/tpu/docs/v5e",
        rates=Rates(197e12, V5E_VECTOR, V5E_VECTOR, 819e9),
    ),
    "v5p": Chip(
        name="v5p",
        flops=459e12,
        memory=95e9,
        links=4800e9 / 8,
        dimensions=3,
        longest=28,
        source="cloud.google.com/tpu/docs/v5p",
        rates=Rates(459e12, V5P_VECTOR, V5P_VECTOR, 2765e9),
    ),
    "h100": Chip(
        name="h100",
        flops=989e12,
        memory=0.75 * H100["device_memory_size"],
        links=900e9 / 2,
        dimensions=1,
        longest=8,
        source="NVIDIA's data sheet",
        rates=Rates(766e12, H100_VECTOR, H100_VECTOR / 2, 0.8 * 3352e9, 2e-6),
        gpu=H100,
    ),
    "a100": Chip(
        name="a100",
        flops=312e12,
        memory=0.75 * A100["device_memory_size"],
        links=600e9 / 2,
        dimensions=1,
        longest=8,
        source="NVIDIA's data sheet",
        rates=Rates(0.8 * 312e12, A100_VECTOR, A100_VECTOR, 0.8 * 2039e9, 2e-6),
        gpu=A100,
    ),
}
ENVIRONMENT = {  # libtpu asks no server what machine this is, and does not keep others from it
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process holds a chip here
}
CUDNN = 9, 10  # its version that programs are compiled for
BY_CUBLAS = "--xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Topology:
    """``v5e:4x4``: a kind of chip and the sides of the slice; ``h100:8``: GPUs of one host."""

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    @property
    def compiler(self) -> str:
        """What compiles for it, with versions. Raises :class:`MeshError` where that is not
        installed.
        """
        kind = "GPU" if self.chip.gpu else "TPU"
        package = "jax-cuda12-plugin" if self.chip.gpu else "libtpu"
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MeshError(
                f"compiling for a {kind} takes {package}, which is not installed here: "
                f"pip install -e '.[{kind.lower()}-compile]'"
            ) from None
        return f"{package} {version}, jax {jax.__version__}"

    def devices(self) -> list[Any]:
        """The devices to compile for. Raises :class:`MeshError` without the compiler, or where it
        knows no such slice.
        """
        compiler = self.compiler.split(" ")[0]
        jax.config.update("jax_platforms", "cpu")  # there is no accelerator to look for
        try:
            return list((self.gpus() if self.chip.gpu else self.tpus()).devices)
        # Which error it is depends on what is wrong with the name.
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            said = " ".join(str(error).split())[:150]
            raise MeshError(
                f"--topology {self.name}: {compiler} can't make it ({said}): give one as v5e:4x4 "
                "or h100:8"
            ) from None

    def tpus(self) -> Any:
        """A slice of TPUs."""
        from jax.experimental import topologies

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        host = [min(2, side) for side in self.sides[:2]] + [1]
        return topologies.get_topology_desc(
            platform="tpu", topology_name=self.name, chips_per_host_bounds=host
        )

    def gpus(self) -> Any:
        """The GPUs of a host."""
        from jax._src.cudnn import fused_attention_stablehlo
        from jax.experimental import topologies

        # It would ask this machine for its version.
        fused_attention_stablehlo.check_cudnn_version = cudnn_version
        prefer_cublas()
        fields = GPU | (self.chip.gpu or {})
        info = " ".join(f"{name}: {value}" for name, value in fields.items())
        target = f"""
            gpu_device_info {{ {info} }}
            platform_name: "CUDA"
            device_description_str: "{self.chip.name}"
            dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
            runtime_version {{ major: 12 minor: 8 }}
        """
        return topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{self.chips}", target_config=target
        )


def cudnn_version() -> int:
    """The version of cuDNN that programs are compiled for, as cuDNN writes it."""
    return CUDNN[0] * 10000 + CUDNN[1] * 100


def prefer_cublas() -> None:
    """Have XLA do all matrix products by cuBLAS: where no kernel can be timed, its own products are
    guesses, of which some don't compile.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and "--" not in flags:
        return  # they are in a file
    if BY_CUBLAS.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {BY_CUBLAS}".strip()


def topology(name: str) -> Topology:
    """Read ``v5e:4x4``. Raises :class:`MeshError` for anything else."""
    kind, _, sides = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        kinds = ", ".join(CHIPS)
        raise MeshError(
            f"--topology {name}: there is no such slice: give one of {kinds} and its sides, as "
            "in v5e:4x4 or h100:8"
        )
    chip = CHIPS[kind]
    made = Topology(name, chip, tuple(int(side) for side in sides.split("x")))
    if len(made.sides) != chip.dimensions:
        many = f"{chip.dimensions} sides" if chip.dimensions > 1 else "a single number"
        raise MeshError(
            f"--topology {name}: a slice of {kind} has {many}, as in v5e:4x4, v5p:8x8x8 or h100:8"
        )
    if max(made.sides) > chip.longest:  # libtpu would end the process
        what = f"host with {kind}" if chip.gpu else f"side of a {kind} slice"
        raise MeshError(f"--topology {name}: a {what} has at most {chip.longest} chips")
    return made
