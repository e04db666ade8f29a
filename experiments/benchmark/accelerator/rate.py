"""What the device is, and the rate of its matrix products: what shares of it are measured by."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from adapt.run_folder import versions
from experiments.benchmark import peers
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings


def measure(told: Settings) -> Iterator[Row]:
    """One row: FLOP/s of bfloat16 products, and where."""
    device = jax.local_devices()[0]
    yield {
        "status": "measured",
        "side": "adapt",
        "device": device.device_kind,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "platform": device.platform,
        "flops": product_rate(device.platform != "cpu"),
        "versions": versions(),
    }


def product_rate(is_accelerator: bool, repeats: int = 3) -> float:
    """FLOP/s of bfloat16 matrix products, the fastest of two sizes, many between two looks at the
    device.
    """
    product = jax.jit(lambda a, b: a @ b)

    def multiply(matrix: Any) -> Any:
        result = matrix
        for _ in range(peers.PRODUCTS):
            result = product(result, matrix)
        return result.block_until_ready()

    fastest = 0.0
    for size in peers.rate_sizes(is_accelerator):
        normal = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
        rates = peers.matmul_rates(multiply, normal / math.sqrt(size), repeats)
        fastest = max(fastest, max(rates) * 1e9 * peers.PRODUCTS)
    return fastest
