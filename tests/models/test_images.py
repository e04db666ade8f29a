"""What image encoders have before their patches and in their blocks, and how their heads pool."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from adapt.models import Classifier, Encoder, Model
from adapt.tree import get, paths
from tests.helpers import small

FULL = dataclasses.replace(
    small.SHALLOW["vit"],
    positions=21,
    distillation_token=True,
    registers=3,
    patch_bias=False,
    key_bias=False,
    layer_scale=True,
    embedding_norm=True,
    final_norm=False,
)
MODEL = Model(Encoder(FULL), Classifier(2, "patches", leading=FULL.leading_tokens))


@functools.cache
def states() -> list[np.ndarray]:
    """The embedding and the block of ``FULL``, with a layer scale of 0 after the attention."""
    params = dict(small.params(MODEL)["encoder"])
    block = params["block_00"]
    params["block_00"] = block | {"attention_scale": np.zeros(16, np.float32)}
    tree = {"encoder": params}
    return jax.device_get(jax.jit(MODEL.hidden_states)(tree, small.batch("vit")))


def test_the_tree_of_vit_has_none_of_it():
    vit = Model(Encoder(small.SHALLOW["vit"]), Classifier(0, "cls"))
    embedding = paths(vit.shapes()["encoder"]["embedding"])
    assert set(embedding) == {"class_token", "position", "patch/kernel", "patch/bias"}
    block = paths(vit.shapes()["encoder"]["block_00"])
    assert not any(path.endswith("_scale") for path in block)
    assert "attention/key/bias" in block


def test_leading_tokens_are_those_that_are_no_patches():
    assert FULL.leading_tokens == 5
    assert small.VIT.leading_tokens == 1
    assert small.BERT.leading_tokens == 0


def test_the_embedding_is_the_first_tokens_the_registers_and_the_patches_normalised():
    embedding = small.params(MODEL)["encoder"]["embedding"]
    pixels = small.batch("vit")["pixels"]
    count = len(pixels)
    patches = pixels.reshape(count, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(count, 16, 48) @ embedding["patch"]["kernel"]
    position = embedding["position"]
    assert position.shape == (18, 16)
    first = np.stack([embedding["class_token"], embedding["distillation_token"]]) + position[:2]
    leading = np.concatenate([first, embedding["registers"]])
    leading = np.broadcast_to(leading, (count, *leading.shape))
    x = np.concatenate([leading, patches + position[2:]], 1)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + FULL.norm_epsilon)
    expected = x * embedding["norm"]["scale"] + embedding["norm"]["bias"]
    np.testing.assert_allclose(states()[0], expected, atol=1e-5)


def test_a_layer_scale_of_0_leaves_a_branch_out():
    """What is left is the residual and the MLP of it, token by token."""
    before, after = states()
    block = small.params(MODEL)["encoder"]["block_00"]
    x = before - before.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + FULL.norm_epsilon)
    x = x * block["mlp_norm"]["scale"] + block["mlp_norm"]["bias"]
    hidden = x @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    added = hidden @ block["mlp"]["down"]["kernel"] + block["mlp"]["down"]["bias"]
    np.testing.assert_allclose(after, before + added * block["mlp_scale"], atol=1e-5)


def test_a_key_alone_may_have_no_bias():
    block = MODEL.shapes()["encoder"]["block_00"]
    assert "bias" not in get(block, "attention/key")
    assert "bias" in get(block, "attention/query") and "bias" in get(block, "attention/value")


# Poolings


@functools.cache
def pooled(pooling: str) -> tuple[dict, np.ndarray, dict, np.ndarray]:
    """(parameters of the head, states, their batch, features) of texts packed in rows."""
    head = Classifier(0, pooling, leading=2, projection=5, heads=2, mlp_width=8, norm_epsilon=1e-3)
    model = Model(Encoder(small.SMALL), head)
    batch = small.inputs(examples=6)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*batch["segments"].shape, 16)).astype(np.float32)
    params = small.params(model)["head"]
    features = jax.jit(model.apply_head)(params, x, batch)
    return params, x.reshape(-1, 16), batch, np.asarray(features)


def dense(x: np.ndarray, layer: dict) -> np.ndarray:
    return x @ layer["kernel"] + layer.get("bias", 0)


def normalised(x: np.ndarray, norm: dict) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * norm["scale"] + norm["bias"]


def map_by_numpy(x: np.ndarray, params: dict) -> np.ndarray:
    query = dense(params["query_token"], params["query"]).reshape(2, 8)
    keys = dense(x, params["key"]).reshape(-1, 2, 8)
    values = dense(x, params["value"]).reshape(-1, 2, 8)
    scores = np.exp(np.einsum("thk,hk->ht", keys, query) / np.sqrt(8))
    weights = scores / scores.sum(1, keepdims=True)
    y = dense(np.einsum("ht,thk->hk", weights, values).reshape(16), params["output"])
    hidden = dense(normalised(y, params["norm"]), params["up"])
    return y + dense(np.asarray(jax.nn.gelu(hidden, approximate=False)), params["down"])


BY_NUMPY = {
    "patches": lambda x, _: x[2:].mean(0) if len(x) > 2 else np.zeros(16),
    "cls+patches": lambda x, _: np.concatenate([x[0], BY_NUMPY["patches"](x, _)]),
    "patch_norm": lambda x, head: normalised(BY_NUMPY["patches"](x, head), head["patch_norm"]),
    "projection": lambda x, head: dense(x[0], head["projection"]),
    "map": lambda x, head: map_by_numpy(x, head["map"]),
}


@pytest.mark.parametrize("pooling", BY_NUMPY)
def test_a_head_pools_each_example_by_its_own_tokens(pooling):
    params, x, batch, features = pooled(pooling)
    assert np.isfinite(features).all()
    for example in range(6):
        own = x[batch["segments"].reshape(-1) == example]
        expected = BY_NUMPY[pooling](own, params)
        assert features[example].shape == expected.shape
        np.testing.assert_allclose(features[example], expected, atol=1e-5)
