"""What does each choice in the step bring? Every choice against what else could have been chosen,
in turn.

    python -m experiments.benchmark.tuning         # some 3 minutes on 2 cores

A full fine-tuning step with dropout, on real lengths: the step as it is, then with one choice
replaced at a time. Each choice is one function: `project`, `attend` (attention.py), `random_bits`
(layers.py), `Encoder.run` (blocks), `make_step` (donation), `pack` (rows), `train.loop` (overlap).
Expect ratios above 1 where the choice is right for this machine; on another one some may turn.
"""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.cli import console
from adapt.cli.launch import launch
from adapt.cli.run_folder import open_run
from adapt.data import packing, sources, tables
from adapt.data.examples import Examples
from adapt.errors import StrategyError
from adapt.models import Classifier, Encoder, Model, attention, encoder, layers
from adapt.models.quantised import multiply
from adapt.pretrained.hub import Pretrained, load
from adapt.run_folder import check_out, versions, write_json
from adapt.tasks import TASKS
from adapt.training import losses, optim, strategies
from adapt.training.loop import run_steps
from adapt.training.step import Batch, init_state, make_step
from experiments.benchmark import sides
from experiments.benchmark.options import OutputOptions
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)

PLAIN = "as it is"
COLUMNS = ("choice", "against", "speed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What is measured."""

    title: ClassVar[str] = "tuning"

    # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    checkpoint: str = "minilm"
    # a file, or a bundled set and its part
    data: str = "reviews:train"
    # the column of the texts
    text_column: str = "text"
    # examples a step
    batch_size: int = 32
    # of each choice, in each round
    steps: int = 4
    # that count; one more before them warms up
    rounds: int = 5
    # of the choices, by name; default: all
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TuningOptions, OutputOptions):
    """The flags of the command."""

    out: Path = Path("runs/tuning")


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    for name in config.only:
        if name not in CHOICES:
            raise StrategyError(f"--only {name!r}: give one of {', '.join(map(repr, CHOICES))}")
    pretrained = load(config.checkpoint)
    table = tables.read(config.data)
    labels = np.zeros(len(table), np.int32)
    examples = TASKS["classification"].examples(pretrained, table, [config.text_column], labels)
    with open_run(config.out, config):
        seconds = measure(config, compile_choices(config, pretrained, examples))
        result = {}
        for name, values in seconds.items():
            result[name] = {"seconds": values, "ratio": ratio(values, seconds[PLAIN])}
        write_json(config.out / "tuning.json", result)
    show(result)
    if config.tables is not None:
        where = machine_text(sides.machine(os.cpu_count() or 1))
        write_table(config.tables, "tuning", tuning_table(config, result, where, versions()))
    return result


Run = Callable[[], None]  # takes the steps of one round


def compile_choices(config: Config, pretrained: Pretrained, examples: Examples) -> dict[str, Run]:
    """A function a choice that takes its steps; each has compiled."""
    runs = {}
    with console.progress("compiling", len(CHOICES) + 1) as bar:
        for number, name in enumerate([PLAIN, *CHOICES], 1):
            if not config.only or name in (PLAIN, *config.only):
                make = plain if name == PLAIN else CHOICES[name].make
                runs[name] = make(config, pretrained, examples)
                runs[name]()
            bar.update(number)
    return runs


def measure(config: Config, runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """The seconds of a step of each choice, by round, the choices in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with console.progress("round", config.rounds) as bar:
        for number in range(-1, config.rounds):  # one more before them warms up
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if number >= 0:
                    seconds[name].append((time.perf_counter() - started) / config.steps)
            bar.update(number + 1)
    return seconds


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """How many times as long as the base, the median over the rounds."""
    return statistics.median(value / one for value, one in zip(values, base, strict=True))


def show(result: Mapping[str, Any]) -> None:
    """Print a row a choice."""
    rows = []
    for name, measured in result.items():
        by = CHOICES[name].replacement if name in CHOICES else ""
        milliseconds = f"{1e3 * statistics.median(measured['seconds']):.0f}"
        rows.append((name, by, milliseconds, f"{measured['ratio']:.2f}"))
    console.table("ms a step", ("choice replaced", "by", "ms", "times slower"), rows)


def tuning_table(
    config: Config, result: Mapping[str, Any], where: str, installed: Mapping[str, str]
) -> str:
    """tuning.md: how many times as fast each choice is as what it is measured against."""
    base = result[PLAIN]["seconds"]
    rows = []
    for name, choice in CHOICES.items():
        if name not in result:
            continue
        measured = result[name]
        pairs = zip(measured["seconds"], base, strict=True)
        rounds_won = sum(value > one for value, one in pairs)
        speed = f"{measured['ratio']:.3g} times"
        if 0 < rounds_won < len(base):
            speed = "no difference that this machine could resolve"
        rows.append([name, choice.replacement, speed])
    source = source_line(
        command_line("experiments.benchmark.tuning", config),
        f"{config.checkpoint} on `{config.data}`, full, batches of {config.batch_size}, float32",
        where,
        versions_text([installed]),
    )
    return table_text(source, COLUMNS, rows)


def make_model(pretrained: Pretrained, model_type: type[Model] = Model) -> Model:
    """The checkpoint's encoder with a head of two classes."""
    config = pretrained.config
    return model_type(Encoder(config), Classifier(2, "mean", dropout=config.dropout))


def plain(
    config: Config,
    pretrained: Pretrained,
    examples: Examples,
    *,
    model: Model | None = None,
    change_step: Callable[[Any], Any] | None = None,
    batches: Callable[[], Iterator[Batch]] | None = None,
) -> Run:
    """A function that takes ``steps`` steps of the loop as it is, but for what is given."""
    model = model or make_model(pretrained)
    params = tree.drop(pretrained.params, "head")
    params = tree.graft(params, "head", model.init_head(jax.random.key(0)))
    phase = strategies.strategy("full", pretrained.config.layers).phases[0]
    labels = tree.label(params, phase.rules)
    tx = optim.by_label({group: optim.adamw(1e-6) for group in ("encoder", "head")}, labels, 1.0)
    frozen, state = init_state(params, labels, tx, jax.random.key(config.seed))
    step: Any = make_step(model, losses.cross_entropy, tx)
    if change_step is not None:
        step = change_step(step)
    if batches is None:
        batches = full_batches(config, examples)

    def run() -> None:
        nonlocal state
        taken = itertools.islice(batches(), config.steps)
        # One record at the end, with the state after the last step.
        ((state, _),) = run_steps(step, frozen, state, taken, config.steps, set())

    return run


def full_batches(config: Config, examples: Examples) -> Callable[[], Iterator[Batch]]:
    """The packed batches of an epoch that are of one shape, so that nothing compiles within a
    round.
    """
    shapes = examples.batch_shapes(config.batch_size, config.seed, 1)

    def batches() -> Iterator[Batch]:
        for batch in examples.batches(shapes, config.seed, 0):
            if batch["segments"].shape[0] == shapes.rows[-1]:
                yield batch

    return batches


def replaced(module: Any, name: str, function: Callable[..., Any]) -> Callable[..., Run]:
    """The loop with a function of a module of adapt.models replaced while it is traced."""

    def make(config: Config, pretrained: Pretrained, examples: Examples) -> Run:
        run = plain(config, pretrained, examples)

        def patched() -> None:
            with mock.patch.object(module, name, function):
                run()

        return patched

    return make


def tokens_first(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    pattern: Any,
    dropout: Any,
    joint_RC3HK: Any = None,  # read by kernels alone
) -> jax.Array:
    """Attention with tokens before heads, [R, C, H, K], the layout of most implementations."""
    mask = pattern.mask(q_RHCK.shape[2], k_RHTK.shape[2])
    q_RCHK = q_RHCK.transpose(0, 2, 1, 3)
    k_RTHK = k_RHTK.transpose(0, 2, 1, 3)
    v_RTHK = v_RHTK.transpose(0, 2, 1, 3)
    scaled = q_RCHK * q_RCHK.shape[-1] ** -0.5
    scores = jnp.einsum("RCHK,RTHK->RHCT", scaled, k_RTHK)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
    if dropout is not None:
        weights = dropout(weights, deterministic=False)
    return jnp.einsum("RHCT,RTHK->RCHK", weights, v_RTHK).transpose(0, 2, 1, 3)


def three_products(x: jax.Array, kernels: Any, biases: Any, added: Any, heads: int) -> jax.Array:
    """Query, key and value as three matrix products: [R, C, 3, H, K]."""
    rows, tokens, width = x.shape
    products = []
    for kernel, bias in zip(kernels, biases, strict=True):
        product = multiply(x, kernel) + bias
        products.append(product.reshape(rows, tokens, heads, width // heads))
    return jnp.stack(products, 2)


def threefry(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Dropout's bits by JAX's own generator."""
    return jax.random.bits(key, shape, jnp.uint32)


class Scanned(Model):
    """The blocks as one scan over stacked parameters, in place of one after the other."""

    def suffix(
        self, params: tree.Tree, x: Any, batch: Any, depth: int, key: Any = None
    ) -> jax.Array:
        config = self.encoder.config
        of_encoder = params["encoder"]
        x = self._encode(of_encoder, "embed", batch, False, rngs={"dropout": key})
        numbers = range(config.layers)
        blocks = [of_encoder[f"block_{number:02d}"] for number in numbers]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        block = encoder.Block(config)
        pattern = encoder.attention_pattern(batch, config)

        def apply_block(x: jax.Array, numbered: Any) -> tuple[jax.Array, None]:
            weights, number = numbered
            rngs = {"dropout": jax.random.fold_in(key, number)}
            applied: Any = block.apply({"params": weights}, x, pattern, False, rngs=rngs)
            return applied, None

        x, _ = jax.lax.scan(apply_block, x, (stacked, jnp.arange(config.layers)))
        return self.apply_head(params["head"], x, batch, None, key)


def scanned(config: Config, pretrained: Pretrained, examples: Examples) -> Run:
    return plain(config, pretrained, examples, model=make_model(pretrained, Scanned))


def undonated(config: Config, pretrained: Pretrained, examples: Examples) -> Run:
    """The state is not donated: the step writes a new one beside it."""

    def undonate(step: Any) -> Any:
        return jax.jit(step.suffix.__wrapped__)

    return plain(config, pretrained, examples, change_step=undonate)


def in_turn(config: Config, pretrained: Pretrained, examples: Examples) -> Run:
    """The host waits for each step before it packs the next batch."""

    def wait(step: Any) -> Any:
        return lambda *arguments: jax.block_until_ready(step(*arguments))

    return plain(config, pretrained, examples, change_step=wait)


def padded(config: Config, pretrained: Pretrained, examples: Examples) -> Run:
    """One example a row, all rows as long as the longest example of their batch, in steps of 16."""
    source = examples.file_sequences
    assert isinstance(source, sources.TokenSource)
    tokens = source.tokens.take(examples.rows)
    by_width: dict[int, list[np.ndarray]] = {}
    for (index,) in packing.micro_batches(len(examples), config.batch_size, 1, config.seed, 0):
        longest = int(tokens.lengths[index].max())
        by_width.setdefault(-(-longest // 16) * 16, []).append(index)
    # The most frequent width alone, so that nothing compiles within a round.
    width = max(by_width, key=lambda width: len(by_width[width]))

    def batches() -> Iterator[Batch]:
        shape = (config.batch_size, width, config.batch_size)
        for index in by_width[width]:
            rows = np.arange(len(index))
            starts = np.zeros_like(rows)
            batch = packing.assemble(tokens, index, rows, starts, shape, source.pad)
            yield batch | packing.pad_labels(examples.labels[index], config.batch_size)

    return plain(config, pretrained, examples, batches=batches)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a choice is measured against, and how the steps with that are made."""

    replacement: str
    make: Callable[[Config, Pretrained, Examples], Run]


CHOICES = {
    "packed rows": Choice("one example a row, padded to the longest", padded),
    "heads before tokens": Choice(
        "tokens before heads", replaced(attention, "attend", tokens_first)
    ),
    "one product for query, key, value": Choice(
        "three products", replaced(attention, "project", three_products)
    ),
    "blocks unrolled": Choice("a scan over stacked blocks", scanned),
    "dropout bits by a counter's hash": Choice(
        "threefry", replaced(layers, "random_bits", threefry)
    ),
    "state donated": Choice("not donated", undonated),
    "packing while the step runs": Choice("packing in turn with the steps", in_turn),
}


if __name__ == "__main__":
    launch(Config, main)
