"""Which layer is best for a task: probes on the output of every layer of an encoder.

    python -m experiments.findings.guillotine --short
    python -m experiments.findings.guillotine --docs docs

Bordes, Balestriero, Garrido, Bardes and Vincent 2023: the best layer to keep changes with the task,
and for tasks that differ from the pre-training objective it is not the last one. Here on tasks of
meaning, near to what an encoder of sentences was trained for, and on tasks of form, far from it.
Beside the probes, encoders that were cut and then fine-tuned.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison import intervals
from adapt.comparison.cells import Cells, read_arrays, write_arrays
from adapt.comparison.material import draw_some
from adapt.data import bundled
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.probing.pipeline import read_data
from adapt.probing.report import ProbeOptions
from experiments.study import draw
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, accuracy_of, mean_of, score_of, with_interval

MEANING = "meaning"
FORM = "form"
LENGTH = "length"  # a task of form that the positions in the embedding give away
WORDS = 40  # of a text, the first ones
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 1e4)
PAST = frozenset(("VBD", "BED", "BEDZ", "HVD", "DOD"))  # tags of the Brown corpus
PRESENT = frozenset(("VBZ", "BEZ", "BER", "BEM", "HVZ", "DOZ"))
LENGTHS = (8, 14, 20)  # the most words of all classes but the longest one
NUM_FINE_TUNED = 60  # steps of a fit, at least

COLUMNS = ("encoder", "task", "kind", "layer chosen", "its accuracy", "last layer", "gain")
TUNED_COLUMNS = ("task", "layers kept", "test accuracy")
TITLE = "Cutting deeper: which layer is best for a task"
QUESTION = (
    "[Bordes, Balestriero, Garrido, Bardes and Vincent (2023)](https://arxiv.org/abs/2206.13378), "
    "*Guillotine Regularization*: networks trained by self-supervision serve better with their last "
    "layers removed, and by their abstract the best layer to use changes with the training, the "
    "data and the task; aligning the pre-training objective with the task reduces the need to cut. "
    "Is it so for encoders of texts, on tasks near to their pre-training and far from it?"
)
CAPTION = (
    "Test accuracy of a probe on each layer's output; layer 0 is the embedding. A ring marks the "
    "layer that held-out rows chose. Bars are 95% intervals over seeds and test examples."
)
# What the figures of the default flags say.
WHY = (
    "How many words a sentence has is best read off MiniLM's embedding, which adds the position of "
    "every token, and worst off its last layer (.785 and .433). This task carries most of the margins "
    "of form. Without it a cut still brings something far from pre-training, for tiny-bert hardly "
    "more than its interval; that it brings more there than near to pre-training is not decided.",
    "Of MiniLM's tasks of meaning the type of a question gains by a cut, too (layer 5, +.071), more "
    "than word order and tense do: by task, form does not always gain more than meaning. News topics "
    "and sentiment decide nothing.",
    "Of tiny-bert's tasks length is read best off the embedding, and so, it seems, is tense, whose "
    "choice of a layer is unsure. Word order stays at the chance of one half in all of its layers.",
)
METHOD = (
    "Tasks of meaning ask what a text is about: the type of a question (`trec`), the topic of news "
    "(`bbc`), whether a review is positive (`reviews`). Tasks of form ask how a sentence of the "
    "Brown corpus is written: how many words it has (four classes), whether two neighbouring words "
    "were swapped, whether its verbs are in the past or in the present. MiniLM was trained so that "
    "sentences which belong together lie together, which is near to meaning; tiny-bert by masked "
    "words, and then for retrieval.",
    "A probe is logistic regression on the mean of the tokens' states, standardised, with {labels} "
    "labels that each seed draws out of {pool}. Another {choosing} rows choose its penalty, and the "
    "layer, by the mean over seeds; so the gain over the last layer is not that of the best of "
    "many on the test. Every resample draws those rows, too, and chooses its layer anew: the "
    "interval of a gain holds the uncertainty of the choice.",
    "The gain of a kind is the mean over its tasks, whose resamples draw the same row numbers. The "
    "tasks themselves are fixed: three of a kind say nothing of others. Length is also left out, "
    "since the embedding adds the position of every token and so gives it away.",
)
TUNED_METHOD = (
    "A cut encoder is `adapt.drop_layers` of the checkpoint, fine-tuned as a whole with a new head "
    "by the library's own rate, with as many labels, a fifth of which choose the epoch.",
)
DIFFERS = (
    "Texts and transformers in place of pictures and ResNets; what is cut are blocks of the encoder, "
    "while the paper's largest gains come from cutting a projector, which neither checkpoint has.",
    "Which tasks are near to pre-training is judged by what they ask, not measured.",
    "A probe has a few hundred labels, and encoders are not trained here but taken as they are.",
)
SHORT: dict[str, Any] = {
    "checkpoints": ("tiny-bert",),
    "tasks": ("sentiment", "tense"),
    "seeds": 2,
    "test_rows": 100,
    "kept": (),
}

Rows = tuple[list[str], list[str]]  # texts and their labels


def first_words(name: str, part: str) -> Rows:
    """Texts of a bundled set, each cut to its first words."""
    rows = bundled.read(name, part)
    texts = [" ".join(text.split()[:WORDS]) for text in rows["text"]]
    return texts, list(rows["label"])


def sentences(part: str) -> list[tuple[list[str], list[str]]]:
    """(words, tags) of the Brown corpus's sentences of 5 to 30 words, in random order."""
    rows = bundled.read("brown", part)
    order = np.random.default_rng(0).permutation(len(rows["words"]))
    pairs = [(rows["words"][row], rows["tags"][row]) for row in order]
    return [(words, tags) for words, tags in pairs if 5 <= len(words) <= 30]


def length(part: str) -> Rows:
    """Sentences by how many words they have."""
    texts = []
    labels = []
    for words, _ in sentences(part):
        texts.append(" ".join(words))
        labels.append(f"class {np.searchsorted(LENGTHS, len(words))}")
    return texts, labels


def word_order(part: str) -> Rows:
    """Sentences of which every second one has two neighbouring words swapped, at random."""
    random = np.random.default_rng(1)
    texts = []
    labels = []
    for number, (words, _) in enumerate(sentences(part)):
        swapped = number % 2 == 1
        words = list(words)
        if swapped:
            place = int(random.integers(1, len(words) - 2))
            words[place : place + 2] = words[place + 1], words[place]
        texts.append(" ".join(words))
        labels.append("swapped" if swapped else "as printed")
    return texts, labels


def tense(part: str) -> Rows:
    """Sentences whose finite verbs are all in the past, or all in the present."""
    texts = []
    labels = []
    for words, tags in sentences(part):
        has_past = not PAST.isdisjoint(tags)
        has_present = not PRESENT.isdisjoint(tags)
        if has_past != has_present:
            texts.append(" ".join(words))
            labels.append("past" if has_past else "present")
    return texts, labels


@dataclasses.dataclass(frozen=True)
class Task:
    """What a probe learns: a kind, and the rows of a part, train or test."""

    kind: str
    read: Callable[[str], Rows]
    colour: str


TASKS = {
    "question type": Task(MEANING, lambda part: first_words("trec", part), plots.BLUE),
    "news topic": Task(MEANING, lambda part: first_words("bbc", part), plots.LIGHT_BLUE),
    "sentiment": Task(MEANING, lambda part: first_words("reviews", part), plots.GREEN),
    LENGTH: Task(FORM, length, plots.RED),
    "word order": Task(FORM, word_order, plots.YELLOW),
    "tense": Task(FORM, tense, "#aa3377"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuillotineOptions:
    """What is probed, and how often."""

    title: ClassVar[str] = "finding"

    # the encoders; cut ones of the first are fine-tuned
    checkpoints: tuple[str, ...] = ("minilm", "tiny-bert")
    # what they are probed for
    tasks: tuple[str, ...] = tuple(TASKS)
    # labels of a probe
    labels: int = 200
    # rows from which seeds draw these
    pool: int = 600
    # rows that choose the penalty and the layer
    choosing: int = 300
    # rows of the test
    test_rows: int = 400
    # each draws other labels
    seeds: int = 5
    # layers that are kept of cut encoders, which are fine-tuned as well: 3 6; takes minutes
    kept: tuple[int, ...] = ()
    # for which tasks
    tuned: tuple[str, ...] = ("question type", "tense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GuillotineOptions, StudyRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "tasks": tuple(TASKS),
        "tuned": tuple(TASKS),
    }
    may_be_empty: ClassVar[Collection[str]] = ("kept", "tuned")

    out: Path = Path("runs/guillotine")


@dataclasses.dataclass(frozen=True)
class Layers:
    """The probes on every layer of an encoder, for one task; the first layer is the embedding."""

    right: np.ndarray  # which test rows they get right, float64 [layers, seeds, rows]
    held_out_right: np.ndarray  # and which of the rows that choose, [layers, seeds, choosing]

    @functools.cached_property
    def scores(self) -> list[Score]:
        """The test accuracy of each layer."""
        return [score_of(of_layer) for of_layer in self.right]

    @property
    def held_out(self) -> np.ndarray:
        """The accuracy of each layer on the rows that choose, [layers]."""
        return self.held_out_right.mean((1, 2))

    @property
    def chosen(self) -> int:
        """The layer that is best on the rows that choose; the last one of equals."""
        return last_best(self.held_out)

    @functools.cached_property
    def gain(self) -> Score:
        """What the chosen layer brings over the last one.

        Each resample draws seeds, rows that choose and test rows, and takes the layer that is
        best on those that choose: so the interval holds the uncertainty of the choice. Seeds and
        test rows are those of :func:`score_of`, so gains of several tasks are paired.
        """
        _, seeds, tested = self.right.shape
        choosing = self.held_out_right.shape[2]
        random = np.random.default_rng(intervals.SEED)
        choosing_random = np.random.default_rng(intervals.SEED + 1)
        resamples = np.zeros(intervals.DRAWS)
        for draw_number in range(intervals.DRAWS):
            drawn = random.integers(seeds, size=seeds)
            rows = random.integers(tested, size=tested)
            choosing_rows = choosing_random.integers(choosing, size=choosing)
            test = self.right[:, :, rows].mean(2)[:, drawn].mean(1)
            held_out = self.held_out_right[:, :, choosing_rows].mean(2)[:, drawn].mean(1)
            resamples[draw_number] = test[last_best(held_out)] - test[-1]
        given_layer = self.scores[self.chosen] - self.scores[-1]
        return dataclasses.replace(given_layer, resamples=resamples)


def last_best(values: np.ndarray) -> int:
    """The number of the best of some values [layers]; the last one of equals."""
    return int(np.flatnonzero(values == values.max())[-1])


Probed = dict[str, dict[str, Layers]]  # by encoder and task
Tuned = dict[str, dict[int, Score]]  # by task and layers kept


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    chosen = ("checkpoints", "tasks", "kept", "tuned")
    open_study("experiments.findings.guillotine", config, chosen)
    probed: Probed = {}
    for name in config.checkpoints:
        probed[name] = {task: probe_task(name, task, config) for task in config.tasks}
    tuned: Tuned = {}
    for task in config.tuned if config.kept else ():
        tuned[task] = {kept: fine_tune(task, kept, config) for kept in config.kept}
    result = {name: as_plain(of_tasks) for name, of_tasks in probed.items()}
    publish(page(config, probed, tuned), result, config)
    return result


def read_task(task: str, config: Config) -> Rows:
    """(texts, labels): those of the pool, those that choose, and those of the test."""
    texts, labels = TASKS[task].read("train")
    count = config.pool + config.choosing
    test_texts, test_labels = TASKS[task].read("test")
    texts = texts[:count] + test_texts[: config.test_rows]
    return texts, labels[:count] + test_labels[: config.test_rows]


def probe_task(name: str, task: str, config: Config) -> Layers:
    """Probes on every layer of a checkpoint; what was computed before is read."""
    path = config.folder / f"{name}-{task.replace(' ', '-')}.npz"
    if path.exists():
        kept = read_arrays(path)
        right, held_out = kept["right"], kept["held_out_right"]
    else:
        console.say(f"{name}: {task}")
        texts, labels = read_task(task, config)
        data = read_data(adapt.load(name), texts, labels, ProbeOptions())
        features = data.features(("mean",))[:, 0]
        right, held_out = probe_layers(features, data.labels, len(data.names), config)
        write_arrays(path, {"right": right, "held_out_right": held_out})
    return Layers(right, held_out)


def probe_layers(
    features: np.ndarray, labels: np.ndarray, classes: int, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """(which test rows each seed's probe gets right, float64 [layers + 1, seeds, test rows]; and
    which of the rows that choose, float64 [layers + 1, seeds, choosing]).

    ``features`` [layers + 1, N, D] and ``labels`` [N] are of the pool, the rows that choose, and
    the test, one after the other.
    """
    train = np.zeros((config.seeds, len(labels)), bool)
    for seed in range(config.seeds):
        train[seed, draw_some(labels[: config.pool], config.labels, seed)] = True
    held_out = np.tile(np.arange(config.pool, len(labels)), (config.seeds, 1))
    right = []
    held_out_right = []
    for of_layer in features:
        scaled = linear.standardize(of_layer, train)
        heads = logistic(scaled, labels, train, PENALTIES, classes)
        answers = np.asarray(linear.predict(heads, scaled.x, held_out, classes))  # [S, K, H]
        is_right = answers == labels[held_out][:, None]
        validation = is_right[..., : config.choosing].mean(-1)
        best = validation.argmax(1)
        seeds = np.arange(config.seeds)
        right.append(is_right[seeds, best, config.choosing :])
        held_out_right.append(is_right[seeds, best, : config.choosing])
    return np.array(right, np.float64), np.array(held_out_right, np.float64)


def fine_tune(task: str, kept: int, config: Config) -> Score:
    """The test accuracy of an encoder of which some layers are kept, fine-tuned as a whole."""
    name = config.checkpoints[0]
    pretrained = adapt.load(name)
    shorter = adapt.drop_layers(pretrained, pretrained.config.layers - kept)
    texts, labels = read_task(task, config)
    start = config.pool + config.choosing
    out = config.folder / f"{name}-{kept}-{task.replace(' ', '-')}"
    resume = config.resume and (out / "config.json").exists()
    console.say(f"{name}, {kept} layers: {task}, fine-tuned")
    adapt.compare(
        shorter,
        texts[: config.pool],
        labels[: config.pool],
        test=(texts[start:], labels[start:]),
        strategies=["full"],
        budgets=[config.labels],
        rates=[1.0],
        seeds=config.seeds,
        min_steps=NUM_FINE_TUNED,
        batch_size=16,
        max_length=64,
        out=out,
        resume=resume,
        overwrite=not resume,
    )
    cells = Cells(out / "cells")
    outputs = []
    for seed in range(config.seeds):
        outputs.append(cells.outputs_of(("full", str(config.labels), seed))["test"])
    names = sorted(set(labels))
    return accuracy_of(outputs, np.array([names.index(label) for label in labels[start:]]))


def as_plain(of_tasks: Mapping[str, Layers]) -> dict[str, Any]:
    """Scores as JSON has them."""
    content = {}
    for task, layers in of_tasks.items():
        content[task] = {
            "chosen": layers.chosen,
            "accuracy": [score.value for score in layers.scores],
            "held_out": layers.held_out.tolist(),
            "gain": layers.gain.plain,
        }
    return content


def mean_gain(of_tasks: Mapping[str, Layers], kind: str, without: str = "") -> Score:
    """The gain over the last layer, mean over the tasks of a kind, ``without`` one of them."""
    gains = []
    for task, layers in of_tasks.items():
        if TASKS[task].kind == kind and task != without:
            gains.append(layers.gain)
    return mean_of(gains)


def claims(probed: Probed) -> list[Claim]:
    """What the abstract says, for every encoder: with every task of form, and without the length."""
    found = []
    for name, of_tasks in probed.items():
        meaning = mean_gain(of_tasks, MEANING)
        form = {"": mean_gain(of_tasks, FORM)}
        forms = [task for task in of_tasks if TASKS[task].kind == FORM]
        if LENGTH in forms and len(forms) > 1:
            form[" without length"] = mean_gain(of_tasks, FORM, without=LENGTH)
        for without, gain in form.items():
            found.append(
                Claim(
                    f"{name}: far from pre-training the best layer is not the last",
                    f"chosen layer - last layer, mean over tasks of form{without}",
                    gain,
                )
            )
        for without, gain in form.items():
            found.append(
                Claim(
                    f"{name}: the nearer a task is to pre-training, the less cutting brings",
                    f"gain on tasks of form{without} - gain on tasks of meaning",
                    gain - meaning,
                )
            )
    return found


def table_rows(probed: Probed) -> list[tuple[str, ...]]:
    """A row an encoder and task, as :data:`COLUMNS` names its values."""
    rows = []
    for name, of_tasks in probed.items():
        for task, layers in of_tasks.items():
            chosen = layers.scores[layers.chosen]
            rows.append(
                (
                    name,
                    task,
                    TASKS[task].kind,
                    f"{layers.chosen} of {len(layers.scores) - 1}",
                    f"{chosen.value:.3f}",
                    f"{layers.scores[-1].value:.3f}",
                    with_interval(layers.gain, sign=True),
                )
            )
    return rows


def layer_rows(probed: Probed) -> list[tuple[str, ...]]:
    """A row an encoder and task: the test accuracy of every layer, "" where there is none."""
    most = deepest(probed)
    rows = []
    for name, of_tasks in probed.items():
        for task, layers in of_tasks.items():
            values = [f"{score.value:.3f}" for score in layers.scores]
            missing = [""] * (most + 1 - len(values))
            rows.append((name, task, *values, *missing))
    return rows


def deepest(probed: Probed) -> int:
    """The number of the last layer of the deepest encoder."""
    depths = []
    for of_tasks in probed.values():
        depths += [len(layers.scores) - 1 for layers in of_tasks.values()]
    return max(depths)


def tuned_rows(tuned: Tuned) -> list[tuple[str, ...]]:
    """A row a task and cut, as :data:`TUNED_COLUMNS` names its values."""
    rows = []
    for task, of_cuts in tuned.items():
        for kept, score in of_cuts.items():
            rows.append((task, str(kept), with_interval(score)))
    return rows


def page(config: Config, probed: Probed, tuned: Tuned) -> Page:
    """The page of the finding."""
    layers = range(deepest(probed) + 1)
    columns = ("encoder", "task", *(f"layer {layer}" for layer in layers))
    tables = [
        Table(COLUMNS, table_rows(probed), right=4, title="Probes"),
        Table(columns, layer_rows(probed), right=len(layers), title="Test accuracy of every layer"),
    ]
    method = METHOD
    if tuned:
        method += TUNED_METHOD
        title = f"{config.checkpoints[0]}, cut and fine-tuned, {config.labels} labels"
        tables.append(Table(TUNED_COLUMNS, tuned_rows(tuned), right=2, title=title))
    sizes = {"labels": config.labels, "pool": config.pool, "choosing": config.choosing}
    return Page(
        name="guillotine",
        title=TITLE,
        question=QUESTION,
        claims=claims(probed),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(probed), CAPTION),
        tables=tables,
        method=[paragraph.format(**sizes) for paragraph in method],
        differs=DIFFERS,
        source=source_of(
            "experiments.findings.guillotine",
            config,
            f"Test accuracy on {config.test_rows} rows, mean of {config.seeds} seeds",
        ),
    )


def plot(probed: Probed) -> Any:
    """A panel an encoder: the accuracy by layer, a line a task."""
    drawn, axes = plots.figure(1, len(probed), size=(4.4 * len(probed) + 1, 4.2), sharey=True)
    for axis, (name, of_tasks) in zip(axes[0], probed.items(), strict=True):
        for task, layers in of_tasks.items():
            kind = TASKS[task].kind
            line = "-" if kind == MEANING else "--"
            colour = TASKS[task].colour
            depths = range(len(layers.scores))
            draw.points(axis, depths, layers.scores, colour, f"{kind}: {task}", line)
            chosen = layers.chosen
            best = layers.scores[chosen].value
            axis.plot([chosen], [best], "o", ms=11, mfc="none", mec=colour, mew=1.6)
        axis.set_xticks(range(len(layers.scores)))
        axis.set_xlabel("layer (0: the embedding)")
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("test accuracy of a probe")
    axes[0, -1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


if __name__ == "__main__":
    launch(Config, main)
