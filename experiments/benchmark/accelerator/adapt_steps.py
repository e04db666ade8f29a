"""adapt's steps with random weights, as a side that is driven by JSON lines."""

import functools
import itertools
from typing import TYPE_CHECKING, Any

from experiments.benchmark import peers
from experiments.benchmark.adapt_side import Training, jax_rates

if TYPE_CHECKING:
    import numpy as np

    from adapt.training.step import Batch


class Steps:
    """The steps of one case, with random weights and batches."""

    def __init__(self, case: dict[str, Any], cores: int, seed: int):
        import jax
        import numpy as np

        from adapt.cli.launch import prepare_cpu
        from adapt.program_cache import keep_programs
        from adapt.run_folder import versions
        from adapt.training.step import init_state
        from experiments.benchmark.aot.compiling import Case, make_training

        prepare_cpu()
        keep_programs()
        self.case = Case(**case)
        rng = np.random.default_rng(seed)
        key = jax.random.key(seed)
        model, labels, tx, step = make_training(self.case)
        frozen, state = init_state(jax.jit(model.init)(key), labels, tx, key)
        self.training = Training(step, frozen, state)
        self.batches = [self.make_batch(rng) for _ in range(2)]
        self.device = jax.local_devices()[0]
        self.versions = versions() | {"device": self.device.device_kind}

    def make_batch(self, rng: "np.random.Generator") -> "Batch":
        """Examples of full length, one a row."""
        import numpy as np

        from adapt.data import packing
        from adapt.ragged import ragged
        from experiments.benchmark.aot.shapes import SHAPES

        shape = SHAPES[self.case.model]
        config = shape.config
        num_examples = self.case.batch_size
        num_tokens = self.case.tokens
        if config.is_image:
            size = (num_examples, config.image_size, config.image_size, config.channels)
            pixels = rng.standard_normal(size, np.float32)
            batch = packing.image_batch(pixels, num_tokens, num_examples)
        else:
            tokens = ragged(list(rng.integers(1, config.vocabulary, (num_examples, num_tokens))))
            rows = np.arange(num_examples)
            slots = (num_examples, num_tokens, num_examples)
            batch = packing.assemble(tokens, rows, rows, np.zeros_like(rows), slots)
        labels = rng.integers(0, shape.head.classes, num_examples).astype(np.int32)
        return batch | packing.pad_labels(labels, num_examples)

    def train(self, steps: int, has_states: bool = False) -> dict[str, float]:
        """Whole steps, until the device has done them; the batches are sent in each. With
        ``has_states`` they bring what the frozen blocks make of them, as from the cache.
        """
        batches = self.batches_with_states if has_states else self.batches
        return self.training.take(itertools.islice(itertools.cycle(batches), steps), steps)

    @functools.cached_property
    def batches_with_states(self) -> "list[Batch]":
        """The same batches with the states of the frozen prefix, float32 [N, T, D]."""
        import numpy as np

        prefix = self.training.step.prefix
        assert prefix is not None  # asked for where blocks are frozen
        found = []
        for batch in self.batches:
            _, of_suffix = prefix(self.training.frozen, batch)
            found.append({**batch, "hidden": np.asarray(of_suffix["hidden"])})
        return found

    def rate(self, sizes: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
        """float32 matrix products: GFLOP/s of each repetition, by size."""
        return {"rates": jax_rates(sizes, repeats)}

    def peak(self) -> dict[str, int | None]:
        """The most bytes of the device in use at once since the start; None where it keeps no
        count, as a CPU.
        """
        return {"bytes": (self.device.memory_stats() or {}).get("peak_bytes_in_use")}


if __name__ == "__main__":
    peers.serve({"steps": Steps})
