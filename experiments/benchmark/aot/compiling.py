"""A real train step compiled from shapes for chips that are not there, and what the compiled
programs say of themselves.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from adapt.cost import flops
from adapt.errors import CheckpointError, StrategyError
from adapt.models import Encoder, EncoderConfig, Model, set_contextvar, target_device
from adapt.models.peft import with_peft
from adapt.parallel import sharding
from adapt.training import frozen_prefix, optim, strategies
from adapt.training.losses import cross_entropy
from adapt.training.step import State, Step, cast_kernels, make_step
from adapt.tree import Tree, label, paths
from experiments.benchmark.aot import hlo, roofline
from experiments.benchmark.aot.chips import Chip, Topology
from experiments.benchmark.aot.shapes import SHAPES

LONGEST = 20  # rows of kernels that are kept
UNITS = {unit: 2 ** (10 * power) for power, unit in enumerate("BKMGTPE")}


@dataclasses.dataclass(frozen=True)
class Case:
    """One step of one encoder; ``batch_size`` is the examples of all chips, ``tokens`` those of one
    example.
    """

    model: str
    strategy: str
    topology: str
    mesh: str
    batch_size: int
    tokens: int
    remat: str
    scan: bool = True
    frozen_dtype: str = "float32"  # of frozen kernels
    accumulate: int = 1  # micro-batches of a step, of ``batch_size`` examples each
    compute_dtype: str = "bfloat16"


def resolve_strategy(model: str, spec: str) -> str:
    """The strategy with ``top:25%`` as a number of blocks. Raises :class:`CheckpointError` and
    :class:`StrategyError`.
    """
    if model not in SHAPES:
        raise CheckpointError(f"`model` {model}: unknown: give one of {', '.join(SHAPES)}")
    layers = SHAPES[model].config.layers
    percent = re.fullmatch(r"top:([0-9]+)%", spec)
    if percent and 0 < int(percent[1]) <= 100:
        blocks = max(1, round(layers * int(percent[1]) / 100))
        spec = f"top:{blocks}"
    strategy = strategies.strategy(spec, layers)
    if any(not field.startswith("lora_") for field in strategy.peft):
        raise StrategyError(
            f"`strategy` {spec} adds what is not counted here: give full, top:K, lora:R, frozen or "
            "the like"
        )
    return spec


def encoder_config(case: Case) -> EncoderConfig:
    """The encoder with what the strategy adds to it."""
    config = SHAPES[case.model].config
    return with_peft(config, strategies.strategy(case.strategy, config.layers).peft)


def tokens_per_example(model: str, batch_size: int, tokens: int | None) -> int:
    """The tokens of an example. Raises :class:`StrategyError` for so many tokens, or examples, as
    can't be.
    """
    config = SHAPES[model].config
    tokens = config.positions if tokens is None else tokens
    fits = 1 <= tokens <= config.positions
    if config.is_image:
        fits = tokens == config.positions
    if not fits:
        least = "" if config.is_image else "1 to "
        raise StrategyError(f"`tokens` {tokens}: {model} takes {least}{config.positions}")
    if batch_size < 1:
        raise StrategyError(f"`batch_size` {batch_size} must be at least 1")
    return tokens


def make_training(
    case: Case, layout: sharding.Layout | None = None
) -> tuple[Model, Tree, Any, Step]:
    """(model, labels, optimizer, step): AdamW, clipping, dropout."""
    shape = SHAPES[case.model]
    layers = shape.config.layers
    encoder = Encoder(encoder_config(case))
    model = Model(encoder, shape.head, layout, case.remat, case.scan)
    model = model.cast(jnp.dtype(case.compute_dtype))
    phase = strategies.strategy(case.strategy, layers).phases[0]
    labels, factors = strategies.label_phase(phase, model.shapes(), layers)
    rate = optim.schedule(1e-4, 1000)
    groups = {group: optim.adamw(rate) for group in factors}
    tx = optim.by_label(groups, labels, 1.0)
    cut = frozen_prefix.cut(labels, layers)
    step = make_step(model, cross_entropy, tx, cut)
    return model, labels, tx, step


array_like: Any = jax.ShapeDtypeStruct


def abstract_inputs(case: Case, devices: list[Any]) -> tuple[Step, Tree, State, dict[str, Any]]:
    """(the step, frozen parameters, state, batch) as shapes with their shardings."""
    layout = sharding.make_layout(case.mesh, devices)
    sharding.check_batch(layout, case.batch_size)
    model, labels, tx, step = make_training(case, layout)
    params = model.shapes()
    if layout:
        layout.check(params)
    trainable = optim.trainable(params, labels)
    state = State(
        step=array_like((), jnp.int32),
        params=trainable,
        opt_state=jax.eval_shape(tx.init, trainable),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        halted=array_like((), jnp.bool_),
    )
    frozen = jax.eval_shape(
        lambda frozen: cast_kernels(frozen, case.frozen_dtype), optim.frozen(params, labels)
    )
    batch = batch_shapes(case, layout)
    if layout is None:
        one_device = jax.sharding.SingleDeviceSharding(devices[0])
        frozen, state, batch = (on_device(tree, one_device) for tree in (frozen, state, batch))
        return step, frozen, state, batch
    frozen = with_shardings(frozen, layout.shardings(frozen, layout.frozen_rules))
    state = with_shardings(state, layout.shardings(state, layout.rules))
    return step, frozen, state, batch


def with_shardings(tree: Any, shardings: Any) -> Any:
    """The shapes of a pytree, each with its sharding."""

    def with_sharding(leaf: Any, leaf_sharding: Any) -> Any:
        return array_like(leaf.shape, leaf.dtype, sharding=leaf_sharding)

    return jax.tree.map(with_sharding, tree, shardings)


def on_device(tree: Any, device: jax.sharding.Sharding) -> Any:
    return with_shardings(tree, jax.tree.map(lambda _: device, tree))


def num_frozen_stages(case: Case) -> int:
    """How many stages, the embedding and then blocks, do not train."""
    shape = SHAPES[case.model]
    layers = shape.config.layers
    rules = strategies.strategy(case.strategy, layers).phases[0].rules
    shapes = Model(Encoder(encoder_config(case)), shape.head).shapes()
    return frozen_prefix.cut(label(shapes, rules), layers)


def batch_shapes(case: Case, layout: sharding.Layout | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Examples of full length, one a row: [N, ...], on a mesh groups of them [G, N, ...]."""
    config = SHAPES[case.model].config
    if layout:
        rows = (layout.groups, case.batch_size // layout.groups)
    else:
        rows = (case.batch_size,)
    if case.accumulate > 1:
        rows = (case.accumulate, *rows)
    batch = {"segments": array_like((*rows, case.tokens), jnp.int32)}
    if config.is_image:
        pixels = (*rows, config.image_size, config.image_size, config.channels)
        batch["pixels"] = array_like(pixels, jnp.float32)
    else:
        for name in ("tokens", "positions"):
            batch[name] = array_like((*rows, case.tokens), jnp.int32)
    for name in ("first", "length", "label"):
        batch[name] = array_like(rows, jnp.int32)
    batch["weight"] = array_like(rows, jnp.float32)
    return batch


def model_flops(case: Case, chips: int) -> float:
    """FLOPs of the matrix products that a step has to do on each chip, by hand."""
    shape = SHAPES[case.model]
    config = shape.config
    cut = num_frozen_stages(case)
    tokens = float(case.batch_size * case.tokens)
    span = float(case.tokens)
    prefix = flops.prefix_flops(config, cut, tokens, span)
    suffix = flops.step_flops(config, cut, tokens, span)
    if encoder_config(case).lora_rank:
        suffix += lora_flops(case, tokens)
    head_forward = 2.0 * case.batch_size * config.width * shape.head.classes
    # Where the whole encoder is frozen, nothing below the head needs a gradient.
    head_passes = 2 if cut > config.layers else 3
    return (prefix + suffix + head_passes * head_forward) / chips


def lora_flops(case: Case, tokens: float) -> float:
    """FLOPs of a step with LoRA, less those of one that trains all kernels: without their gradients,
    and with the products of the updates.
    """
    config = SHAPES[case.model].config
    shapes = paths(Model(Encoder(encoder_config(case)), SHAPES[case.model].head).shapes())
    updates = sum(math.prod(leaf.shape) for path, leaf in shapes.items() if "/lora/" in path)
    kernels = config.layers * flops.block_flops(config, tokens, 0)
    return 3 * 2.0 * tokens * updates - kernels


def compile_case(case: Case, topology: Topology) -> dict[str, Any]:
    """Compile a step, and say what came of it. Raises :class:`MeshError` where the mesh does not
    fit the slice.
    """
    devices = topology.devices()
    started = time.perf_counter()
    result: dict[str, Any] = {
        "case": dataclasses.asdict(case),
        "limit": topology.chip.memory,
        "compiler": topology.compiler,
    }
    with set_contextvar(target_device, devices[0]):
        step, frozen, state, batch = abstract_inputs(case, devices)
        try:
            programs = step.programs(frozen, state, batch)
        except jax.errors.JaxRuntimeError as error:
            inputs = (frozen, state, step.shard_batch(batch))
            needs = refused_bytes(str(error), bytes_per_chip(inputs))
            if needs is None:
                raise
            seconds = time.perf_counter() - started
            return result | {"fits": False, "compile_seconds": seconds} | needs
    result["compile_seconds"] = time.perf_counter() - started
    result |= memory(programs.values())
    result["fits"] = result["used"] <= topology.chip.memory
    result["flops"] = 0
    result["flops_again"] = 0
    result["flops_model"] = model_flops(case, topology.chips)
    result["collectives"] = []
    kernels = []
    for name, compiled in programs.items():
        program = hlo.read(compiled.as_text())
        result["flops"] += hlo.dot_flops(program)
        result["flops_again"] += hlo.dot_flops(program, RECOMPUTED)
        result["flops_again"] += hlo.attention_flops_again(program)
        result["collectives"] += collective_rows(name, hlo.collectives(program))
        kernels += roofline.kernels(program)
    result["kernels"] = sum(kernel.times for kernel in kernels)
    result["kernel_seconds"] = roofline.total_seconds(kernels, topology.chip)
    longest = roofline.rows(kernels, topology.chip)[:LONGEST]
    result["longest"] = [dataclasses.asdict(row) for row in longest]
    return result | computing_and_sending(result, topology.chip)


RECOMPUTED = "rematted_computation"  # in the names of what a checkpointed block computes again


def memory(programs: Iterable[Any]) -> dict[str, int]:
    """Bytes of a chip: arguments of all programs, and the temporaries and results of the one that
    needs the most.
    """
    arguments = 0
    most = 0
    for program in programs:
        stats = program.memory_analysis()
        arguments += stats.argument_size_in_bytes
        results = stats.output_size_in_bytes - stats.alias_size_in_bytes
        most = max(most, stats.temp_size_in_bytes + results)
    return {"arguments": arguments, "temporary": most, "used": arguments + most}


def bytes_per_chip(tree: Any) -> int:
    """Bytes of arrays, given by their shapes and shardings, on each chip."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def refused_bytes(message: str, arguments: int) -> dict[str, int] | None:
    """Bytes of a chip that a program wanted which the compiler refused for its memory; None where
    it said something else.

    The compiler names all bytes or those of the temporaries alone, to which the ``arguments`` come.
    """
    size = r"([\d.]+)([BKMGTPE]?)"
    everything = re.search(f"Used {size} of", message)
    if everything:
        return {"used": in_bytes(everything)}
    temporaries = re.search(rf"HLO temporaries \({size}\)", message)
    if temporaries:
        temporary = in_bytes(temporaries)
        used = temporary + arguments
        return {"used": used, "arguments": arguments, "temporary": temporary}
    return None


def in_bytes(match: re.Match[str]) -> int:
    return int(float(match[1]) * UNITS[match[2] or "B"])


def collective_rows(program: str, found: list[hlo.Collective]) -> list[dict[str, Any]]:
    """Collectives of one kind, type and group together: how often they run and what each chip
    sends, in bytes.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for collective in found:
        types = " ".join(collective.types)
        key = (collective.kind, types, collective.group)
        if key not in rows:
            rows[key] = {
                "program": program,
                "kind": collective.kind,
                "types": types,
                "group": collective.group,
                "times": 0,
                "sent": 0.0,
            }
        rows[key]["times"] += collective.times
        rows[key]["sent"] += collective.times * collective.sent
    return list(rows.values())


def computing_and_sending(result: dict[str, Any], chip: Chip) -> dict[str, float]:
    """Seconds of a step at the chip's peak and on its links, nothing overlapped, and the share that
    is computing.

    ``least`` sends everything over the two links of one dimension of the torus, ``share`` over all
    links.
    """
    # Products of a single row may be sums, which are not counted.
    computing = max(result["flops"], 1) / chip.flops
    sending = sum(row["sent"] for row in result["collectives"]) / chip.links
    return {
        "computing": computing,
        "sending": sending,
        "share": computing / (computing + sending),
        "least": computing / (computing + chip.dimensions * sending),
    }
