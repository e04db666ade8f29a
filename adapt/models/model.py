"""An encoder and a head as pure functions of their parameters, cut where freezing cuts.

Shapes in names: R rows, C tokens a row, D width of what the head reads, N examples, G groups of a
mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adapt.models.accelerated import PackedKernel, packed_kernel, set_contextvar
from adapt.models.attention import flash_groups
from adapt.models.config import EncoderConfig
from adapt.models.encoder import Encoder
from adapt.models.layers import Batch
from adapt.parallel.sharding import Layout
from adapt.tree import Tree, cast_down

Keys = dict[str, jax.Array]  # {"dropout": key}, or {} where everything is deterministic


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder and a head: ``apply = suffix . prefix``, all of them pure functions of parameters.

    The first ``depth`` stages are the prefix, which runs deterministic and needs no gradient; the
    rest is the suffix, which trains. A depth of 0 is no stage, 1 the embedding, 1 + k also the
    first k blocks, and ``stages`` = layers + 1 the whole encoder, with the head's pooling if that
    has no weights.

        >>> config = EncoderConfig("bert", 2, 16, 2, 32, positions=24, vocabulary=40)
        >>> model = Model(Encoder(config), Classifier(classes=3, pooling="mean"))
        >>> params = model.init(jax.random.key(0))
        >>> list(params)
        ['encoder', 'head']
        >>> batch = example_batch(config)
        >>> model.apply(params, batch).shape
        (1, 3)
        >>> hidden = model.prefix(params, batch, depth=2)  # the embedding and the first block
        >>> model.suffix(params, hidden, batch, depth=2).shape
        (1, 3)

    * ``head``: a module that is called as :class:`adapt.models.heads.Classifier` is.
    * ``layout``: a mesh. Batches and what the prefix puts out are then groups [G, ...]; see
      :mod:`adapt.parallel.sharding`.
    * ``remat``: a name of ``REMAT``: what the backward pass computes again.
    * ``scan``: runs the blocks as a loop, compiled once, where they have one structure
      and attend alike.

    Equal models hash alike, so functions of a model can be cached by it.
    """

    encoder: Encoder
    head: nn.Module
    layout: Layout | None = None
    remat: str = "none"
    scan: bool = False

    @property
    def stages(self) -> int:
        """The embedding and the blocks."""
        return self.encoder.config.layers + 1

    @property
    def input_layers(self) -> tuple[int, ...]:
        """The layers that the head reads, side by side: 0 is the embedding, k the k-th block."""
        return getattr(self.head, "layers", ()) or (self.encoder.config.layers,)

    @property
    def input_width(self) -> int:
        """The width of what the head reads."""
        return len(self.input_layers) * self.encoder.config.width

    def cast(self, dtype: Any) -> "Model":
        """The same model with another compute dtype. Parameters stay as they are stored."""
        encoder = self.encoder.clone(dtype=dtype)
        return dataclasses.replace(self, encoder=encoder, head=self.head.clone(dtype=dtype))

    def allow_fused_attention(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, in whose trace attention may be a kernel, cuDNN's or this project's.

        Wrap what is compiled by itself: kernels have no rule for :func:`jax.jvp` or a second
        derivative, and cuDNN's none for :func:`jax.vmap`, so a model uses them nowhere else.
        """
        groups = self.layout.mesh.shape["tensor"] if self.layout else 0
        kernel = PackedKernel(self.layout.mesh if self.layout else None)

        @functools.wraps(function)
        def wrapped(*arguments: Any) -> Any:
            with set_contextvar(flash_groups, groups), set_contextvar(packed_kernel, kernel):
                return function(*arguments)

        return wrapped

    # Parameters

    def init(self, key: jax.Array) -> Tree:
        """Fresh float32 parameters: weights from N(0, init_range), biases 0, norms the identity."""
        batch = example_batch(self.encoder.config)
        module: Any = self.encoder
        encoder = jitted_init(module)(key, batch)["params"]
        return {"encoder": encoder, "head": self.init_head(jax.random.fold_in(key, 1))}

    def init_head(self, key: jax.Array) -> Tree:
        """Fresh float32 parameters of the head alone; ``{}`` for a head without weights."""
        config = self.encoder.config
        batch = example_batch(config)
        table = np.zeros((config.vocabulary, config.embedding_width or config.width), np.float32)
        x = np.zeros((*batch["segments"].shape, self.input_width), np.float32)
        return dict(jitted_init(self.head)(key, x, batch, table).get("params", {}))

    def shapes(self) -> Tree:
        """The parameters as :class:`jax.ShapeDtypeStruct`, without computing anything."""
        return jax.tree.map(lambda leaf: leaf, traced_shapes(self))  # new dicts around the leaves

    # The forward pass

    def apply(
        self, params: Tree, batch: Batch, key: jax.Array | None = None, depth: int = 0
    ) -> jax.Array:
        """The head's output, float32. With a key, dropout is on after the first stages."""
        return self.suffix(params, self.prefix(params, batch, depth), batch, depth, key)

    def prefix(self, params: Tree, batch: Batch, depth: int) -> jax.Array | None:
        """The output of the first ``depth`` stages, deterministic; None for a depth of 0.

        Token states [R, C, D], or vectors of examples [N, D] where :meth:`prefix_pools`. On a mesh
        they have the batch's leading axis of groups. Parameters after the prefix may be missing.
        """
        if depth == 0:
            return None
        encoder = self.gather_tables(params["encoder"])
        prefix = functools.partial(self._prefix_of_group, encoder, depth=depth)
        if self.layout is None:
            return prefix(batch)
        return self.layout.over_groups(prefix)(dict(batch))

    def prefix_pools(self, depth: int) -> bool:
        """Whether the prefix ends in the head's pooling, and so gives a vector an example."""
        return depth == self.stages and getattr(self.head, "pools", False)

    def suffix(
        self,
        params: Tree,
        x: jax.Array | None,
        batch: Batch,
        depth: int,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The head's output in float32, from what the prefix put out. With a key dropout is on.

        ``x`` may be stored in another dtype than the compute dtype. Parameters before the suffix
        may be missing. On a mesh the outputs of all groups come one after the other, [G * N, ...].
        """
        suffix = functools.partial(self._suffix_of_group, depth=depth)
        return self.by_group(suffix, params, x, batch, key)

    def by_group(
        self,
        function: Callable[..., Any],
        params: Tree,
        x: jax.Array | None,
        batch: Batch,
        key: jax.Array | None,
    ) -> Any:
        """``function(params, x, batch, key)``, an array or a pytree of them; on a mesh that of
        every group, one after the other.

        There each group has a key of its own, and parameters that a function of a group can use.
        """
        encoder = self.gather_tables(params.get("encoder", {}))
        params = params | {"encoder": encoder}
        if self.layout is None:
            return function(params, x, dict(batch), key)
        head = self.layout.gather(params.get("head", {}), "head")
        params |= {"head": head}
        keys = None
        if key is not None:
            groups = jnp.arange(self.layout.groups)
            key_of_group = functools.partial(jax.random.fold_in, key)
            keys = jax.vmap(key_of_group)(groups)
        of_group = functools.partial(function, params)
        outputs = self.layout.over_groups(of_group)(x, dict(batch), keys)
        return flatten_groups(outputs)

    def head_input(
        self,
        params: Tree,
        x: jax.Array | None,
        batch: Batch,
        depth: int = 0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the head reads, [R, C, D], or [N, D] where the prefix pools: the first part of
        :meth:`suffix`, with its arguments; on a mesh of one group.
        """
        encoder = params.get("encoder", {})
        deterministic = key is None
        rngs = {} if key is None else {"dropout": key}
        if x is not None:
            x = x.astype(self.encoder.dtype)
        if depth == 0:
            x = self._encode(encoder, "embed", batch, deterministic, rngs=rngs)
        if depth == self.stages:
            return x  # pyright: ignore - whoever has the whole encoder as a prefix has its output
        first = max(depth - 1, 0)
        return self._head_input(encoder, x, batch, first, deterministic, rngs)

    def outputs_of(
        self, params: Tree, x: jax.Array, batch: Batch, key: jax.Array | None = None
    ) -> jax.Array:
        """The head's output from what :meth:`head_input` gives: the last part of :meth:`suffix`."""
        table = params.get("encoder", {}).get("embedding", {}).get("token")
        return self.apply_head(params.get("head", {}), x, batch, table, key)

    def apply_head(
        self, head: Tree, x: Any, batch: Batch, table: Any = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The head alone on x [R, C, D], or on pooled x [N, D]; ``head`` are its parameters."""
        rngs = {} if key is None else {"dropout": key}
        deterministic = key is None
        arguments = (x, batch, table, deterministic)
        return self.head.apply({"params": head}, *arguments, rngs=rngs)  # pyright: ignore

    def hidden_states(self, params: Tree, batch: Batch) -> list[jax.Array]:
        """The output of every stage, [R, C, D] each: the embedding, then each block.

        The last one is after the final norm.
        """
        encoder = params["encoder"]
        states = [self._encode(encoder, "embed", batch)]
        for index in range(self.encoder.config.layers):
            states.append(self._encode(encoder, "run", states[-1], batch, index, index + 1))
        states[-1] = self._encode(encoder, "finish", states[-1])
        return states

    def attention_maps(self, params: Tree, batch: Batch) -> list[jax.Array]:
        """The weights by which each head attends, float32 [R, H, C, C] for each block.

        ``maps[block][r, h, i, j]`` is how much of token j goes into token i of row r: the softmax
        of Vaswani et al. 2017, eq. 1, without dropout. A token's weights sum to 1, and those of
        tokens of other examples are exactly 0. Padding attends to padding. With prefix tuning a map
        is [R, H, C, P + C]: the P trained keys come first. Memory is that of all maps together.
        """
        encoder = {"params": params["encoder"]}
        _, collected = self.encoder.apply(encoder, batch, mutable="intermediates")
        config = self.encoder.config
        maps = []
        for index, name in enumerate(config.block_names):
            weights = collected["intermediates"][name]["attention"]["weights"]
            maps.append(weights[index if config.shared_blocks else 0])
        return maps

    def gather_tables(self, encoder: Tree) -> Tree:
        """The encoder's parameters, on a mesh with whole embedding tables: rows are looked up."""
        if self.layout is None or "embedding" not in encoder:
            return encoder
        embedding = self.layout.gather(encoder["embedding"], "encoder/embedding")
        return encoder | {"embedding": embedding}

    def _encode(self, encoder: Tree, method: str, *arguments: Any, rngs: Keys | None = None) -> Any:
        """What a method of the encoder gives on its parameters."""
        return self.encoder.apply({"params": encoder}, *arguments, rngs=rngs, method=method)

    def _prefix_of_group(self, encoder: Tree, batch: Batch, depth: int) -> jax.Array:
        """:meth:`prefix` of one group."""
        x = self._encode(encoder, "embed", batch)
        if depth < self.stages:
            return self._run_blocks(encoder, x, batch, 0, depth - 1, True, {})
        x = self._head_input(encoder, x, batch, 0, True, {})
        if not self.prefix_pools(depth):
            return x
        return self.head.pool(x, batch)  # pyright: ignore - not every head pools, this one does

    def _suffix_of_group(
        self,
        params: Tree,
        x: jax.Array | None,
        batch: Batch,
        key: jax.Array | None,
        depth: int,
    ) -> jax.Array:
        """:meth:`suffix` of one group."""
        x = self.head_input(params, x, batch, depth, key)
        return self.outputs_of(params, x, batch, key)

    def _head_input(
        self, encoder: Tree, x: Any, batch: Batch, first: int, deterministic: bool, rngs: Keys
    ) -> jax.Array:
        """What the head reads, [R, C, D]: the blocks from ``first`` on, and the final norm."""
        last = self.encoder.config.layers
        states = {first: x}
        for layer in sorted({*self.input_layers, last} - {first}):
            x = self._run_blocks(encoder, x, batch, first, layer, deterministic, rngs)
            states[layer] = x
            first = layer
        states[last] = self._encode(encoder, "finish", x)
        if self.input_layers == (last,):
            return states[last]
        return jnp.concatenate([states[layer] for layer in self.input_layers], -1)

    def _run_blocks(
        self,
        encoder: Tree,
        x: jax.Array,
        batch: Batch,
        first: int,
        last: int,
        deterministic: bool,
        rngs: Keys,
    ) -> jax.Array:
        """Blocks ``first`` to ``last - 1``: unrolled, or as a loop."""
        are_plain = not self.layout and not self.scan and self.remat == "none"
        if first == last or are_plain:
            return self._encode(encoder, "run", x, batch, first, last, deterministic, rngs=rngs)
        names = self.encoder.config.block_names[first:last]
        blocks = [encoder[name] for name in names]
        relations = self._encode(encoder, "relations", batch)
        are_alike = have_one_structure(blocks) and self._attend_alike(first, last)
        if self.scan and are_alike:
            return self._scan_blocks(blocks, x, batch, relations, first, deterministic, rngs)
        for index, params in enumerate(blocks, first):
            x = self._block(batch, relations, index, deterministic)(x, params, rngs)
        return x

    def _attend_alike(self, first: int, last: int) -> bool:
        """Whether these blocks are alike in their windows and positions, for a loop has one of
        each.
        """
        config = self.encoder.config
        kinds = set()
        for block in range(first, last):
            kinds.add((config.window_of(block), config.is_rotated(block)))
        return len(kinds) == 1

    def _scan_blocks(
        self,
        blocks: Sequence[Tree],
        x: jax.Array,
        batch: Batch,
        relations: Batch,
        first: int,
        deterministic: bool,
        rngs: Keys,
    ) -> jax.Array:
        """Blocks of one structure, as a loop over their stacked parameters."""
        block = self._block(batch, relations, first, deterministic)

        def stack(*leaves: jax.Array) -> jax.Array:
            # Matrices are cast before the loop; on a mesh they are cast where they are gathered.
            if leaves[0].ndim > 1 and not self.layout:
                return jnp.stack([cast_down(leaf, self.encoder.dtype) for leaf in leaves])
            return jnp.stack(leaves)

        def body(x: jax.Array, params_and_index: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            params, index = params_and_index
            keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
            return block(x, shared or params, keys), None

        shared = blocks[0] if self.encoder.config.shared_blocks else None
        stacked = None if shared else jax.tree.map(stack, *blocks)
        indices = jnp.arange(first, first + len(blocks))
        x, _ = jax.lax.scan(body, x, (stacked, indices))
        return x

    def _block(
        self, batch: Batch, relations: Batch, index: int, deterministic: bool
    ) -> Callable[..., jax.Array]:
        """``(x, params, rngs) -> x`` of one block, gathered where it is used and rematerialised."""
        config = self.encoder.config
        name = config.block_names[index]

        def block(x: jax.Array, params: Tree, rngs: Keys) -> jax.Array:
            if self.layout:
                params = self.layout.gather(params, f"encoder/{name}", self.encoder.dtype)
                x = self.layout.replicate_activations(x)
            if config.shared_blocks:  # which have one path, and each its own dropout
                rngs = {kind: jax.random.fold_in(key, index) for kind, key in rngs.items()}
            arguments = (x, batch, index, index + 1, deterministic, relations)
            return self._encode({name: params}, "run", *arguments, rngs=rngs)

        return REMAT[self.remat](block)


def keep_all(block: Callable[..., Any]) -> Callable[..., Any]:
    """The block as it is: nothing is computed again."""
    return block


# What wraps a block, by name. The backward pass gets from the forward pass everything, only the
# block's input, or that and the products by weights; it computes the rest again.
REMAT: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "none": keep_all,
    "block": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


def have_one_structure(blocks: Sequence[Tree]) -> bool:
    """Whether blocks can be stacked: they have the same paths, shapes and dtypes."""
    return len({structure(block) for block in blocks}) == 1


def structure(tree: Tree) -> str:
    """Paths, shapes and dtypes of a tree, as text."""
    return str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree))


def flatten_groups(x: Any) -> Any:
    """Groups [G, N, ...] one after the other, [G * N, ...]: an array, or each of a pytree."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), x)


def example_batch(config: EncoderConfig) -> dict[str, np.ndarray]:
    """The smallest batch that a model takes, of zeros: one example of two tokens, or one image.

    It is made by NumPy: in JAX every array of zeros is a program of its own.
    """
    if config.is_image:
        tokens = config.positions
        size = config.image_size
        inputs = {"pixels": np.zeros((1, size, size, config.channels), np.float32)}
    else:
        tokens = 2
        names = ("tokens", "positions", "types")
        inputs = {name: np.zeros((1, tokens), np.int32) for name in names}
    return inputs | {
        "first": np.zeros(1, np.int32),
        "length": np.full(1, tokens, np.int32),
        "segments": np.zeros((1, tokens), np.int32),
    }


@functools.lru_cache(maxsize=64)
def traced_shapes(model: Model) -> Tree:
    """:meth:`Model.shapes`, traced once: a tenth of a second for twelve blocks."""
    return jax.eval_shape(model.init, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def jitted_init(module: Any) -> Any:
    """``module.init``, jitted: the same function for the same module, so that it compiles once."""
    return jax.jit(module.init)
