"""The reader of compiled programs counts what runs: products plain, batched, in loops and calls,
and collectives once a channel.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark.aot import hlo
from experiments.benchmark.aot.hlo import (
    attention_flops_again,
    collectives,
    dot_flops,
    read,
)


def counted(function, *shapes, named: str = "") -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return dot_flops(read(text), named)


def test_one_product():
    assert counted(lambda a, b: jnp.tanh(a @ b), (32, 48), (48, 64)) == 2 * 32 * 48 * 64


def test_batched_and_transposed_products():
    assert (
        counted(lambda a, b: jnp.einsum("nij,nkj->nik", a, b), (5, 16, 24), (5, 40, 24))
        == 2 * 5 * 16 * 24 * 40
    )


def test_a_loop_counts_as_often_as_it_runs():
    def function(a, b):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ b @ b), a)

    assert counted(function, (32, 48), (48, 48)) == 7 * 2 * 2 * 32 * 48 * 48


def test_a_gradient_costs_two_products_more():
    flops = counted(jax.grad(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum()), (48, 48), (32, 48))
    assert flops == (2 + 3) * 2 * 32 * 48 * 48  # x itself needs no gradient


def test_what_is_computed_again_is_told_by_its_name():
    def function(w, x):
        again = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))
        return jax.lax.scan(lambda x, _: (again(x), None), x, length=3)[0].sum()

    one = 2 * 32 * 48 * 48
    assert (
        counted(jax.grad(function), (48, 48), (32, 48))
        - counted(jax.grad(function), (48, 48), (32, 48), named="rematted_computation")
        == 3 * 6 * one
    )


def test_a_loop_of_unknown_length_is_refused():
    def function(a, b):
        return jax.lax.while_loop(lambda x: x.sum() < 5, lambda x: jnp.tanh(x @ b), a)

    with pytest.raises(ValueError, match="unknown length"):
        counted(function, (32, 48), (48, 48))


def count_pairs(
    length: int, kernel: int, stride: int, low: int, high: int, holes: int, spread: int
) -> int:
    """Pairs of an element and a place of the kernel, along one dimension, counted one by one."""
    elements = [0] * low
    for index in range((length - 1) * holes + 1):
        elements.append(1 if index % holes == 0 else 0)
    elements += [0] * high
    pairs = 0
    for start in range(0, len(elements) - (kernel - 1) * spread, stride):
        for place in range(kernel):
            pairs += elements[start + place * spread]
    return pairs


def test_convolutions_count_neither_padding_nor_holes():
    def function(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            window_strides=(2, 1),
            padding=((1, 2), (0, 3)),
            lhs_dilation=(1, 2),
            rhs_dilation=(2, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    rows = count_pairs(9, 3, stride=2, low=1, high=2, holes=1, spread=2)
    columns = count_pairs(5, 2, stride=1, low=0, high=3, holes=2, spread=1)
    assert counted(function, (4, 9, 5, 6), (3, 2, 6, 8)) == 2 * 4 * 8 * 6 * rows * columns


# A loop as a TPU program has it: no trip count beside it, a batched product as a convolution, a
# gather in two fusions.
TPU = """HloModule jit_step

%started (x: bf16[64,32]) -> bf16[64,128] {
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=3, GROUPS
}

%sum (one: f32[], two: f32[]) -> f32[] {
  %one = f32[]{:T(128)} parameter(0)
  %two = f32[]{:T(128)} parameter(1)
  ROOT %added = f32[]{:T(128)} add(%one, %two)
}

%done (y: bf16[64,32]) -> bf16[64,128] {
  %y = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%y), channel_id=3, GROUPS
}

%all-reduce-scatter.5 (input: f32[512,1024]) -> f32[512,256] {
  %input = f32[512,1024]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.4 = f32[512,1024]{1,0:T(8,128)} all-reduce(%input), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %part = f32[512,256]{1,0:T(8,128)} slice(%all-reduce.4), slice={[0:512], [0:256]}
}

%body (state: (s32[], bf16[64,32], bf16[8,16,512,64])) -> (s32[], bf16[64,32], bf16[8,16,512,64]) {
  %state = (s32[]{:T(128)}, bf16[64,32]{1,0}, bf16[8,16,512,64]{3,2,1,0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%state), index=0
  %copied = s32[]{:T(128)} copy(%at)
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%copied, %one)
  %weights = bf16[64,32]{1,0} get-tuple-element(%state), index=1
  %q = bf16[8,16,512,64]{3,2,1,0} get-tuple-element(%state), index=2
  %first = bf16[64,128]{1,0} fusion(%weights), kind=kCustom, calls=%started
  %second = bf16[64,128]{1,0} fusion(%weights), kind=kCustom, calls=%done
  %scores = bf16[8,16,512,512]{2,3,1,0} convolution(%q, %q), WINDOW
  ROOT %after = (s32[]{:T(128)}, bf16[64,32]{1,0}, bf16[8,16,512,64]{3,2,1,0}) tuple(%next, %weights, %q)
}

%condition (state.1: (s32[], bf16[64,32], bf16[8,16,512,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %state.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}, bf16[8,16,512,64]{3,2,1,0}) parameter(0)
  %at.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%at.1, %limit), direction=LT
}

ENTRY %main (a: bf16[64,32], q.1: bf16[8,16,512,64], g: f32[512,1024]) -> f32[512,256] {
  %a = bf16[64,32]{1,0} parameter(0)
  %q.1 = bf16[8,16,512,64]{3,2,1,0} parameter(1)
  %g = f32[512,1024]{1,0} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %begin = s32[]{:T(128)} copy(%zero)
  %before = (s32[]{:T(128)}, bf16[64,32]{1,0}, bf16[8,16,512,64]{3,2,1,0}) tuple(%begin, %a, /*index=2*/%q.1)
  %loop = (s32[]{:T(128)}, bf16[64,32]{1,0}, bf16[8,16,512,64]{3,2,1,0}) while(%before), condition=%condition, body=%body
  %sent = (bf16[64,32]{1,0}, bf16[64,32]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=9, PAIRS
  ROOT %fusion.7 = f32[512,256]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.5
}
"""
TPU = TPU.replace("GROUPS", "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}")
TPU = TPU.replace(
    "WINDOW", "window={size=8x16 stride=7x15 lhs_dilate=8x16}, dim_labels=01bf_01oi->01bf"
)
TPU = TPU.replace("PAIRS", "source_target_pairs={{0,1},{1,0}}")


def test_a_product_of_a_tpu_counts_as_often_as_its_loop_runs():
    assert dot_flops(read(TPU)) == 24 * 2 * 8 * 16 * 512 * 512 * 64


GPU = """
ENTRY %main (x: bf16[32,512,768], w: bf16[3072,768], q: bf16[4,512,12,64], k: bf16[4,640,12,64]) -> bf16[4,12,512,64] {
  %x = bf16[32,512,768]{2,1,0} parameter(0)
  %w = bf16[3072,768]{1,0} parameter(1)
  %q = bf16[4,512,12,64]{3,2,1,0} parameter(2)
  %k = bf16[4,640,12,64]{3,2,1,0} parameter(3)
  %up = (bf16[32,512,3072]{2,1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", CONTRACTED
  %mixed = (bf16[4,12,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %grads = (bf16[4,12,512,64]{3,1,2,0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %out = bf16[4,12,512,64]{3,1,2,0} get-tuple-element(%mixed), index=0
}
"""
GPU = GPU.replace(
    "CONTRACTED",
    'backend_config={"gemm":{"lhs_contracting_dimensions":["2"],"lhs_batch_dimensions":[]}}',
)


def test_products_of_a_gpu_s_libraries_are_counted():
    dense, scores = 2 * 32 * 512 * 3072 * 768, 2 * 4 * 12 * 512 * 640 * 64
    assert dot_flops(read(GPU)) == dense + 2 * scores + 5 * scores
    assert dot_flops(read(GPU), named="cublas") == dense


PACKED = """
ENTRY %main (q: bf16[4,512,12,64], k: bf16[4,640,12,64]) -> bf16[4,512,12,64] {
  %q = bf16[4,512,12,64]{3,2,1,0} parameter(0)
  %k = bf16[4,640,12,64]{3,2,1,0} parameter(1)
  %mixed = (bf16[4,512,12,64]{3,2,1,0}, f32[4,12,512,1]{3,2,1,0}) custom-call(%q, %k, %k), FORWARD
  %dq = bf16[4,512,12,64]{3,2,1,0} custom-call(%q, %k, %k), DQ
  %dkv = (bf16[4,640,12,64]{3,2,1,0}, bf16[4,640,12,64]{3,2,1,0}) custom-call(%q, %q, %k, %k), DKV
  ROOT %out = bf16[4,512,12,64]{3,2,1,0} get-tuple-element(%mixed), index=0
}
"""
for kernel in ("forward", "dq", "dkv"):
    named = f'metadata={{op_name="jit(step)/jvp(packed_attention_{kernel})/pallas_call"}}'
    call = f'custom_call_target="__gpu$xla.gpu.triton", {named}'
    PACKED = PACKED.replace(kernel.upper(), call)


def test_products_of_the_project_s_own_kernels_are_counted():
    scores = 2 * 4 * 12 * 512 * 640 * 64
    assert dot_flops(read(PACKED)) == (2 + 3 + 4) * scores
    assert attention_flops_again(read(PACKED)) == (1 + 2) * scores
    tpu = PACKED.replace("__gpu$xla.gpu.triton", "tpu_custom_call")
    tpu = tpu.replace("4,512,12,64", "4,12,512,64").replace("4,640,12,64", "4,12,640,64")
    assert dot_flops(read(tpu)) == dot_flops(read(PACKED))
    with pytest.raises(ValueError, match="a matrix product in a library call"):
        dot_flops(read(PACKED.replace("packed_attention", "another")))
    norms = re.sub(r"packed_attention_\w+", "norm_of_sum_backward", PACKED)
    assert dot_flops(read(norms)) == 0  # a kernel that multiplies no matrices


def test_queries_keys_and_values_of_one_array_are_counted_once():
    alone = PACKED.replace("4,640,12,64", "4,512,12,64")
    joint = alone.replace("%k", "%q").replace("4,512,12,64", "4,512,36,64")
    for kernel in ("forward", "dq", "dkv"):
        joint = joint.replace(f"packed_attention_{kernel}", f"packed_attention_{kernel}_joint")
    assert dot_flops(read(joint)) == dot_flops(read(alone))


def test_a_product_of_a_library_that_can_not_be_read_is_refused():
    changes = [
        ("__cublas$lt$matmul", other)
        for other in ("__onednn$matmul", "LibMatMul", "__cudnn$convForward", "__triton_call")
    ]
    for old, new in [*changes, ("lhs_contracting_dimensions", "another_word")]:
        with pytest.raises(ValueError, match="a matrix product in a library call"):
            dot_flops(read(GPU.replace(old, new)))


def test_collectives_have_their_kind_their_bytes_their_group_and_their_number():
    every = collectives(read(TPU))
    found = {each.kind: each for each in every}
    assert len(found) == len(every) == 3
    assert found["all-gather"] == hlo.Collective("all-gather", ("bf16",), 64 * 128 * 2, 4, 24)
    assert found["reduce-scatter"] == hlo.Collective(
        "reduce-scatter", ("f32",), 512 * 1024 * 4, 4, 1
    )
    assert found["collective-permute"] == hlo.Collective(
        "collective-permute", ("bf16",), 64 * 32 * 2, 2, 1
    )
    assert found["all-gather"].sent == 64 * 128 * 2 * 3 / 4
    assert found["collective-permute"].sent == 64 * 32 * 2


def test_a_sum_that_bears_the_channel_of_a_gather_is_counted_too():
    """Channels begin anew in the fusions of a sum and its scatter: a third of BERT-large's
    gradients was missed.
    """
    same_channel = TPU.replace("channel_id=8", "channel_id=3")
    assert collectives(read(same_channel)) == collectives(read(TPU))


@pytest.mark.parametrize(
    "change",
    [
        ("constant(24)", "parameter(1)"),
        ("direction=LT", "direction=NE"),
        ("add(%copied", "multiply(%copied"),
    ],
)
def test_a_loop_whose_trips_can_not_be_read_is_refused(change):
    program = read(TPU.replace(*change))
    for count in (dot_flops, collectives):
        with pytest.raises(ValueError, match="unknown length"):
            count(program)


@pytest.mark.parametrize(
    ("spelling", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        (
            "replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=16], "
            "device_ids=([4,16]T(1,0)) {'axis_1'}, dimensions={1}",
            4,
        ),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1':(2)4}", 8),
    ],
)
def test_groups_in_every_spelling(spelling, size):
    assert hlo.group_size(spelling) == size


def test_groups_in_a_spelling_that_is_not_known_are_refused():
    """Taken for groups of one device, such a collective would send nothing."""
    for spelling in ("replica_groups={}", "replica_groups=other[4]", ""):
        with pytest.raises(ValueError, match="groups can't be read"):
            hlo.group_size(spelling)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        read("nothing")
