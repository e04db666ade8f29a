"""Continue or start pre-training on plain text: masked-LM for BERT, causal-LM for GPT-2, with the step of fine-tuning.

    adapt pretrain --checkpoint tiny-bert --text FILE --steps 1000 --out runs/pretrain
    adapt finetune --checkpoint runs/pretrain --out runs/adapted       # discards the head trained here

``{"encoder", "head"}`` goes in and comes out. A checkpoint without a language-model head gets a fresh one. Every line of
the text is an example; lines longer than --max-length become several. 5% of the examples are held out.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.cli import console, inputs, plots
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_same_origin, lineage, open_run, write_json
from adapt.data import masking, packing, tables
from adapt.errors import DataError, StrategyError
from adapt.models import CausalLM, Encoder, MaskedLM, Model, flatten_groups
from adapt.options import DeviceOptions, ImportOptions
from adapt.parallel import sharding
from adapt.parallel.multihost import assert_same, is_lead_process, is_multiprocess
from adapt.pretrained import hub
from adapt.ragged import Ragged
from adapt.training import checkpoint, losses, optim, phases
from adapt.training.loop import run_steps
from adapt.training.losses import Loss
from adapt.training.step import init_state, make_step


@dataclasses.dataclass(frozen=True)
class Config(ImportOptions, DeviceOptions):
    text: str  # plain UTF-8 text, one example a line
    checkpoint: str = (
        "tiny-bert"  # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    )
    steps: int = 1000
    batch_size: int = 32  # examples a step
    max_length: int = 128  # tokens an example
    mask_rate: float = 0.15  # masked-LM only
    learning_rate: float = 1e-4
    warmup: float = 0.1  # share of all steps
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0: no clipping
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    remat: Literal["none", "block", "dots"] = (
        "none"  # compute again in the backward pass: blocks, or all but products by weights
    )
    scan: bool = False  # blocks as a loop: compiles once for all of them
    validate_every: int = 200  # steps between validations, each with a checkpoint
    random_weights: bool = False  # start from fresh weights in the checkpoint's shapes
    seed: int = 0
    out: Path = Path("runs/pretrain")
    resume: bool = False  # go on with the run in --out, bit for bit
    overwrite: bool = False
    stop_after: int | None = (
        None  # stop at this step as an interruption would (for tests of --resume)
    )


def main(config: Config) -> dict[str, Any]:
    for name, least in (("steps", 1), ("batch_size", 1), ("validate_every", 1), ("max_length", 3)):
        if getattr(config, name) < least:
            raise StrategyError(
                f"--{name.replace('_', '-')} {getattr(config, name)} must be at least {least}"
            )
    if not 0 < config.mask_rate < 1:
        raise StrategyError(f"--mask-rate {config.mask_rate} must be between 0 and 1")
    inputs.check_ranges(config)
    inputs.check_out(config)
    layout = sharding.make_layout(config.mesh)
    sharding.check_batch(layout, config.batch_size)
    pretrained, task = load(config)
    key = jax.random.key(config.seed)
    model, params = with_head(config, pretrained, key)
    tokens, held_out = read_text(config, pretrained)
    if is_multiprocess():
        read = {
            "the text": tree.digest(
                {"ids": tokens.values, "lengths": tokens.lengths, "held_out": held_out.values}
            )
        }
        assert_same(
            "what they read", {"the encoder": tree.digest(pretrained.params["encoder"])} | read
        )
    corruption = (
        masking.masked_lm(pretrained, config.mask_rate) if task == "mlm" else masking.causal_lm
    )

    # Everything trains, but for what a masked-LM loss never reaches.
    unused = "head/(pooler|next_sentence)/.*"
    reached = getattr(model.head, "next_sentence", False)
    labels = tree.label(params, ([(unused, optim.FROZEN)] if reached else []) + [(".*", "all")])
    schedule = optim.schedule(config.learning_rate, config.steps, config.warmup, config.decay)
    tx = optim.by_label(
        {"all": optim.adamw(schedule, config.weight_decay)}, labels, config.clip_norm or None
    )
    frozen, state = init_state(params, labels, tx, jax.random.fold_in(key, 1), layout)
    per_epoch = -(-len(tokens) // config.batch_size)
    seen = set()
    groups = layout.groups if layout else 1
    size = config.batch_size // groups
    plan = packing.plan(tokens.lengths, size, config.seed, -(-config.steps // per_epoch), groups)
    held_plan = packing.plan(held_out.lengths, size, config.seed, 1, groups)
    size = f"{tree.count(params):,} parameters, head {type(model.head).__name__}"
    console.say(f"loaded    {pretrained.source}: {pretrained.config.family}, {size}")
    console.say(
        f"text      {len(tokens):,} examples of {tokens.lengths.mean():.1f} tokens, {len(held_out):,} held out\n"
    )

    saves = config.out / "checkpoints"
    info = {"metrics_bytes": 0, "examples": 0.0, "seconds": 0.0, "start_loss": None}
    computed = dataclasses.replace(model, layout=layout, remat=config.remat, scan=config.scan)
    computed = computed.cast(jnp.bfloat16) if config.dtype == "bfloat16" else computed
    step = make_step(computed, losses.cross_entropy, tx)
    score = make_score(computed, losses.cross_entropy)

    def validate(at: int) -> dict[str, float]:
        values = mean_score(
            score,
            tree.merge(frozen, state.params),
            batches(held_out, held_plan, config.seed, 0, 0, corruption, True, layout),
        )
        phases.check_finite(values["loss"], at)
        record = {
            "step": at,
            "validation_loss": values["loss"],
            "validation_accuracy": values["accuracy"],
        }
        metrics.write(record)
        console.say(
            f"step {at}   validation loss {values['loss']:.4f}   accuracy {values['accuracy']:.4f}"
        )
        return values

    with open_run(config.out, config):
        origin = lineage(
            pretrained,
            config.random_weights,
            text=config.text,
            data_digest=tree.digest({"ids": tokens.values}),
        )
        if config.resume:
            check_same_origin(config.out, origin)
            state, info = checkpoint.restore(saves, state)
        metrics = console.Metrics(config.out / "metrics.jsonl", info["metrics_bytes"])
        if not config.resume:
            if is_lead_process():
                hub.save_model(
                    config.out,
                    dataclasses.replace(pretrained, head=model.head, labels=(), task=task),
                )
            checkpoint.save_frozen(saves, frozen)
            write_json(config.out / "lineage.json", origin)
            info["validation"] = validate(0)
            info["start_loss"] = info["validation"]["loss"]
            checkpoint.save(saves, state, info | {"metrics_bytes": metrics.size}, best=True)
    with console.progress("pre-training", config.steps, int(state.step)) as bar:
        while (done := int(state.step)) < config.steps:
            stop = min(config.steps, (done // config.validate_every + 1) * config.validate_every)
            if done < (config.stop_after or 0) < stop:
                stop = config.stop_after or stop
            stream = batches(
                tokens, plan, config.seed, *divmod(done, per_epoch), corruption, layout=layout
            )
            some = (batch for batch, _ in zip(stream, range(stop - done), strict=False))
            for taken, record in run_steps(step, frozen, state, some, 20, seen):
                state = taken
                info["examples"] += record["timed_examples"]
                info["seconds"] += record["seconds"]
                metrics.write(record | {"rate": float(schedule(record["step"] - 1))})
                bar.update(
                    int(record["step"]),
                    loss=f"{record['loss']:.4f}",
                    **{"targets/s": f"{record['timed_examples'] / record['seconds']:.0f}"},
                )
            if stop % config.validate_every == 0 or stop == config.steps:
                info["validation"] = validate(stop)
                checkpoint.save(saves, state, info | {"metrics_bytes": metrics.size}, best=True)
            if stop == config.stop_after and stop < config.steps:
                console.say(f"stopped after step {stop}; go on with --resume --out {config.out}")
                return {}
    values = info["validation"]

    result = {
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "perplexity": float(np.exp(min(values["loss"], 700.0))),
        "loss_before": info["start_loss"],
        "targets_per_second": info["examples"] / info["seconds"] if info["examples"] else None,
        "steps": config.steps,
        "task": task,
        "parameters_trained": tree.count(optim.trainable(params, labels)),
        "parameters_frozen": tree.count(optim.frozen(params, labels)),
    }
    write_json(config.out / "result.json", result)
    plot = plots.plot_history(config.out, "accuracy")
    shown = {
        key: result[key]
        for key in ("loss_before", "loss", "accuracy", "perplexity", "targets_per_second")
        if result[key] is not None
    }
    console.table("held-out text", ("metric", "value"), list(shown.items()))
    console.say(f"plot      {plot}")
    console.result(json.dumps(shown | {"out": str(config.out)}))
    return result


def make_score(
    model: Model, loss: Loss
) -> Callable[[tree.Tree, Mapping[str, Any]], dict[str, jax.Array]]:
    """``(params, batch) -> sums`` of loss, right answers and weights over a batch with ``label`` and ``weight``, jitted."""

    def score(params: tree.Tree, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        logits = model.apply(params, batch)
        label, weight = (
            flatten_groups(batch[name]) if model.layout else batch[name]
            for name in ("label", "weight")
        )
        right = (logits.argmax(-1) == label) * weight
        return {
            "loss": (loss(logits, label) * weight).sum(),
            "accuracy": right.sum(),
            "weight": weight.sum(),
        }

    return sharding.shard_inputs(jax.jit(model.allow_fused_attention(score)), model.layout)


def mean_score(
    score: Callable[[tree.Tree, Mapping[str, Any]], dict[str, jax.Array]],
    params: tree.Tree,
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
    """The weighted means of ``loss`` and ``accuracy`` over all batches."""
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in score(params, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: sums[name] / max(sums["weight"], 1e-9) for name in ("loss", "accuracy")}


def load(config: Config) -> tuple[hub.Pretrained, str]:
    """The checkpoint with the tokenizer cut to --max-length, and its objective: mlm or clm."""
    pretrained = hub.load(config.checkpoint)
    if pretrained.config.is_image or pretrained.tokenizer is None:
        raise StrategyError(
            f"{pretrained.source} is no text encoder with a tokenizer: masked-LM and causal-LM training need one"
        )
    longest = min(config.max_length, pretrained.config.positions)
    pretrained = dataclasses.replace(pretrained, tokenizer=pretrained.tokenizer.cut_to(longest))
    return pretrained, "clm" if pretrained.config.causal else "mlm"


def with_head(
    config: Config, pretrained: hub.Pretrained, key: jax.Array
) -> tuple[Model, tree.Tree]:
    """The checkpoint's own language-model head, or a fresh one, tied to the embedding."""
    c = pretrained.config
    head = pretrained.head
    params = pretrained.params
    if not isinstance(head, CausalLM if c.causal else MaskedLM):
        head = (
            CausalLM(c.vocabulary)
            if c.causal
            else MaskedLM(c.vocabulary, activation=c.activation, norm_epsilon=c.norm_epsilon)
        )
        params = tree.graft(
            tree.drop(params, "head"),
            "head",
            Model(Encoder(c), head).init_head(jax.random.fold_in(key, 2)),
        )
        console.warn(
            f"{pretrained.source} has no language-model head: a fresh one is trained from the start"
        )
    model = Model(Encoder(c), head)
    return model, jax.device_get(
        model.init(jax.random.fold_in(key, 3))
    ) if config.random_weights else params


def read_text(config: Config, pretrained: hub.Pretrained) -> tuple[Ragged, Ragged]:
    """(training, held-out) token ids; blank lines are skipped, long lines become several examples."""
    assert pretrained.tokenizer is not None
    pieces = []
    for chunk in tables.chunks(tables.read_lines(config.text), ["text"], 4096):
        pieces += masking.split_into_pieces(
            pretrained.tokenizer, [line for line in chunk["text"] if line.strip()]
        )
    # What can be a target: any token but the first (causal-LM), any that is not special, as [UNK] is (masked-LM).
    special = (
        set()
        if pretrained.config.causal
        else set(masking.special_ids(pretrained.tokenizer).tolist())
    )
    kept = [piece for piece in pieces if len(piece) > 1 and not special.issuperset(piece)]
    if len(kept) < 2:
        raise DataError(
            f"{config.text} has {len(kept)} lines with words that the tokenizer knows: pre-training needs at least 2, "
            "one of them held out"
        )
    order = np.random.RandomState(config.seed).permutation(len(kept))
    held = max(1, min(len(kept) // 20, 2000))
    return masking.take(kept, order[held:]), masking.take(kept, order[:held])


def batches(
    tokens: Ragged,
    plan: packing.Plan,
    seed: int,
    epoch: int,
    skip: int,
    corruption: masking.Corruption,
    once: bool = False,
    layout: sharding.Layout | None = None,
) -> Iterator[packing.Arrays]:
    """Packed and corrupted batches without end (or of one pass), from batch ``skip`` of ``epoch`` on; pure in its arguments.

    With a ``layout`` each of its groups is corrupted by itself.
    """
    make = functools.partial(packing.packed, tokens)
    nothing = np.zeros(len(tokens), np.int32)
    while True:
        for number, batch in enumerate(
            packing.batches(make, nothing, plan, seed, epoch, skip, layout=layout), skip
        ):
            rng = lambda *group, at=(seed, epoch, number): np.random.default_rng([*at, *group])
            if layout is None:
                yield corruption(batch, rng())
            else:
                parts = [
                    {name: each[place] for name, each in batch.items()}
                    for place in range(len(layout.local_groups))
                ]
                yield packing.stack(
                    [
                        corruption(part, rng(group))
                        for part, group in zip(parts, layout.local_groups, strict=True)
                    ]
                )
        if once:
            return
        epoch = epoch + 1
        skip = 0


if __name__ == "__main__":
    launch(Config, main)
