"""What does each choice in the step bring? Every choice against what else could have been chosen,
in turn.

    python -m experiments.benchmark.tuning                  # MiniLM's shapes, 32 reviews a step, some 3 minutes on 2 cores

A full fine-tuning step with dropout, random weights, real lengths: the step as it is, then with one
choice replaced at a time. Each choice is one function: `project`, `attend` (attention.py),
`random_bits` (layers.py), `Encoder.run` (blocks), `make_step` (donation), `pack` (rows),
`train.loop` (overlap), `keep_memory` (experiments). Expect ratios above 1 where the choice is right
for this machine; on another one some may turn.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, write_json
from adapt.data import examples, packing, sources
from adapt.models import Classifier, Encoder, Model, attention, encoder, layers
from adapt.pretrained import hub
from adapt.tasks import TASKS
from adapt.training import losses, optim, strategies
from adapt.training.loop import run_steps
from adapt.training.step import init_state, make_step


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "minilm"
    data: str = "reviews:train"
    text_column: str = "text"
    batch_size: int = 32
    steps: int = 4  # a round and choice
    rounds: int = 5
    only: tuple[str, ...] = ()  # of the choices by name; default: all
    seed: int = 0
    out: Path = Path("runs/tuning")
    overwrite: bool = False


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    pretrained = hub.load(config.checkpoint)
    table = inputs.read(config.data)
    labels = np.zeros(len(table), np.int32)
    texts = TASKS["classification"].examples(pretrained, table, [config.text_column], labels)
    with open_run(config.out, config):
        runs = {}
        with console.progress("compiling", len(CHOICES) + 1) as bar:
            for number, (name, (_, changed)) in enumerate(
                {"as it is": ("", plain), **CHOICES}.items(), 1
            ):
                if not config.only or name in ("as it is", *config.only):
                    runs[name] = changed(config, pretrained, texts)
                    runs[name]()  # compiles
                bar.update(number)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        with console.progress("round", config.rounds) as bar:
            for number in range(-1, config.rounds):  # one more before them warms up
                for name, run in runs.items():
                    started = time.perf_counter()
                    run()
                    if number >= 0:
                        seconds[name].append((time.perf_counter() - started) / config.steps)
                bar.update(number + 1)
        result = {
            name: {"seconds": values, "ratio": ratio(values, seconds["as it is"])}
            for name, values in seconds.items()
        }
        write_json(config.out / "tuning.json", result)
    rows = []
    for name, found in result.items():
        milliseconds = f"{1e3 * statistics.median(found['seconds']):.0f}"
        rows.append(
            (
                name,
                CHOICES[name][0] if name in CHOICES else "",
                milliseconds,
                f"{found['ratio']:.2f}",
            )
        )
    console.table("ms a step", ("choice replaced", "by", "ms", "times slower"), rows)
    return result


def ratio(values: list[float], base: list[float]) -> float:
    return statistics.median(value / one for value, one in zip(values, base, strict=True))


def plain(
    config: Config, pretrained: hub.Pretrained, texts: examples.Examples, **changed: Any
) -> Callable[[], None]:
    """A function that takes ``steps`` steps of the loop as it is; ``changed`` replaces a part of
    it.
    """
    model = changed.get("model") or Model(
        Encoder(pretrained.config), Classifier(2, "mean", dropout=pretrained.config.dropout)
    )
    params = tree.graft(
        tree.drop(pretrained.params, "head"), "head", model.init_head(jax.random.key(0))
    )
    labels = tree.label(
        params, strategies.strategy("full", pretrained.config.layers).phases[0].rules
    )
    tx = optim.by_label({group: optim.adamw(1e-6) for group in ("encoder", "head")}, labels, 1.0)
    frozen, state = init_state(params, labels, tx, jax.random.key(config.seed))
    step: Any = make_step(model, losses.cross_entropy, tx)
    step = changed.get("step", lambda step: step)(step)
    plan = texts.plan(config.batch_size, config.seed, 1)
    held = [state]

    def batches() -> Iterator[Any]:
        found = (
            changed["batches"]() if "batches" in changed else texts.batches(plan, config.seed, 0)
        )
        # All of one shape, so that nothing compiles within a round.
        same = (
            batch
            for batch in found
            if batch["segments"].shape[0] == plan.rows[-1] or "batches" in changed
        )
        return itertools.islice(same, config.steps)

    def run() -> None:
        for taken, _ in run_steps(step, frozen, held[0], batches(), config.steps, set()):
            held[0] = taken

    return run


def replaced(module: Any, name: str, function: Any) -> Callable[..., Callable[[], None]]:
    """The loop with a function of a module of adapt.models replaced while it is traced."""

    def changed(*arguments: Any) -> Callable[[], None]:
        run = plain(*arguments)

        def patched() -> None:
            with mock.patch.object(module, name, function):
                run()

        return patched

    return changed


def tokens_first(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, drop: Any) -> jax.Array:
    """Attention with tokens before heads, [R, C, H, K], the layout of most implementations."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = jnp.einsum("RCHK,RTHK->RHCT", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
    return jnp.einsum("RHCT,RTHK->RCHK", weights if drop is None else drop(weights), v).transpose(
        0, 2, 1, 3
    )


def three_products(x: jax.Array, kernels: Any, biases: Any, added: Any, heads: int) -> jax.Array:
    """Query, key and value as three matrix products."""
    parts = [x @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True)]
    rows, tokens, width = x.shape
    return jnp.stack(
        [part.reshape(rows, tokens, heads, width // heads).transpose(0, 2, 1, 3) for part in parts]
    )


def threefry(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Dropout's bits by JAX's own generator."""
    return jax.random.bits(key, shape, jnp.uint32)


def scanned(
    config: Config, pretrained: hub.Pretrained, texts: examples.Examples
) -> Callable[[], None]:
    """The blocks as one scan over stacked parameters, in place of one after the other."""

    class Scanned(Model):
        def suffix(
            self, params: tree.Tree, x: Any, batch: Any, cut: int, key: Any = None
        ) -> jax.Array:
            c = self.encoder.config
            x = self._encode(params["encoder"], "embed", batch, False, rngs={"dropout": key})
            blocks = [params["encoder"][f"block_{number:02d}"] for number in range(c.layers)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
            block = encoder.Block(c)
            mask = encoder.attention_mask(batch, c.causal)

            def one(x: jax.Array, part: Any) -> tuple[jax.Array, None]:
                weights, number = part
                rngs = {"dropout": jax.random.fold_in(key, number)}
                return block.apply({"params": weights}, x, mask, False, rngs=rngs), None  # pyright: ignore

            x, _ = jax.lax.scan(one, x, (stacked, jnp.arange(c.layers)))
            return self.apply_head(params["head"], x, batch, None, key)

    model = Scanned(
        Encoder(pretrained.config), Classifier(2, "mean", dropout=pretrained.config.dropout)
    )
    return plain(config, pretrained, texts, model=model)


def undonated(*arguments: Any) -> Callable[[], None]:
    """The state is not donated: the step writes a new one beside it."""
    return plain(*arguments, step=lambda step: jax.jit(step.suffix.__wrapped__))


def in_turn(*arguments: Any) -> Callable[[], None]:
    """The host waits for each step before it packs the next batch."""

    def waiting(step: Any) -> Any:
        return lambda *given: jax.block_until_ready(step(*given))

    return plain(*arguments, step=waiting)


def padded(
    config: Config, pretrained: hub.Pretrained, texts: examples.Examples
) -> Callable[[], None]:
    """One example a row, all rows as long as the longest example of their batch, in steps of 16."""
    source = texts.file_sequences
    assert isinstance(source, sources.TokenSource)
    tokens = source.tokens.take(texts.rows)
    chosen = [
        index
        for (index,) in packing.micro_batches(len(texts), config.batch_size, 1, config.seed, 0)
    ]
    widths = [-(-int(tokens.lengths[index].max()) // 16) * 16 for index in chosen]
    width = max(
        set(widths), key=widths.count
    )  # the most frequent alone, so that nothing compiles within a round

    def batches() -> Iterator[Any]:
        shape = (config.batch_size, width, config.batch_size)
        for index in (
            index for index, needed in zip(chosen, widths, strict=True) if needed == width
        ):
            row = np.arange(len(index))
            batch = packing.assemble(tokens, index, row, np.zeros_like(row), shape, source.pad)
            yield batch | packing.pad_labels(texts.labels[index], config.batch_size)

    return plain(config, pretrained, texts, batches=batches)


CHOICES: dict[str, tuple[str, Callable[..., Callable[[], None]]]] = {
    "packed rows": ("one example a row, padded to the longest", padded),
    "heads before tokens": ("tokens before heads", replaced(attention, "attend", tokens_first)),
    "one product for query, key, value": (
        "three products",
        replaced(attention, "project", three_products),
    ),
    "blocks unrolled": ("a scan over stacked blocks", scanned),
    "dropout bits by a counter's hash": ("threefry", replaced(layers, "random_bits", threefry)),
    "state donated": ("not donated", undonated),
    "packing while the step runs": ("packing in turn with the steps", in_turn),
}


if __name__ == "__main__":
    launch(Config, main)
