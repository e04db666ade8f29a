"""An encoder and a head on parameters ``{"encoder": ..., "head": ...}``, as pure functions cut where freezing cuts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adapt.models.encoder import Encoder
from adapt.models.layers import Batch, flash_groups, set_contextvar
from adapt.tree import Tree


@dataclasses.dataclass(frozen=True)
class Model:
    """``apply = suffix . prefix``: stages before ``depth`` run deterministic and need no gradient, the rest trains.

    ``depth`` counts leading stages: 0 none, 1 the embedding, 1 + k the first k blocks, layers + 1 the whole encoder, and
    with it the pooling where the head begins with one that has no weights.
    """

    encoder: Encoder
    head: nn.Module
    layout: Any = None  # an adapt.parallel.sharding.Layout: batches, and what comes out, are groups [G, ...] over its mesh
    remat: str = "none"  # what the backward pass computes again: see REMAT
    scan: bool = False  # blocks of one structure as a loop, compiled once

    @property
    def stages(self) -> int:
        return self.encoder.config.layers + 1

    @property
    def input_layers(self) -> tuple[int, ...]:
        """The layers that the head reads, side by side: the last, or those that it names."""
        return getattr(self.head, "layers", ()) or (self.encoder.config.layers,)

    @property
    def input_width(self) -> int:
        """Of what the head takes."""
        return len(self.input_layers) * self.encoder.config.width

    def cast(self, dtype: Any) -> "Model":
        """The same model with another compute dtype; parameters stay as they are stored."""
        return dataclasses.replace(
            self, encoder=self.encoder.clone(dtype=dtype), head=self.head.clone(dtype=dtype)
        )

    def run(self, *arguments: Any, **named: Any) -> Any:
        """A method of the encoder on its parameters."""
        return self.encoder.apply(*arguments, **named)

    def allow_fused_attention(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` for a program of its own, in which attention may be a library's kernel.

        Such a kernel has no rule for :func:`jax.vmap`, :func:`jax.jvp` or a second derivative, so by itself a model has none.
        """
        parts = self.layout.mesh.shape["tensor"] if self.layout else 0

        @functools.wraps(function)
        def inside(*arguments: Any) -> Any:
            with set_contextvar(flash_groups, parts):
                return function(*arguments)

        return inside

    def init(self, key: jax.Array) -> Tree:
        """Fresh float32 parameters; weights from N(0, init_range), norms at identity."""
        batch = example_batch(self.encoder.config)
        encoder = jax.jit(self.encoder.init)(key, batch)["params"]
        return {"encoder": encoder, "head": self.init_head(jax.random.fold_in(key, 1))}

    def init_head(self, key: jax.Array) -> Tree:
        """Fresh float32 parameters of the head alone; ``{}`` for a head without weights of its own."""
        config = self.encoder.config
        batch = example_batch(config)
        table = jnp.zeros((config.vocabulary, config.width))
        x = jnp.zeros((1, config.positions if config.is_image else 2, self.input_width))
        return dict(jax.jit(self.head.init)(key, x, batch, table).get("params", {}))

    def shapes(self) -> Tree:
        """The tree of parameter shapes, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def prefix_pools(self, depth: int) -> bool:
        """Whether the prefix ends in the head's pooling, so that it puts out a vector an example."""
        return depth == self.stages and getattr(self.head, "pools", False)

    def prefix(self, params: Tree, batch: Batch, depth: int) -> jax.Array | None:
        """The first ``depth`` stages, deterministic: a pure function of the batch, [R, C, D] or pooled [N, D]. None for depth 0."""
        if depth == 0:
            return None
        prefix = functools.partial(
            self._prefix_of_group, {"params": self.gather_tables(params["encoder"])}, depth=depth
        )
        return self.layout.over_groups(prefix)(dict(batch)) if self.layout else prefix(batch)

    def _prefix_of_group(self, variables: Tree, batch: Batch, depth: int) -> jax.Array:
        """What :meth:`prefix` does, of one group."""
        x = self.run(variables, batch, method="embed")
        if depth < self.stages:
            return self.band(variables, x, batch, 0, depth - 1, True, {})
        x = self.layers(variables, x, batch, 0, True, {})
        return self.head.pool(x, batch) if self.prefix_pools(depth) else x  # pyright: ignore

    def layers(
        self,
        variables: Tree,
        x: jax.Array,
        batch: Batch,
        first: int,
        deterministic: bool,
        rngs: Any,
    ) -> jax.Array:
        """Blocks from ``first`` on and the final norm, and of what they put out the layers that the head reads."""
        states = {first: x}
        last = self.encoder.config.layers
        for layer in sorted({*self.input_layers, last} - {first}):
            x = states[layer] = self.band(variables, x, batch, first, layer, deterministic, rngs)
            first = layer
        states[last] = self.run(variables, x, method="finish")
        return (
            states[last]
            if self.input_layers == (last,)
            else jnp.concatenate([states[layer] for layer in self.input_layers], -1)
        )

    def band(
        self,
        variables: Tree,
        x: jax.Array,
        batch: Batch,
        first: int,
        last: int,
        deterministic: bool,
        rngs: Any,
    ) -> jax.Array:
        """Blocks ``first`` to ``last - 1``: unrolled or as a loop, each gathered where it is used and rematerialised."""
        if first == last or not (self.layout or self.scan or self.remat != "none"):
            return self.run(
                variables, x, batch, first, last, deterministic, rngs=rngs, method="run"
            )
        blocks = [variables["params"][f"block_{index:02d}"] for index in range(first, last)]

        def block(x: jax.Array, params: Tree, rngs: Any, at: int) -> jax.Array:
            name = f"block_{at:02d}"
            if self.layout:
                params = self.layout.gather(params, f"encoder/{name}", self.encoder.dtype)
                x = self.layout.replicate_activations(x)
            return self.run(
                {"params": {name: params}},
                x,
                batch,
                at,
                at + 1,
                deterministic,
                rngs=rngs,
                method="run",
            )

        kept = REMAT[self.remat]
        if self.scan and len({shaped(each) for each in blocks}) == 1:
            narrow = lambda leaf: (
                leaf.astype(self.encoder.dtype) if leaf.ndim > 1 and not self.layout else leaf
            )  # it gathers so
            stacked = jax.tree.map(
                lambda *leaves: jnp.stack([narrow(leaf) for leaf in leaves]), *blocks
            )

            def one(x: jax.Array, part: tuple[Tree, jax.Array]) -> tuple[jax.Array, None]:
                keys = {name: jax.random.fold_in(key, part[1]) for name, key in rngs.items()}
                return kept(functools.partial(block, at=first))(x, part[0], keys), None

            return jax.lax.scan(one, x, (stacked, jnp.arange(first, last)))[0]
        for at, each in enumerate(blocks, first):
            x = kept(functools.partial(block, at=at))(x, each, rngs)
        return x

    def gather_tables(self, encoder: Tree) -> Tree:
        """On a mesh the tables of the embedding whole, as their rows are looked up."""
        if not self.layout or "embedding" not in encoder:
            return encoder
        return encoder | {
            "embedding": self.layout.gather(encoder["embedding"], "encoder/embedding")
        }

    def suffix(
        self,
        params: Tree,
        x: jax.Array | None,
        batch: Batch,
        depth: int,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The stages from ``depth`` on and the head. With a key, dropout is on; without, deterministic.

        ``x`` is what the prefix put out, perhaps stored in another dtype; parameters before it may be missing. On a
        mesh the outputs of all groups come one after the other.
        """
        params = params | {"encoder": self.gather_tables(params.get("encoder", {}))}
        if self.layout is None:
            return self._suffix_of_group(params, x, dict(batch), key, depth)
        params |= {"head": self.layout.gather(params.get("head", {}), "head")}
        suffix = functools.partial(self._suffix_of_group, params, depth=depth)
        keys = (
            None
            if key is None
            else jax.vmap(functools.partial(jax.random.fold_in, key))(
                jnp.arange(self.layout.groups)
            )
        )
        return flatten_groups(self.layout.over_groups(suffix)(x, dict(batch), keys))

    def _suffix_of_group(
        self, params: Tree, x: Any, batch: Batch, key: jax.Array | None, depth: int
    ) -> jax.Array:
        """What :meth:`suffix` does, of one group."""
        encoder = params["encoder"]
        variables = {"params": encoder}
        deterministic = key is None
        x = None if x is None else x.astype(self.encoder.dtype)
        rngs = {} if deterministic else {"dropout": key}
        if depth == 0:
            x = self.run(variables, batch, deterministic, rngs=rngs, method="embed")
        if depth < self.stages:
            x = self.layers(variables, x, batch, max(depth - 1, 0), deterministic, rngs)  # pyright: ignore
        return self.apply_head(
            params.get("head", {}), x, batch, encoder.get("embedding", {}).get("token"), key
        )

    def apply_head(
        self, head: Tree, x: Any, batch: Batch, table: Any = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The head alone on x [R, C, D], or on what it pooled before; ``head`` are its bare parameters."""
        rngs = {} if key is None else {"dropout": key}
        return self.head.apply({"params": head}, x, batch, table, key is None, rngs=rngs)  # pyright: ignore

    def apply(
        self, params: Tree, batch: Batch, key: jax.Array | None = None, depth: int = 0
    ) -> jax.Array:
        """Encoder and head: the head's output, float32."""
        return self.suffix(params, self.prefix(params, batch, depth), batch, depth, key)

    def hidden_states(self, params: Tree, batch: Batch) -> list[jax.Array]:
        """What every stage puts out, [R, C, D] each: the embedding, then each block, the last one after the final norm."""
        variables = {"params": params["encoder"]}
        states = [self.run(variables, batch, method="embed")]
        for index in range(self.encoder.config.layers):
            states.append(self.run(variables, states[-1], batch, index, index + 1, method="run"))
        return [*states[:-1], self.run(variables, states[-1], method="finish")]


# By name, what wraps a block: keep all for the backward pass, only the block's input, or that and the products by weights.
REMAT: dict[str, Callable[[Any], Any]] = {
    "none": lambda block: block,
    "block": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


def shaped(tree: Tree) -> str:
    """What blocks must have in common to be a loop."""
    return str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree))


def flatten_groups(x: jax.Array) -> jax.Array:
    """Groups [G, N, ...] one after the other, [G * N, ...]."""
    return x.reshape(-1, *x.shape[2:])


def example_batch(config: Any) -> dict[str, jax.Array]:
    """The smallest batch that a model takes, of zeros: one example of two tokens, or one image."""
    if config.is_image:
        size = config.image_size
        tokens = config.positions
        row = {"pixels": jnp.zeros((1, size, size, config.channels))}
    else:
        tokens = 2
        row = {name: jnp.zeros((1, tokens), jnp.int32) for name in ("tokens", "positions", "types")}
    ids = {"first": jnp.zeros(1, jnp.int32), "length": jnp.full(1, tokens, jnp.int32)}
    return row | ids | {"segments": jnp.zeros((1, tokens), jnp.int32)}
