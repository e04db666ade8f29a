"""What the head of pre-training is worth: features and fine-tuning with it, without it, and below it.

    python -m experiments.keep_the_head --short
    python -m experiments.keep_the_head --docs docs --resume

A probe on every layer of an encoder, after its head's transform, and on its head's logits; and the
same encoder fine-tuned with its head kept below the new one, dropped, or cut deeper. Each head is
also given a task near its own objective, where keeping it should help: there it can answer by itself.
Heads are of masked LM, causal LM and replaced tokens, of classes of texts and of pictures.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt import files, tree
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import Cells, read_arrays, write_arrays
from adapt.cost.flops import prefix_flops
from adapt.data import bundled
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
from experiments.study.scores import Score, as_plain, mean_of, score_of, with_interval
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
LAST = "last"  # layer of the encoder
BEFORE = "before"  # the layer below that
STAGES: tuple[KeptHead, ...] = ("transform", "logits")
DROPPED = "dropped"
CUT = "cut"  # a block deeper
COLOURS = {
    "tiny-bert": plots.BLUE,
    "masked": plots.RED,
    "causal": plots.GREEN,
    "replaced": plots.YELLOW,
    CLASSIFIER: plots.GREY,
    PICTURES: plots.PURPLE,
}
# What is fine-tuned but for the dropped head, and what a head says by itself beside it, in words.
OTHERS = {
    CUT: "cut a block\ndeeper",
    "transform": "on the\ntransform",
    "logits": "on the\nlogits",
    OWN: OWN,
}
PANELS = {NEAR: "near each objective", NEAR_FEW: "near each objective, few labels"}
PANELS_OF_A_ROW = 3
SHORT: dict[str, Any] = {
    "objectives": (),
    "classifiers": (),
    "data": ("reviews",),
    "labels": 60,
    "few_labels": 30,
    "pool": 100,
    "seeds": 2,
    "test_rows": 60,
    "tuned": (NEAR,),
    "beside": ("transform",),
    "rates": (1.0,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Which encoders, which tasks, and how often."""

    title: ClassVar[str] = "study"

    # a checkpoint with a masked-LM head
    checkpoint: str = "tiny-bert"
    # of the small encoders that are pre-trained here: causal, replaced; and masked, which is what
    # the checkpoint has
    objectives: tuple[str, ...] = ("causal", "replaced")
    # steps of their pre-training
    steps: int = 2000
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
    # sets that an encoder is fine-tuned on, too, where they are far from its objective (pictures are
    # on other kinds of clothes); near is the task near it
    tuned: tuple[str, ...] = ("trec", NEAR)
    # ways to fine-tune, beside that with the head dropped: cut (a block deeper), transform, logits
    beside: tuple[str, ...] = (CUT, *STAGES)
    # factors of the learning rates, of which each side chooses one
    rates: tuple[float, ...] = (1.0, 3.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "objectives": tuple(small_encoders.FAMILIES),
        "classifiers": (CLASSIFIER, PICTURES),
        "data": tuple(bundled.SETS),
        "tuned": (*bundled.SETS, NEAR),
        "beside": (CUT, *STAGES),
    }
    may_be_empty: ClassVar[Collection[str]] = ("objectives", "classifiers", "tuned", "beside")

    out: Path = Path("runs/keep_the_head")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What features of one side cost."""

    width: int
    parameters: int  # that are computed with
    flops: float  # of an input
    seconds: float  # of the processor, for a thousand inputs

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


# By subject, task and side. Sides of frozen features are the layers by their numbers, transform,
# logits and own answer; what is fine-tuned is cut, dropped, or has the transform or logits kept.
Scores = dict[str, dict[str, dict[str, Score]]]
Costs = dict[str, dict[str, Cost]]  # by subject and side


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    open_study(
        "experiments.keep_the_head",
        config,
        chosen=("objectives", "classifiers", "data", "tuned", "beside"),
    )
    found: Scores = {}
    costs: Costs = {}
    subjects = read_subjects(config)
    for subject in subjects:
        costs[subject.name] = costs_of(subject, config)
        found[subject.name] = {}
        for task in (*subject.far(config.data), NEAR, NEAR_FEW):
            found[subject.name][task] = frozen(subject, task, config)
    tuned: Scores = {}
    for subject in subjects:
        tuned[subject.name] = {}
        for task in tuned_tasks(subject, config):
            tuned[subject.name][task] = fine_tuned(subject, task, config)
    result = {"frozen": as_plain(found), "tuned": as_plain(tuned), "costs": as_plain(costs)}
    publish(page(config, found, tuned, costs, subjects), result, config)
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


def frozen(subject: Subject, task: str, config: Config) -> dict[str, Score]:
    """The score of every side of a subject on a task; those that are there are read."""
    path = config.folder / "frozen" / f"{subject.name}-{task}.npz"
    if not path.exists():
        console.say(f"{subject.name}: probes on {task}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, measure(subject, task, config))
    return {side: score_of(right.astype(float)) for side, right in read_arrays(path).items()}


def measure(subject: Subject, task: str, config: Config) -> dict[str, np.ndarray]:
    """Which test rows each draw gets right, bool [seeds, test], by side."""
    data = labelled(subject, task, config)
    names, targets = np.unique(data.labels, return_inverse=True)
    test = len(targets) - config.pool
    draws = []
    labels = config.few_labels if task == NEAR_FEW else config.labels
    for seed in range(config.seeds):
        draws.append(dual_probe.drawn_rows(config.pool, labels, seed))
    features = features_of(subject, data)
    right = {}
    for name, candidates in features.items():
        right[name] = dual_probe.right_answers(candidates, targets, np.stack(draws), test)
    if task in (NEAR, NEAR_FEW):
        answers = subject_tools.own_answers(subject, features["logits"], names.tolist())
        is_right = (answers == targets)[-test:]
        right[OWN] = np.tile(is_right, (config.seeds, 1))
    return right


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


def costs_of(subject: Subject, config: Config) -> dict[str, Cost]:
    """What features of every side cost, on the subject's first task; what is there is read."""
    path = config.folder / "costs" / f"{subject.name}.json"
    if not path.exists():
        console.say(f"{subject.name}: what features cost")
        task = (*subject.far(config.data), NEAR)[0]
        data = labelled(subject, task, config)
        layers = [str(layer) for layer in range(subject.pretrained.config.layers + 1)]
        costs = {}
        for side in (*layers, *stages_of(subject.pretrained.head)):
            costs[side] = cost_of(subject, side, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, as_plain(costs))
    return {side: Cost(**plain) for side, plain in files.read_json(path).items()}


def cost_of(subject: Subject, side: str, data: Labelled) -> Cost:
    """What features of one side cost."""
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
    width = adapt.encode(pretrained, inputs, pooling, layer=layer).shape[1]  # it compiles
    started = time.process_time()
    adapt.encode(pretrained, inputs, pooling, layer=layer)
    seconds = (time.process_time() - started) * 1000 / len(inputs)
    return Cost(width, tree.count(used) + head, flops, seconds)


def head_flops(subject: Subject, side: str, tokens: float) -> float:
    """The FLOPs of the head for an input: its transform for each token, and what makes the logits
    once, of the mean, but for a head of single tokens.
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


def far_sets(config: Config) -> list[str]:
    """The far sets that are fine-tuned on."""
    return [name for name in config.tuned if name != NEAR]


def tuned_tasks(subject: Subject, config: Config) -> tuple[str, ...]:
    """What a subject is fine-tuned on."""
    sets = far_sets(config)
    far = subject.far(sets) if sets else ()
    return (*far, NEAR) if NEAR in config.tuned else far


def tuned_sides(subject: Subject, config: Config) -> tuple[str, ...]:
    """The ways to fine-tune a subject: transform and logits are kept where its head has them."""
    there = (CUT, *stages_of(subject.pretrained.head))
    return (DROPPED, *(side for side in config.beside if side in there))


def fine_tuned(subject: Subject, task: str, config: Config) -> dict[str, Score]:
    """The test accuracy of each way to fine-tune a subject on a task; those there are read."""
    scores = {}
    for side in tuned_sides(subject, config):
        path = config.folder / "tuned" / f"{subject.name}-{task}-{side}.npz"
        if not path.exists():
            console.say(f"{subject.name}: fine-tuned on {task}, {side}")
            path.parent.mkdir(parents=True, exist_ok=True)
            right = tuned_right(subject, task, side, path.with_suffix(""), config)
            write_arrays(path, {"right": right})
        scores[side] = score_of(read_arrays(path)["right"].astype(float))
    return scores


def tuned_right(subject: Subject, task: str, side: str, folder: Path, config: Config) -> np.ndarray:
    """Which test rows each seed gets right where a side is fine-tuned, bool [seeds, test]. Its
    comparison is in ``folder``. Rows of a class that no row to draw from has are wrong.
    """
    data = labelled(subject, task, config)
    inputs = data.inputs[: config.pool]
    labels = data.labels[: config.pool]
    names = sorted(set(labels))
    known = [row for row in range(config.pool, len(data.labels)) if data.labels[row] in names]
    test_labels = [data.labels[row] for row in known]
    pretrained = subject.pretrained
    if side == CUT:
        pretrained = adapt.drop_layers(pretrained, 1)
    resume = config.resume and (folder / "config.json").exists()
    adapt.compare(
        pretrained,
        inputs,
        labels,
        test=([data.inputs[row] for row in known], test_labels),
        strategies=("full",),
        budgets=(config.labels,),
        rates=config.rates,
        seeds=config.seeds,
        batch_size=16,
        pooling=tuned_pooling(subject, data),
        keep_head=side if side in STAGES else None,
        out=folder,
        resume=resume,
        overwrite=not resume,
    )
    cells = Cells(folder / "cells")
    targets = np.array([names.index(label) for label in test_labels])
    right = np.zeros((config.seeds, len(data.labels) - config.pool), bool)
    for seed in range(config.seeds):
        logits = cells.outputs_of(("full", str(config.labels), seed))["test"]
        right[seed, np.array(known) - config.pool] = logits.argmax(-1) == targets
    return right


def tuned_pooling(subject: Subject, data: Labelled) -> str:
    """The pooling of every side: that of a head that pools by itself, or the task's last one."""
    if subject.has_classes:
        return subject.pretrained.head.pooling
    return data.poolings[-1]


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
TUNED_COLUMNS = (
    "encoder",
    "task",
    "head dropped",
    "cut a block deeper",
    "on the transform",
    "on the logits",
    "own answer",
)
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
TUNED_TITLE = "Fine-tuned: the accuracy without the head, and by how much the others are better"
TUNED_CAPTION = (
    "Below: by how much a fine-tuned encoder is better where it is cut a block deeper, or where its new "
    "head is put on the old one, than where the head is dropped, the line at 0; near the objective the "
    "head's own answer is set beside that, too."
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
    "Fine-tuned sides train everything, the kept head at the encoder's rate, on four fifths of the same "
    "labelled rows for 60 steps of 16 or a little longer; by the other fifth each side chooses one of "
    "the same rates. All sides pool alike: as a head of classes does by itself, by the maximum where a "
    "word may have been put in, and else as the probes do."
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
    "Far from its objective an encoder's output is worth more than its head's logits, by .037 as the mean "
    "over all of these tasks. Nearly half of that is one row: of other kinds of clothes the logits of five "
    "classes give .580, and the layer below them .784. Of language models it is decided by itself on TREC "
    "for all three, and on spam under the one logit of replaced tokens. The transform is behind, too, most "
    "of all that of replaced tokens.",
    "Near its objective a head is ahead by itself of a probe with 50 labels: of language models by .078 as "
    "the mean, most of which is the causal LM's, which names the next of ten words for .416, where the "
    "probe has .210; heads of classes by .136, on the very classes that they were trained on with "
    "thousands of labels. With 250 labels the means are .033 and -.008, without a claim: the causal LM's "
    "head is still ahead, by .074, and that of 50 classes is behind. The head of replaced tokens decides "
    "nothing: it finds no word that was put in, and says of all texts that they are original, which .534 are.",
    "Where all is fine-tuned, a new head on the old one's logits is behind one on the encoder: far from "
    "the objective by .120 as the mean, most of it tiny-bert's and that of pictures (.731 and .767 without "
    "the head, .235 and .181 less on its logits); and near it, too, by .072, most of it that of the two "
    "with classes. On the transform nothing is decided. The classifier of questions counts near alone: "
    "TREC is its own set.",
    "Near an objective a head's own answer can be what is worth keeping of it. The causal LM's, without a "
    "label, is .064 ahead of the encoder fine-tuned on 250 without its head, which is the best of the "
    "fine-tuned ones. Tiny-bert's is behind by .057, and is right no oftener than its most frequent word; the "
    "others are not decided. Nothing that is fine-tuned tells better than by chance whether a word was put in.",
    "A block less decides nothing far from the objectives, as the mean. Near them it costs .019 to .069, "
    "but for replaced tokens. These encoders have two blocks.",
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


def last_layer(sides: Mapping[str, Score]) -> int:
    """The number of the encoder's last layer."""
    return max(int(name) for name in sides if name.isdigit())


def score_at(sides: Mapping[str, Score], side: str) -> Score | None:
    """The score of a side, if there is one; :data:`LAST` is the encoder's last layer, and
    :data:`BEFORE` the one below it.
    """
    if side == LAST:
        side = str(last_layer(sides))
    elif side == BEFORE:
        side = str(last_layer(sides) - 1)
    return sides.get(side)


def margins(
    scores: Scores,
    tasks: Sequence[str],
    first: str,
    second: str,
    encoders: Sequence[str] | None = None,
) -> list[Score]:
    """By how much one side is better than another, for each encoder and task that has both, as
    :func:`score_at` names them. ``encoders`` are those that count; None: all.
    """
    found = []
    for name, of_subject in scores.items():
        if encoders is not None and name not in encoders:
            continue
        for task in tasks:
            sides = of_subject.get(task)
            if not sides:
                continue
            one = score_at(sides, first)
            other = score_at(sides, second)
            if one is not None and other is not None:
                found.append(one - other)
    return found


def claims_of(found: Scores, tuned: Scores, config: Config) -> list[Claim]:
    far = (*config.data, FAR_PICTURES)
    few = (NEAR_FEW,)
    labels = f"with {config.few_labels} labels"
    of_classes = [name for name in found if name in config.classifiers]
    language_models = [name for name in found if name not in of_classes]
    rows = [
        (
            "far from the objective the encoder's output is worth more than its head's logits",
            "last layer - logits, mean over encoders and far sets",
            margins(found, far, LAST, "logits"),
        ),
        (
            "and more than what the head's transform makes",
            "last layer - transform, mean over encoders and far sets",
            margins(found, far, LAST, "transform"),
        ),
        (
            "a cut one layer deeper is worth more still",
            "layer before the last - last, mean over encoders and far sets",
            margins(found, far, BEFORE, LAST),
        ),
        (
            "near the objective a probe with few labels is better on the logits",
            f"logits - last layer {labels}, mean over encoders, near each",
            margins(found, few, "logits", LAST),
        ),
        (
            f"near its objective a language model's head is ahead of a probe {labels}",
            "own answer - last layer, mean over such encoders",
            margins(found, few, OWN, LAST, language_models),
        ),
        (
            f"near its objective a head of these classes is ahead of a probe {labels}",
            "own answer - last layer, mean over such encoders",
            margins(found, few, OWN, LAST, of_classes),
        ),
        *tuned_claims(tuned, config),
    ]
    claims = []
    for statement, measured, scores in rows:
        if scores:
            claims.append(Claim(statement, measured, mean_of(scores)))
    return claims


def tuned_claims(tuned: Scores, config: Config) -> list[tuple[str, str, list[Score]]]:
    """(statement, what is measured, the margins whose mean it is) of what is fine-tuned."""
    far = (*far_sets(config), FAR_PICTURES)
    near = (NEAR,)
    over_far = "mean over encoders and far sets"
    over_near = "mean over encoders, near each"
    return [
        (
            "fine-tuned far from the objective, a new head is better on the encoder than on the logits",
            f"dropped - logits, {over_far}",
            margins(tuned, far, DROPPED, "logits"),
        ),
        (
            "and than on the transform",
            f"dropped - transform, {over_far}",
            margins(tuned, far, DROPPED, "transform"),
        ),
        (
            "a cut one block deeper is better still",
            f"cut - dropped, {over_far}",
            margins(tuned, far, CUT, DROPPED),
        ),
        (
            "fine-tuned near the objective, a new head is better on the logits than on the encoder",
            f"logits - dropped, {over_near}",
            margins(tuned, near, "logits", DROPPED),
        ),
        (
            "and on the transform",
            f"transform - dropped, {over_near}",
            margins(tuned, near, "transform", DROPPED),
        ),
    ]


def shown_task(subject: Subject, task: str, config: Config) -> str:
    """What a row of the table is of."""
    if task == NEAR_FEW:
        return f"the same with {config.few_labels} labels"
    return f"near: {NEAR_WORDS[subject.kind]}" if task == NEAR else task


def table_rows(found: Scores, subjects: Sequence[Subject], config: Config) -> list[tuple[str, ...]]:
    """A row an encoder and task, as :data:`COLUMNS` names its values."""
    rows = []
    for subject in subjects:
        for task, sides in found[subject.name].items():
            shown = shown_task(subject, task, config)
            layers = " ".join(
                f"{score.value:.3f}" for name, score in sides.items() if name.isdigit()
            )
            stages = [f"{sides[name].value:.3f}" if name in sides else "" for name in STAGES]
            last = sides[str(last_layer(sides))]
            gap = with_interval(last - sides["logits"], sign=True)
            own = with_interval(sides[OWN] - last, sign=True) if OWN in sides else ""
            rows.append((subject.name, shown, layers, *stages, gap, own))
    return rows


def cost_rows(costs: Costs) -> list[tuple[str, ...]]:
    """A row an encoder and side, as :data:`COST_COLUMNS` names its values."""
    rows = []
    for name, of_subject in costs.items():
        for side, cost in of_subject.items():
            shown = f"layer {side}" if side.isdigit() else side
            rows.append(
                (
                    name,
                    shown,
                    f"{cost.width:,}",
                    f"{cost.parameters:,}",
                    f"{cost.flops / 1e6:,.1f}",
                    f"{cost.seconds:.1f}",
                )
            )
    return rows


def beside_own_answers(found: Scores, tuned: Scores) -> Scores:
    """What is fine-tuned, with what each head says by itself on the near task."""
    beside: Scores = {}
    for name, of_subject in tuned.items():
        beside[name] = {}
        for task, sides in of_subject.items():
            own = found[name][NEAR][OWN]
            beside[name][task] = {**sides, OWN: own} if task == NEAR else dict(sides)
    return beside


def tuned_rows(tuned: Scores, subjects: Sequence[Subject], config: Config) -> list[tuple[str, ...]]:
    """A row an encoder and task, as :data:`TUNED_COLUMNS` names its values: of all sides but the
    dropped head by how much they are better than that.
    """
    rows = []
    for subject in subjects:
        for task, sides in tuned[subject.name].items():
            cells = [with_interval(sides[DROPPED])]
            for side in OTHERS:
                margin = sides[side] - sides[DROPPED] if side in sides else None
                cells.append("" if margin is None else with_interval(margin, sign=True))
            rows.append((subject.name, shown_task(subject, task, config), *cells))
    return rows


def plot(found: Scores, tuned: Scores) -> Any:
    """A panel a task: the accuracy of every encoder from its embedding to its head's logits; and
    below them, far and near, what fine-tuning gains by each side.
    """
    every = dict.fromkeys(task for of_subject in found.values() for task in of_subject)
    tasks = [*(task for task in every if task not in PANELS), *PANELS]
    rows = -(-len(tasks) // PANELS_OF_A_ROW)
    of_tuned = 1 if tuned else 0
    size = (4.0 * PANELS_OF_A_ROW + 0.6, 3.2 * (rows + of_tuned) + 0.6)
    drawn, axes = plots.figure(rows + of_tuned, PANELS_OF_A_ROW, size=size)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for axis, task in zip(axes.flat, tasks, strict=False):
        of_task = {name: of_subject.get(task, {}) for name, of_subject in found.items()}
        draw_task(axis, task, of_task)
    for of_row in axes[:rows]:
        of_row[0].set_ylabel("test accuracy of a probe")
    if tuned:
        draw_tuned(axes[rows, 0], tuned, "fine-tuned far from each objective", is_near=False)
        draw_tuned(axes[rows, 1], tuned, "fine-tuned near each objective", is_near=True)
        axes[rows, 0].set_ylabel("accuracy - that of the dropped head")
    handles = axes.flat[tasks.index(NEAR)].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, loc="outside lower center", ncols=len(found))
    drawn.suptitle(
        "The encoder | its head: the dotted line is where the head is cut off", fontsize=11
    )
    return drawn


def draw_task(axis: Any, task: str, of_task: Mapping[str, Mapping[str, Score]]) -> None:
    """Every encoder on one task: its layers, and behind a line the stages of its head."""
    deepest = max(last_layer(sides) for sides in of_task.values() if sides)
    places = {"transform": deepest + 1, "logits": deepest + 2, OWN: deepest + 3}
    for layer in range(deepest + 1):
        places[str(layer)] = layer
    for number, (name, sides) in enumerate(of_task.items()):
        if sides:
            positions = [places[side] + 0.06 * (number - 2) for side in sides]
            scores = list(sides.values())
            draw.points(axis, positions, scores, COLOURS.get(name, plots.BLUE), name)
    ticks = ["embedding", *(f"block {number}" for number in range(1, deepest + 1))]
    ticks += ["transform", "logits"]
    if task in PANELS:
        ticks.append(OWN)
    axis.set_xticks(range(len(ticks)), ticks, rotation=20, fontsize=8)
    axis.axvline(deepest + 0.5, color="black", ls=":", lw=1)
    axis.set_title(PANELS.get(task, f"{task}: far"), fontsize=10)
    axis.grid(alpha=0.25)


def draw_tuned(axis: Any, tuned: Scores, title: str, *, is_near: bool) -> None:
    """By how much each side of every encoder is better than the dropped head, as the mean over its
    near task or its far ones.
    """
    axis.axis("on")
    for number, (name, of_subject) in enumerate(tuned.items()):
        positions = []
        scores = []
        for place, side in enumerate(OTHERS):
            gains = []
            for task, sides in of_subject.items():
                if (task == NEAR) == is_near and side in sides:
                    gains.append(sides[side] - sides[DROPPED])
            if gains:
                positions.append(place + 0.1 * (number - 2))
                scores.append(mean_of(gains))
        if scores:
            draw.points(axis, positions, scores, COLOURS.get(name, plots.BLUE), name, line="")
    axis.axhline(0, color="black", lw=1)
    words = list(OTHERS.values()) if is_near else list(OTHERS.values())[:-1]
    axis.set_xticks(range(len(words)), words, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)


def page(
    config: Config, found: Scores, tuned: Scores, costs: Costs, subjects: Sequence[Subject]
) -> Page:
    tables = [
        Table(
            COLUMNS, table_rows(found, subjects, config), right=5, title="Probes on frozen features"
        ),
        Table(
            COST_COLUMNS,
            cost_rows(costs),
            right=4,
            title="What features cost, on the first task of each encoder",
        ),
    ]
    beside = beside_own_answers(found, tuned) if config.tuned else {}
    if beside:
        rows = tuned_rows(beside, subjects, config)
        tables.insert(1, Table(TUNED_COLUMNS, rows, right=5, title=TUNED_TITLE))
    return Page(
        name="keep_the_head",
        title="What keeping the head of pre-training is worth",
        question=QUESTION,
        claims=claims_of(found, tuned, config),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(found, beside), f"{CAPTION} {TUNED_CAPTION}" if beside else CAPTION),
        tables=tables,
        method=method_of(config, subjects),
        differs=DIFFERS,
        source=source_of(
            "experiments.keep_the_head",
            config,
            f"{config.labels} labelled rows of {config.pool:,}, {config.test_rows:,} test rows, "
            f"{config.seeds} draws",
        ),
    )


if __name__ == "__main__":
    launch(Config, main)
