"""Do runs do on this device what they promise? bfloat16 against float32, the same run twice, a
stopped run that goes on, and what is frozen; each by `adapt.finetune`, with small random weights.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

import adapt
from adapt import tree
from experiments.benchmark.accelerator import inputs
from experiments.benchmark.accelerator.attention_checks import check
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings

LOSS_LIMIT = 0.02  # mean difference of the losses of a step
MAX_TOKENS = 64  # of an example: few shapes to compile


def measure(told: Settings) -> Iterator[Row]:
    """A row a check."""
    steps = told.sizes.check_steps
    float32 = finetune(told)
    again = finetune(told)
    yield same("the same run twice", f"{steps} steps", float32, again)

    out = told.scratch / "stopped"
    shutil.rmtree(out, ignore_errors=True)
    stop_after = steps // 2
    finetune(told, out=out, stop_after=stop_after)
    resumed = finetune(told, out=out, resume=True)
    yield same("a run that went on", f"stopped after {stop_after} steps", float32, resumed)

    bfloat16 = finetune(told, dtype="bfloat16")
    difference = float(np.abs(losses(float32) - losses(bfloat16)).mean())
    first, *_, last = losses(float32)
    case = f"{steps} steps, from {first:.3f} to {last:.3f}"
    yield check("losses of bfloat16 against float32", case, difference, LOSS_LIMIT)

    yield from frozen_rows(told)


def finetune(told: Settings, strategy: str = "full", **options: Any) -> adapt.Run:
    """A run of ``check_steps`` steps, of which each is recorded."""
    sizes = told.sizes
    num_train = sizes.check_steps * sizes.check_batch
    examples = inputs.read_examples(told.train)
    rows = [examples[number % len(examples)] for number in range(num_train)]
    held_out = inputs.read_examples(told.test)[: 2 * sizes.check_batch]
    return adapt.finetune(
        told.small_checkpoint,
        [text for text, _ in rows],
        [label for _, label in rows],
        validation=([text for text, _ in held_out], [label for _, label in held_out]),
        strategy=strategy,
        epochs=1,
        batch_size=sizes.check_batch,
        max_length=MAX_TOKENS,
        log_every=1,
        patience=0,
        cache="off",
        **options,
    )


def losses(run: adapt.Run) -> np.ndarray:
    """The loss of every step."""
    return np.array([record["loss"] for record in run.history if "grad_norm" in record])


def same(name: str, case: str, one: adapt.Run, other: adapt.Run) -> Row:
    """Whether two runs have the same parameters bit for bit: how many leaves differ."""
    leaves = tree.paths(one.pretrained.params)
    differ = 0
    for path, leaf in tree.paths(other.pretrained.params).items():
        differ += np.asarray(leaf).tobytes() != np.asarray(leaves[path]).tobytes()
    return check(f"{name}, leaves that differ", case, differ, 0)


def frozen_rows(told: Settings) -> Iterator[Row]:
    """What is frozen is the checkpoint's after the run, and what trains is not."""
    before = tree.paths(adapt.load(told.small_checkpoint).params["encoder"])
    run = finetune(told, "top:1")
    after = tree.paths(run.pretrained.params["encoder"])
    blocks = [path.partition("/")[0] for path in after if path.startswith("block_")]
    last_block = max(blocks)

    frozen_moved = 0
    trained_stayed = 0
    for path, leaf in after.items():
        has_moved = np.asarray(leaf).tobytes() != np.asarray(before[path]).tobytes()
        if path.startswith(f"{last_block}/"):
            trained_stayed += not has_moved
        else:
            frozen_moved += has_moved
    yield check("frozen leaves that moved", "top:1", frozen_moved, 0)
    # The gradient of a key's bias is 0 in exact arithmetic.
    yield check("trained leaves that did not move", "top:1", trained_stayed, 1)
    differs = run.result["frozen_digest_before"] != run.result["frozen_digest_after"]
    yield check("digests of what is frozen that differ", "top:1", differs, 0)
