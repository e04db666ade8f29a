"""The kernels of accelerators compute what the reference does, where they take it."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import (
    Encoder,
    Model,
    attention,
    norm_kernels,
    packed_attention,
    set_contextvar,
    target_device,
)
from adapt.tree import paths, unflatten
from tests.helpers.small import GROUPED, batch, classifier, params


def device(platform: str, compute_capability: str | None = None) -> types.SimpleNamespace:
    return types.SimpleNamespace(platform=platform, compute_capability=compute_capability)


TPU = device("tpu")
TURING = device("gpu", "7.5")
AMD = device("gpu", "gfx90a")
BLACKWELL = device("gpu", "10.0")


@pytest.fixture
def implementations(monkeypatch) -> list[str | None]:
    """The implementations that were asked for: of JAX, whose own computes in place of a missing
    library, and this project's kernel, which is interpreted.
    """
    dot_product_attention = jax.nn.dot_product_attention
    asked = []

    def interpret(module, name, said):
        by_kernel = getattr(module, name)

        def interpreted(*arrays, **options):
            asked.extend(said)
            return by_kernel(*arrays, **options, interpret=True)

        monkeypatch.setattr(module, name, interpreted)

    interpret(packed_attention, "packed_attention", ["packed"])
    interpret(packed_attention, "joint_attention", ["joint"])
    interpret(norm_kernels, "normalised_sum", [])
    interpret(norm_kernels, "sum_and_norm", [])

    def recorded(*arrays, implementation=None, **options):
        asked.append(implementation)
        return dot_product_attention(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return asked


DEVICES = [
    (TPU, "bfloat16", "packed"),
    (TURING, "bfloat16", None),
    (AMD, "bfloat16", None),
    (BLACKWELL, "float32", "joint"),
    (BLACKWELL, "bfloat16", "cudnn"),
]


@pytest.mark.parametrize(
    ("family", "device", "dtype", "expected"),
    [
        *((family, *case) for case in DEVICES for family in ("bert", "gpt2", "vit")),
        # Rotated before the kernel, which gets the windows of local blocks.
        ("rotary", BLACKWELL, "float32", "packed"),
        ("rotary", BLACKWELL, "bfloat16", "cudnn"),
    ],
)
def test_attention_computes_the_same_on_every_accelerator(
    implementations, family, device, dtype, expected
):
    model = classifier(family).cast(dtype)
    tree = params(model)
    inputs = batch(family)
    reference = jax.jit(lambda: model.apply(tree, inputs))()
    assert implementations == []
    with set_contextvar(target_device, device):
        by_kernel = jax.jit(model.allow_fused_attention(lambda: model.apply(tree, inputs)))()
    assert implementations == [expected] * model.encoder.config.layers
    np.testing.assert_allclose(reference, by_kernel, atol=1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [(TPU, "float32", "packed"), (BLACKWELL, "bfloat16", "cudnn"), (TURING, "float32", None)],
)
def test_kernels_get_the_keys_and_values_of_all_heads(implementations, device, dtype, expected):
    model = classifier("grouped").cast(dtype)
    tree = params(model)
    inputs = batch("grouped")
    reference = jax.jit(lambda: model.apply(tree, inputs))()
    with set_contextvar(target_device, device):
        by_kernel = jax.jit(model.allow_fused_attention(lambda: model.apply(tree, inputs)))()
    assert implementations == [expected]
    np.testing.assert_allclose(reference, by_kernel, atol=1e-5 if dtype == "float32" else 6e-2)


def test_a_group_of_heads_shares_its_keys_and_values():
    """The same as if each of the heads had a copy of them."""
    grouped = classifier("grouped")
    all_heads = dataclasses.replace(GROUPED, kv_heads=0)
    tree = params(grouped)
    copied = dict(paths(tree))
    for name in ("key", "value"):
        path = f"encoder/block_00/attention/{name}/kernel"
        by_group = copied[path].reshape(16, GROUPED.kv_heads, GROUPED.head_width)
        copied[path] = by_group.repeat(2, axis=1).reshape(16, -1)
    inputs = batch("grouped")
    plain = Model(Encoder(all_heads), grouped.head)
    expected = jax.jit(plain.apply)(unflatten(copied), inputs)
    ours = jax.jit(grouped.apply)(tree, inputs)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_scale_of_scores_is_that_of_the_config():
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, 1, 2, 5, 8)).astype(np.float32)
    scaled = attention.prescale(jnp.asarray(q), 0.3)
    scores = attention.attention_scores(scaled, jnp.asarray(k), mask=None)
    np.testing.assert_allclose(scores, 0.3 * q @ k.swapaxes(-1, -2), rtol=1e-5, atol=1e-6)
    assert attention.prescale(q, 0.0) is q and attention.prescale(q, 8**-0.5) is q


def value_and_gradient(model, inputs, key):
    """The sum of the outputs' sines, with dropout, and its gradient by the parameters."""

    def loss(tree):
        return jnp.sin(model.apply(tree, inputs, key)).sum()

    return jax.jit(model.allow_fused_attention(jax.value_and_grad(loss)))(params(model))


@pytest.mark.parametrize(
    ("family", "device", "kernel"), [("bert", BLACKWELL, "joint"), ("gpt2", TPU, "packed")]
)
def test_dropout_is_the_kernels_and_has_the_bits_of_the_reference(
    implementations, monkeypatch, family, device, kernel
):
    model = classifier(family)
    inputs = batch(family)
    with set_contextvar(target_device, device):
        computed = value_and_gradient(model, inputs, jax.random.key(1))
        assert implementations.count(kernel) == model.encoder.config.layers
        monkeypatch.setattr(attention, "can_use_packed_kernel", lambda *arrays: False)
        expected = value_and_gradient(model, inputs, jax.random.key(1))
        other = value_and_gradient(model, inputs, jax.random.key(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), computed, expected)
    assert abs(other[0] - expected[0]) > 1e-3


def test_each_device_of_a_mesh_computes_its_own_heads(forks):
    meshes = ["data=2,tensor=2", "tensor=4"]
    done = forks.run(["tests.helpers.mesh_attention", *meshes], forks.env)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, divided = map(json.loads, done.stdout.splitlines())
    assert whole["traced"] and not divided["traced"]  # there are two heads
    assert max(whole["distance"], divided["distance"]) < 2e-4


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("tokens", "prefix"), [(6, 0), (5, 0), (5, 1), (6, 3)])
def test_padding_to_an_even_number_of_tokens_changes_nothing(
    implementations, tokens, prefix, masked
):
    groups, rows, heads, width = 2, 3, 2, 8
    q_key, k_key, v_key, mask_key = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(q_key, (groups, rows, heads, tokens, width))
    k = jax.random.normal(k_key, (groups, rows, heads, tokens + prefix, width))
    v = jax.random.normal(v_key, (groups, rows, heads, tokens + prefix, width))
    mask = None
    if masked:
        mask = jax.random.bernoulli(mask_key, 0.7, (groups, rows, 1, tokens, tokens + prefix))
        mask = mask.at[..., 0].set(True)

    def of_arrays(attend):
        def loss(q, k, v):
            return jnp.sin(jax.vmap(attend)(q, k, v, mask)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    def reference(q, k, v, mask):
        return attention.reference_attention(q, k, v, mask, None)

    def flash(q, k, v, mask):
        tokens_first = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
        return attention.flash_attention(*tokens_first, mask).transpose(0, 2, 1, 3)

    expected = of_arrays(reference)
    for parts in (0, 1):  # on a mesh the mask has a copy for each head
        with set_contextvar(attention.flash_groups, parts):
            computed = of_arrays(flash)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, computed)
    assert implementations and set(implementations) == {"cudnn"}


@pytest.mark.parametrize(
    ("width", "tokens", "groups", "takes"),
    [
        (64, 6, 0, True),
        (128, 5, 0, True),
        (64, 6, 2, True),
        (64, 5, 1, False),
        (64, 6, 3, False),
        (60, 6, 0, False),
        (136, 6, 0, False),
        (64, 6, None, False),
    ],
)
def test_cudnn_is_asked_only_for_what_it_takes(width, tokens, groups, takes):
    q = jax.ShapeDtypeStruct((2, tokens, 4, width), jnp.bfloat16)
    with set_contextvar(attention.flash_groups, groups):
        assert attention.can_use_flash(BLACKWELL, q, q) == takes


def test_a_model_by_itself_is_mapped_and_differentiated_twice_on_a_gpu(implementations):
    model = classifier("bert").cast("bfloat16")
    tree = params(model)
    inputs = batch("bert")
    stacked = {name: leaf[None] for name, leaf in inputs.items()}

    def loss(tree):
        return model.apply(tree, inputs).sum()

    def derivative(tree):
        return jax.jvp(loss, (tree,), (tree,))[1]

    with set_contextvar(target_device, BLACKWELL):
        jax.eval_shape(jax.grad(derivative), tree)
        jax.eval_shape(jax.vmap(model.apply, (None, 0)), tree, stacked)
    assert set(implementations) == {None}


def test_a_gpu_gets_a_program_with_its_library_in_it(monkeypatch):
    cudnn_version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(cudnn_version, lambda: 91000)  # this machine has no cuDNN
    # A pre-norm encoder: the norms of others are kernels, and JAX 0.12 wants a GPU to compile these.
    model = classifier("gpt2").cast("bfloat16")

    def program(device):
        apply = model.allow_fused_attention(lambda tree, inputs: model.apply(tree, inputs))
        with set_contextvar(target_device, device):
            traced = jax.jit(apply).trace(params(model), batch("gpt2"))
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    assert program(BLACKWELL).count("__cudnn$fmha") == model.encoder.config.layers
    assert "__cudnn" not in program(TURING)
