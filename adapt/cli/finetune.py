"""Adapt a pre-trained encoder to a labelled data set: discard its head, attach a new one, freeze by strategy, train.

    adapt finetune                                    # tiny-bert on film reviews, some 30 s on 2 cores
    adapt finetune --checkpoint minilm --strategy top:2 --train reviews --epochs 3 --out runs/top2

The run's folder holds result.json, metrics.jsonl, history.png, config.json, lineage.json and checkpoints; it is itself
a checkpoint that the other commands take.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.cli import console, inputs, plots
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_same_origin, lineage, open_run, write_json
from adapt.cli.showing import show_end, show_start
from adapt.cost import clock as machine
from adapt.cost.clock import Compiling
from adapt.data import examples
from adapt.errors import TrainingError
from adapt.features import pooling_weights
from adapt.models import Encoder, Model
from adapt.options import (
    DataOptions,
    DeviceOptions,
    ImportOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    StrategyOptions,
    TaskOptions,
    TrainingOptions,
)
from adapt.parallel import multihost, sharding
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from adapt.saving import Progress, begin, save
from adapt.tasks import heads
from adapt.tasks.base import TASKS
from adapt.training import checkpoint, optim, phases, strategies
from adapt.training.loop import evaluate, run_steps
from adapt.training.step import advance, init_state, make_eval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    ModelOptions,
    DataOptions,
    TaskOptions,
    StrategyOptions,
    OptimizerOptions,
    TrainingOptions,
    RunOptions,
    ImportOptions,
    DeviceOptions,
):
    """None means: chosen by strategy, task or family, and printed."""


def main(config: Config) -> dict[str, Any]:
    clock = console.Clock()
    compiling = Compiling()
    inputs.check_flags(config)
    inputs.check_out(config)
    layout = sharding.make_layout(config.mesh)
    sharding.check_batch(layout, config.batch_size, config.accumulate)

    # The checkpoint, without its head.
    pretrained = inputs.load(config)
    discarded = tree.discarded(pretrained.params, "head")
    params = tree.drop(pretrained.params, "head")
    strategy = strategies.strategy(config.strategy, pretrained.config.layers, config.epochs)
    pretrained = phases.prepare(strategy, pretrained)

    # The data, as examples with labels.
    sets, names = inputs.read_sets(config, pretrained, layout)

    # A new head, what the strategy adds, and its phases: labels that decide what trains, an optimizer a group.
    key = jax.random.key(config.seed)
    model, params = attach(config, pretrained, params, names, key)
    params |= {"head": TASKS[config.task].init_head(params["head"], sets["train"].labels)}
    params = phases.start(strategy, model, params, jax.random.fold_in(key, 3))
    per_epoch = -(-len(sets["train"]) // config.batch_size)
    loss = heads.loss_of(config, sets["train"].targets, names)
    computed = dataclasses.replace(model, layout=layout, remat=config.remat, scan=config.scan)
    runs = phases.ready(config, strategy, computed, params, per_epoch, loss)
    policy.check(config, [phase.step.prefix for phase in runs])
    show_start(config, pretrained, discarded, params, runs, sets)

    # The run's folder; from here on something is written.
    run = dataclasses.replace(pretrained, head=model.head, labels=tuple(names), task=config.task)
    saves = config.out / "checkpoints"
    progress = Progress()
    first = runs[0]
    with open_run(config.out, config):
        origin = lineage(
            pretrained, config.random_weights, train=config.train, test=config.test or config.train
        )
        origin |= {"data_digest": sets["train"].digest, "discarded": discarded}
        if multihost.is_multiprocess():
            read = {part: made.digest for part, made in sets.items()}
            multihost.assert_same(
                "what they read", {"the encoder": origin["encoder_digest"]} | read
            )
        base = phases.base_of(config, pretrained, params, runs[-1], origin["encoder_digest"])
        stored = {"encoder": pretrained.params["encoder"]} if base else {}
        if config.resume:
            check_same_origin(config.out, origin)
            progress = Progress(**checkpoint.read_last(saves)["progress"])
            first = runs[progress.phase]
            params = checkpoint.load_params(saves, model.shapes(), stored, "last", layout)
        frozen, state = init_state(
            params, first.labels, first.tx, jax.random.fold_in(key, 1), layout
        )
        state = checkpoint.restore(saves, state)[0] if config.resume else state
        metrics = console.Metrics(config.out / "metrics.jsonl", progress.metrics_bytes)
        decision = choose_cache(config, first, frozen, sets, progress)
        if not config.resume:
            if multihost.is_lead_process():
                hub.save_model(config.out, run, base)
            write_json(config.out / "lineage.json", origin)
            begin(saves, first, frozen, stored, state, progress, metrics, decision.enabled)
    began = int(state.step)
    plan = sets["train"].plan(
        config.batch_size // config.accumulate, config.seed, config.epochs, config.accumulate
    )
    clock.lap("set_up")

    # Train: phases of epochs of steps, a validation and a checkpoint after each epoch.
    now = first
    parts = sets
    forward = None
    with console.progress("training", per_epoch * config.epochs, int(state.step)) as bar:
        for phase in runs[first.number :]:
            if phase is not first:
                frozen, state = advance(frozen, state, now.labels, phase.labels, phase.tx, layout)
                decision = choose_cache(config, phase, frozen, sets, progress)
                begin(saves, phase, frozen, stored, state, progress, metrics, decision.enabled)
            now = phase
            seen = set()
            # What stands still is computed once, where that pays.
            parts, decision = encode(phase, frozen, sets, decision)
            progress.phases[phase.number] |= {
                "cached": decision.enabled,
                "cache": decision.summary(),
            }
            clock.lap("encode")
            forward = make_eval(phase.model, phase.step.prefix)
            given = phases.given(frozen, phase, pretrained.params)
            for epoch in range(int(state.step) // per_epoch, phase.last):
                if progress.stale >= config.patience > 0 and phase is runs[-1]:
                    break
                skip = int(state.step) % per_epoch
                batches = parts["train"].batches(plan, config.seed, epoch, skip, config.accumulate)
                for taken, record in run_steps(
                    phase.step, given, state, batches, log_every(config, per_epoch), seen
                ):
                    state = taken
                    at = int(record["step"])
                    progress.count(record)
                    rates = {f"rate_{group}": phase.rate(group, at - 1) for group in phase.rates}
                    metrics.write({"epoch": epoch, **record, **rates})
                    speed = record["timed_examples"] / max(record["seconds"], 1e-9)
                    bar.update(at, loss=f"{record['loss']:.4f}", **{"examples/s": f"{speed:.0f}"})
                    due = (
                        config.save_every
                        and at // config.save_every > progress.saved // config.save_every
                    )
                    if due and at % per_epoch:
                        save(saves, state, progress, metrics, best=False)
                    if began < (config.stop_after or 0) <= at and at % per_epoch:
                        return stopped(config, at)
                clock.lap("train")
                whole = tree.merge(frozen, state.params)
                best = validate(
                    config, forward, whole, parts["validation"], progress, metrics, epoch
                )
                clock.lap("evaluate")
                save(saves, state, progress, metrics, best)
                clock.lap("save")
                if (
                    began < (config.stop_after or 0) <= int(state.step)
                    and epoch + 1 < config.epochs
                ):
                    return stopped(config, int(state.step))

    # Test with the best checkpoint, read back from the disk, cut as it was trained.
    best_params = checkpoint.load_params(saves, model.shapes(), stored, layout=layout)
    phase = runs[progress.best_phase]
    still = optim.frozen(best_params, phase.labels)
    if phase is not now:
        decision = choose_cache(config, phase, still, sets, progress)
        parts, decision = encode(phase, still, sets, decision)
        forward = make_eval(phase.model, phase.step.prefix)
    # Committed to a device, as the parameters of the validations were: otherwise ``forward`` would compile again.
    result = test(config, forward, sharding.shard_tree(best_params, layout), parts)
    clock.lap("evaluate")
    result |= {
        "examples_per_second": progress.examples / progress.seconds if progress.examples else None,
        "seconds": clock.laps | {"compile": compiling.seconds, "total": clock.total},
        "padding": 1 - progress.tokens / progress.slots if progress.slots else None,
        "cache": next(
            (each["cache"] for each in reversed(progress.phases) if each.get("cache")), None
        ),
        "parameters_trained": tree.count(optim.trainable(best_params, phase.labels)),
        "parameters_frozen": tree.count(still),
        "phases": phases.summary(runs, params),
        "saved": "delta" if base else "full",
        "steps": int(state.step),
        "best_step": progress.best_step,
        "best_phase": progress.best_phase,
        "validation_score": progress.best_score,
        "discarded": discarded,
        "frozen_digest_before": progress.phases[phase.number]["digest"],
        "frozen_digest_after": tree.digest(still),
    }
    if result["frozen_digest_after"] != result["frozen_digest_before"]:
        raise TrainingError(
            "the frozen parameters moved: the digests before and after differ; please report this"
        )
    write_json(config.out / "result.json", result)
    plot = plots.plot_history(config.out, TASKS[config.task].primary_metric)
    show_end(config, result, plot)
    return result


def attach(
    config: Any, pretrained: hub.Pretrained, params: tree.Tree, names: list[str], key: jax.Array
) -> tuple[Model, tree.Tree]:
    """The encoder with a new head on it; the pre-trained pooler is grafted back where ``--pooling pooler`` asks for it."""
    model = Model(Encoder(pretrained.config), heads.new_head(config, pretrained, names))
    fresh = model.init_head(jax.random.fold_in(key, 2))
    if config.pooling == "pooler":
        fresh = tree.graft(
            tree.drop(fresh, "pooler"), "pooler", pooling_weights(pretrained)["pooler"]
        )
        console.say("grafted   head/pooler, pre-trained, back under the new head")
    return model, tree.graft(params, "head", fresh)


def choose_cache(
    config: StrategyOptions,
    phase: phases.Run,
    frozen: tree.Tree,
    sets: dict[str, examples.Examples],
    progress: Progress,
) -> policy.CacheDecision:
    """Whether a phase uses the cache: as it did before a stop, else where that pays."""
    cut = phase.step.prefix
    rate = None if cut is None or config.cache == "off" else machine.matmul_rate()
    decision = policy.choose(
        cut,
        frozen,
        sets,
        config,
        epochs=phase.last - phase.first,
        matmul_rate=rate,
        earlier=progress.cached(phase),
    )
    console.say(f"cache     {decision}")
    return decision


def encode(
    phase: phases.Run,
    frozen: tree.Tree,
    sets: dict[str, examples.Examples],
    decision: policy.CacheDecision,
) -> tuple[dict[str, examples.Examples], policy.CacheDecision]:
    """The sets with what the frozen prefix makes of them, and what became of the decision."""
    with console.progress("encoding", 0) as bar:

        def report(done: int, total: int) -> None:
            bar.set_total(total)
            bar.update(done)

        sets, decision = policy.with_states(
            phase.step.prefix,
            frozen,
            sets,
            decision,
            on_progress=report,
            on_wait=lambda: console.say("cache     another process is computing it: waiting"),
        )
    if decision.relative_error:
        dtype = next(iter(decision.arrays.values())).dtype
        console.say(
            f"cache     {dtype} keeps the states to a relative error of "
            f"{decision.relative_error:.1e} (root mean square)"
        )
    return sets, decision


def log_every(config: Config, per_epoch: int) -> int:
    """Steps between looks at the device: rare enough to cost nothing, and at every save."""
    every = config.log_every or max(1, min(20, per_epoch // 5))
    return min([every, *(n for n in (config.save_every, config.stop_after) if n)])


def validate(
    config: Config,
    forward: Any,
    params: tree.Tree,
    part: examples.Examples,
    progress: Progress,
    metrics: console.Metrics,
    epoch: int,
) -> bool:
    """Score the validation examples, keep count in ``progress``: is this the best so far? A tie goes to the lower loss."""
    values, mean_loss = score(config, forward, params, part)
    phases.check_finite(mean_loss, progress.step)
    named = {f"validation_{name}": finite(value) for name, value in values.items()}
    metrics.write({"epoch": epoch, "step": progress.step, "validation_loss": mean_loss, **named})
    shown = "   ".join(f"{name} {value:.4f}" for name, value in values.items())
    console.say(f"epoch {epoch + 1}   validation loss {mean_loss:.4f}   {shown}")
    new = finite(values[TASKS[config.task].primary_metric])
    new = -1.0 if new is None else new  # a correlation that is not defined
    best = progress.best_score is None or (new, -mean_loss) > (
        progress.best_score,
        -progress.best_loss,
    )
    best = multihost.broadcast_from_lead(best)  # on other hardware a tie may go the other way
    if best:
        progress.best_score, progress.best_loss, progress.best_step = new, mean_loss, progress.step
        progress.best_phase = progress.phase
    progress.stale = 0 if best else progress.stale + 1
    return best


def score(
    config: Config, forward: Any, params: tree.Tree, part: examples.Examples
) -> tuple[dict[str, float], float]:
    """(metrics, mean loss) over examples."""
    task = heads.task_of(config)
    outputs = evaluate(forward, params, part.eval_batches(), part.num_outputs)
    return task.metrics(outputs, part.targets), task.mean_loss(outputs, part.targets)


def test(
    config: Config, forward: Any, params: tree.Tree, sets: dict[str, examples.Examples]
) -> dict[str, Any]:
    values, mean_loss = score(config, forward, params, sets["test"])
    floor = heads.task_of(config).baseline(sets["train"].targets, sets["test"].targets)
    return {name: finite(value) for name, value in (values | {"loss": mean_loss} | floor).items()}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def stopped(config: Config, at: int) -> dict[str, Any]:
    console.say(f"stopped after step {at}; go on with --resume --out {config.out}")
    return {}


if __name__ == "__main__":
    launch(Config, main)
