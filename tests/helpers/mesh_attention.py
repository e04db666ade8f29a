"""Attention's kernel on meshes of four devices, in a program of its own, which has them from its start.

    python -m tests.helpers.mesh_attention data=2,tensor=2 tensor=4

It prints a line of JSON a mesh: how often the kernel was traced, and how far values and gradients
of a model with dropout are from those of the reference on that mesh.
"""

import dataclasses
import json
import os
import sys
import types

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("NPROC", "64")  # threads enough for collectives that wait for each other

import jax
import jax.numpy as jnp
import numpy as np

from adapt.models import attention, packed_attention, set_contextvar, target_device
from adapt.models.packed_kernels import Blocks
from adapt.parallel import sharding
from tests.helpers import small

GPU = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
by_kernel = packed_attention.packed_attention
calls = []


def interpreted(*arrays, **options):
    calls.append(options)
    return by_kernel(*arrays, **options, interpret=True)


packed_attention.packed_attention = interpreted
packed_attention.BLOCKS["gpu"] = lambda *sizes: (Blocks(32, 32), Blocks(32, 32))


def report(mesh: str) -> dict:
    plain = small.classifier("small")
    tree = small.params(plain)
    model = dataclasses.replace(plain, layout=sharding.make_layout(mesh))
    batches = [small.inputs("bert", seed) for seed in range(model.layout.groups)]
    batch = {name: np.stack([each[name] for each in batches]) for name in batches[0]}

    def loss(tree):
        return jnp.sin(model.apply(tree, batch, jax.random.key(1))).sum()

    def value_and_gradient(allowed):
        function = jax.value_and_grad(loss)
        function = model.allow_fused_attention(function) if allowed else function
        with set_contextvar(target_device, GPU):
            return jax.jit(function)(tree)

    calls.clear()
    computed = value_and_gradient(True)
    traced = len(calls)
    expected = value_and_gradient(False)
    distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), computed, expected)
    return {"traced": traced, "distance": float(max(jax.tree.leaves(distances)))}


if __name__ == "__main__":
    assert attention.HEAD_AXIS in sharding.AXES
    for mesh in sys.argv[1:]:
        print(json.dumps(report(mesh)), flush=True)
