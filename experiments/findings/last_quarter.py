"""How many of the last layers have to train for 90% of what fine-tuning all of them gives.

    python -m experiments.findings.last_quarter --short
    python -m experiments.findings.last_quarter --docs docs

Lee, Tang and Lin 2019: a fourth of the layers, the last ones, gives 90% of the quality.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapt.cli import plots
from adapt.cli.launch import launch
from experiments.findings.cells import REVIEWS, FindingConfig, Fits, Setting, fit
from experiments.study import draw
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, with_interval

LAYERS = 6
# The strategies by the number of last layers that train; the embedding trains with all of them.
STRATEGIES = {0: "frozen", 1: "top:1", 2: "top:2", 3: "top:3", LAYERS: "full"}
SHARE = 0.9
COLUMNS = (
    "trained layers",
    "strategy",
    "test accuracy (95% interval)",
    "of full's accuracy",
    "of full's gain over frozen",
    "trained parameters",
    "TFLOP of a fit",
)
TITLE = "The last quarter of the layers"
QUESTION = (
    '[Lee, Tang and Lin (2019), "What Would Elsa Do?"](https://arxiv.org/abs/1911.03090) trained '
    "only the last layers of BERT and RoBERTa. By their abstract a fourth of the layers is enough "
    "for 90% of the original quality, and training all layers does not always help. Is it so for "
    "an encoder of 6 layers on film reviews?"
)
CAPTION = (
    "Test accuracy by the number of last layers that train. Bars are 95% intervals over seeds and "
    "test examples; the lines are 90% of full's accuracy, and 90% of the way from frozen to full."
)
WHY: Sequence[str] = (
    "90% of full's accuracy is little to ask here: a frozen encoder alone has 94% of it, and every "
    "depth lies above the grey line. Two blocks of six are above it by more than the interval, one is "
    "not quite.",
    "Of what fine-tuning gains over a frozen encoder, .048, one block gives 9%, two 39% and three 78%. "
    "So by the means a quarter is not enough on the harder reading; but these shares are of a small gain, "
    "and that reading is not decided.",
)
METHOD = (
    "Each seed draws {labels} of 1,500 film reviews, the same for every strategy; a fifth of them "
    "choose the rate, the usual one or three times that, and the best epoch. A fit takes 3 epochs "
    "in batches of 16. All are tested on the same {rows} reviews. FLOPs are of the steps by the "
    "compiler and of encoding the examples once with what is frozen, which is then kept.",
    "90% of the quality is read in two ways: of full's accuracy, and, harder, of what full gains "
    "over a frozen encoder. A quarter of 6 layers is one and a half, so both one (a sixth) and two "
    "(a third) are set against it.",
)
DIFFERS = (
    "A sentence encoder of 6 layers and 384 features, in place of BERT and RoBERTa, base and large.",
    "Film reviews with few labels, in place of the tasks of GLUE with all of theirs.",
    "Two rates are tried for every strategy.",
    "Five seeds with intervals; the paper's abstract names none.",
)


@dataclasses.dataclass(frozen=True)
class Depth:
    """What training some of the last layers gives and takes."""

    score: Score
    parameters: int  # that train
    flops: float  # of a fit

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self) | {"score": self.score.plain}


def main(config: FindingConfig) -> dict[str, Any]:
    config.check_layers(LAYERS)
    setting = config.of(REVIEWS)
    depths = {}
    for layers, strategy in STRATEGIES.items():
        fits = fit(
            config.checkpoint,
            strategy,
            setting,
            config.cells,
            resume=config.resume,
            overwrite=config.overwrite,
        )
        depths[layers] = depth_of(fits, setting)
    result = {STRATEGIES[layers]: depth.plain for layers, depth in depths.items()}
    publish(page(config, setting, depths), result, config)
    return result


def depth_of(fits: Fits, setting: Setting) -> Depth:
    """The score and the cost of a strategy."""
    (budget,) = setting.budgets
    found = fits.of_budget(budget)
    flops = float(np.mean([cell.flops for cell in found]))
    return Depth(fits.score(budget), found[0].parameters, flops)


def claims(scores: Mapping[int, Score]) -> list[Claim]:
    """What the abstract says, read in two ways. ``scores`` are by trained layers."""
    frozen = scores[0]
    full = scores[LAYERS]
    of_the_gain = (1 - SHARE) * frozen + SHARE * full
    found = []
    for layers, name in ((1, "a sixth"), (2, "a third")):
        strategy = STRATEGIES[layers]
        found.append(
            Claim(
                f"{name} of the layers gives 90% of the accuracy",
                f"{strategy} - 90% of full",
                scores[layers] - SHARE * full,
            )
        )
    for layers, name in ((1, "a sixth"), (2, "a third")):
        strategy = STRATEGIES[layers]
        found.append(
            Claim(
                f"{name} of the layers gives 90% of what fine-tuning gains",
                f"{strategy} - (frozen + 90% of (full - frozen))",
                scores[layers] - of_the_gain,
            )
        )
    found.append(
        Claim(
            "training all layers does not always help: half of them are better",
            f"{STRATEGIES[3]} - full",
            scores[3] - full,
        )
    )
    return found


def table_rows(depths: Mapping[int, Depth]) -> list[tuple[str, ...]]:
    """A row a depth, as :data:`COLUMNS` names its values."""
    frozen = depths[0].score.value
    full = depths[LAYERS].score.value
    rows = []
    for layers, depth in depths.items():
        gain = "" if full == frozen else f"{(depth.score.value - frozen) / (full - frozen):.0%}"
        rows.append(
            (
                str(layers),
                STRATEGIES[layers],
                with_interval(depth.score),
                f"{depth.score.value / full:.0%}",
                gain,
                f"{depth.parameters:,}",
                f"{depth.flops / 1e12:.2f}",
            )
        )
    return rows


def page(config: FindingConfig, setting: Setting, depths: Mapping[int, Depth]) -> Page:
    """The page of the finding."""
    sizes = {"labels": setting.budgets[0], "rows": setting.test_rows}
    scores = {layers: depth.score for layers, depth in depths.items()}
    return Page(
        name="last_quarter",
        title=TITLE,
        question=QUESTION,
        claims=claims(scores),
        why=WHY if has_flags_of(config, FindingConfig()) else (),
        figure=Figure(plot(scores, config.checkpoint), CAPTION),
        tables=[
            Table(COLUMNS, table_rows(depths), right=5, title="What training the last layers gives")
        ],
        method=[paragraph.format(**sizes) for paragraph in METHOD],
        differs=DIFFERS,
        source=source_of(
            "experiments.findings.last_quarter",
            config,
            f"{config.checkpoint}, test accuracy, mean of {setting.seeds} seeds",
        ),
    )


def plot(scores: Mapping[int, Score], checkpoint: str) -> Any:
    """The accuracy by trained layers, with the two readings of 90%."""
    drawn, axes = plots.figure(size=(7, 3.6))
    axis = axes[0, 0]
    frozen = scores[0].value
    full = scores[LAYERS].value
    draw.points(axis, list(scores), list(scores.values()), plots.BLUE, "trained")
    gain = (1 - SHARE) * frozen + SHARE * full
    axis.axhline(gain, color=plots.RED, ls="--", lw=1.2, label="90% of full's gain over frozen")
    axis.axhline(SHARE * full, color=plots.GREY, ls="--", lw=1.2, label="90% of full's accuracy")
    axis.axvspan(1, 2, color=plots.YELLOW, alpha=0.2, lw=0, label="a quarter lies between")
    labels = [f"{layers}\n{STRATEGIES[layers]}" for layers in scores]
    axis.set_xticks(list(scores), labels)
    axis.set_xlabel(f"last layers that train, of {LAYERS}")
    axis.set_ylabel("test accuracy")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.set_title(f"{checkpoint} on film reviews", fontsize=11)
    return drawn


if __name__ == "__main__":
    launch(FindingConfig, main)
