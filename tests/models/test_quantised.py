"""Int8 kernels with a scale for each output, and kernels in bfloat16: stored so, and multiplied exactly."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.errors import TrainingError
from adapt.models import Encoder, Model, dequantise, peft, quantise
from adapt.models.quantised import Kernel, multiply
from adapt.training.losses import cross_entropy
from adapt.training.step import cast_kernels
from tests.helpers.small import SHALLOW, batch, classifier, params
from tests.helpers.tiny import ROOT, TPU_PYTHON, with_gpu_compiler

LORA = {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ".*"}


def kernel_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_no_number_is_further_from_its_integer_than_half_a_scale():
    kernel = kernel_of((40, 7)) * np.logspace(-6, 3, 7, dtype=np.float32)
    kernel[:, 3] = 0
    values, scale = quantise(kernel)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.abs(values).max(0).tolist() == [127, 127, 127, 0, 127, 127, 127]
    error = np.abs(dequantise(values, scale) - kernel)
    assert np.all(error <= 0.5001 * scale)
    again, same_scale = quantise(dequantise(values, scale))
    np.testing.assert_array_equal(again, values)
    np.testing.assert_allclose(same_scale[kernel.any(0)], scale[kernel.any(0)], rtol=1e-6)
    on_device, scale_on_device = quantise(jnp.asarray(kernel))
    np.testing.assert_array_equal(on_device, values)
    np.testing.assert_array_equal(scale_on_device, scale)


def test_kernels_of_several_kinds_multiply_as_one_float_kernel_would():
    x = kernel_of((3, 8), 1)
    one = Kernel(*quantise(kernel_of((8, 4), 2)))
    two = Kernel(*quantise(kernel_of((8, 2), 3)))
    half = Kernel(kernel_of((8, 2), 4).astype(jnp.bfloat16))
    plain = Kernel(kernel_of((8, 2), 5))
    for kernels in ([one], [one, two], [half], [half, half], [one, half], [one, plain]):
        whole = np.concatenate([kernel.in_dtype(jnp.float32) for kernel in kernels], 1)
        product = multiply(jnp.asarray(x), *kernels)
        np.testing.assert_allclose(product, x @ whole, rtol=1e-5, atol=1e-5)
        assert multiply(jnp.asarray(x, jnp.bfloat16), *kernels).dtype == jnp.bfloat16


@pytest.mark.parametrize("family", ["bert", "grouped"])
def test_an_int8_base_and_its_float_weights_give_lora_the_same_gradients(family):
    """One program computes both, with attention's kernels side by side and each by itself."""
    model = Model(Encoder(peft.with_peft(SHALLOW[family], LORA)), classifier(family).head)
    trained = params(model)
    lora = tree.select(trained, peft.is_peft_param)
    base = tree.select(trained, lambda path: not peft.is_peft_param(path))
    stored = cast_kernels(base, jnp.int8)
    inputs = batch(family)

    def loss(lora, base):
        outputs = model.apply(tree.merge(base, lora), inputs, jax.random.key(1))
        return cross_entropy(outputs, inputs["label"]).sum(), outputs

    differentiate = jax.value_and_grad(loss, has_aux=True)

    @jax.jit
    def both(lora, stored, meant):
        return differentiate(lora, stored), differentiate(lora, meant)

    ((_, outputs), grads), ((_, expected), expected_grads) = both(lora, stored, meant_by(stored))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    expected_leaves = tree.paths(expected_grads)
    for path, grad in tree.paths(grads).items():
        largest = np.abs(expected_leaves[path]).max()
        np.testing.assert_allclose(grad, expected_leaves[path], atol=1e-5 * largest, err_msg=path)
        assert largest > 0


def meant_by(stored):
    """The float32 parameters that int8 ones stand for."""
    leaves = tree.paths(stored)
    meant = {}
    for path, leaf in leaves.items():
        scale = leaves.get(f"{path}_scale")
        if not path.endswith("_scale"):
            meant[path] = leaf if scale is None else dequantise(leaf, scale)
    return tree.unflatten(meant)


def test_norms_biases_embeddings_and_the_head_stay_as_they_are():
    before = tree.paths(params(classifier("bert")))
    stored = tree.paths(cast_kernels(params(classifier("bert")), jnp.int8))
    kernels = {path for path in before if path.startswith("encoder/") and path.endswith("kernel")}
    assert stored.keys() == before.keys() | {f"{path}_scale" for path in kernels}
    assert {path for path, leaf in stored.items() if leaf.dtype == np.int8} == kernels
    for path in before.keys() - kernels:
        assert stored[path] is before[path]


def test_a_loop_over_int8_blocks_never_holds_them_in_float32():
    """The compiled program's temporaries are of one layer, and not of all kernels."""
    layers, width = 16, 256

    def loss(a, values, scale, x):
        def body(x, layer):
            values, scale, a = layer
            return jnp.tanh(multiply(x, Kernel(values, scale)) + (x @ a) @ a.T), None

        x, _ = jax.lax.scan(body, x, (values, scale, a))
        return (x**2).sum()

    shapes = [
        jax.ShapeDtypeStruct((layers, width, 2), jnp.float32),
        jax.ShapeDtypeStruct((layers, width, width), jnp.int8),
        jax.ShapeDtypeStruct((layers, width), jnp.float32),
        jax.ShapeDtypeStruct((8, width), jnp.float32),
    ]
    compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    of_all = 4 * layers * width**2
    assert compiled.memory_analysis().temp_size_in_bytes < of_all / 2


LAYERS, WIDTH = 16, 1024
UNROLLED = f"""
import json
import jax, jax.numpy as jnp
from adapt.models.quantised import Kernel, multiply
from experiments.benchmark.aot import chips

device = jax.sharding.SingleDeviceSharding(chips.topology("h100:1").devices()[0])

def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

def loss(loras, kernels, x):
    for a, kernel in zip(loras, kernels):
        x = jnp.tanh(multiply(x, Kernel(*kernel)) + (x @ a) @ a.T)
    return (x**2).sum()

loras = [like(({WIDTH}, 4), jnp.bfloat16)] * {LAYERS}
int8 = (like(({WIDTH}, {WIDTH}), jnp.int8), like(({WIDTH},), jnp.float32))
x = like((64, {WIDTH}), jnp.bfloat16)
compiled = jax.jit(jax.grad(loss)).lower(loras, [int8] * {LAYERS}, x).compile()
print(json.dumps(compiled.memory_analysis().temp_size_in_bytes))
"""


@with_gpu_compiler
@pytest.mark.slow
def test_unrolled_int8_layers_on_a_gpu_never_hold_all_kernels_in_bfloat16():
    command = [str(TPU_PYTHON), "-c", UNROLLED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    temporary = json.loads(done.stdout.splitlines()[-1])
    assert temporary < LAYERS * WIDTH**2  # half of the kernels in bfloat16


@pytest.mark.parametrize("dtype", ["int4", "int16", "uint8"])
def test_integers_without_a_scale_are_refused(dtype):
    with pytest.raises(TrainingError, match="int8 ones have a scale"):
        cast_kernels(params(classifier("bert")), jnp.dtype(dtype))
