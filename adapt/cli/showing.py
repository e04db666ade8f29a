"""What a person sees of a training run before it and after it.

While it runs, see :mod:`adapt.cli.training_report`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt import pretraining, tree
from adapt.cli import console
from adapt.data.examples import Examples
from adapt.data.labels import class_line
from adapt.devices import compute_dtype, this_device
from adapt.finetuning import Prepared
from adapt.models import EncoderConfig, is_kept
from adapt.options import DType
from adapt.pretrained.hub import Pretrained, describe


def show_loaded(pretrained: Pretrained) -> None:
    """Which encoder is used as it is."""
    config = pretrained.config
    console.say(
        f"loaded    {pretrained.source}: {config.family}, {size_of(config)}; its head is discarded"
    )


def size_of(config: EncoderConfig) -> str:
    """The blocks of an encoder, in words."""
    if config.shared_blocks:
        return f"one block of width {config.width}, used {config.layers} times"
    return f"{config.layers} blocks of width {config.width}"


def dtype_line(asked: DType) -> str:
    """``in float32``, and on what that is chosen for where nobody chose."""
    used = compute_dtype(asked)
    if asked != "auto":
        return f"in {used}"
    device = this_device()
    return f"in {used}, chosen for {device.kind or device.platform} (--dtype)"


def show_classes(counts: Mapping[str, int]) -> None:
    """How many training rows each class has, where there are classes."""
    if counts:
        console.say(f"classes   {class_line(counts)}")


def show_start(prepared: Prepared) -> None:
    """What was loaded, what of it is discarded, the data, and what each phase trains."""
    options = prepared.options
    plan = prepared.plan
    data = prepared.data
    pretrained = plan.pretrained
    config = pretrained.config
    parameters = tree.count(plan.params["encoder"])
    size = f"{size_of(config)}, {parameters:,} parameters"
    console.say(f"loaded    {pretrained.source}: {config.family}, {size}")
    if options.random_weights:
        console.say("weights   random, in the checkpoint's shapes: its own are not used")
    gone = list(plan.discarded["shapes"])
    for what, tensors in plan.discarded.get("unread", {}).items():
        gone.append(f"{what} ({len(tensors)} tensors)")  # whose names a warning has
    why = "its head is kept" if is_kept(pretrained.head) else "the checkpoint had no head"
    gone = ", ".join(gone) or f"nothing: {why}"
    console.say(f"computed  {dtype_line(options.dtype)}")
    console.say(f"discarded {plan.discarded['parameters']:,} parameters: {gone}")
    console.say(f"head      {describe(pretrained.head)}")
    for what, note in data.task.head_notes(pretrained).items():
        console.say(f"{what:<9} {note}")
    if getattr(pretrained.head, "pooling", None) == "pooler":
        console.say("grafted   head/pooler, pre-trained, back under the new head")
    prefixes = [phase.step.prefix for phase in plan.phases]
    if options.remat != "none" and all(p and p.depth > config.layers for p in prefixes):
        console.warn(
            f"--remat {options.remat} does nothing with --strategy {options.strategy}: "
            "no block is in a backward pass"
        )
    console.say(f"data      {sizes(data.sets)}")
    show_classes(data.class_counts)
    console.say()
    for name, examples in data.sets.items():
        console.note_long(examples.long, name)


def sizes(sets: Mapping[str, Examples]) -> str:
    """``7,200 train, 800 validation, 2,568 test``."""
    return ", ".join(f"{len(examples):,} {name}" for name, examples in sets.items())


def show_text(prepared: pretraining.Prepared) -> None:
    """What was loaded, and the text."""
    plan = prepared.plan
    data = prepared.data
    pretrained = plan.pretrained
    head = type(plan.model.head).__name__
    size = f"{tree.count(plan.params):,} parameters, head {head}"
    console.say(f"loaded    {pretrained.source}: {pretrained.config.family}, {size}")
    console.say(f"computed  {dtype_line(prepared.options.dtype)}")
    console.say(f"objective {data.objective.name}")
    examples = f"{len(data.training):,} examples"
    held_out = f"{len(data.held_out):,} held out"
    if data.objective.takes_pictures:
        console.say(f"pictures  {examples}, {held_out}")
    else:
        tokens = data.training.of_pass(0).tokens_per_sequence
        console.say(f"text      {examples} of {tokens:.1f} tokens, {held_out}")
    console.say()


def show_stopped(step: int, out: Path) -> dict[str, Any]:
    """Say how a stopped run goes on; its result is empty."""
    console.say(f"stopped after step {step}; go on with --resume --out {out}")
    return {}


def show_end(out: Path, result: Mapping[str, Any]) -> None:
    """The test, or without one the best validation, and what is to be noted about it."""
    split = "test" if "test" in result["scores"] else "validation"
    scores = {**result["scores"][split], "examples_per_second": result["examples_per_second"]}
    shown = {name: value for name, value in scores.items() if value is not None}
    console.table(split, ("metric", "value"), list(shown.items()))
    num_phases = len(result["phases"])
    if result["best_phase"] < num_phases - 1:
        phase = f"phase {result['best_phase'] + 1} of {num_phases}"
        console.warn(
            f"the best validation was in {phase}, at step {result['best_step']}: "
            "what trained later is not in the result"
        )
    if result["parameters_frozen"]:
        digest = result["frozen_digest_after"][:12]
        console.say(f"frozen parameters unchanged: digest {digest}")
    print_result(shown, out)


def show_text_end(out: Path, result: Mapping[str, Any]) -> None:
    """The last validation of a pre-training run."""
    names = ["loss_before", "loss", *result["scores"]["validation"], "perplexity"]
    shown = {}
    for name in [*names, "targets_per_second"]:
        if result.get(name) is not None:
            shown[name] = result[name]
    console.table("held-out text", ("metric", "value"), list(shown.items()))
    print_result(shown, out)


def print_result(shown: dict[str, Any], out: Path) -> None:
    """Where the plot is; where nobody watches, one line of JSON as the last one."""
    console.say(f"plot      {out / 'history.png'}")
    console.result(json.dumps(shown | {"out": str(out)}))
