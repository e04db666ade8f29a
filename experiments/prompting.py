"""What a prompt brings with few labels: the head of pre-training kept, or discarded.

    python -m experiments.prompting --short
    python -m experiments.prompting --data reviews --docs docs

A cloze template with a masked-LM head (Schick and Schütze 2021; Gao et al. 2021), or a
prompt that a causal LM goes on with, against a new head on the same encoder, by labels
a class. Every side sees the same draws of examples, trains all of the encoder, and has
the same rates to choose from by the labels it has; a probe, logistic regression on
frozen features, stands beside. Without training there is the prompt alone, or with an
answered example of each class before it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import Cells
from adapt.comparison.material import FEW
from adapt.data import bundled
from experiments.study import draw
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, accuracy_of, with_interval

COLUMNS = (
    "checkpoint",
    "data",
    "labels a class (mean)",
    "probe",
    "new head",
    "prompt",
    "prompt with examples, untrained",
    "prompt - new head (95% interval)",
)
NUMBERS = len(COLUMNS) - 2
EXAMPLES = "prompt with examples, untrained"
ROOM = 256  # positions from which on a prompt has room for an example of each class
QUESTION = (
    "A cloze template with the masked-LM head, as in "
    "[Schick and Schütze (2021)](https://aclanthology.org/2021.eacl-main.20) and "
    "[Gao et al. (2021)](https://aclanthology.org/2021.acl-long.295), or a prompt that a causal LM "
    "goes on with, against a new head on the same encoder: what does keeping the head bring when "
    "labels are few?"
)
CAPTION = (
    "Test accuracy by labels a class; at 0 the prompt alone, without training, at 1 with an answered "
    "example of each class before it. Bars are 95% intervals over seeds and test examples."
)
METHOD = (
    "Every side sees the same draws of examples. A new head and a prompt train all of the encoder, and "
    "have the same rates to choose from by the labels that they have; the probe is logistic regression "
    "on frozen features. Differences are paired by seed and test example. A draw of up to {few} labels in all has as "
    "many of each class; a larger one is by chance, and labels a class are its mean.",
    "An answered example of each class before the prompt, without training, is what Brown et al. "
    "([2020](https://arxiv.org/abs/2005.14165)) call in-context learning; each seed draws other "
    "examples. It needs more positions than the checkpoints of "
    "`python -m experiments.pretrain_and_probe` have. The prompt of a causal LM ends before its "
    "answer.",
)
DIFFERS = (
    "tiny-bert has two layers, and was tuned for sparse retrieval after its pre-training, so that it "
    "fills masks poorly; the papers' models have 12 to 24 layers and fill them well. The causal LM is "
    "that of `python -m experiments.pretrain_and_probe`.",
    "One template and one word a class, written down before any result was seen. The papers choose "
    "among several, or join them.",
    "The rate is chosen by a fifth of the few labels, on every side alike.",
)
WHY: Sequence[str] = (
    "With 4 labels a class the prompt of the masked LM is ahead of a new head by .089, just beyond the "
    "interval. The words of the prompt give .533 without labels and .584 with 4 a class, where the new head "
    "is at .495. With 32 labels a class the difference is .010, and not decided.",
    "The small causal LM decides nothing: with every number of labels its sides are within .05 of the "
    "chance of one half. Its 64 positions have no room for examples in a prompt.",
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

    def asked_of(self, causal: bool) -> str:
        """The template for a masked LM, or a causal one, where it ends with the mask."""
        if not causal:
            return self.template
        before, mask, _ = self.template.partition("[MASK]")
        return before + mask

    def after(self, rows: Sequence[tuple[str, str]], template: str) -> str:
        """The template after rows (text, class) that are answered in the same way."""
        answered = []
        for text, label in rows:
            literal = text.replace("{", "{{").replace("}", "}}")
            filled = self.template.replace("[MASK]", self.words[label])
            answered.append(filled.replace("{text}", literal))
        return " ".join([*answered, template])


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

    # with a masked-LM head, or a causal one
    checkpoints: tuple[str, ...] = ("tiny-bert",)
    # bundled sets that have a prompt: reviews, trec
    data: tuple[str, ...] = tuple(PROMPTS)
    # labels a class, a fifth of which choose the rate and the step
    labels: tuple[int, ...] = (4, 8, 16, 32)
    # each draws other examples, another order, and of a new head other weights
    seeds: int = 5
    # factors of the learning rates, of which each side chooses one
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    # rows of the test set
    test_rows: int = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    out: Path = Path("runs/prompting")


CAUSAL = "runs/pretrain_and_probe/causal/step_02048"  # of the study of that name
# The flags whose figures WHY speaks of.
PUBLISHED = Config(checkpoints=("tiny-bert", CAUSAL), data=("reviews",))


# The sides' scores by labels a class, 0 and 1 without training; of a set, and of a checkpoint.
Scores = dict[int, dict[str, Score]]
ScoresOfSets = dict[str, Scores]


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    open_study("experiments.prompting", config, chosen=("checkpoints", "data"))
    scores: dict[str, ScoresOfSets] = {}
    for checkpoint in config.checkpoints:
        pretrained = adapt.load(checkpoint)
        scores[short_name(checkpoint)] = {
            name: study(pretrained, name, config) for name in config.data
        }
    majority = {name: most_frequent(name, config) for name in config.data}
    result = {}
    for checkpoint, of_sets in scores.items():
        result[checkpoint] = {name: plain(of_set) for name, of_set in of_sets.items()}
    drawn = plot(scores, majority)
    publish(page(config, scores, drawn), result, config)
    return result


def short_name(checkpoint: str) -> str:
    """The last two parts of a folder: ``causal/step_00512``."""
    return "/".join(Path(checkpoint).parts[-2:])


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
    shown = short_name(pretrained.source)
    console.say(f"{shown}, {name}: without training")
    template = prompt.asked_of(pretrained.config.causal)
    run = adapt.zero_shot(pretrained, template, prompt.words)
    outputs = run.predict(texts).outputs
    scores: Scores = {0: {"prompt": accuracy_of([outputs] * config.seeds, targets)}}
    if pretrained.config.positions >= ROOM:
        of_seeds = []
        for seed in range(config.seeds):
            with_rows = prompt.after(one_of_each(name, seed), template)
            run = adapt.zero_shot(pretrained, with_rows, prompt.words)
            of_seeds.append(run.predict(texts).outputs)
        scores[1] = {EXAMPLES: accuracy_of(of_seeds, targets)}
    for side_name in SIDES:
        console.say(f"{shown}, {name}: {side_name}")
        cells = compare_side(pretrained, name, side_name, (texts, labels), config)
        for count in config.labels:
            of_seeds = outputs_of(cells, SIDES[side_name], count * len(classes), config.seeds)
            scores.setdefault(count, {})[side_name] = accuracy_of(of_seeds, targets)
    return scores


def one_of_each(name: str, seed: int) -> list[tuple[str, str]]:
    """A training row (text, class) of every class, in random order."""
    rows = bundled.read(name, "train")
    random = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for row in random.permutation(len(rows["text"])):
        found.setdefault(rows["label"][row], rows["text"][row])
    labels = random.permutation(sorted(found))
    return [(found[label], str(label)) for label in labels]


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
        asked = {"template": prompt.asked_of(pretrained.config.causal), "verbalizer": prompt.words}
    train = bundled.read(name, "train")
    of_checkpoint = short_name(pretrained.source).replace("/", "-")
    out = config.folder / f"{of_checkpoint}-{name}-{side_name.replace(' ', '-')}"
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


def claims(scores: Mapping[str, ScoresOfSets]) -> list[Claim]:
    """That a prompt is better where labels are few, at the fewest; and at the most that were tried."""
    found = []
    for checkpoint, of_sets in scores.items():
        for name, of_set in of_sets.items():
            counts = [count for count, sides in of_set.items() if "new head" in sides]
            for count in sorted({min(counts), max(counts)}):
                margin = difference(of_set[count])
                assert margin is not None
                statement = f"{checkpoint}, {name}, {count} labels a class: the prompt is better"
                found.append(Claim(statement, "prompt - new head", margin))
    return found


def plain(scores: Scores) -> dict[str, Any]:
    """Scores as JSON has them."""
    content = {}
    for count, sides in scores.items():
        named = dict(sides)
        gain = difference(sides)
        if gain is not None:
            named["prompt - new head"] = gain
        content[str(count)] = {name: score.plain for name, score in named.items()}
    return content


def table_rows(scores: Mapping[str, ScoresOfSets]) -> list[tuple[str, ...]]:
    """A row a checkpoint, set and budget, as :data:`COLUMNS` names its values."""
    rows = []
    for checkpoint, of_sets in scores.items():
        for name, of_set in of_sets.items():
            for count, sides in of_set.items():
                cells = []
                for side in (*SIDES, EXAMPLES):
                    cells.append(f"{sides[side].value:.3f}" if side in sides else "")
                gain = difference(sides)
                gain_text = "" if gain is None else with_interval(gain, sign=True)
                rows.append((checkpoint, name, str(count), *cells, gain_text))
    return rows


def page(config: Config, scores: Mapping[str, ScoresOfSets], drawn: Any) -> Page:
    """The page of the study."""
    return Page(
        name="prompting",
        title="The head kept, with a prompt",
        question=QUESTION,
        claims=claims(scores),
        why=WHY if has_flags_of(config, PUBLISHED) else (),
        figure=Figure(drawn, CAPTION),
        tables=[Table(COLUMNS, table_rows(scores), right=NUMBERS, title="Test accuracy")],
        method=[paragraph.format(few=FEW) for paragraph in METHOD],
        differs=DIFFERS,
        source=source_of(
            "experiments.prompting",
            config,
            f"Test accuracy on {config.test_rows:,} rows, mean of {config.seeds} seeds, the best of "
            f"{len(config.rates)} rates by a fifth of the labels",
        ),
    )


def plot(scores: Mapping[str, ScoresOfSets], majority: Mapping[str, float]) -> Any:
    """A row a checkpoint, a panel a set: the accuracy of every side by labels a class."""
    sets = list(next(iter(scores.values())))
    size = (4.2 * len(sets) + 0.6, 2.9 * len(scores) + 1)
    drawn, axes = plots.figure(len(scores), len(sets), size=size, sharey="col")
    for row, (checkpoint, of_sets) in enumerate(scores.items()):
        for axis, (name, of_set) in zip(axes[row], of_sets.items(), strict=True):
            draw_set(axis, of_set)
            axis.axhline(majority[name], color="black", ls=":", lw=1, label="most frequent class")
            axis.set_title(f"{checkpoint} on {name}", fontsize=10)
            axis.grid(alpha=0.25)
        axes[row, 0].set_ylabel("test accuracy")
    for axis in axes[-1]:
        axis.set_xlabel("labels a class (0 and 1: no training)")
    handles = axes[0, 0].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return drawn


def draw_set(axis: Any, of_set: Scores) -> None:
    """Every side of one checkpoint on one set, at the place of its budget."""
    counts = sorted(of_set)
    colours = {name: side.colour for name, side in SIDES.items()}
    colours[EXAMPLES] = plots.GREEN
    for number, (side, colour) in enumerate(colours.items()):
        places = []
        scores = []
        for place, count in enumerate(counts):
            if side in of_set[count]:
                places.append(place + 0.08 * (number - 1))
                scores.append(of_set[count][side])
        if scores:
            draw.points(axis, places, scores, colour, side)
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    axis.set_xlim(-0.4, len(counts) - 0.6)


if __name__ == "__main__":
    launch(Config, main)
