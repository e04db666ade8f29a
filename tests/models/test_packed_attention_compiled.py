"""Attention's kernels compiled for chips that are not here: no buffer holds tokens by tokens.

ADAPT_TPU_PYTHON names a Python with libtpu and JAX's plugin for CUDA: `make tpu`.
"""

import json
import subprocess

import pytest

from tests.helpers.tiny import ROOT, TPU_PYTHON, with_gpu_compiler

ROWS, HEADS = 3, 2
# Tokens that blocks do not divide, and that no other size of the program is; a width that is no
# power of two.
CASES = [
    {"chip": "h100:1", "dtype": "bfloat16", "tokens": 300, "width": 64, "pattern": "segments"},
    {"chip": "h100:1", "dtype": "bfloat16", "tokens": 700, "width": 80, "pattern": "joint"},
    {"chip": "a100:1", "dtype": "float32", "tokens": 333, "width": 80, "pattern": "causal"},
    {"chip": "v5e:1x1", "dtype": "bfloat16", "tokens": 300, "width": 64, "pattern": "segments"},
    {"chip": "v5e:1x1", "dtype": "float32", "tokens": 333, "width": 80, "pattern": "causal"},
]
PROGRAM = """
import json, math, re, sys
import jax, jax.numpy as jnp
from adapt.models.attention_pattern import AttentionPattern
from adapt.models.packed_attention import joint_attention, packed_attention
from experiments.benchmark.aot import chips, hlo

case = json.loads(sys.argv[1])
topology = chips.topology(case["chip"])
device = jax.sharding.SingleDeviceSharding(topology.devices()[0])
platform = "gpu" if topology.chip.gpu else "tpu"
rows, heads, tokens, width = case["shape"]

def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

def loss(q, k, v, segments, words, upstream):
    pattern = AttentionPattern(segments, causal=case["pattern"] == "causal")
    if case["pattern"] == "joint":
        qkv = jnp.stack([q, k, v]).transpose(1, 3, 0, 2, 4)
        out = joint_attention(qkv, pattern, 0.1, words).transpose(0, 2, 1, 3)
    else:
        out = packed_attention(q, k, v, pattern, 0.1, words, platform=platform)
    return (out * upstream).astype(jnp.float32).sum()

states = like((rows, heads, tokens, width), case["dtype"])
arguments = (states, states, states, like((rows, tokens), jnp.int32), like((2,), jnp.uint32), states)
compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
program = hlo.read(compiled.as_text())
largest = 0
kernels = []
for name, computation in program.computations.items():
    for instruction in computation.instructions.values():
        if hlo.attention_kernel(instruction):
            kernels.append(hlo.attention_kernel(instruction))
        if name == program.entry:
            largest = max(largest, *(math.prod(sizes) for _, sizes in instruction.shapes), 0)
print(json.dumps({"kernels": sorted(kernels), "largest": largest}))
"""


@with_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([case["chip"], case["dtype"], case["pattern"]])
)
def test_no_buffer_of_a_compiled_program_holds_tokens_by_tokens(case):
    shape = [ROWS, HEADS, case["tokens"], case["width"]]
    command = [str(TPU_PYTHON), "-c", PROGRAM, json.dumps(case | {"shape": shape})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["kernels"] == ["dkv", "dq", "forward"]
    # Neither the weights, [R, H, C, C], nor a mask, [R, C, C].
    assert found["largest"] < ROWS * case["tokens"] ** 2
