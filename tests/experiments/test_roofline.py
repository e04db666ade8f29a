"""The roofline counts what a kernel multiplies, computes and moves, each as often as it runs."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmark.aot import hlo, roofline
from experiments.benchmark.aot.chips import CHIPS

H100 = CHIPS["h100"]

# As a GPU's and a TPU's compiler write: a lookup, a write in place, a call of cuBLAS, copies
# between a TPU's memories, a loop.
PROGRAM = """\
HloModule it, is_scheduled=true

%looked_up (p0: f32[30000,64], p1: s32[8,1]) -> f32[8,64] {
  %p0 = f32[30000,64]{1,0} parameter(0)
  %p1 = s32[8,1]{1,0} parameter(1)
  ROOT %rows = f32[8,64]{1,0} gather(%p0, %p1), offset_dims={1}, collapsed_slice_dims={0}
}

%written (p2: f32[100,64], p3: f32[1,64], p4: s32[]) -> f32[100,64] {
  %p2 = f32[100,64]{1,0} parameter(0)
  %p3 = f32[1,64]{1,0} parameter(1)
  %p4 = s32[] parameter(2)
  ROOT %update = f32[100,64]{1,0} dynamic-update-slice(%p2, %p3, %p4, %p4)
}

%computed (p5: f32[8,64], p6: u32[8,64]) -> (f32[8,64], u32[8,64]) {
  %p5 = f32[8,64]{1,0} parameter(0)
  %p6 = u32[8,64]{1,0} parameter(1)
  %doubled = f32[8,64]{1,0} add(%p5, %p5)
  %tanh = f32[8,64]{1,0} tanh(%doubled)
  %bits = u32[8,64]{1,0} xor(%p6, %p6)
  ROOT %both = (f32[8,64]{1,0}, u32[8,64]{1,0}) tuple(%tanh, %bits)
}

%body (state: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %state = (s32[], f32[8,64]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %value = f32[8,64]{1,0} get-tuple-element(%state), index=1
  %negated = f32[8,64]{1,0} negate(%value), metadata={op_name="jit(f)/block_03/neg"}
  ROOT %next = (s32[], f32[8,64]{1,0}) tuple(%count, %negated)
}

%condition (held: (s32[], f32[8,64])) -> pred[] {
  %held = (s32[], f32[8,64]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: f32[30000,64], b: s32[8,1], c: f32[100,64], d: u32[8,64]) -> f32[8,64] {
  %a = f32[30000,64]{1,0} parameter(0)
  %b = s32[8,1]{1,0} parameter(1)
  %c = f32[100,64]{1,0} parameter(2)
  %d = u32[8,64]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %lookup.1 = f32[8,64]{1,0} fusion(%a, %b), kind=kLoop, calls=%looked_up
  %row = f32[1,64]{1,0} slice(%lookup.1), slice={[0:1], [0:64]}
  %write.1 = f32[100,64]{1,0} fusion(%c, %row, %zero), kind=kLoop, calls=%written
  %compute.1 = (f32[8,64]{1,0}, u32[8,64]{1,0}) fusion(%lookup.1, %d), kind=kLoop, calls=%computed
  %x = f32[8,64]{1,0} get-tuple-element(%compute.1), index=0
  %product = (f32[8,8]{1,0}, s8[4194304]{0}) custom-call(%x, %lookup.1), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %away = (f32[8,64]{1,0:S(1)}, f32[8,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[8,64]{1,0:S(1)} copy-done(%away)
  %quick = f32[8,64]{1,0:S(1)} add(%near, %near)
  %begin = (s32[], f32[8,64]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,64]{1,0}) while(%begin), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""
ROW = 4 * 64
ROWS = 8 * ROW
BYTES = {
    "lookup.1": 2 * ROWS + 4 * 8,  # the rows that are looked up, and their numbers
    "row": 2 * ROW,
    "write.1": ROW + 2 * ROW + 4,  # what is written, and where it goes read and written
    "compute.1": 4 * ROWS,
    "product": 2 * ROWS + 4 * 8 * 8,  # without cuBLAS's own workspace
    "away": ROWS,
    "quick": 0,  # from fast memory to fast memory
    "negated": 2 * ROWS,
}


def by_name() -> dict[str, roofline.Kernel]:
    return {kernel.name: kernel for kernel in roofline.kernels(hlo.read(PROGRAM))}


def test_what_moves_is_what_is_touched():
    assert {name: kernel.nbytes for name, kernel in by_name().items()} == BYTES


JOINT = """\
HloModule it, is_scheduled=true

ENTRY %main (qkv: bf16[2,8,12,16], upstream: bf16[2,8,4,16]) -> bf16[2,8,3,4,16] {
  %qkv = bf16[2,8,12,16]{3,2,1,0} parameter(0)
  %upstream = bf16[2,8,4,16]{3,2,1,0} parameter(1)
  %first = bf16[2,8,12,16]{3,2,1,0} custom-call(%qkv, %qkv, %qkv, %upstream), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="packed_attention_dq_joint"}
  ROOT %whole = bf16[2,8,3,4,16]{4,3,2,1,0} custom-call(%qkv, %upstream, %qkv, %qkv, %first), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="packed_attention_dkv_joint"}
}
"""


def test_gradients_that_two_kernels_write_into_one_array_are_moved_once():
    found = {kernel.name: kernel for kernel in roofline.kernels(hlo.read(JOINT))}
    third = 2 * 8 * 4 * 16 * 2
    assert found["first"].nbytes == 3 * third + third + third
    assert found["whole"].nbytes == 3 * third + third + 2 * third
    scores = 2 * 4 * 8 * 8
    assert found["first"].float_ops == scores * (7 + roofline.DEAR["exponential"])
    assert found["whole"].integer_ops == scores * 5


def test_products_and_operations_are_counted_apart():
    found = by_name()
    assert found["product"].products == 2 * 8 * 8 * 64
    assert found["compute.1"].float_ops == 8 * 64 * (1 + roofline.DEAR["tanh"])
    assert found["compute.1"].integer_ops == 8 * 64
    assert sum(kernel.products for kernel in found.values()) == 2 * 8 * 8 * 64


def test_a_loop_runs_its_kernels_as_often_as_it_turns():
    found = by_name()
    assert {name for name, kernel in found.items() if kernel.times != 1} == {"negated"}
    assert found["negated"].times == 5
    (row,) = [row for row in roofline.rows(found.values(), H100) if "block" in row.source]
    assert (row.source, row.kernels, row.limit) == ("jit(f)/block_*/neg", 5, "start")


def test_a_loop_of_unknown_length_is_refused():
    program = hlo.read(PROGRAM.replace("known_trip_count", "some_trip_count"))
    with pytest.raises(ValueError, match="unknown length"):
        roofline.kernels(program)


def test_the_slowest_part_and_the_start_are_what_a_kernel_takes():
    kernel = roofline.Kernel("it", "", 3, products=766e9, float_ops=0, integer_ops=0, nbytes=1e6)
    assert kernel.limit(H100) == "products"
    assert kernel.seconds(H100) == pytest.approx(3 * (1e-3 + 2e-6))
    copy = roofline.Kernel("it", "", 1, products=0, float_ops=0, integer_ops=0, nbytes=3352e6)
    assert copy.limit(H100) == "bytes"
    assert copy.seconds(H100) == pytest.approx(1e-3 / 0.8 + 2e-6)


@settings(max_examples=20)
@given(
    rows=st.integers(8, 64), width=st.integers(8, 64), turns=st.integers(1, 5), grad=st.booleans()
)
def test_products_are_those_of_the_whole_program(rows, width, turns, grad):
    """Of programs that are compiled here, with loops and gradients."""

    def function(w, x):
        def turn(x, _):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(turn, x, length=turns)[0].sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((width, width), (rows, width))]
    text = jax.jit(jax.grad(function) if grad else function).lower(*shapes).compile().as_text()
    program = hlo.read(text)
    found = roofline.kernels(program)
    assert sum(kernel.times * kernel.products for kernel in found) == hlo.dot_flops(program)
    assert all(math.isfinite(kernel.seconds(H100)) and kernel.nbytes >= 0 for kernel in found)
    total = roofline.total_seconds(found, H100)
    assert sum(row.seconds for row in roofline.rows(found, H100)) == pytest.approx(total)
