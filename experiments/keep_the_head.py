"""What the head of pre-training is worth: features and fine-tuning with it, without it, and below it.

    python -m experiments.keep_the_head --short
    python -m experiments.keep_the_head --docs docs --resume

A probe on every layer of an encoder, after its head's transform, and on its head's logits; and the
same encoder fine-tuned with its head kept below the new one, dropped, or cut deeper. Each head is
also given a task near its own objective, where keeping it should help: there it can answer by itself.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt import tree
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import Cells
from adapt.cost.flops import prefix_flops
from adapt.features import image_batches, text_batches
from adapt.models import stages_of
from adapt.options import KeptHead
from adapt.pretrained.hub import tokenizer_of
from adapt.probing.layers import layer_features
from experiments.study import draw, dual_probe, near_tasks, small_encoders
from experiments.study import subjects as subject_tools
from experiments.study.near_tasks import Labelled
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, accuracy_of, as_plain, mean_of, score_of, with_interval
from experiments.study.subjects import (
    CLASSIFIER,
    FAR_PICTURES,
    NEAR,
    NEAR_FEW,
    NEAR_WORDS,
    PICTURES,
    Subject,
)

TIMED = 200  # inputs whose features are timed
OWN = "own answer"  # what the head says by itself
KEPT: dict[str, KeptHead | None] = {"dropped": None, "transform": "transform", "logits": "logits"}
CUT = "cut"  # a block deeper
COLOURS = {
    "tiny-bert": plots.BLUE,
    "masked": plots.RED,
    "causal": plots.GREEN,
    "replaced": plots.YELLOW,
    CLASSIFIER: plots.GREY,
    PICTURES: plots.PURPLE,
}
SHORT: dict[str, Any] = {
    "objectives": (),
    "classifiers": (),
    "data": ("reviews",),
    "labels": 60,
    "few_labels": 30,
    "pool": 100,
    "seeds": 2,
    "test_rows": 60,
    "tuned": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Which encoders, which tasks, and how often."""

    title: ClassVar[str] = "study"

    # a checkpoint with a masked-LM head
    checkpoint: str = "tiny-bert"
    # of the small encoders that are pre-trained here: masked, causal, replaced
    objectives: tuple[str, ...] = tuple(small_encoders.FAMILIES)
    # steps of their pre-training
    steps: int = 4000
    # of those that are trained for classes here: classifier (of texts), pictures
    classifiers: tuple[str, ...] = (CLASSIFIER, PICTURES)
    # bundled sets, far from every objective
    data: tuple[str, ...] = ("reviews", "trec", "sms-spam")
    # labelled examples
    labels: int = 250
    # the same where they are few, on the near tasks alone
    few_labels: int = 50
    # rows that these are drawn from
    pool: int = 1500
    # draws
    seeds: int = 5
    # rows of a test set
    test_rows: int = 1000
    # sets on which the checkpoint is fine-tuned, too; near is the task near its objective
    tuned: tuple[str, ...] = ("trec", NEAR)
    # factors of the learning rates, of which each side chooses one
    rates: tuple[float, ...] = (1.0, 3.0)
    # draws of what is fine-tuned
    tuned_seeds: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    out: Path = Path("runs/keep_the_head")


@dataclasses.dataclass(frozen=True)
class Side:
    """A place where features are taken: how well they serve, and what they cost."""

    score: Score
    width: int
    parameters: int  # that are computed with
    flops: float  # of a text
    seconds: float  # of the processor, for a thousand texts

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self) | {"score": self.score.plain}


# The sides of a subject by task: the layers by their numbers, transform, logits and own answer.
Sides = dict[str, dict[str, dict[str, Side]]]
Tuned = dict[str, dict[str, Score]]  # by task and side


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    open_study(
        "experiments.keep_the_head", config, chosen=("objectives", "classifiers", "data", "tuned")
    )
    found: Sides = {}
    subjects = read_subjects(config)
    for subject in subjects:
        found[subject.name] = {}
        for task in (*subject.far(config.data), NEAR, NEAR_FEW):
            found[subject.name][task] = frozen(subject, task, config)
    tuned: Tuned = {task: fine_tuned(subjects[0], task, config) for task in config.tuned}
    result = {"frozen": as_plain(found), "tuned": as_plain(tuned)}
    publish(page(config, found, tuned, subjects), result, config)
    return result


# What is compared


def read_subjects(config: Config) -> list[Subject]:
    """The encoders that are compared; those that are trained here are kept with the results."""
    folder = config.folder / "encoders"
    subjects = [subject_tools.language_model(config.checkpoint, "masked", config.checkpoint)]
    for objective in config.objectives:
        console.say(f"{objective}: pre-training")
        subjects.append(subject_tools.pretrained_here(objective, config.steps, folder))
    if CLASSIFIER in config.classifiers:
        console.say(f"{CLASSIFIER}: pre-training")
        subjects.append(subject_tools.classifier_of_texts(config.checkpoint, config.pool, folder))
    if PICTURES in config.classifiers:
        console.say(f"{PICTURES}: pre-training")
        subjects.append(subject_tools.classifier_of_pictures(config.pool, folder))
    return subjects


def labelled(subject: Subject, task: str, config: Config) -> Labelled:
    """The inputs of a task: rows to draw from, and then those of the test."""
    data = subject_tools.labelled(subject, task, config.pool, config.test_rows)
    return near_tasks.with_own_poolings(subject.pretrained, data)


# Frozen features


def frozen(subject: Subject, task: str, config: Config) -> dict[str, Side]:
    """Every side of a subject on a task; those that are there are read."""
    path = config.folder / "frozen" / f"{subject.name}-{task}.npz"
    if not path.exists():
        console.say(f"{subject.name}: probes on {task}")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, **measure(subject, task, config))
    sides = {}
    kept = np.load(path)
    for name in kept["sides"]:
        width, parameters, flops, seconds = kept[f"{name} cost"]
        right = kept[f"{name} right"].astype(np.float64)
        sides[str(name)] = Side(score_of(right), int(width), int(parameters), flops, seconds)
    return sides


def measure(subject: Subject, task: str, config: Config) -> dict[str, np.ndarray]:
    """The names of the ``sides``; and of every side, under its name, which test rows each draw gets
    ``right``, bool [seeds, test], and its ``cost``, float64 [4], as :func:`cost_of` says it.
    """
    data = labelled(subject, task, config)
    names, targets = np.unique(data.labels, return_inverse=True)
    test = len(targets) - config.pool
    draws = []
    labels = config.few_labels if task == NEAR_FEW else config.labels
    for seed in range(config.seeds):
        draws.append(dual_probe.drawn_rows(config.pool, labels, seed))
    features = features_of(subject, data)
    measured = {"sides": np.array(list(features))}
    for name, candidates in features.items():
        measured[f"{name} right"] = dual_probe.right_answers(
            candidates, targets, np.stack(draws), test
        )
        measured[f"{name} cost"] = np.array(cost_of(subject, name, candidates, data))
    if task in (NEAR, NEAR_FEW):
        answers = subject_tools.own_answers(subject, features["logits"], names.tolist())
        is_right = (answers == targets)[-test:]
        measured["sides"] = np.array([*features, OWN])
        measured[f"{OWN} right"] = np.tile(is_right, (config.seeds, 1))
        measured[f"{OWN} cost"] = measured["logits cost"]
    return measured


def features_of(subject: Subject, data: Labelled) -> dict[str, list[np.ndarray]]:
    """Features [N, D] by side, for each of the poolings; a head that pools by itself has one."""
    pretrained = subject.pretrained
    inputs = data.inputs
    if pretrained.config.is_image:
        stream = image_batches(pretrained, [inputs])
    else:
        stream = text_batches(pretrained, [inputs], few=True)
    batches = ((of.index, of.batch) for of in stream)
    layers = layer_features(pretrained, batches, len(inputs), data.poolings)
    features = {str(number): list(layer) for number, layer in enumerate(layers)}
    for stage in stages_of(pretrained.head):
        features[stage] = []
        for pooling in poolings_at(subject, stage, data):
            features[stage].append(adapt.encode(pretrained, inputs, pooling, layer=layer_of(stage)))
    return features


def poolings_at(subject: Subject, side: str, data: Labelled) -> Sequence[str | None]:
    """The poolings of a side: None for a head of classes, which pools by itself."""
    if subject.has_classes and not side.isdigit():
        return (None,)
    return data.poolings


def cost_of(
    subject: Subject, side: str, candidates: Sequence[np.ndarray], data: Labelled
) -> tuple[float, float, float, float]:
    """(the width, the parameters that are computed with, the FLOPs of a text, the seconds of the
    processor for a thousand texts) of one side.
    """
    pretrained = subject.pretrained
    config = pretrained.config
    tokens = float(config.positions)
    if not config.is_image:
        tokens = float(tokenizer_of(pretrained).encode(data.inputs)[0].lengths.mean())
    depth = 1 + (int(side) if side.isdigit() else config.layers)
    head = head_parameters(pretrained, side)
    flops = prefix_flops(config, depth, tokens, tokens) + head_flops(subject, side, tokens)
    blocks = config.block_names[: depth - 1]
    encoder = pretrained.params["encoder"]
    left_out = set(config.block_names) - set(blocks)
    used = {name: leaves for name, leaves in encoder.items() if name not in left_out}
    layer = layer_of(side)
    inputs = data.inputs[:TIMED]
    pooling = poolings_at(subject, side, data)[0]
    adapt.encode(pretrained, inputs, pooling, layer=layer)  # it compiles
    started = time.process_time()
    adapt.encode(pretrained, inputs, pooling, layer=layer)
    seconds = (time.process_time() - started) * 1000 / len(inputs)
    return candidates[0].shape[1], tree.count(used) + head, flops, seconds


def head_flops(subject: Subject, side: str, tokens: float) -> float:
    """The FLOPs of the head for a text: its transform for each token, and what makes the logits once,
    of the mean, but for a head of single tokens.
    """
    pretrained = subject.pretrained
    if side.isdigit():
        return 0.0
    every = 0
    once = 0
    for path, leaf in tree.paths(pretrained.params["head"]).items():
        if path.startswith(("decoder/kernel", "classifier/kernel")):
            once += leaf.size
        elif path.endswith("kernel"):
            every += leaf.size
    if getattr(pretrained.head, "tied", False):
        once += pretrained.config.vocabulary * pretrained.config.width
    if subject.kind == "replaced":
        once *= tokens
    return 2.0 * (tokens * every + (once if side == "logits" else 0))


def layer_of(side: str) -> int | KeptHead:
    """A side as :func:`adapt.encode` names it."""
    if side.isdigit():
        return int(side)
    return "logits" if side == "logits" else "transform"


def head_parameters(pretrained: adapt.Pretrained, side: str) -> int:
    """The parameters of the head that a side computes with."""
    head = pretrained.params["head"]
    if side.isdigit():
        return 0
    if side == "logits":
        return tree.count(head)
    return tree.count({name: head[name] for name in head if name not in ("decoder", "classifier")})


# Fine-tuning


def tuned_sides(task: str) -> tuple[str, ...]:
    """What is fine-tuned. At a mask, logits of the whole vocabulary would take too long here."""
    return ("dropped", "transform") if task == NEAR else (CUT, *KEPT)


def fine_tuned(subject: Subject, task: str, config: Config) -> dict[str, Score]:
    """The test accuracy of each way to fine-tune the subject on a task."""
    data = labelled(subject, task, config)
    train = slice(config.pool)
    test = slice(config.pool, None)
    scores = {}
    for side in tuned_sides(task):
        pretrained = subject.pretrained
        if side == CUT:
            pretrained = adapt.drop_layers(pretrained, 1)
        out = config.folder / "tuned" / f"{task}-{side}"
        resume = config.resume and (out / "config.json").exists()
        console.say(f"{subject.name}: fine-tuned on {task}, {side}")
        adapt.compare(
            pretrained,
            data.inputs[train],
            data.labels[train],
            test=(data.inputs[test], data.labels[test]),
            strategies=("full",),
            budgets=(config.labels,),
            rates=config.rates,
            seeds=config.tuned_seeds,
            batch_size=16,
            pooling=data.poolings[0],
            keep_head=KEPT.get(side),
            out=out,
            resume=resume,
            overwrite=not resume,
        )
        cells = Cells(out / "cells")
        names = sorted(set(data.labels))
        targets = np.array([names.index(label) for label in data.labels[test]], np.int32)
        outputs = []
        for seed in range(config.tuned_seeds):
            outputs.append(cells.outputs_of(("full", str(config.labels), seed))["test"])
        scores[side] = accuracy_of(outputs, targets)
    return scores


# What is shown

COLUMNS = (
    "encoder",
    "task",
    "layers, from the embedding",
    "transform",
    "logits",
    "layer - logits",
    "own answer - layer",
)
COST_COLUMNS = ("encoder", "features", "width", "parameters", "MFLOP each", "s for 1,000")
TUNED_COLUMNS = ("task", "a block deeper", "dropped", "below: transform", "below: logits")
QUESTION = (
    "A model is pre-trained under a head, and this project discards it. What would keeping it be "
    "worth? A head is the last of the layers that adapt to the objective, so "
    "[Guillotine regularisation (Bordes et al. 2023)](https://arxiv.org/abs/2206.13378) expects less "
    "of it the further the task is from that objective, and more of it where the task is near."
)
CAPTION = (
    "Test accuracy of a probe on frozen features, from the embedding to the head's logits, on tasks "
    "that are far from the objectives and, in the last two panels, on the task near each encoder's own; "
    "there beside it what the head says by itself. Bars are 95% intervals over draws and test rows."
)
METHOD = (
    "Probes: ridge regression of the classes on standardised features, on four fifths of the labelled "
    "rows; the other fifth chooses the strength of the penalty. Every side has the same draws and the "
    "same choices. A vector is the mean over the tokens unless said otherwise, of logits too, which "
    "are fitted in the dual form. Seconds are of the processor, on a busy machine.",
    "On the near task the head itself answers, too, without a new label: with the likeliest of the ten "
    "words, the likeliest of its classes, or whether it finds any word that was put in.",
)
TUNED_METHOD = (
    "Fine-tuned sides train everything, the kept head at the encoder's rate; each side chooses one of "
    "the same two rates by held-out labels."
)
HEADS_HERE = {
    "masked": "of masked LM",
    "causal": "of causal LM, which has no transform",
    "replaced": "of replaced tokens",
}
DIFFERS = (
    "Bordes et al. cut projectors of large self-supervised image encoders; these are small encoders "
    "of texts, and one of pictures that was trained for classes.",
    "The checkpoint was tuned for sparse retrieval by its logits after its pre-training, so that its "
    "head has learned more than masked LM.",
    "The small encoders are pre-trained for minutes, where others are for days.",
)
# What the figures say.
WHY: Sequence[str] = (
    "Far from its objective an encoder's output is worth more than its head's logits, by .027 as the mean "
    "over all of these tasks. Half of that is one row: of other kinds of clothes the logits of five "
    "classes give .580, and the layer below them .784. Of language models it is decided by itself on two "
    "tasks, TREC under tiny-bert's head and spam under the one logit of replaced tokens; on reviews the "
    "causal LM's logits are ahead of its last layer.",
    "Near its objective a head is worth keeping while labels are few. Of language models it is ahead by "
    "itself of a probe with 50 labels, by .073 as the mean; most of it is the causal LM's, which names the "
    "next of ten words for .431, where the probe has .203. Heads of classes are ahead by .136, on the very "
    "classes that they were trained on with thousands of labels. With 250 labels neither is decided as the "
    "mean; the causal LM's head is still ahead, by .067, and that of 50 classes is behind.",
    "Fine-tuned on questions with the logits below a new head, the checkpoint comes to .497, and "
    "without its head to .731. Cut a block deeper it comes to .656: this encoder has two.",
)


def method_of(config: Config, subjects: Sequence[Subject]) -> list[str]:
    """What was compared, and how."""
    words = {
        config.checkpoint: f"{config.checkpoint}, with a masked-LM head",
        CLASSIFIER: f"{CLASSIFIER}, {config.checkpoint} fine-tuned on 50 classes of questions",
        PICTURES: f"{PICTURES}, a vision transformer of 2 x 128 trained here on five kinds of clothes",
    }
    for objective in config.objectives:
        words[objective] = (
            f"{objective}, 2 x 128 and a vocabulary of {small_encoders.VOCABULARY:,}, pre-trained here "
            f"in {config.steps:,} steps on bundled text, with a head {HEADS_HERE[objective]}"
        )
    encoders = "; ".join(words[subject.name] for subject in subjects)
    kinds = dict.fromkeys(subject.kind for subject in subjects)
    near = "; ".join(f"of {kind}, {NEAR_WORDS[kind]}" for kind in kinds)
    return [
        f"Encoders: {encoders}.",
        f"Near tasks: {near}. What is asked of a word is probed at the mask or at the last word, and "
        "whether a word was put in by the mean or the maximum, which the held-out fifth chooses.",
        *METHOD,
        *([TUNED_METHOD] if config.tuned else []),
    ]


def last_layer(sides: Mapping[str, Side]) -> str:
    """The number of the encoder's last layer."""
    return str(max(int(name) for name in sides if name.isdigit()))


def margins(
    found: Sides,
    tasks: Sequence[str],
    first: str,
    second: str,
    encoders: Sequence[str] | None = None,
) -> list[Score]:
    """By how much one side is better than another, for each encoder and task that has both. ``last``
    is the encoder's last layer, ``before`` the one below it. ``encoders`` are those that count; None:
    all.
    """
    scores = []
    for name, of_subject in found.items():
        if encoders is not None and name not in encoders:
            continue
        for task in tasks:
            sides = of_subject.get(task, {})
            if not sides:
                continue
            last = last_layer(sides)
            layers = {"last": last, "before": str(int(last) - 1)}
            one = sides.get(layers.get(first, first))
            other = sides.get(layers.get(second, second))
            if one is not None and other is not None:
                scores.append(one.score - other.score)
    return scores


def claims_of(found: Sides, tuned: Tuned, config: Config) -> list[Claim]:
    far = (*config.data, FAR_PICTURES)
    claims = [
        Claim(
            "far from the objective the encoder's output is worth more than its head's logits",
            "last layer - logits, mean over encoders and far sets",
            mean_of(margins(found, far, "last", "logits")),
        ),
        Claim(
            "and more than what the head's transform makes",
            "last layer - transform, mean over encoders and far sets",
            mean_of(margins(found, far, "last", "transform")),
        ),
        Claim(
            "a cut one layer deeper is worth more still",
            "layer before the last - last, mean over encoders and far sets",
            mean_of(margins(found, far, "before", "last")),
        ),
        Claim(
            "near the objective a probe with few labels is better on the logits",
            f"logits - last layer with {config.few_labels} labels, mean over encoders, near each",
            mean_of(margins(found, (NEAR_FEW,), "logits", "last")),
        ),
    ]
    claims += claims_of_own_answers(found, config)
    for task, sides in tuned.items():
        claims.append(
            Claim(
                f"fine-tuned on {named(task)}, a new head does better without the old one below it",
                "dropped - transform kept",
                sides["dropped"] - sides["transform"],
            )
        )
        if "logits" in sides:
            claims.append(
                Claim(
                    "and better than on the old one's logits",
                    "dropped - logits kept",
                    sides["dropped"] - sides["logits"],
                )
            )
    return claims


def claims_of_own_answers(found: Sides, config: Config) -> list[Claim]:
    """That near its objective a head by itself is ahead of a new probe: of language models, and of
    heads of classes, which were trained on thousands of labels of that very task.
    """
    of_classes = [name for name in found if name in config.classifiers]
    language_models = [name for name in found if name not in of_classes]
    kinds = {
        "a language model's head": language_models,
        "a head of these classes": of_classes,
    }
    claims = []
    for task, labels in ((NEAR_FEW, config.few_labels), (NEAR, config.labels)):
        for words, encoders in kinds.items():
            scores = margins(found, (task,), OWN, "last", encoders)
            if scores:
                claims.append(
                    Claim(
                        f"near its objective {words} is ahead of a probe with {labels} labels",
                        "own answer - last layer, mean over such encoders",
                        mean_of(scores),
                    )
                )
    return claims


def named(task: str) -> str:
    return "the task near the objective" if task == NEAR else task


def shown_task(subject: Subject, task: str, config: Config) -> str:
    """What a row of the table is of."""
    if task == NEAR_FEW:
        return f"the same with {config.few_labels} labels"
    return f"near: {NEAR_WORDS[subject.kind]}" if task == NEAR else task


def table_rows(found: Sides, subjects: Sequence[Subject], config: Config) -> list[tuple[str, ...]]:
    """A row an encoder and task, as :data:`COLUMNS` names its values."""
    rows = []
    for subject in subjects:
        for task, sides in found[subject.name].items():
            shown = shown_task(subject, task, config)
            layers = " ".join(
                f"{side.score.value:.3f}" for name, side in sides.items() if name.isdigit()
            )
            stages = [
                f"{sides[name].score.value:.3f}" if name in sides else "" for name in KEPT_STAGES
            ]
            last = sides[last_layer(sides)].score
            gap = with_interval(last - sides["logits"].score, sign=True)
            own = with_interval(sides[OWN].score - last, sign=True) if OWN in sides else ""
            rows.append((subject.name, shown, layers, *stages, gap, own))
    return rows


KEPT_STAGES = tuple(stage for stage in KEPT.values() if stage)
PANELS = {NEAR: "near each objective", NEAR_FEW: "near each objective, few labels"}
PANELS_OF_A_ROW = 3


def cost_rows(found: Sides) -> list[tuple[str, ...]]:
    """What each side costs, on the first set."""
    rows = []
    for name, of_subject in found.items():
        sides = next(iter(of_subject.values()))
        for side_name, side in sides.items():
            shown = f"layer {side_name}" if side_name.isdigit() else side_name
            rows.append(
                (
                    name,
                    shown,
                    f"{side.width:,}",
                    f"{side.parameters:,}",
                    f"{side.flops / 1e6:,.1f}",
                    f"{side.seconds:.1f}",
                )
            )
    return rows


def tuned_rows(tuned: Tuned) -> list[tuple[str, ...]]:
    rows = []
    for task, sides in tuned.items():
        cells = [with_interval(sides[name]) if name in sides else "" for name in (CUT, *KEPT)]
        rows.append((named(task), *cells))
    return rows


def plot(found: Sides) -> Any:
    """A panel a task: the accuracy of every encoder from its embedding to its head's logits."""
    every = dict.fromkeys(task for of_subject in found.values() for task in of_subject)
    tasks = [*(task for task in every if task not in PANELS), *PANELS]
    rows = -(-len(tasks) // PANELS_OF_A_ROW)
    size = (4.0 * PANELS_OF_A_ROW + 0.6, 3.2 * rows + 0.6)
    drawn, axes = plots.figure(rows, PANELS_OF_A_ROW, size=size)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for axis, task in zip(axes.flat, tasks, strict=False):
        of_task = {name: of_subject.get(task, {}) for name, of_subject in found.items()}
        draw_task(axis, task, of_task)
    for of_row in axes:
        of_row[0].set_ylabel("test accuracy of a probe")
    handles = axes.flat[tasks.index(NEAR)].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, loc="outside lower center", ncols=len(found))
    drawn.suptitle(
        "The encoder | its head: the dotted line is where the head is cut off", fontsize=11
    )
    return drawn


def draw_task(axis: Any, task: str, of_task: Mapping[str, Mapping[str, Side]]) -> None:
    """Every encoder on one task: its layers, and behind a line the stages of its head."""
    deepest = max(int(last_layer(sides)) for sides in of_task.values() if sides)
    places = {"transform": deepest + 1, "logits": deepest + 2, OWN: deepest + 3}
    for layer in range(deepest + 1):
        places[str(layer)] = layer
    for number, (name, sides) in enumerate(of_task.items()):
        if sides:
            positions = [places[side] + 0.06 * (number - 2) for side in sides]
            scores = [side.score for side in sides.values()]
            draw.points(axis, positions, scores, COLOURS.get(name, plots.BLUE), name)
    ticks = ["embedding", *(f"block {number}" for number in range(1, deepest + 1))]
    ticks += ["transform", "logits"]
    if task in PANELS:
        ticks.append(OWN)
    axis.set_xticks(range(len(ticks)), ticks, rotation=20, fontsize=8)
    axis.axvline(deepest + 0.5, color="black", ls=":", lw=1)
    axis.set_title(PANELS.get(task, f"{task}: far"), fontsize=10)
    axis.grid(alpha=0.25)


def page(config: Config, found: Sides, tuned: Tuned, subjects: Sequence[Subject]) -> Page:
    tables = [
        Table(
            COLUMNS, table_rows(found, subjects, config), right=5, title="Probes on frozen features"
        ),
        Table(
            COST_COLUMNS,
            cost_rows(found),
            right=4,
            title="What features cost, on the first task of each encoder",
        ),
    ]
    if tuned:
        title = f"{config.checkpoint} fine-tuned"
        tables.insert(1, Table(TUNED_COLUMNS, tuned_rows(tuned), right=4, title=title))
    draws = f"{config.seeds} draws"
    if tuned:
        draws += f", {config.tuned_seeds} where everything is trained"
    return Page(
        name="keep_the_head",
        title="What keeping the head of pre-training is worth",
        question=QUESTION,
        claims=claims_of(found, tuned, config),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(found), CAPTION),
        tables=tables,
        method=method_of(config, subjects),
        differs=DIFFERS,
        source=source_of(
            "experiments.keep_the_head",
            config,
            f"{config.labels} labelled rows of {config.pool:,}, {config.test_rows} test rows, {draws}",
        ),
    )


if __name__ == "__main__":
    launch(Config, main)
