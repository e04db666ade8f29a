"""Biases alone against everything, by the number of labels.

    python -m experiments.findings.bitfit --short
    python -m experiments.findings.bitfit --docs docs

Ben Zaken, Ravfogel and Goldberg 2022: with little data training the biases alone is as good as
fine-tuning everything or better, with much data it is worse.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from adapt.cli import plots
from adapt.cli.launch import launch
from experiments.findings.cells import FindingRunOptions, Setting, fit, short
from experiments.findings.questions import QUESTIONS, name_of
from experiments.study import draw
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, as_plain, with_interval

SIDES = {"bitfit": plots.RED, "full": plots.BLUE}
# Of each encoder, from few labels to many; those of tiny-bert with few are of other findings, too.
SETTINGS = {
    "tiny-bert": (QUESTIONS, dataclasses.replace(QUESTIONS, budgets=(1024,))),
    "minilm": (dataclasses.replace(QUESTIONS, budgets=(32, 256)),),
}
COLUMNS = ("encoder", "labels", "biases", "everything", "biases - everything (95% interval)")
TITLE = "Biases alone, by the number of labels"
QUESTION = (
    "[Ben Zaken, Ravfogel and Goldberg (2022)](https://aclanthology.org/2022.acl-short.1), BitFit: "
    "training only the biases of BERT is, with small to medium training data, competitive with "
    "fine-tuning everything, and sometimes better. Their Figure 2 has the exact match on SQuAD by "
    "the size of the training set: BitFit is ahead with little data, full fine-tuning with much. "
    "Do the lines cross here, too?"
)
CAPTION = (
    "Test accuracy on the types of questions (6 classes) by the number of labels. Bars are 95% "
    "intervals over seeds and test examples."
)
METHOD = (
    "Each seed draws as many of the training questions of `trec`, the same for both sides; up to "
    "128 as many of each class as can be, more of them by chance. A fifth choose the epoch. Rates "
    "are the library's own, which are ten times as high for biases as for everything; none are "
    "tried on either side. A fit takes 3 epochs in batches of 16, and {steps} steps at least. The head is trained on both sides, and is new.",
)
DIFFERS = (
    "Types of questions in place of spans of answers, and encoders of 2 and 6 layers in place of "
    "BERT-base. MiniLM was trained for embeddings already.",
    "At most {most:,} labels, where the paper goes up to all of SQuAD: the right end of its "
    "figure, where full fine-tuning is ahead, may lie beyond.",
    "The norms' biases train with `bitfit`, as in the paper; their scales do not.",
)
# What the figures say.
WHY: Sequence[str] = (
    "With more labels everything is ahead on both encoders, as at the right end of the paper's "
    "figure, and the distance grows with them. The lines do not cross: with 32 labels the two are "
    "close on tiny-bert, and on MiniLM everything is ahead already.",
    "A fit is short and has one rate. Biases may need more steps or a higher rate than these, "
    "and nothing here could choose them.",
)

# Scores by encoder, number of labels and strategy.
Scores = dict[str, dict[int, dict[str, Score]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFitOptions:
    """What is adapted, and how often."""

    title: ClassVar[str] = "finding"

    # the encoders
    checkpoints: tuple[str, ...] = tuple(SETTINGS)
    # each draws other examples, another head and another order
    seeds: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BitFitOptions, FindingRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {"checkpoints": tuple(SETTINGS)}

    @property
    def settings(self) -> dict[str, list[Setting]]:
        """The settings of each encoder."""
        if self.short:
            return {"tiny-bert": [short(QUESTIONS)]}
        found = {}
        for name in self.checkpoints:
            found[name] = [
                dataclasses.replace(setting, seeds=self.seeds) for setting in SETTINGS[name]
            ]
        return found


def main(config: Config) -> dict[str, Any]:
    scores: Scores = {}
    for name, settings in config.settings.items():
        scores[name] = {}
        for setting in settings:
            scores[name] |= {budget: {} for budget in setting.budgets}
            for side in SIDES:
                fits = fit(
                    name,
                    side,
                    setting,
                    config.cells,
                    resume=config.resume,
                    overwrite=config.overwrite,
                    name=name_of(name, side, setting),
                )
                for budget in setting.budgets:
                    scores[name][budget][side] = fits.score(budget)
    result = as_plain(scores)
    publish(page(config, scores), result, config)
    return result


def lead(sides: Mapping[str, Score]) -> Score:
    """By how much the biases are ahead of everything."""
    return sides["bitfit"] - sides["full"]


def claims(scores: Scores) -> list[Claim]:
    """What the paper says of its Figure 2, for every encoder."""
    found = []
    for name, of_budgets in scores.items():
        fewest = min(of_budgets)
        most = max(of_budgets)
        few = lead(of_budgets[fewest])
        many = lead(of_budgets[most])
        found.append(
            Claim(
                f"{name}: with little data the biases alone are better",
                f"biases - everything, {fewest:,} labels",
                few,
            )
        )
        found.append(
            Claim(
                f"{name}: with more data everything is better",
                f"everything - biases, {most:,} labels",
                -1.0 * many,
            )
        )
        found.append(
            Claim(
                f"{name}: the biases fall behind as the data grow",
                f"lead of the biases, {fewest:,} labels - {most:,} labels",
                few - many,
            )
        )
    return found


def table_rows(scores: Scores) -> list[tuple[str, ...]]:
    """A row an encoder and number of labels, as :data:`COLUMNS` names its values."""
    rows = []
    for name, of_budgets in scores.items():
        for budget, sides in of_budgets.items():
            values = [f"{sides[side].value:.3f}" for side in SIDES]
            rows.append((name, f"{budget:,}", *values, with_interval(lead(sides), sign=True)))
    return rows


def page(config: Config, scores: Scores) -> Page:
    """The page of the finding."""
    most = max(max(of_budgets) for of_budgets in scores.values())
    return Page(
        name="bitfit",
        title=TITLE,
        question=QUESTION,
        claims=claims(scores),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(scores), CAPTION),
        tables=[Table(COLUMNS, table_rows(scores), right=4, title="Test accuracy")],
        method=[paragraph.format(steps=QUESTIONS.min_steps) for paragraph in METHOD],
        differs=[item.format(most=most) for item in DIFFERS],
        source=source_of(
            "experiments.findings.bitfit",
            config,
            f"test accuracy on {QUESTIONS.test_rows} rows, mean of {config.seeds} seeds",
        ),
    )


def plot(scores: Scores) -> Any:
    """A panel an encoder: the accuracy of both sides by the number of labels."""
    drawn, axes = plots.figure(1, len(scores), size=(3.6 * len(scores) + 0.6, 3.6), sharey=True)
    for axis, (name, of_budgets) in zip(axes[0], scores.items(), strict=True):
        for number, (side, colour) in enumerate(SIDES.items()):
            positions = [x + 0.06 * (number - 0.5) for x in range(len(of_budgets))]
            of_side = [sides[side] for sides in of_budgets.values()]
            label = "the biases alone" if side == "bitfit" else "everything"
            draw.points(axis, positions, of_side, colour, label)
        axis.set_xticks(range(len(of_budgets)), [f"{budget:,}" for budget in of_budgets])
        axis.set_xlim(-0.4, len(of_budgets) - 0.6)
        axis.set_xlabel("labels")
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(frameon=False, fontsize=8, title="what trains", title_fontsize=8)
    return drawn


if __name__ == "__main__":
    launch(Config, main)
