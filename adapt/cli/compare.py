"""With few labels and little compute, which way of adapting? Strategies by label budgets by seeds, on one task.

    adapt compare                          # half an hour on 2 cores; writes experiments/results/compare.md
    adapt compare --checkpoint minilm      # everything on one encoder
    adapt compare --resume                 # goes on where it stopped

What trains the encoder runs on ``--checkpoint``, and what leaves it as it is (``probe``: logistic regression on frozen
features; ``centroid``: the nearest class mean) on ``--checkpoint`` and on ``--features``. A seed draws the labelled examples,
the head and the order of the batches; the same seed draws the same examples for every way. Of them 20% choose among
``--tries`` rates, or strengths of the penalty: the same number for all. The test, in and out of the domain, is done once with
what was chosen. Intervals are bootstrapped over seeds and test examples at once.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, write_json
from adapt.comparison import verdict
from adapt.comparison.trials import REPEATS, Arm
from adapt.cost import clock, flops
from adapt.data.examples import Examples
from adapt.data.labels import stratified_split
from adapt.errors import DataError, StrategyError
from adapt.models import Classifier, Encoder, Model
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.tasks import TASKS, metrics
from adapt.training import frozen_prefix, strategies

ALL = 0
FIXED = ("probe", "centroid")
PENALTIES = (1.0, 10.0, 100.0, 0.1, 1000.0)  # in the order in which tries take them
RATES = (1.0, 3.0, 0.3, 10.0, 0.1)


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "tiny-bert"  # of what trains the encoder
    features: str = "minilm"  # one more of what does not
    data: str = "reviews"
    out_of_domain: tuple[str, ...] = ("amazon", "tweets", "nyt")  # tested too, never trained on
    text_column: str = "text"
    label_column: str = "label"
    strategies: tuple[str, ...] = ("full", "lp-ft", "top:1", "bitfit", "lora:8")
    budgets: tuple[int, ...] = (8, 32, 128, 500, 2000, ALL)  # labelled examples; 0: all
    seeds: int = 5
    tries: int = 3  # rates, or penalties, that every way may try
    steps: int = 60  # at least, of a fit on few examples
    epochs: int = 2  # at least
    test: int = 1000  # examples of each set out of the domain
    page: Path = Path("experiments/results")  # compare.md and its plots
    out: Path = Path("runs/compare")
    resume: bool = False
    overwrite: bool = False


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, config.resume, config.overwrite)
    if not (
        1 <= config.tries <= len(RATES)
        and config.seeds >= 2
        and config.budgets
        and config.strategies
    ):
        raise StrategyError(
            f"--tries must be 1 to {len(RATES)}, --seeds 2 or more, and no list empty"
        )
    for flag, given in (("strategies", config.strategies), ("budgets", config.budgets)):
        if len(set(given)) < len(given):
            raise StrategyError(
                f"--{flag} has one of {', '.join(map(str, given))} twice: leave it out"
            )
    sources = {name: hub.load(name) for name in dict.fromkeys((config.checkpoint, config.features))}
    for name in config.strategies:
        strategies.strategy(name, sources[config.checkpoint].config.layers, 6)
    sets = {name: read(config, source) for name, source in sources.items()}
    _, classes = sets[config.checkpoint]
    for budget in config.budgets:
        count = len(sets[config.checkpoint][0]["train"])
        if budget and not 2 * classes <= budget <= count:
            raise DataError(
                f"--budgets {budget} must be 0 (all) or {2 * classes} (two for each of {classes} classes) to {count} examples"
            )
    ways = [(f"{way}, {name}", name, way) for name in sources for way in FIXED]
    ways += [
        (f"{name}, {config.checkpoint}", config.checkpoint, name) for name in config.strategies
    ]
    with open_run(config.out, config):
        (config.out / "cells").mkdir(exist_ok=True)
    with console.progress("fits", len(ways) * len(config.budgets) * config.seeds) as bar:
        for number, (title, name, way) in enumerate(ways):
            run = fixed if way in FIXED else trained
            done = number * len(config.budgets) * config.seeds
            run(
                config,
                title,
                way,
                sources[name],
                *sets[name],
                lambda n, done=done: bar.update(done + n),
            )
    cells = [
        json.loads(path.read_text("utf-8"))
        for path in sorted((config.out / "cells").glob("*.json"))
    ]
    result = verdict.summary(
        cells, config.out / "cells", [title for title, *_ in ways], config.budgets
    )
    known = sets[config.checkpoint][0]
    result |= metrics.majority(known["train"].labels, known["test"].labels)
    write_json(config.out / "compare.json", result)
    page = verdict.write(config, result, len(sets[config.checkpoint][0]["train"]))
    console.console.print(f"results   {page}", soft_wrap=True)
    return result


def read(config: Config, source: hub.Pretrained) -> tuple[dict[str, Examples], int]:
    """(train, test and out-of-domain examples for one encoder, the number of classes)."""
    tables = {"train": inputs.read(config.data, "train"), "test": inputs.read(config.data, "test")}
    tables |= {name: inputs.read(name, "test") for name in config.out_of_domain}
    task = TASKS["classification"]
    names = task.label_names(tables["train"], config.label_column, [config.text_column])
    found = {}
    for name, table in tables.items():
        labels = task.encode_labels(table, config.label_column, names)
        made = inputs.make_examples(task, source, table, [config.text_column], None, labels)
        found[name] = (
            made if name in ("train", "test") else made.take(np.arange(min(len(made), config.test)))
        )
    return found, len(names)


def drawn(labels: np.ndarray, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to choose by), 4 to 1, of ``budget`` rows; as many of each class while there are few."""
    rng = np.random.default_rng([seed, budget])
    classes = int(labels.max()) + 1
    order = rng.permutation(len(labels))
    if budget and budget <= 128:
        share = [budget // classes + (place < budget % classes) for place in range(classes)]
        order = np.concatenate(
            [order[labels[order] == place][:some] for place, some in enumerate(share)]
        )
        order = rng.permutation(order)
    order = order[: budget or len(labels)]
    kept, held = stratified_split(labels[order], 0.2, seed)
    return order[kept], order[held]


def length(config: Config, rows: int) -> int:
    """Epochs of a fit on ``rows`` examples."""
    return max(config.epochs, -(-config.steps // -(-rows // 32)))


def trained(
    config: Config,
    title: str,
    way: str,
    source: hub.Pretrained,
    sets: dict[str, Examples],
    classes: int,
    told: Any,
) -> None:
    """The cells of a way that trains the encoder."""
    arm = None
    done = 0
    for budget in config.budgets:
        for seed in range(config.seeds):
            done += 1
            if (cell := path(config, title, budget, seed)).exists():
                continue
            arm = arm or Arm(way, source, sets, classes)
            rows, held = drawn(sets["train"].labels, budget, seed)
            epochs = length(config, len(rows))
            tried = []
            for scale in RATES[: config.tries]:
                fit = arm.fit(rows, seed, scale, epochs)
                loss = (
                    np.inf
                    if fit.params is None
                    else mean_loss(arm.score(fit.params, "train", held), sets, held)
                )
                tried.append((loss, scale, fit))
            loss, scale, fit = min(tried, key=lambda one: one[0])
            if fit.params is None:
                raise StrategyError(
                    f"{title} diverged at every rate with {budget or 'all'} examples and seed {seed}"
                )
            logits = {name: arm.score(fit.params, name) for name in sets if name != "train"}
            more = {
                "tried": scale,
                "seconds": fit.seconds,
                "steps": fit.steps,
                "flops": arm.flops(len(rows), epochs),
            }
            save(cell, title, budget, seed, sets, logits, more | {"validation_loss": float(loss)})
            told(done)


def fixed(
    config: Config,
    title: str,
    way: str,
    source: hub.Pretrained,
    sets: dict[str, Examples],
    classes: int,
    told: Any,
) -> None:
    """The cells of a way that leaves the encoder as it is: heads for all budgets and seeds together."""
    cells = [(budget, seed) for budget in config.budgets for seed in range(config.seeds)]
    if all(path(config, title, *cell).exists() for cell in cells):
        return
    found, encoding = features(source, sets)
    rows = [drawn(sets["train"].labels, *cell) for cell in cells]
    count = sum(
        map(len, found.values())
    )  # of all sets, one after the other, of which some rows of the first train
    masks = np.zeros((len(cells), count), bool)
    labels = np.zeros(count, np.int32)
    labels[: len(sets["train"])] = sets["train"].labels
    for mask, (kept, _) in zip(masks, rows, strict=True):
        mask[kept] = True
    penalties = PENALTIES[: config.tries] if way == "probe" else (0.0,)
    started = time.perf_counter()
    scaled = linear.standardise(np.concatenate(list(found.values())), masks)
    heads = (
        logistic(scaled, labels, masks, penalties, classes)
        if way == "probe"
        else linear.centroid(scaled, labels, masks, classes)
    )
    seconds = (time.perf_counter() - started) / len(cells) / len(penalties)
    found = dict(
        zip(
            found,
            np.split(scaled.x, np.cumsum([len(values) for values in found.values()])[:-1]),
            strict=True,
        )
    )
    c = source.config
    tokens = float(sets["train"].whole.lengths.mean())
    for number, ((budget, seed), (kept, held)) in enumerate(zip(cells, rows, strict=True)):
        logits = lambda name, which, number=number: scores(found[name], heads, number, which)
        tried = [
            (mean_loss(logits("train", k)[held], sets, held), k) for k in range(len(penalties))
        ]
        loss, best = min(tried)
        more = {"tried": penalties[best], "seconds": seconds + encoding * len(kept), "steps": 0}
        more |= {
            "flops": len(kept) * flops.prefix_flops(c, c.layers + 1, tokens, tokens),
            "validation_loss": float(loss),
        }
        every = {name: logits(name, best) for name in sets if name != "train"}
        save(path(config, title, budget, seed), title, budget, seed, sets, every, more)
        told(number + 1)


def features(
    source: hub.Pretrained, sets: dict[str, Examples]
) -> tuple[dict[str, np.ndarray], float]:
    """(mean-pooled features of every set, out of the cache; seconds that an example takes where it is not in there)."""
    model = Model(Encoder(source.config), Classifier(0, "mean"))
    cut = frozen_prefix.cut_at(model, model.stages)
    params = jax.device_put(tree.drop(source.params, "head"), jax.local_devices()[0])
    kept, _ = policy.with_states(cut, params, sets)
    seconds = clock.forward_seconds(REPEATS, cut, cut.split(params)[0], sets["train"]) / len(
        sets["train"].whole
    )
    return {name: np.asarray(part.states)[part.rows] for name, part in kept.items()}, seconds


def scores(found: np.ndarray, heads: Any, number: int, which: int) -> np.ndarray:
    """Logits [N, C] of one head on scaled features; of two classes a head has one column."""
    values = found @ heads.kernel[number, which].T + heads.bias[number, which]
    return np.concatenate([np.zeros_like(values), values], 1) if values.shape[1] == 1 else values


def mean_loss(logits: np.ndarray, sets: dict[str, Examples], rows: np.ndarray) -> float:
    """Cross-entropy of rows of the training set."""
    chosen = metrics.softmax(logits)[np.arange(len(rows)), sets["train"].labels[rows]]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def path(config: Config, title: str, budget: int, seed: int) -> Path:
    """A cell of the grid: its JSON; what was right beside it, as bits."""
    return config.out / "cells" / f"{verdict.stem(title, budget, seed)}.json"


def save(
    cell: Path,
    title: str,
    budget: int,
    seed: int,
    sets: dict[str, Examples],
    logits: dict[str, np.ndarray],
    more: Any,
) -> None:
    found = {"way": title, "budget": budget, "seed": seed, **more, "sets": {}}
    for name, values in logits.items():
        labels = sets[name].labels
        chances = metrics.softmax(values)
        right = values.argmax(-1) == labels
        found["sets"][name] = {
            "accuracy": float(right.mean()),
            "ece": metrics.calibration_error(chances, labels),
        }
    np.savez_compressed(
        cell.with_suffix(".npz"), **{n: v.argmax(-1) == sets[n].labels for n, v in logits.items()}
    )
    write_json(cell, found)


if __name__ == "__main__":
    launch(Config, main)
