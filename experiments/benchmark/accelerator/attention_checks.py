"""Is attention right on this device? Against plain JAX in values and gradients, with dropout against
differences of the loss, and between the examples of a row, which must not see each other.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.models import Classifier, Encoder, EncoderConfig, Model, set_contextvar, target_device
from adapt.ragged import ragged
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings

THREADS = 8  # that compile side by side: nothing is timed here
# What a program is traced for in place of the device, where it is to have plain JAX's attention.
PLAIN = SimpleNamespace(platform="cpu", device_kind="cpu", compute_capability="")
FLOAT32_LIMIT = 5e-3  # of the relative error; products with 10 bits of mantissa reach 1e-3
SLOPE_LIMIT = 0.02
SLOPE_STEP = 0.02  # the distance by which parameters move, to either side


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with random parameters, and a packed batch for it."""

    name: str
    model: Model
    params: tree.Tree
    batch: packing.Arrays
    owners: np.ndarray  # int [R, C]: the example that a token belongs to, -1 for padding


def measure(told: Settings) -> Iterator[Row]:
    """A row a check."""
    sizes = told.sizes
    text, causal, image = make_cases(sizes.check_blocks, sizes.check_width, sizes.check_tokens)
    yield from leak_rows([text, causal])
    if jax.default_backend() == "cpu":
        reason = "needs an accelerator: a CPU computes attention in plain JAX"
        yield check("attention against plain JAX", "all", None, None, note=reason)
    else:
        yield from attention_rows([text, causal, image])
    yield from slope_rows([text, causal])


def check(
    name: str, case: str, value: float | None, limit: float | None, note: str | None = None
) -> Row:
    """The row of a check, which has passed if the value is at most the limit; without a value it
    was skipped.
    """
    status = "skipped"
    if value is not None and limit is not None:
        status = "passed" if value <= limit else "failed"
    row = {"status": status, "check": name, "case": case, "value": value, "limit": limit}
    return row if note is None else row | {"note": note}


# Cases


def make_cases(blocks: int, width: int, tokens: int) -> tuple[Case, Case, Case]:
    """BERT and GPT-2 with several examples in a row, and ViT, whose number of tokens is odd.

    Heads have 64 numbers or, where the encoder is narrow, half its width.
    """
    heads = max(width // 64, 2)
    shape: dict[str, Any] = {
        "layers": blocks,
        "width": width,
        "heads": heads,
        "mlp_width": 2 * width,
    }
    text = EncoderConfig("bert", **shape, positions=tokens, vocabulary=1000, types=2)
    causal = EncoderConfig(
        "gpt2", **shape, positions=tokens, vocabulary=1000, causal=True, pre_norm=True
    )
    side = 14 if tokens >= 196 else 4  # patches
    image = EncoderConfig(
        "vit",
        **shape,
        positions=side**2 + 1,
        image_size=4 * side,
        patch_size=4,
        channels=3,
        pre_norm=True,
    )
    return (
        make_case("BERT, packed", text),
        make_case("GPT-2, packed", causal),
        make_case(f"ViT, {image.positions} tokens", image),
    )


def make_case(name: str, config: EncoderConfig) -> Case:
    """A case with parameters that are large enough for attention to matter."""
    model = Model(Encoder(config), Classifier(2, "mean"))
    rng = np.random.default_rng(0)

    def random(path: str, leaf: Any) -> np.ndarray:
        centre = 1.0 if path.endswith("scale") else 0.0
        spread = 0.1 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5
        return (centre + spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = tree.map_paths(random, model.shapes())
    if config.is_image:
        size = (4, config.image_size, config.image_size, config.channels)
        batch = packing.image_batch(rng.standard_normal(size, np.float32), config.positions, 4)
        owners = np.broadcast_to(np.arange(4)[:, None], (4, config.positions))
        return Case(name, model, params, batch, owners)
    return Case(name, model, params, *packed_texts(config, rng))


def packed_texts(
    config: EncoderConfig, rng: np.random.Generator
) -> tuple[packing.Arrays, np.ndarray]:
    """A batch of random texts of all lengths, several in a row, and the owners of its tokens."""
    width = config.positions
    # One that fills a row, two that share one, and nine short ones.
    lengths = np.array([width, width // 2, width // 2 - 1, *rng.integers(2, width // 2, 9)])
    count = len(lengths)
    texts = [rng.integers(1, config.vocabulary, length) for length in lengths]
    placed = packing.pack(lengths, width)
    batch = packing.assemble(
        ragged(texts),
        np.arange(count),
        placed.rows,
        placed.starts,
        (placed.num_rows, width, count),
    )
    owners = np.full((placed.num_rows, width), -1)
    for example in range(count):
        row = placed.rows[example]
        start = placed.starts[example]
        owners[row, start : start + lengths[example]] = example
    return batch, owners


def all_of(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What all jobs give, in their order; they compile side by side."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda job: job(), jobs))


# Leaks


def leak_rows(cases: Sequence[Case]) -> Iterator[Row]:
    """Other tokens of one example change nothing of the others, forward and backward, bit for bit."""
    jobs = []
    names = []
    for case in cases:
        for dtype in (jnp.float32, jnp.bfloat16):
            names.append(f"{case.name}, {jnp.dtype(dtype).name}")
            jobs.append(lambda case=case, dtype=dtype: leaks(case, dtype))
    for name, found in zip(names, all_of(jobs), strict=True):
        yield check("leaks into other examples, tokens", name, found["forward"], 0)
        yield check("leaks of gradients, tokens", name, found["backward"], 0)


def leaks(case: Case, dtype: Any) -> dict[str, int]:
    """How many tokens of other examples an example reaches: by their states, by its gradient.

    The example is one that shares its row. That it reaches its own tokens is made sure of: a case
    in which nothing moves would prove nothing.
    """
    model = case.model.cast(dtype)
    example = 1  # of half a row
    is_own = case.owners == example
    is_other = (case.owners >= 0) & ~is_own

    @jax.jit
    @model.allow_fused_attention
    def states(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        return model.head_input(params, None, batch)

    tokens = np.where(is_own, case.batch["tokens"] % 900 + 1, case.batch["tokens"])
    before = np.asarray(states(case.params, case.batch))
    after = np.asarray(states(case.params, case.batch | {"tokens": tokens.astype(np.int32)}))
    moved = (before != after).any(-1)

    @jax.jit
    @model.allow_fused_attention
    def gradient(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        embedded = model.prefix(params, batch, 1)

        def own_states(x: jax.Array) -> jax.Array:
            hidden = model.head_input(params, x, batch, 1)
            return (hidden.astype(jnp.float32) ** 3 * is_own[..., None]).sum()

        return jax.grad(own_states)(embedded)

    reached = (np.asarray(gradient(case.params, case.batch)) != 0).any(-1)
    if not (moved & is_own).any() or not (reached & is_own).any():
        raise RuntimeError(f"{case.name}: an example does not reach its own tokens")
    return {
        "forward": int((moved & is_other).sum()),
        "backward": int((reached & is_other).sum()),
    }


# Values and gradients


def attention_rows(cases: Sequence[Case]) -> Iterator[Row]:
    """The relative errors of states and gradients, here and in plain JAX, both against plain JAX in
    float32 with exact products.

    In bfloat16 the device's attention may be twice as far off as plain JAX is.
    """
    kinds = {
        "exact": (jnp.float32, True, "highest"),
        "float32": (jnp.float32, False, None),
        "plain bfloat16": (jnp.bfloat16, True, None),
        "bfloat16": (jnp.bfloat16, False, None),
    }
    jobs = []
    for case in cases:
        for kind in kinds.values():
            jobs.append(lambda case=case, kind=kind: states_and_gradient(case, *kind))
    computed = all_of(jobs)
    for number, case in enumerate(cases):
        of_case = computed[number * len(kinds) : (number + 1) * len(kinds)]
        found = dict(zip(kinds, of_case, strict=True))
        for which in ("states", "gradient"):
            errors = {}
            for kind in ("float32", "plain bfloat16", "bfloat16"):
                errors[kind] = relative_error(found[kind][which], found["exact"][which])
            name = f"attention against plain JAX, {which}"
            yield check(name, f"{case.name}, float32", errors["float32"], FLOAT32_LIMIT)
            limit = 2 * errors["plain bfloat16"] + 1e-3
            yield check(name, f"{case.name}, bfloat16", errors["bfloat16"], limit)


def states_and_gradient(
    case: Case, dtype: Any, is_plain: bool, precision: str | None
) -> dict[str, np.ndarray]:
    """The states of all tokens that are no padding, and the gradient by all parameters, flat."""
    model = case.model.cast(dtype)
    is_token = case.owners >= 0
    rng = np.random.default_rng(1)
    shape = (*case.owners.shape, model.encoder.config.width)
    direction = rng.standard_normal(shape, np.float32) * is_token[..., None]

    def projected(params: tree.Tree, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        hidden = model.head_input(params, None, batch)
        return (hidden.astype(jnp.float32) * direction).sum(), hidden

    @model.allow_fused_attention
    def computed(params: tree.Tree, batch: Mapping[str, Any]) -> Any:
        device = PLAIN if is_plain else target_device.get()
        with set_contextvar(target_device, device), jax.default_matmul_precision(precision):
            return jax.value_and_grad(projected, has_aux=True)(params, batch)

    (_, hidden), gradient = jax.jit(computed)(case.params, case.batch)
    leaves = [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(gradient)]
    return {
        "states": np.asarray(hidden, np.float32)[is_token],
        "gradient": np.concatenate(leaves),
    }


def relative_error(values: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


# Dropout


def slope_rows(cases: Sequence[Case]) -> Iterator[Row]:
    """With dropout, the gradient against differences of the loss: both passes drop the same."""
    jobs = [lambda case=case: slopes(case) for case in cases]
    for case, (by_gradient, by_difference) in zip(cases, all_of(jobs), strict=True):
        error = abs(by_gradient - by_difference) / abs(by_difference)
        yield check("gradient with dropout against a difference", case.name, error, SLOPE_LIMIT)


def slopes(case: Case) -> tuple[float, float]:
    """The slope of a loss along its gradient: by the gradient, and by a difference of the loss."""
    model = case.model
    key = jax.random.key(0)

    def loss(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jax.nn.logsumexp(model.suffix(params, None, batch, 0, key), -1).mean()

    gradient_of = jax.jit(model.allow_fused_attention(jax.grad(loss)))
    loss_of = jax.jit(model.allow_fused_attention(loss))
    gradient = gradient_of(case.params, case.batch)
    norm = float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient))))

    def moved(size: float) -> tree.Tree:
        return jax.tree.map(lambda leaf, slope: leaf + size / norm * slope, case.params, gradient)

    above = float(loss_of(moved(SLOPE_STEP), case.batch))
    below = float(loss_of(moved(-SLOPE_STEP), case.batch))
    return norm, (above - below) / (2 * SLOPE_STEP)
