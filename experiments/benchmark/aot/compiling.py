"""A real train step compiled from shapes for chips that are not there, and what the compiled programs say of themselves."""

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
from adapt.models import Encoder, Model, set_contextvar, target_device
from adapt.parallel import sharding
from adapt.training import frozen_prefix, optim, strategies
from adapt.training.losses import cross_entropy
from adapt.training.step import State, Step, make_step
from adapt.tree import Tree, label
from experiments.benchmark.aot import hlo
from experiments.benchmark.aot.chips import Chip, Topology
from experiments.benchmark.aot.shapes import SHAPES

UNITS = {unit: 2 ** (10 * power) for power, unit in enumerate("BKMGTPE")}


@dataclasses.dataclass(frozen=True)
class Case:
    """One step of one encoder; ``batch_size`` is the examples of all chips, ``tokens`` those of one example."""

    model: str
    strategy: str
    topology: str
    mesh: str
    batch_size: int
    tokens: int
    remat: str
    scan: bool = True


def resolved(model: str, spec: str) -> str:
    """The strategy with ``top:25%`` as a number of blocks. Raises :class:`CheckpointError` and :class:`StrategyError`."""
    if model not in SHAPES:
        raise CheckpointError(f"--model {model}: unknown: give one of {', '.join(SHAPES)}")
    layers = SHAPES[model].config.layers
    if (
        spec.startswith("top:")
        and spec.endswith("%")
        and spec[4:-1].isdecimal()
        and 0 < int(spec[4:-1]) <= 100
    ):
        spec = f"top:{max(1, round(layers * int(spec[4:-1]) / 100))}"
    strategy = strategies.strategy(spec, layers)
    if len(strategy.phases) > 1 or strategy.peft:
        raise StrategyError(
            f"--strategy {spec} has several phases or additions: give full, top:K, frozen or the like"
        )
    return spec


def sizes(model: str, batch_size: int, tokens: int | None) -> int:
    """The tokens of an example. Raises :class:`StrategyError` for so many tokens, or examples, as can't be."""
    config = SHAPES[model].config
    tokens = config.positions if tokens is None else tokens
    if not 1 <= tokens <= config.positions or (config.is_image and tokens != config.positions):
        least = "" if config.is_image else "1 to "
        raise StrategyError(f"--tokens {tokens}: {model} takes {least}{config.positions}")
    if batch_size < 1:
        raise StrategyError(f"--batch-size {batch_size} must be at least 1")
    return tokens


def training(case: Case, layout: sharding.Layout | None = None) -> tuple[Model, Tree, Any, Step]:
    """(model, labels, optimizer, step): AdamW, clipping, dropout, bfloat16 compute."""
    shape = SHAPES[case.model]
    layers = shape.config.layers
    model = Model(Encoder(shape.config), shape.head, layout, case.remat, case.scan).cast(
        jnp.bfloat16
    )
    labels, factors = strategies.label_phase(
        strategies.strategy(case.strategy, layers).phases[0], model.shapes(), layers
    )
    tx = optim.by_label(
        {group: optim.adamw(optim.schedule(1e-4, 1000)) for group in factors}, labels, 1.0
    )
    return model, labels, tx, make_step(model, cross_entropy, tx, frozen_prefix.cut(labels, layers))


array_like: Any = jax.ShapeDtypeStruct


def abstract(case: Case, devices: list[Any]) -> tuple[Step, Tree, State, dict[str, Any]]:
    """(the step, frozen parameters, state, batch) as shapes with their places."""
    array = array_like
    layout = sharding.make_layout(case.mesh, devices)
    whole = jax.sharding.SingleDeviceSharding(devices[0])
    sharding.check_batch(layout, case.batch_size)
    model, labels, tx, step = training(case, layout)
    params = model.shapes()
    if layout:
        layout.check(params)
    moving = optim.trainable(params, labels)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = State(
        array((), jnp.int32), moving, jax.eval_shape(tx.init, moving), key, array((), jnp.bool_)
    )

    def placed(tree: Any, places: Any) -> Any:
        return jax.tree.map(
            lambda leaf, at: array(leaf.shape, leaf.dtype, sharding=at), tree, places
        )

    def on_one(tree: Any) -> Any:
        return placed(tree, jax.tree.map(lambda _: whole, tree))

    frozen = optim.frozen(params, labels)
    batch = batch_of(case, layout)
    if layout is None:
        return step, on_one(frozen), on_one(state), on_one(batch)
    frozen = placed(frozen, layout.shardings(frozen, layout.frozen_rules))
    return step, frozen, placed(state, layout.shardings(state, layout.rules)), batch


def still(case: Case) -> int:
    """How many stages, the embedding and then blocks, do not train."""
    layers = SHAPES[case.model].config.layers
    rules = strategies.strategy(case.strategy, layers).phases[0].rules
    return frozen_prefix.cut(
        label(Model(Encoder(SHAPES[case.model].config), SHAPES[case.model].head).shapes(), rules),
        layers,
    )


def batch_of(case: Case, layout: sharding.Layout | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Examples of full length, one a row: [N, ...], on a mesh groups of them [G, N, ...]."""
    c = SHAPES[case.model].config
    array = jax.ShapeDtypeStruct
    rows = (layout.groups, case.batch_size // layout.groups) if layout else (case.batch_size,)
    words = () if c.is_image else ("tokens", "positions")
    batch = {name: array((*rows, case.tokens), jnp.int32) for name in ("segments", *words)}
    if c.is_image:
        batch["pixels"] = array((*rows, c.image_size, c.image_size, c.channels), jnp.float32)
    batch |= {name: array(rows, jnp.int32) for name in ("first", "length", "label")}
    return batch | {"weight": array(rows, jnp.float32)}


def model_flops(case: Case, chips: int) -> float:
    """Of the matrix products that a step has to do on each chip, by hand."""
    shape = SHAPES[case.model]
    c = shape.config
    head = 2.0 * case.batch_size * shape.config.width * shape.head.classes
    cut = still(case)
    tokens = float(case.batch_size * case.tokens)
    below, above = (
        count(c, cut, tokens, float(case.tokens))
        for count in (flops.prefix_flops, flops.step_flops)
    )
    return (below + above + head * (2 if cut > c.layers else 3)) / chips


def compiled(case: Case, topology: Topology) -> dict[str, Any]:
    """Compile it, and say what came of it. Raises :class:`MeshError` where the mesh does not fit the slice."""
    devices = topology.devices()
    started = time.perf_counter()
    found: dict[str, Any] = {
        "case": dataclasses.asdict(case),
        "limit": topology.chip.memory,
        "compiler": topology.compiler,
    }
    with set_contextvar(target_device, devices[0]):
        step, frozen, state, batch = abstract(case, devices)
        try:
            programs = step.programs(frozen, state, batch)
        except jax.errors.JaxRuntimeError as fault:
            needs = needed(str(fault), share((frozen, state, step.shard_batch(batch))))
            if needs is None:
                raise
            return found | {"fits": False, "compile_seconds": time.perf_counter() - started} | needs
    found["compile_seconds"] = time.perf_counter() - started
    found |= memory(programs.values())
    found["fits"] = found["used"] <= topology.chip.memory
    texts = {name: program.as_text() for name, program in programs.items()}
    found["flops"] = sum(hlo.dot_flops(text) for text in texts.values())
    found["flops_again"] = sum(hlo.dot_flops(text, AGAIN) for text in texts.values())
    found["flops_model"] = model_flops(case, topology.chips)
    found["collectives"] = [
        row for name, text in texts.items() for row in gathered(name, hlo.collectives(text))
    ]
    return found | on_paper(found, topology.chip)


AGAIN = "rematted_computation"  # in the names of what a checkpointed block computes again


def memory(programs: Iterable[Any]) -> dict[str, int]:
    """Bytes of a chip: arguments of all programs, and the temporaries and results of the one that needs the most."""
    stats = [program.memory_analysis() for program in programs]
    arguments = sum(each.argument_size_in_bytes for each in stats)
    more = [
        each.temp_size_in_bytes + each.output_size_in_bytes - each.alias_size_in_bytes
        for each in stats
    ]
    return {"arguments": arguments, "temporary": max(more), "used": arguments + max(more)}


def share(tree: Any) -> int:
    """Bytes of arrays, given by their shapes and places, on each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def needed(message: str, arguments: int) -> dict[str, int] | None:
    """Bytes of a chip that a program wanted which the compiler refused for its memory; None where it said something else.

    It names all of them or the temporaries alone, to which the ``arguments`` come.
    """
    size = r"([\d.]+)([BKMGTPE]?)"
    every = re.search(f"Used {size} of", message)
    some = re.search(rf"HLO temporaries \({size}\)", message)
    if not (found := every or some):
        return None
    used = int(float(found[1]) * UNITS[found[2] or "B"])
    return (
        {"used": used}
        if every
        else {"used": used + arguments, "arguments": arguments, "temporary": used}
    )


def gathered(program: str, found: list[hlo.Collective]) -> list[dict[str, Any]]:
    """Collectives of one kind, type and group together: how often they run and what each chip sends, in bytes."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in found:
        key = (each.kind, " ".join(each.types), each.group)
        row = rows.setdefault(
            key, dict(zip(("kind", "types", "group"), key, strict=True)) | {"times": 0, "sent": 0.0}
        )
        row["times"] += each.times
        row["sent"] += each.times * each.sent
    return [{"program": program} | row for row in rows.values()]


def on_paper(found: dict[str, Any], chip: Chip) -> dict[str, float]:
    """Seconds of a step at the chip's peak and on its links, nothing overlapped, and the share that is computing.

    ``least`` sends everything over the two links of one dimension of the torus, ``share`` over all links.
    """
    computing = (
        max(found["flops"], 1) / chip.flops
    )  # products of a single row may be sums, which are not counted
    sending = sum(row["sent"] for row in found["collectives"]) / chip.links
    seconds = {"computing": computing, "sending": sending}
    return seconds | {
        "share": computing / (computing + sending),
        "least": computing / (computing + chip.dimensions * sending),
    }
