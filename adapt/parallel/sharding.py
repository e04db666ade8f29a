"""One mesh of devices, and ordered path rules that say where each parameter lies on it.

A mesh has three axes. ``data`` copies the parameters. ``fsdp`` divides them and gathers each block
where it is used (ZeRO-3, Rajbhandari et al. 2020). ``tensor`` divides the products of a block
(Megatron-LM, Shoeybi et al. 2019, 3). A batch on a mesh is G groups of examples, arrays [G, ...],
one for each place on ``data`` x ``fsdp``. Every group is packed by itself, so no row crosses
devices. The state is made where it lies: no host holds more than its share of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from adapt.errors import MeshError
from adapt.tree import Tree, cast_down, first_match, map_paths, match, paths

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # divide a batch into groups

# (pattern of paths, the axis that divides each dimension): None divides it by none, and neither are
# dimensions divided that come after the last one named.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

RULES: Rules = (
    (
        r"encoder/block_\d+/(attention/(position_)?(query|key|value)|mlp/(up|gate))/kernel",
        ("fsdp", "tensor"),
    ),
    (
        r"encoder/block_\d+/(attention/(position_)?(query|key|value)|mlp/(up|gate))/bias",
        ("tensor",),
    ),
    (r"encoder/block_\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
    (r"encoder/embedding/(token|position|type|(patch|projection)/kernel)", (None, "fsdp")),
    (r"head/(transform|decoder)/kernel", ("fsdp",)),
    (".*", ()),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules of its parameters. Frozen parameters may have rules of their own."""

    mesh: Mesh
    rules: Rules = RULES
    frozen_rules: Rules = RULES

    @property
    def groups(self) -> int:
        """The number of groups of examples into which a batch is divided."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @functools.cached_property
    def local_groups(self) -> tuple[int, ...]:
        """The groups of which this process has a device: the only ones that it makes."""
        process = jax.process_index()
        local = []
        for group, devices in enumerate(self.mesh.devices.reshape(self.groups, -1)):
            if any(device.process_index == process for device in devices):
                local.append(group)
        return tuple(local)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self, params: Tree) -> None:
        """Raise :class:`MeshError` where a rule does not fit a parameter.

        Of rules other than ``RULES`` every one must win a parameter, else :class:`RuleError`.
        """
        for rules in (self.rules, self.frozen_rules):
            if rules != RULES:
                match(paths(params), rules)
            for path, leaf in paths(params).items():
                self.spec(path, leaf.shape, rules)

    def spec(self, path: str, shape: Sequence[int], rules: Rules | None = None) -> PartitionSpec:
        """The axis that divides each dimension of a parameter. The scales of an int8 kernel are
        divided as its columns are.

        Raises :class:`MeshError` for an axis that is unknown, or does not divide its dimension.
        """
        is_scale = path.endswith("/kernel_scale")
        kernel_path = path.removesuffix("_scale") if is_scale else path
        rule = first_match(kernel_path, self.rules if rules is None else rules)
        pattern, named = rule
        if is_scale:
            named = named[1:2]
        if any(named[len(shape) :]):
            raise MeshError(f"rule {rule} names {len(named)} dimensions, {path} has {len(shape)}")
        axes = []
        for dimension, axis in enumerate(named[: len(shape)]):
            if axis is None:
                axes.append(None)
                continue
            if axis not in AXES:
                raise MeshError(
                    f"rule {rule}: there is no axis {axis!r}: give {', '.join(AXES)}, or None"
                )
            size = self.mesh.shape[axis]
            if shape[dimension] % size:
                raise MeshError(
                    f"dimension {dimension} of {path} is {shape[dimension]}, which {axis}={size} "
                    f"does not divide (rule {pattern!r}): give another `mesh`"
                )
            axes.append(axis if size > 1 else None)
        # Compiled programs spell a layout without trailing None; to spell it otherwise compiles
        # twice.
        while axes and axes[-1] is None:
            axes.pop()
        return PartitionSpec(*axes)

    def shardings(self, tree: Any, rules: Rules | None = None) -> Any:
        """The sharding of every leaf of a pytree.

        It may be any pytree whose paths end in a parameter's path, such as Adam's moments. Scalars
        and other leaves are replicated.
        """

        def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            starts = [index for index, name in enumerate(names) if name in ("encoder", "head")]
            if not starts or not leaf.shape:
                return self.replicated
            parameter = "/".join(names[starts[-1] :])
            return NamedSharding(self.mesh, self.spec(parameter, leaf.shape, rules))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def shard(self, tree: Any, rules: Rules | None = None) -> Any:
        """The tree on the mesh, from arrays of the host or of devices.

        A process reads of each leaf only what its own devices hold.
        """
        return jax.tree.map(device_put, tree, self.shardings(tree, rules))

    def shard_batch(self, batch: Mapping[str, Any], lead: int = 0) -> dict[str, Any]:
        """A batch on the mesh, [..., groups, ...], from the groups of this process.

        ``lead`` axes of micro-batches come before the axis of groups.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * lead, BATCH_AXES))
        return {name: self._shard_input(leaf, sharding, lead) for name, leaf in batch.items()}

    def _shard_input(self, leaf: Any, sharding: NamedSharding, lead: int) -> Any:
        shape = (*leaf.shape[:lead], self.groups, *leaf.shape[lead + 1 :])
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        local = np.asarray(leaf)

        def shard(index: Any) -> np.ndarray:
            groups = range(self.groups)[index[lead]]
            return local.take([self.local_groups.index(group) for group in groups], lead)

        return jax.make_array_from_callback(shape, sharding, shard)

    # Inside jit

    def over_groups(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` of one group, on all of them: arguments and results are [G, ...]."""
        return jax.vmap(function, spmd_axis_name=BATCH_AXES)

    def gather(self, tree: Tree, at: str, dtype: Any = None) -> Tree:
        """The parameters under the path ``at``, no longer divided by ``fsdp``, for their use.

        Their gradients come back divided. With a ``dtype`` matrices are cast to it before they
        travel, unless they are stored in fewer bytes.
        """

        def gathered(path: str, leaf: jax.Array) -> jax.Array:
            spec = self.spec(f"{at}/{path}", leaf.shape)
            if dtype is not None and leaf.ndim > 1:
                leaf = cast_down(leaf, dtype)
            if "fsdp" not in spec:
                return leaf
            divided = NamedSharding(self.mesh, spec)
            axes = [None if axis == "fsdp" else axis for axis in spec]
            undivided = NamedSharding(self.mesh, PartitionSpec(*axes))
            return gather_forward_scatter_backward(leaf, undivided, divided)

        return map_paths(gathered, tree)

    def constrain(self, tree: Any) -> Any:
        """Every leaf of a state where it belongs."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def replicate_activations(self, x: jax.Array) -> jax.Array:
        """A group's activations, copied to each device of ``tensor``; in :meth:`over_groups`."""
        return jax.lax.with_sharding_constraint(x, self.replicated)


# Autodiff alone would sum whole gradients on every device, and only then divide them.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_forward_scatter_backward(
    x: jax.Array, undivided: NamedSharding, divided: NamedSharding
) -> jax.Array:
    """``x`` as ``undivided``, and its gradient as ``divided``: a scatter of sums."""
    return jax.lax.with_sharding_constraint(x, undivided)


def _forward(
    x: jax.Array, undivided: NamedSharding, divided: NamedSharding
) -> tuple[jax.Array, None]:
    return gather_forward_scatter_backward(x, undivided, divided), None


def _backward(
    undivided: NamedSharding, divided: NamedSharding, residuals: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, divided),)


gather_forward_scatter_backward.defvjp(_forward, _backward)


def device_put(leaf: Any, sharding: Sharding) -> Any:
    """One leaf on devices, as :func:`jax.device_put` does; also on those of several processes."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = device_put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(copy_of_host_array(leaf), sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.array(leaf[index]))


def copy_of_host_array(leaf: Any) -> Any:
    """A copy of a host's array, and a device's array as it is.

    A CPU device would share the memory of the array, which may be mapped from a file.
    """
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def shard_tree(tree: Any, layout: Layout | None = None) -> Any:
    """The tree on the mesh; without a mesh, on the first device."""
    if layout is not None:
        return layout.shard(tree)
    return jax.device_put(jax.tree.map(copy_of_host_array, tree), jax.local_devices()[0])


def shard_inputs(function: Callable[..., Any], layout: Layout | None) -> Callable[..., Any]:
    """``(params, batch) -> ...`` that first lays the batch over the mesh, where there is one."""
    if layout is None:
        return function
    return lambda params, batch: function(params, layout.shard_batch(batch))


# The mesh of a run


def make_layout(
    spec: str = "",
    devices: Sequence[Any] | None = None,
    rules: Rules | None = None,
    frozen_rules: Rules | None = None,
) -> Layout | None:
    """The layout of a mesh such as ``"data=2,fsdp=4"``; None for a single device.

    It takes all devices, or in a run of one process the first of them; ``spec=""`` puts all of them
    on ``data``. ``rules`` are those of frozen parameters too, unless they have their own. Raises
    :class:`MeshError` where the devices do not fit.
    """
    if not isinstance(spec, str):
        raise MeshError(f"`mesh` is {spec!r}: give sizes of {', '.join(AXES)}, as in data=2,fsdp=4")
    may_take_some = devices is None and jax.process_count() == 1
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(spec, len(devices), may_take_some)
    devices = devices[: math.prod(sizes.values())]
    if len(devices) == 1:
        return None
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        mesh = jax.make_mesh(tuple(sizes.values()), AXES, axis_types=axis_types, devices=devices)
    except NotImplementedError as error:  # an axis of 16 on a torus of 8 x 8 x 8
        reason = str(error).split(". ")[0]
        raise MeshError(
            f"`mesh` {spec} does not fit the links between these devices: {reason}"
        ) from None
    rules = tuple(rules or RULES)
    return Layout(mesh, rules, tuple(frozen_rules or rules))


def axis_sizes(spec: str, devices: int, may_take_some: bool = False) -> dict[str, int]:
    """The size of every axis of ``"data=2,fsdp=4"``.

    An empty ``spec`` puts all devices on ``data``. Raises :class:`MeshError` unless their product
    is the number of devices, or a divisor of it if the mesh ``may_take_some``.
    """
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    for part in filter(None, spec.split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise MeshError(
                f"`mesh` {spec}: there is no axis {name!r}: "
                f"give sizes of {', '.join(AXES)}, as in data=2,fsdp=4"
            )
        if not size.isdecimal() or int(size) < 1 or sizes[name] != 1:
            raise MeshError(
                f"`mesh` {spec}: {part!r} is no size of an axis: "
                "give each once, as in data=2,fsdp=4"
            )
        sizes[name] = int(size)
    if not spec:
        sizes["data"] = devices
    taken = math.prod(sizes.values())
    if taken == devices or (may_take_some and devices % taken == 0):
        return sizes
    raise MeshError(
        f"`mesh` {spec} takes {taken} device{'s' * (taken > 1)} and there "
        f"{'is' if devices == 1 else 'are'} {devices}: "
        f"it must {'divide them' if may_take_some else 'take all of them'}"
    )


def check_batch(layout: Layout | None, batch_size: int, accumulate: int = 1) -> None:
    """Raise :class:`MeshError` unless a batch divides into the groups of a mesh."""
    if layout is None:
        return
    parts = layout.groups * accumulate
    if batch_size % parts:
        axes = " x ".join(f"{axis}={layout.mesh.shape[axis]}" for axis in BATCH_AXES)
        if accumulate > 1:
            axes = f"{axes} in {accumulate} micro-batches"
        raise MeshError(
            f"`batch_size` {batch_size} can't be divided over {axes}: "
            f"give a multiple of {parts}, or a `mesh` of fewer devices"
        )
