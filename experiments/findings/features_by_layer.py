"""Which layers of a frozen encoder serve as features, against fine-tuning.

    python -m experiments.findings.features_by_layer --short
    python -m experiments.findings.features_by_layer --docs docs

Devlin, Chang, Lee and Toutanova 2019 gave a tagger of named entities the states of BERT's layers
as features: the last four side by side come close to fine-tuning, the last alone is worse.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from adapt.cli import plots
from adapt.cli.launch import launch
from experiments.findings.cells import FindingConfig, Setting, fit
from experiments.study import draw
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, as_plain, with_interval

LAYERS = 6
QUESTIONS = Setting(
    data="trec",
    budgets=(320,),
    train_rows=1500,
    test_rows=500,
    options={"max_length": 64},
    rates=(1.0, 3.0),
    min_steps=48,
)


@dataclasses.dataclass(frozen=True)
class Side:
    """What a head reads: layers of 6, 0 the embedding; and whether the encoder trains."""

    layers: tuple[int, ...]
    mix: str = "concat"
    strategy: str = "frozen"


EMBEDDING = "embedding"
SECOND_TO_LAST = "second to last"
LAST = "last"
MIXED_FOUR = "weighted mean of the last four"
MIXED_ALL = "weighted mean of all six"
LAST_FOUR = "last four, side by side"
FINE_TUNING = "fine-tuning"
SIDES = {
    EMBEDDING: Side((0,)),
    LAST: Side((6,)),
    SECOND_TO_LAST: Side((5,)),
    MIXED_ALL: Side((1, 2, 3, 4, 5, 6), mix="learned"),
    MIXED_FOUR: Side((3, 4, 5, 6), mix="learned"),
    LAST_FOUR: Side((3, 4, 5, 6)),
    FINE_TUNING: Side((6,), strategy="full"),
}
COLUMNS = ("features", "layers", "test accuracy (95% interval)", "to fine-tuning")
TITLE = "Which layers serve as features"
QUESTION = (
    "[Devlin, Chang, Lee and Toutanova (2019)](https://aclanthology.org/N19-1423) kept BERT frozen "
    "and gave its states to a tagger of named entities: the last four layers side by side are "
    "nearly as good as fine-tuning everything, better than the last layer alone, and the embedding "
    "is the worst. Does this order hold for kinds of questions and an encoder of 6 layers?"
)
CAPTION = (
    "Test accuracy on six kinds of questions, by the layers that a linear head reads of a frozen "
    "encoder, and with everything trained. Bars are 95% intervals over seeds and test examples."
)
WHY: Sequence[str] = (
    "Fine-tuning is ahead of every frozen layer, by .12 of the last four side by side and by .24 of the "
    "embedding. A head on frozen features takes as many steps here as fine-tuning does; whether one that "
    "has converged would come nearer was not tried, and the first claim hangs on it.",
    "Among frozen features it is decided that the embedding is the worst. The lead of the last four side "
    "by side over the last layer, .03, is within its interval.",
)
METHOD = (
    "The questions of TREC, six classes. Each seed draws {labels} of 1,500 questions, the same for "
    "every side; a fifth of them choose the rate, the usual one or three times that, and the best "
    "epoch. A fit takes {epochs} epochs in batches of 16. The test is {rows} other questions. The "
    "head is linear and reads the mean of the tokens' states in its layers; a weighted mean has a "
    "weight for each layer that trains with the head.",
)
DIFFERS = (
    "A class for a question and its accuracy, in place of named entities of CoNLL-2003 and their "
    "F1: here a head for words reads the last layer alone.",
    "A linear head, in place of a BiLSTM of two layers, and an encoder of 6 layers that was trained "
    "for embeddings of sentences, in place of BERT base.",
    "A few hundred labels, and two rates for every side.",
)


def main(config: FindingConfig) -> dict[str, Any]:
    config.check_layers(LAYERS)
    setting = config.of(QUESTIONS)
    (budget,) = setting.budgets
    scores = {}
    for name, side in SIDES.items():
        options = {**setting.options, "layers": side.layers, "mix": side.mix}
        of_side = dataclasses.replace(setting, options=options)
        fits = fit(
            config.checkpoint,
            side.strategy,
            of_side,
            config.cells,
            resume=config.resume,
            overwrite=config.overwrite,
            name=f"{setting.data}-{budget}-{side.strategy}-{name.replace(' ', '-')}",
        )
        scores[name] = fits.score(budget)
    result = as_plain(scores)
    publish(page(config, setting, scores), result, config)
    return result


def claims(scores: Mapping[str, Score]) -> list[Claim]:
    """The order of the paper's features."""
    best = scores[LAST_FOUR]
    full = scores[FINE_TUNING]
    embedding = scores[EMBEDDING]
    return [
        Claim(
            "the last four layers give 90% of what fine-tuning gains over the embedding",
            "last four - (embedding + 90% of (fine-tuning - embedding))",
            best - (0.1 * embedding + 0.9 * full),
        ),
        Claim("fine-tuning is still better", "fine-tuning - last four", full - best),
        Claim(
            "the last four layers are better than the last",
            "last four - last",
            best - scores[LAST],
        ),
        Claim(
            "the second to last layer is better than the last",
            "second to last - last",
            scores[SECOND_TO_LAST] - scores[LAST],
        ),
        Claim(
            "side by side the last four are better than their weighted mean",
            "last four - weighted mean of the last four",
            best - scores[MIXED_FOUR],
        ),
        Claim(
            "the embedding is worse than the last layer",
            "last - embedding",
            scores[LAST] - embedding,
        ),
    ]


def table_rows(scores: Mapping[str, Score]) -> list[tuple[str, ...]]:
    """A row a side, as :data:`COLUMNS` names its values."""
    full = scores[FINE_TUNING]
    rows = []
    for name, score in scores.items():
        to_full = "" if name == FINE_TUNING else with_interval(score - full, sign=True)
        layers = " ".join(str(layer) for layer in SIDES[name].layers)
        rows.append((name, layers, with_interval(score), to_full))
    return rows


def page(config: FindingConfig, setting: Setting, scores: Mapping[str, Score]) -> Page:
    """The page of the finding."""
    sizes = {
        "labels": setting.budgets[0],
        "rows": setting.test_rows,
        "epochs": setting.epochs,
    }
    return Page(
        name="features_by_layer",
        title=TITLE,
        question=QUESTION,
        claims=claims(scores),
        why=WHY if has_flags_of(config, FindingConfig()) else (),
        figure=Figure(plot(scores, config.checkpoint), CAPTION),
        tables=[Table(COLUMNS, table_rows(scores), right=2, title="Test accuracy")],
        method=[paragraph.format(**sizes) for paragraph in METHOD],
        differs=DIFFERS,
        source=source_of(
            "experiments.findings.features_by_layer",
            config,
            f"{config.checkpoint}, test accuracy, mean of {setting.seeds} seeds",
        ),
    )


def plot(scores: Mapping[str, Score], checkpoint: str) -> Any:
    """The accuracy by features, the first on top, with that of fine-tuning as a line."""
    drawn, axes = plots.figure(size=(7.4, 3.6))
    axis = axes[0, 0]
    positions = list(range(len(scores)))
    draw.points(axis, positions, list(scores.values()), plots.BLUE, "", line="")
    axis.axhline(scores[FINE_TUNING].value, color=plots.RED, ls="--", lw=1.2)
    labels = [name.replace(" of ", "\nof ").replace(", ", ",\n") for name in scores]
    axis.set_xticks(positions, labels, fontsize=8)
    axis.set_ylabel("test accuracy")
    axis.grid(axis="y", alpha=0.25)
    axis.set_title(f"{checkpoint} on questions: frozen layers, and fine-tuning", fontsize=11)
    return drawn


if __name__ == "__main__":
    launch(FindingConfig, main)
