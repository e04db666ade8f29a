"""One mesh of devices, and by ordered path rules where each parameter lies on it.

A batch on a mesh is G groups of examples, arrays [G, ...], one for each place on the axes ``data`` and ``fsdp``; every
group is packed by itself, so no row crosses devices. ``data`` copies the parameters, ``fsdp`` divides them and gathers
each block where it is used (ZeRO-3, Rajbhandari et al. 2020), ``tensor`` divides the products of a block (Megatron-LM,
Shoeybi et al. 2019, 3). The state is made straight in its place: no host holds more than its share of it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adapt.errors import MeshError
from adapt.tree import Rules, Tree, map_paths, match, paths

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes that divide a batch

# Of each leaf, for every dimension the axis that divides it, "-" for none; dimensions that are not named are whole.
RULES: Rules = (
    (r"encoder/block_\d+/(attention/(query|key|value)|mlp/up)/kernel", "fsdp,tensor"),
    (r"encoder/block_\d+/(attention/(query|key|value)|mlp/up)/bias", "tensor"),
    (r"encoder/block_\d+/(attention/output|mlp/down)/kernel", "tensor,fsdp"),
    (r"encoder/embedding/(token|position|type|patch/kernel)", "-,fsdp"),
    (r"head/(transform|decoder)/kernel", "fsdp"),
    (".*", "-"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules of its parameters; those of frozen ones may be others."""

    mesh: Mesh
    rules: tuple[tuple[str, str], ...] = tuple(RULES)
    frozen_rules: tuple[tuple[str, str], ...] = tuple(RULES)

    @property
    def groups(self) -> int:
        """Into how many groups of examples a batch is divided."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @functools.cached_property
    def local_groups(self) -> tuple[int, ...]:
        """The groups of which this process has a device: it makes no others."""
        here = jax.process_index()
        by_group = self.mesh.devices.reshape(self.groups, -1)
        return tuple(
            g for g, devices in enumerate(by_group) if any(d.process_index == here for d in devices)
        )

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self, params: Tree) -> None:
        """Raise :class:`RuleError` for a rule of the caller's own that wins nothing, :class:`MeshError` where one can't be."""
        for rules in (self.rules, self.frozen_rules):
            if rules != tuple(RULES):
                match(paths(params), rules)
            for path, leaf in paths(params).items():
                self.spec(path, leaf.shape, rules)

    def spec(self, path: str, shape: Sequence[int], rules: Rules | None = None) -> PartitionSpec:
        """The axis of each dimension of a leaf. Raises :class:`MeshError` for one that the axis does not divide."""
        pattern, places = next(rule for rule in rules or self.rules if re.fullmatch(rule[0], path))
        axes = [None if axis == "-" else axis for axis in places.split(",")]
        for dimension, axis in enumerate(axes[: len(shape)]):
            if axis and axis not in AXES:
                raise MeshError(
                    f"rule ({pattern!r}, {places!r}): there is no axis {axis!r}: give {', '.join(AXES)}, or -"
                )
            if axis and shape[dimension] % self.mesh.shape[axis]:
                raise MeshError(
                    f"dimension {dimension} of {path} is {shape[dimension]}, which {axis}={self.mesh.shape[axis]} does not "
                    f"divide (rule {pattern!r}): give another --mesh"
                )
        if any(axes[len(shape) :]):
            raise MeshError(
                f"rule ({pattern!r}, {places!r}) names {len(axes)} dimensions, {path} has {len(shape)}"
            )
        axes = [axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes[: len(shape)]]
        while (
            axes and axes[-1] is None
        ):  # as compiled programs spell it: the same layout twice compiles once
            axes.pop()
        return PartitionSpec(*axes)

    def shardings(self, tree: Any, rules: Rules | None = None) -> Any:
        """Of every leaf of any pytree with parameters in it, moments of an optimizer too: their paths end in the parameter's."""

        def placed(path: Any, leaf: Any) -> NamedSharding:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            starts = [index for index, name in enumerate(names) if name in ("encoder", "head")]
            if not starts or not leaf.shape:
                return self.replicated
            return NamedSharding(
                self.mesh, self.spec("/".join(names[starts[-1] :]), leaf.shape, rules)
            )

        return jax.tree_util.tree_map_with_path(placed, tree)

    def shard(self, tree: Any, rules: Rules | None = None) -> Any:
        """Arrays of the host or of devices, each leaf straight to its place: a process reads what its devices hold of it."""
        return jax.tree.map(device_put, tree, self.shardings(tree, rules))

    def shard_batch(self, batch: Mapping[str, Any], lead: int = 0) -> dict[str, Any]:
        """The groups of this process, [G, ...] after ``lead`` axes of micro-batches, as arrays over the mesh."""
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * lead, BATCH_AXES))

        def over_mesh(leaf: Any) -> Any:
            shape = (*leaf.shape[:lead], self.groups, *leaf.shape[lead + 1 :])
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
            if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
                return leaf
            local = np.asarray(leaf)
            groups = lambda index: [
                self.local_groups.index(g) for g in range(self.groups)[index[lead]]
            ]
            return jax.make_array_from_callback(
                shape, sharding, lambda index: local.take(groups(index), lead)
            )

        return {name: over_mesh(leaf) for name, leaf in batch.items()}

    def over_groups(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` of one group, on all of them: arguments and results [G, ...]."""
        return jax.vmap(function, spmd_axis_name=BATCH_AXES)

    def gather(self, tree: Tree, at: str, dtype: Any = None) -> Tree:
        """What ``fsdp`` divides of the parameters under the path ``at``, whole for their use; gradients go back divided.

        With a ``dtype`` matrices are cast to it first, so that fewer bytes travel.
        """

        def gathered(path: str, leaf: jax.Array) -> jax.Array:
            spec = self.spec(f"{at}/{path}", leaf.shape)
            leaf = leaf.astype(dtype) if dtype is not None and leaf.ndim > 1 else leaf
            whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            return (
                leaf
                if "fsdp" not in spec
                else gather_forward_scatter_backward(
                    leaf, NamedSharding(self.mesh, whole), NamedSharding(self.mesh, spec)
                )
            )

        return map_paths(gathered, tree)

    def constrain(self, tree: Any) -> Any:
        """Inside jit: every leaf of a state where it belongs."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def replicate_activations(self, x: jax.Array) -> jax.Array:
        """Inside :meth:`over_groups`: what a group computes stays with it, a copy on each device of ``tensor``."""
        return jax.lax.with_sharding_constraint(x, self.replicated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_forward_scatter_backward(
    x: jax.Array, there: NamedSharding, back: NamedSharding
) -> jax.Array:
    """``x`` laid out as ``there``, its gradient as ``back``: a gather, and a scatter of sums in place of a whole sum."""
    return jax.lax.with_sharding_constraint(x, there)


gather_forward_scatter_backward.defvjp(
    lambda x, there, back: (gather_forward_scatter_backward(x, there, back), None),
    lambda there, back, _, g: (jax.lax.with_sharding_constraint(g, back),),
)


def device_put(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
    """One leaf in its place. A key goes by its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            device_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf)
        )
    if sharding.is_fully_addressable:
        return jax.device_put(copy_of_host_array(leaf), sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.array(leaf[index]))


def shard_tree(tree: Any, layout: Layout | None = None) -> Any:
    """A tree on the mesh, or without one committed to the first device."""
    return (
        layout.shard(tree)
        if layout
        else jax.device_put(jax.tree.map(copy_of_host_array, tree), jax.local_devices()[0])
    )


def shard_inputs(jitted: Any, layout: Layout | None) -> Any:
    """``(params, batch) -> ...`` that lays the batch over the mesh first, where there is one."""
    return (lambda params, batch: jitted(params, layout.shard_batch(batch))) if layout else jitted


def copy_of_host_array(leaf: Any) -> Any:
    """A copy of an array of the host: a CPU device would share its memory, which may be mapped from a file."""
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def axis_sizes(spec: str, devices: int, some: bool = False) -> dict[str, int]:
    """``"data=2,fsdp=4"`` -> the size of every axis; nothing given: all devices on ``data``.

    Their product is the number of devices, or with ``some`` a divisor of it. Raises :class:`MeshError`.
    """
    found: dict[str, int] = dict.fromkeys(AXES, 1)
    for part in filter(None, spec.split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise MeshError(
                f"--mesh {spec}: there is no axis {name!r}: give sizes of {', '.join(AXES)}, as in data=2,fsdp=4"
            )
        if not size.isdecimal() or int(size) < 1 or found[name] != 1:
            raise MeshError(
                f"--mesh {spec}: {part!r} is no size of an axis: give each once, as in data=2,fsdp=4"
            )
        found[name] = int(size)
    if not spec:
        found["data"] = devices
    if (asked := math.prod(found.values())) != devices and not (some and devices % asked == 0):
        what = f"{asked} device{'s' * (asked > 1)}"
        must = "divide them" if some else "take all of them"
        raise MeshError(
            f"--mesh {spec} takes {what} and there {'is' if devices == 1 else 'are'} {devices}: it must {must}"
        )
    return found


def make_layout(
    spec: str = "",
    devices: Sequence[Any] | None = None,
    rules: Rules | None = None,
    frozen_rules: Rules | None = None,
) -> Layout | None:
    """The layout of a ``--mesh`` over all devices, of one process also over the first of them; None for a single one.

    Raises :class:`MeshError`.
    """
    some = devices is None and jax.process_count() == 1
    devices = jax.devices() if devices is None else devices
    axes = axis_sizes(spec, len(devices), some)
    devices = devices[: math.prod(axes.values())]
    if len(devices) == 1:
        return None
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        mesh = jax.make_mesh(tuple(axes.values()), AXES, axis_types=kinds, devices=devices)
    except NotImplementedError as fault:  # an axis of 16 on a torus of 8 x 8 x 8
        raise MeshError(
            f"--mesh {spec} does not fit the links between these devices: {str(fault).split('. ')[0]}"
        ) from None
    trained = tuple(rules or RULES)
    return Layout(mesh, trained, tuple(frozen_rules or trained))


def check_batch(layout: Layout | None, batch_size: int, accumulate: int = 1) -> None:
    """Raise :class:`MeshError` unless the groups of a mesh divide a batch."""
    if layout and batch_size % (layout.groups * accumulate):
        axes = " x ".join(f"{axis}={layout.mesh.shape[axis]}" for axis in BATCH_AXES)
        parts = f"{axes} in {accumulate} micro-batches" if accumulate > 1 else axes
        raise MeshError(
            f"--batch-size {batch_size} can't be divided over {parts}: give a multiple of {layout.groups * accumulate}, "
            "or a --mesh of fewer devices"
        )
