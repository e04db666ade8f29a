"""What a prompt brings with few labels: the head of pre-training kept, or discarded.

    python -m experiments.prompting --short
    python -m experiments.prompting --data reviews --docs docs

A cloze template with the masked-LM head (Schick and Schütze 2021; Gao et al. 2021)
against a new head on the same encoder, by labels a class. Every side sees the same
draws of examples, trains all of the encoder, and has the same rates to choose from
by the labels it has; a probe, logistic regression on frozen features, stands beside.
Without labels there is the prompt alone.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import Cells
from adapt.data import bundled
from adapt.run_folder import check_out, write_json
from experiments.study import draw
from experiments.study.options import StudyRunOptions
from experiments.study.page import Figure, Page, Table, source_of, write_page
from experiments.study.scores import Score, accuracy_of, with_interval

COLUMNS = (
    "data",
    "labels a class",
    "probe",
    "new head",
    "prompt",
    "prompt - new head (95% interval)",
)
QUESTION = (
    "A cloze template with the masked-LM head, as in "
    "[Schick and Schütze (2021)](https://aclanthology.org/2021.eacl-main.20) and "
    "[Gao et al. (2021)](https://aclanthology.org/2021.acl-long.295), against a new head on the "
    "same encoder: what does keeping the head bring when labels are few?"
)
CAPTION = (
    "Test accuracy by labels a class; at 0 the prompt alone, without training. Bars are 95% "
    "intervals over seeds and test examples."
)
METHOD = (
    "Every side sees the same draws of examples, trains all of the encoder, and has the same rates "
    "to choose from by the labels that it has. The probe is logistic regression on frozen "
    "features. Differences are paired by seed and test example.",
)
SHORT: dict[str, Any] = {
    "data": ("reviews",),
    "labels": (4,),
    "seeds": 2,
    "rates": (1.0,),
    "test_rows": 100,
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a set is asked: its template, and the words of its classes in the order of their names."""

    template: str
    words: Mapping[str, str]


PROMPTS = {
    "reviews": Prompt("{text} It was [MASK].", {"negative": "terrible", "positive": "great"}),
    "trec": Prompt(
        "{text} This asks for a [MASK].",
        {
            "ABBR": "abbreviation",
            "DESC": "description",
            "ENTY": "thing",
            "HUM": "person",
            "LOC": "place",
            "NUM": "number",
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to adapt: a task and a strategy of :func:`adapt.compare`."""

    task: str
    strategy: str
    colour: str


SIDES = {
    "probe": Side("classification", "probe", plots.GREY),
    "new head": Side("classification", "full", plots.BLUE),
    "prompt": Side("cloze", "full", plots.RED),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is compared, and how often."""

    title: ClassVar[str] = "study"

    # a checkpoint with a masked-LM head
    checkpoint: str = "tiny-bert"
    # bundled sets that have a prompt: reviews, trec
    data: tuple[str, ...] = tuple(PROMPTS)
    # labels a class, a fifth of which choose the rate and the step
    labels: tuple[int, ...] = (4, 8, 16, 32, 64)
    # each draws other examples, another order, and of a new head other weights
    seeds: int = 5
    # factors of the learning rates, of which each side chooses one
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    # rows of the test set
    test_rows: int = 500
    # 4 labels a class, 2 seeds, a rate: whether it runs, in a minute
    short: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    out: Path = Path("runs/prompting")


# The sides' scores by labels a class; 0 is the prompt without training.
Scores = dict[int, dict[str, Score]]


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    check_out(config.out, None, config.overwrite)
    config.out.mkdir(parents=True, exist_ok=True)
    pretrained = adapt.load(config.checkpoint)
    scores = {name: study(pretrained, name, config) for name in config.data}
    majority = {name: most_frequent(name, config) for name in config.data}
    result = {name: plain(of_set) for name, of_set in scores.items()}
    write_json(config.out / "prompting.json", result)
    rows = table_rows(scores)
    console.table("test accuracy", COLUMNS, rows)
    drawn = plot(scores, majority, config.checkpoint)
    write_page(page(config, rows, drawn), config.out, config.docs)
    console.result(json.dumps(result))
    return result


def test_set(name: str, config: Config) -> tuple[list[str], list[str]]:
    """The first rows of the test part of a bundled set, which is in random order."""
    rows = bundled.read(name, "test")
    return list(rows["text"][: config.test_rows]), list(rows["label"][: config.test_rows])


def most_frequent(name: str, config: Config) -> float:
    """The accuracy of one answer to everything, the best one."""
    labels = test_set(name, config)[1]
    return max(labels.count(label) for label in set(labels)) / len(labels)


def study(pretrained: adapt.Pretrained, name: str, config: Config) -> Scores:
    """Every side at every budget, and the prompt without training."""
    prompt = PROMPTS[name]
    texts, labels = test_set(name, config)
    classes = list(prompt.words)
    targets = np.array([classes.index(label) for label in labels], np.int32)
    console.say(f"{name}: without training")
    run = adapt.zero_shot(pretrained, prompt.template, prompt.words)
    outputs = run.predict(texts).outputs
    scores: Scores = {0: {"prompt": accuracy_of([outputs] * config.seeds, targets)}}
    for side_name in SIDES:
        console.say(f"{name}: {side_name}")
        cells = compare_side(pretrained, name, side_name, (texts, labels), config)
        for count in config.labels:
            of_seeds = outputs_of(cells, SIDES[side_name], count * len(classes), config.seeds)
            scores.setdefault(count, {})[side_name] = accuracy_of(of_seeds, targets)
    return scores


def compare_side(
    pretrained: adapt.Pretrained,
    name: str,
    side_name: str,
    test: tuple[list[str], list[str]],
    config: Config,
) -> Cells:
    """The fits of one side at every budget."""
    side = SIDES[side_name]
    prompt = PROMPTS[name]
    asked: dict[str, Any] = {}
    if side_name == "prompt":
        asked = {"template": prompt.template, "verbalizer": prompt.words}
    train = bundled.read(name, "train")
    out = config.out / f"{name}-{side_name.replace(' ', '-')}"
    resume = config.resume and (out / "config.json").exists()
    adapt.compare(
        pretrained,
        list(train["text"]),
        list(train["label"]),
        test=test,
        task=side.task,
        strategies=[side.strategy],
        budgets=[str(count * len(prompt.words)) for count in config.labels],
        rates=config.rates,
        seeds=config.seeds,
        batch_size=16,
        out=out,
        resume=resume,
        overwrite=not resume,
        **asked,
    )
    return Cells(out / "cells")


def outputs_of(cells: Cells, side: Side, budget: int, seeds: int) -> list[np.ndarray]:
    """The outputs on the test set, [N, C], of each seed's fit."""
    outputs = []
    for seed in range(seeds):
        outputs.append(cells.outputs_of((side.strategy, str(budget), seed))["test"])
    return outputs


def difference(sides: Mapping[str, Score]) -> Score | None:
    """By how much the prompt is better than a new head."""
    if "new head" not in sides:
        return None
    return sides["prompt"] - sides["new head"]


def plain(scores: Scores) -> dict[str, Any]:
    """Scores as JSON has them."""
    content = {}
    for count, sides in scores.items():
        named = dict(sides)
        gain = difference(sides)
        if gain is not None:
            named["prompt - new head"] = gain
        content[str(count)] = {
            name: {"accuracy": score.value, "interval": list(score.interval)}
            for name, score in named.items()
        }
    return content


def table_rows(scores: Mapping[str, Scores]) -> list[tuple[str, ...]]:
    """A row a set and budget, as :data:`COLUMNS` names its values."""
    rows = []
    for name, of_set in scores.items():
        for count, sides in of_set.items():
            cells = [f"{sides[side].value:.3f}" if side in sides else "" for side in SIDES]
            gain = difference(sides)
            gain_text = ""
            if gain is not None:
                gain_text = with_interval(gain, sign=True)
            rows.append((name, str(count), *cells, gain_text))
    return rows


def page(config: Config, rows: Sequence[Sequence[str]], drawn: Any) -> Page:
    """The page of the study."""
    return Page(
        name="prompting",
        title="The head kept, with a prompt",
        question=QUESTION,
        figure=Figure(drawn, CAPTION),
        tables=[Table(COLUMNS, rows, right=5)],
        method=METHOD,
        source=source_of(
            "experiments.prompting",
            config,
            f"{config.checkpoint}, test accuracy on {config.test_rows:,} rows, mean of "
            f"{config.seeds} seeds, the best of {len(config.rates)} rates by a fifth of the labels",
        ),
    )


def plot(scores: Mapping[str, Scores], majority: Mapping[str, float], checkpoint: str) -> Any:
    """A panel a set: the accuracy of every side by labels a class, with intervals."""
    drawn, axes = plots.figure(1, len(scores), size=(3.8 * len(scores) + 0.6, 3.6))
    for axis, (name, of_set) in zip(axes[0], scores.items(), strict=True):
        counts = sorted(of_set)
        for number, (side_name, side) in enumerate(SIDES.items()):
            positions = [x for x, count in enumerate(counts) if side_name in of_set[count]]
            of_side = [of_set[counts[x]][side_name] for x in positions]
            shifted = [x + 0.08 * (number - 1) for x in positions]
            draw.points(axis, shifted, of_side, side.colour, side_name)
        axis.axhline(majority[name], color="black", ls=":", lw=1, label="most frequent class")
        axis.set_xticks(range(len(counts)), [str(count) for count in counts])
        axis.set_xlim(-0.4, len(counts) - 0.6)
        axis.set_xlabel("labels a class (0: no training)")
        axis.set_title(f"{name}, {len(PROMPTS[name].words)} classes", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(frameon=False, fontsize=8)
    drawn.suptitle(f"{checkpoint}: head kept with a prompt, or discarded", fontsize=11)
    return drawn


if __name__ == "__main__":
    launch(Config, main)
