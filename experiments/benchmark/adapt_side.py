"""adapt as a side of the measurements, with the functions that everybody uses: nothing here is for
the benchmark alone.

Libraries are imported when a side starts: by then the process is kept to its cores, which they
count when they are imported.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmark import peers

if TYPE_CHECKING:
    from adapt.data.examples import Examples
    from adapt.training.step import Batch, State, Step
    from adapt.tree import Tree


@dataclasses.dataclass
class Training:
    """A step with its parameters and state, and the shapes of batches that it has compiled."""

    step: "Step"
    frozen: "Tree"
    state: "State"
    compiled: set[Any] = dataclasses.field(default_factory=set)

    def take(self, batches: "Iterable[Batch]", num_steps: int) -> dict[str, float]:
        """Take a step a batch, ``num_steps`` in all; what is recorded of them."""
        from adapt.training.loop import run_steps

        steps = run_steps(self.step, self.frozen, self.state, batches, num_steps, self.compiled)
        ((self.state, record),) = steps
        return {
            "examples": record["timed_examples"],
            "seconds": record["seconds"],
            "loss": record["loss"],
            "compile_seconds": record["compile_seconds"],
        }


class Adapt:
    """adapt on the CPU."""

    def __init__(self, setting: peers.Setting):
        import numpy as np

        from adapt.cli.launch import prepare_cpu
        from adapt.data import examples, sources
        from adapt.pretrained import hub
        from adapt.program_cache import keep_programs
        from adapt.ragged import ragged
        from adapt.run_folder import versions

        prepare_cpu()
        keep_programs()
        content = json.loads(Path(setting.task).read_text("utf-8"))
        self.pretrained = hub.load(setting.checkpoint)
        tokenizer = self.pretrained.tokenizer
        assert tokenizer is not None  # checked by the benchmark
        tokens = ragged(content["ids"])
        labels = np.array(content["labels"], np.int32)
        pad_token = self.pretrained.config.pad_token
        source = sources.TokenSource(tokens, tokenizer.max_length, pad_token)
        self.examples = examples.Examples(source, np.arange(len(tokens)), labels)
        self.shapes = self.examples.batch_shapes(
            setting.batch_size, setting.seed, content["epochs"]
        )
        self.texts = content["texts"]
        self.classes = content["classes"]
        self.batch_size = setting.batch_size
        self.seed = setting.seed
        self.learning = setting.learning
        self.versions = versions()
        self.trainings: dict[str, tuple[Training, Examples]] = {}
        self.strategy("full")

    def strategy(self, name: str) -> dict[str, Any]:
        """Train by this strategy from now on, with the cache where something stands still."""
        if name not in self.trainings:
            self.trainings[name] = self.make_training(name)
        self.training, self.prepared_examples = self.trainings[name]
        return {}

    def make_training(self, name: str) -> "tuple[Training, Examples]":
        """A training by a strategy, from the checkpoint's encoder and a new head, and the examples
        for it.
        """
        import jax

        from adapt import tree
        from adapt.models import Classifier, Encoder, Model
        from adapt.training import frozen_prefix, losses, optim, strategies
        from adapt.training.step import init_state, make_step

        config = self.pretrained.config
        key = jax.random.key(self.seed)
        model = Model(Encoder(config), Classifier(self.classes, "mean", dropout=config.dropout))
        params = tree.drop(self.pretrained.params, "head")
        params = tree.graft(params, "head", model.init_head(key))
        phase = strategies.strategy(name, config.layers).phases[0]
        labels = tree.label(params, phase.rules)
        adamw = optim.adamw(self.learning["rate"], self.learning["decay"])
        tx = optim.by_label(dict.fromkeys(phase.groups, adamw), labels, self.learning["clip"])
        cut = frozen_prefix.cut(labels, config.layers)
        step = make_step(model, losses.cross_entropy, tx, cut)
        frozen, state = init_state(params, labels, tx, key)
        examples = self.examples
        if step.prefix is not None:
            examples = self.with_states(step, frozen, model)
        return Training(step, frozen, state), examples

    def with_states(self, step: "Step", frozen: "Tree", model: Any) -> "Examples":
        """The examples with what the frozen prefix makes of them."""
        from adapt.prefix_cache import states

        prefix = step.prefix
        assert prefix is not None
        entry = states.cached_array(frozen, model, prefix.depth, self.examples, "float32")
        computed = states.compute_states(prefix, frozen, self.examples, entry)
        return dataclasses.replace(self.examples, states=computed)

    def train(self, order: list[int], epoch: int) -> dict[str, float]:
        """The first steps of an epoch, packing included; ``order`` is what every epoch's
        permutation gives.
        """
        num_steps = -(-len(order) // self.batch_size)
        batches = self.prepared_examples.batches(self.shapes, self.seed, epoch)
        return self.training.take(itertools.islice(batches, num_steps), num_steps)

    def extract(self, index: list[int], features: str | None = None) -> dict[str, float]:
        """Encode the texts ``index``, tokenization and packing included. Their vectors, float32
        [N, D], go into the file ``features`` where one is named.
        """
        from adapt.features import encode

        texts = [self.texts[i] for i in index]
        started = time.perf_counter()
        vectors = encode(self.pretrained, texts, "mean")
        seconds = time.perf_counter() - started
        if features is not None:
            vectors.tofile(features)
        return {"examples": len(vectors), "seconds": seconds}

    def rate(self, sizes: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
        """float32 matrix products: GFLOP/s of each repetition, by size."""
        return {"rates": jax_rates(sizes, repeats)}


def jax_rates(sizes: list[int], repeats: int) -> dict[str, list[float]]:
    """float32 matrix products by JAX: GFLOP/s of each repetition, by size."""
    import jax

    product = jax.jit(lambda a: a @ a)
    rates = {}
    for size in sizes:
        matrix = jax.random.normal(jax.random.key(0), (size, size))
        rates[str(size)] = peers.matmul_rates(
            lambda a: product(a).block_until_ready(), matrix, repeats
        )
    return rates


if __name__ == "__main__":
    peers.serve({"adapt": functools.partial(peers.start, Adapt)})
