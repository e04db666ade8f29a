"""SetFit against fine-tuning with 8 labels a class.

    python -m experiments.findings.setfit --short
    python -m experiments.findings.setfit --docs docs

Tunstall, Reimers, Jo, Bates, Korat, Wasserblat and Pereg 2022: an encoder of sentences, trained on
pairs of the few labelled texts, with logistic regression on its embeddings, is better than
fine-tuning with a new head. Beside both, logistic regression on the embeddings as they were.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import read_arrays, write_arrays
from adapt.comparison.material import draw_some
from adapt.data import bundled
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from experiments.study import draw
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, as_plain, mean_of, score_of, with_interval

A_CLASS = 8  # labels
WORDS = 24  # of a text, the first ones
STEPS = 50  # of fine-tuning, at least
BATCH_SIZE = 16
PENALTY = 1.0  # of the logistic regression: scikit-learn's default
FROZEN, FINE_TUNED, SETFIT = "embeddings as they were", "fine-tuning", "SetFit"
COLOURS = {FROZEN: plots.GREY, FINE_TUNED: plots.BLUE, SETFIT: plots.RED}
COLUMNS = ("data", FROZEN, FINE_TUNED, SETFIT, "SetFit - fine-tuning (95% interval)")
MEAN = "mean"
TITLE = "SetFit against fine-tuning with 8 labels a class"
QUESTION = (
    "[Tunstall and others (2022)](https://arxiv.org/abs/2209.11055), *Efficient Few-Shot Learning "
    "Without Prompts*: training an encoder of sentences on pairs of the few labelled texts, and then "
    "a classifier on its embeddings, is by their abstract as good as prompts and larger models with "
    "a fraction of the time; their comparison begins at 8 labels a class, where it is ahead of "
    "standard fine-tuning. Is it ahead here?"
)
CAPTION = (
    "Test accuracy with 8 labels a class. Bars are 95% intervals over seeds and test examples; the "
    "dots are the seeds."
)
METHOD = (
    "Each seed draws 8 texts of both classes, the same for all sides. "
    "There is nothing to choose by, so no side is tuned: each has the library's own rates, and the "
    "parameters of its lowest loss on the labelled texts. Fine-tuning takes {steps} steps of "
    "{batch} texts at least. SetFit takes one epoch of `task setfit`: for each text 20 pairs of its "
    "class and 20 of another, as in the paper; then logistic regression on the embeddings, "
    "scikit-learn's objective with its default penalty. The same regression on the embeddings of the "
    "checkpoint shows what the pairs bring.",
)
DIFFERS = (
    "MiniLM of 6 layers on all sides. The paper compares SetFit on an encoder of sentences with "
    "fine-tuning of RoBERTa-large, which was not trained for sentences: part of its lead is that of "
    "the checkpoint.",
    "Other data: sentences of film and product reviews by the sign of a rating; {rows} test rows.",
    "Texts are cut to their first {words} words.",
)
SHORT: dict[str, Any] = {
    "checkpoint": "tiny-bert",
    "data": ("reviews",),
    "seeds": 2,
    "test_rows": 100,
}
# What the figures say.
WHY: Sequence[str] = (
    "Nothing is decided. SetFit is ahead of fine-tuning by .036 on film reviews and by .013 on products, and "
    "of the embeddings as they were by .012; which sixteen texts a seed draws makes more of a difference, on "
    "products .28 between the best draw and the worst.",
    "The embeddings of this checkpoint were trained on pairs of sentences before, and logistic regression on "
    "them as they are is not behind fine-tuning: .604 for .592, as the mean.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetFitOptions:
    """What is compared, and how often."""

    title: ClassVar[str] = "finding"

    # an encoder of sentences
    checkpoint: str = "minilm"
    # bundled sets
    data: tuple[str, ...] = ("reviews", "amazon")
    # each draws other texts
    seeds: int = 5
    # rows of the test
    test_rows: int = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SetFitOptions, StudyRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {"data": tuple(bundled.SETS)}

    out: Path = Path("runs/setfit")


Rights = dict[str, dict[str, np.ndarray]]  # by set and side: float64 [seeds, test rows]


@dataclasses.dataclass(frozen=True)
class Draw:
    """The labelled texts of a seed, and the test."""

    texts: list[str]
    labels: list[str]
    test_texts: list[str]
    test_labels: list[str]
    seed: int


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    open_study("experiments.findings.setfit", config, chosen=("data",))
    pretrained = adapt.load(config.checkpoint)
    rights: Rights = {}
    for name in config.data:
        of_seeds = [fit_seed(pretrained, name, seed, config) for seed in range(config.seeds)]
        rights[name] = {}
        for side in COLOURS:
            rights[name][side] = np.stack([right[side] for right in of_seeds])
    result = as_plain(all_scores(rights))
    publish(page(config, rights), result, config)
    return result


def draw_texts(name: str, seed: int, test_rows: int) -> Draw:
    """What a seed draws of a bundled set: 8 texts of every class."""
    train = bundled.read(name, "train")
    test = bundled.read(name, "test")
    names = sorted(set(train["label"]))
    numbers = np.array([names.index(label) for label in train["label"]])
    rows = draw_some(numbers, A_CLASS * len(names), seed)
    return Draw(
        texts=[first_words(train["text"][row]) for row in rows],
        labels=[train["label"][row] for row in rows],
        test_texts=[first_words(text) for text in test["text"][:test_rows]],
        test_labels=test["label"][:test_rows],
        seed=seed,
    )


def first_words(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def fit_seed(
    pretrained: adapt.Pretrained, name: str, seed: int, config: Config
) -> Mapping[str, np.ndarray]:
    """Which test rows every side gets right, float64 [test rows]; read where they are there."""
    path = config.folder / f"{name}-{seed}.npz"
    if path.exists():
        return dict(zip(COLOURS, read_arrays(path)["right"], strict=True))
    console.say(f"{name}: seed {seed}")
    drawn = draw_texts(name, seed, config.test_rows)
    right = {
        FROZEN: on_embeddings(pretrained, drawn),
        FINE_TUNED: fine_tuned(pretrained, drawn),
        SETFIT: on_embeddings(trained_on_pairs(pretrained, drawn), drawn),
    }
    write_arrays(path, {"right": np.stack([right[side] for side in COLOURS])})
    return right


def fine_tuned(pretrained: adapt.Pretrained, drawn: Draw) -> np.ndarray:
    """The right answers of the encoder fine-tuned with a new head."""
    steps_an_epoch = -(-len(drawn.texts) // BATCH_SIZE)
    run = adapt.finetune(
        pretrained,
        drawn.texts,
        drawn.labels,
        validation=(drawn.texts, drawn.labels),
        score="loss",
        epochs=-(-STEPS // steps_an_epoch),
        batch_size=BATCH_SIZE,
        patience=0,
        seed=drawn.seed,
    )
    answers = run.predict(drawn.test_texts).labels
    return np.array(answers) == np.array(drawn.test_labels)


def trained_on_pairs(pretrained: adapt.Pretrained, drawn: Draw) -> adapt.Pretrained:
    """The encoder after an epoch of SetFit's pairs."""
    run = adapt.finetune(
        pretrained,
        drawn.texts,
        drawn.labels,
        validation=(drawn.texts, drawn.labels),
        task="setfit",
        score="loss",
        epochs=1,
        batch_size=BATCH_SIZE,
        seed=drawn.seed,
    )
    return run.pretrained


def on_embeddings(pretrained: adapt.Pretrained, drawn: Draw) -> np.ndarray:
    """The right answers of logistic regression on the embeddings of a checkpoint."""
    texts = [*drawn.texts, *drawn.test_texts]
    features = adapt.encode(pretrained, texts)
    names, labels = np.unique([*drawn.labels, *drawn.test_labels], return_inverse=True)
    classes = len(names)
    is_train = np.arange(len(texts)) < len(drawn.texts)
    folds = is_train[None]  # one
    scaled = linear.unscaled(features, folds)
    heads = logistic(scaled, labels, folds, (PENALTY,), classes)
    test = np.flatnonzero(~is_train)
    answers = linear.predict(heads, scaled.x, test[None], classes)
    of_fold = np.asarray(answers)[0, 0]
    return of_fold == labels[test]


def scores_of(of_side: Mapping[str, np.ndarray]) -> dict[str, Score]:
    """The accuracy of every side on one set."""
    return {side: score_of(right.astype(np.float64)) for side, right in of_side.items()}


def all_scores(rights: Rights) -> dict[str, dict[str, Score]]:
    """The accuracy by set and side, and the mean over the sets."""
    scores = {name: scores_of(of_side) for name, of_side in rights.items()}
    if len(scores) > 1:
        scores[MEAN] = {}
        for side in COLOURS:
            of_sets = [scores[name][side] for name in rights]
            scores[MEAN][side] = mean_of(of_sets)
    return scores


def claims(rights: Rights) -> list[Claim]:
    """What the paper says of 8 labels a class, and what the pairs bring."""
    scores = all_scores(rights)
    found = []
    for name, of_side in scores.items():
        if name == MEAN:
            continue
        found.append(
            Claim(
                f"{name}: SetFit is better than fine-tuning",
                "SetFit - fine-tuning",
                of_side[SETFIT] - of_side[FINE_TUNED],
            )
        )
    last = scores[list(scores)[-1]]
    found.append(
        Claim(
            "training on pairs makes the embeddings better",
            "SetFit - embeddings as they were, mean over the sets",
            last[SETFIT] - last[FROZEN],
        )
    )
    return found


def table_rows(rights: Rights) -> list[tuple[str, ...]]:
    """A row a set, as :data:`COLUMNS` names its values."""
    rows = []
    for name, of_side in all_scores(rights).items():
        values = [with_interval(of_side[side]) for side in COLOURS]
        lead = of_side[SETFIT] - of_side[FINE_TUNED]
        rows.append((name, *values, with_interval(lead, sign=True)))
    return rows


def page(config: Config, rights: Rights) -> Page:
    """The page of the finding."""
    values = {"steps": STEPS, "batch": BATCH_SIZE, "rows": config.test_rows, "words": WORDS}
    return Page(
        name="setfit",
        title=TITLE,
        question=QUESTION,
        claims=claims(rights),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(rights, config.checkpoint), CAPTION),
        tables=[Table(COLUMNS, table_rows(rights), right=4, title="Test accuracy")],
        method=[paragraph.format(**values) for paragraph in METHOD],
        differs=[item.format(**values) for item in DIFFERS],
        source=source_of(
            "experiments.findings.setfit",
            config,
            f"{config.checkpoint}, test accuracy on {config.test_rows} rows, mean of "
            f"{config.seeds} seeds",
        ),
    )


def plot(rights: Rights, checkpoint: str) -> Any:
    """A group a set: the accuracy of every side with its interval, and that of each seed."""
    drawn, axes = plots.figure(size=(2.4 * len(rights) + 2.4, 3.8))
    axis = axes[0, 0]
    for number, (side, colour) in enumerate(COLOURS.items()):
        positions = [x + 0.22 * (number - 1) for x in range(len(rights))]
        scores = [scores_of(of_side)[side] for of_side in rights.values()]
        draw.points(axis, positions, scores, colour, side, line="")
        for position, of_side in zip(positions, rights.values(), strict=True):
            of_seeds = of_side[side].mean(1)
            beside = [position + 0.07] * len(of_seeds)
            axis.plot(beside, of_seeds, ".", color=colour, ms=4, alpha=0.6)
    axis.set_xticks(range(len(rights)), list(rights))
    axis.set_xlim(-0.5, len(rights) - 0.5)
    axis.set_ylabel("test accuracy")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(f"{checkpoint}, {A_CLASS} labels a class", fontsize=11)
    return drawn


if __name__ == "__main__":
    launch(Config, main)
