"""A small encoder pre-trained here, probed at checkpoints: encoder, head transform and logits.

    python -m experiments.pretrain_and_probe --short
    python -m experiments.pretrain_and_probe --docs docs

Masked LM, causal LM and replaced tokens from fresh weights on bundled text. At powers of two steps
a checkpoint is kept, which every command takes, and a probe on its frozen features says how well
each layer, the head's transform and its logits serve a task.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import read_arrays, write_arrays
from adapt.data import bundled
from adapt.errors import StrategyError
from adapt.features import text_batches
from adapt.models.heads import stages_of
from adapt.options import KeptHead
from adapt.pretrained.fresh import cut_vocabulary, fresh
from adapt.pretrained.hub import tokenizer_of
from adapt.pretrained.tokenizer import Tokenizer
from adapt.probing.layers import layer_features
from adapt.training import events
from adapt.training.metrics_log import read_records
from experiments.prompting import INSTRUCTIONS, PROMPTS
from experiments.study import draw, dual_probe, small_encoders
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, as_plain, score_of

ENCODER = "encoder"
KEPT: tuple[KeptHead, ...] = ("transform", "logits")
SIDES = {
    ENCODER: plots.BLUE,
    "transform": plots.YELLOW,
    "logits": plots.RED,
}
SHORT: dict[str, Any] = {
    "objectives": ("masked",),
    "text": ("reviews",),
    "vocabulary": 1000,
    "layers": 1,
    "width": 64,
    "first": 8,
    "doublings": 1,
    "data": ("reviews",),
    "labels": 50,
    "seeds": 2,
    "test_rows": 100,
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is said of an objective of pre-training.

    ``loss`` is its own loss among the scores of a validation; ``encoder`` and ``head`` are what the
    page says of them.
    """

    words: str
    encoder: str
    head: str = ""
    loss: str = "loss"


OBJECTIVES = {
    "masked": Objective("masked LM", "BERT's family for masked LM"),
    "causal": Objective(
        "causal LM",
        "GPT-2's for causal LM",
        " The head of causal LM is tied to the embedding and has no transform.",
    ),
    "replaced": Objective(
        "replaced tokens",
        "ELECTRA's for replaced tokens, with a generator of a quarter of its width",
        " The logits of replaced tokens are one number.",
        "replaced_loss",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is pre-trained on which text, how long, and how it is probed."""

    title: ClassVar[str] = "study"

    # masked, causal, replaced
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    # bundled sets whose training texts are pre-trained on
    text: tuple[str, ...] = ("reviews", "amazon", "tweets", "nyt", "dialogue")
    # a checkpoint whose WordPiece tokenizer is taken
    tokenizer: str = "tiny-bert"
    # how many of its tokens, the most frequent ones
    vocabulary: int = 4000
    # blocks of the encoder
    layers: int = 2
    # of a token's state, a multiple of 32
    width: int = 128
    # steps to the first checkpoint after the one of fresh weights
    first: int = 128
    # how often that number is doubled: each time a checkpoint, the last of them at the end
    doublings: int = 4
    # examples a step
    batch_size: int = 16
    # tokens of an example
    max_length: int = 64
    learning_rate: float = 1e-3
    # bundled sets that are probed
    data: tuple[str, ...] = ("reviews", "trec")
    # labelled examples of a probe
    labels: int = 1000
    # draws of these
    seeds: int = 5
    # rows of the test set
    test_rows: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "objectives": tuple(OBJECTIVES),
        "text": tuple(bundled.SETS),
        "data": tuple(bundled.SETS),
    }
    may_be_empty: ClassVar[Collection[str]] = ("doublings",)

    out: Path = Path("runs/pretrain_and_probe")

    @property
    def stops(self) -> tuple[int, ...]:
        """The steps of the checkpoints."""
        return (0, *(self.first << number for number in range(self.doublings + 1)))

    def check(self) -> None:
        """Raise :class:`StrategyError` for sizes that make no encoder."""
        of_a_head = small_encoders.HEAD_WIDTH
        if self.width < of_a_head or self.width % of_a_head:
            raise StrategyError(f"`width` {self.width} must be a multiple of {of_a_head}")


# Scores by data, by step, by side: layers are named by their number, 0 the embedding.
Scores = dict[str, dict[int, dict[str, Score]]]


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    config.check()
    open_study("experiments.pretrain_and_probe", config, chosen=("objectives", "data"))
    corpus = write_corpus(config)
    losses = {name: pretrain(name, corpus, config) for name in config.objectives}
    scores = {name: probe_checkpoints(name, config) for name in config.objectives}
    result = {"losses": losses, "accuracy": as_plain(scores)}
    publish(page(config, scores, losses), result, config)
    return result


# Pre-training


def write_corpus(config: Config) -> Path:
    """The training texts of the bundled sets as a file."""
    path = config.folder / "corpus.txt"
    lines = small_encoders.corpus(config.text)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def make_tokenizer(corpus: Path, config: Config) -> Tokenizer:
    """The most frequent tokens, and the words of the prompts of :mod:`experiments.prompting`, which
    can ask the checkpoints.
    """
    prompts = (*PROMPTS.values(), *INSTRUCTIONS.values())
    words = [word for prompt in prompts for word in prompt.words.values()]
    lines = corpus.read_text("utf-8").splitlines()
    whole = tokenizer_of(adapt.load(config.tokenizer))
    return cut_vocabulary(whole, lines, config.vocabulary, words)


def folder_of(objective: str, step: int, config: Config) -> Path:
    """Where the checkpoint of a step is kept."""
    return config.folder / objective / f"step_{step:05d}"


def pretrain(objective: str, corpus: Path, config: Config) -> dict[str, float]:
    """Pre-train with a checkpoint at each stop; the validation loss by step."""
    folder = config.folder / objective / "run"
    if not (folder / "result.json").exists():
        resume = (folder / "config.json").exists()
        console.say(f"{objective}: pre-training, {config.stops[-1]:,} steps")
        tokenizer = make_tokenizer(corpus, config)
        shapes = config.layers, config.width, config.max_length
        entries = small_encoders.entries(objective, *shapes)
        adapt.pretrain(
            fresh(entries, tokenizer),
            corpus,
            objective=objective,
            steps=config.stops[-1],
            batch_size=config.batch_size,
            max_length=config.max_length,
            learning_rate=config.learning_rate,
            validate_every=config.first,
            scan=True,
            out=folder,
            resume=resume,
            callbacks=[keep_checkpoints(objective, config)],
        )
    name = OBJECTIVES[objective].loss
    losses = {}
    for record in read_records(folder / "metrics.jsonl"):
        if "validation_loss" in record:
            losses[str(record["step"])] = record[f"validation_{name}"]
    return losses


def keep_checkpoints(objective: str, config: Config) -> Callable[[events.Event], None]:
    """A callback that copies the checkpoints of the stops out of the run's folder, which goes on
    without them. Each copy is a run of its own.
    """

    def keep(event: events.Event) -> None:
        if isinstance(event, events.Validated):
            console.say(f"{objective}: step {event.step:,}, validation loss {event.loss:.3f}")
        if isinstance(event, events.Saved) and event.step in config.stops:
            run = adapt.load_run(config.folder / objective / "run")
            run.save(folder_of(objective, event.step, config), overwrite=True)

    return keep


# Probes


def probe_checkpoints(objective: str, config: Config) -> Scores:
    """The scores of every checkpoint on every set; those that are there are read."""
    scores: Scores = {name: {} for name in config.data}
    for step in config.stops:
        folder = folder_of(objective, step, config)
        pretrained = adapt.load(folder)
        for name in config.data:
            path = folder.with_name(f"{folder.name}-{name}.npz")
            if path.exists():
                right = read_arrays(path)
            else:
                console.say(f"{objective}: step {step:,}, probes on {name}")
                right = probe(pretrained, name, config)
                write_arrays(path, right)
            scores[name][step] = {
                side: score_of(of_side.astype(np.float64)) for side, of_side in right.items()
            }
    return scores


def probe(pretrained: adapt.Pretrained, name: str, config: Config) -> dict[str, np.ndarray]:
    """Which test rows a probe gets right, bool [seeds, test rows], on every side: the layers by
    their numbers, and what the checkpoint's head has.
    """
    train = bundled.read(name, "train")
    test = bundled.read(name, "test")
    count = len(train["text"])
    drawn = [dual_probe.drawn_rows(count, config.labels, seed) for seed in range(config.seeds)]
    pool, places = np.unique(np.stack(drawn), return_inverse=True)
    draws = places.reshape(len(drawn), -1)
    texts = [train["text"][row] for row in pool] + test["text"][: config.test_rows]
    labels = [train["label"][row] for row in pool] + test["label"][: config.test_rows]
    targets = np.unique(labels, return_inverse=True)[1]
    test_count = len(texts) - len(pool)
    right = {}
    for side, features in features_of(pretrained, texts).items():
        right[side] = dual_probe.right_answers([features], targets, draws, test_count)
    return right


def features_of(pretrained: adapt.Pretrained, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Features [N, D] of texts, means over their tokens, by side."""
    batches = ((of.index, of.batch) for of in text_batches(pretrained, [texts], few=True))
    layers = layer_features(pretrained, batches, len(texts), ["mean"])
    features = {str(number): layer[0] for number, layer in enumerate(layers)}
    for stage in KEPT:
        if stage not in stages_of(pretrained.head):
            continue
        features[stage] = adapt.encode(pretrained, texts, "mean", layer=stage)
    return features


def side_score(sides: Mapping[str, Score], side: str) -> Score | None:
    """The score of a side of the figure: the encoder's is that of its last layer."""
    if side == ENCODER:
        return sides[str(max(int(name) for name in sides if name.isdigit()))]
    return sides.get(side)


# The page

QUESTION = (
    "Pre-training has an objective of its own: which masked token it was, which token comes next, "
    "which tokens were replaced. How do the encoder, the transform in the head and the head's "
    "logits serve a downstream task while that objective is learned? Chen et al. "
    "([SimCLR, 2020](https://arxiv.org/abs/2002.05709), 4.2 and figure 8) found for pictures that "
    "the layer before the head serves better than what the head makes of it; Clark et al. "
    "([ELECTRA, 2020](https://openreview.net/forum?id=r1xMH1BtvB), figures 1 and 2) found for texts "
    "that replaced tokens give the better encoder at the same compute."
)
CAPTION = (
    "Test accuracy of probes by the step of the checkpoint, for the encoder's last layer, the "
    "transform of its head, and the logits; below it the loss on held-out text. Bars are 95% "
    "intervals over draws of labelled examples and test examples."
)
METHOD = (
    "An encoder is pre-trained from fresh weights, once for each objective, on the same text with "
    "the same batches: {encoders}. The vocabulary is the most frequent part "
    "of tiny-bert's. No text of a test set is among the text. At powers of two steps a checkpoint is "
    "kept.",
    "Features of a checkpoint are means over a text's tokens: of every layer, of what the head's "
    "last layer reads (its transform), and of its logits.{heads} Ridge regression of the classes, on standardised features, is fitted on a draw of labelled examples, a "
    "fifth of which choose its penalty. Every side sees the same draws and the same test examples.",
)
DIFFERS = (
    "Encoder, text and steps are some thousand times smaller than in the papers, and each objective "
    "was run once: the intervals do not cover other seeds of pre-training.",
    "SimCLR's head is trained by a contrastive objective on pictures.",
)
# What the figures say.
WHY: Sequence[str] = (
    "The held-out losses fall, of masked LM from 8.3 to 5.7, of causal LM from 8.3 to 4.6 and of replaced "
    "tokens from .69 to .40, where it is after 128 steps; and the probes hardly move with them. After 2,048 "
    "steps, or 2.1 million tokens, no encoder is decidedly better than its fresh weights.",
    "Between an encoder and the logits of a vocabulary nothing is decided, with differences of .01. The "
    "one logit of replaced tokens is another matter: on TREC it gives .274, and the encoder below it .551.",
    "On TREC replaced tokens give a better encoder than masked LM, as in ELECTRA's paper; causal LM gives "
    "the best, with .596. But masked LM's is below its own fresh weights there, that of replaced tokens was "
    "at .407 after 1,024 steps, and each objective was run once: this is a verdict on two checkpoints more "
    "than on two objectives.",
)
AT_EQUAL_STEPS = (
    "ELECTRA's comparison is at equal compute, after fine-tuning; here it is at equal steps, and a "
    "step of replaced tokens costs more by its generator. ELECTRA's discriminator and a masked LM "
    "were of one size there, too."
)
CHECKPOINTS = """Each checkpoint is a run's folder, which every command takes:

    adapt finetune --checkpoint {folder} --train reviews --strategy frozen --out runs/small
    adapt extract --checkpoint {folder} --data trec --pooling mean --out runs/features
    adapt probe --checkpoint {folder} --data trec --out runs/probe
    adapt export --run {folder} --out exported
    adapt evaluate --run {folder} --data reviews --template "{template}" --verbalizer "{verbalizer}"
"""


def columns(config: Config) -> tuple[str, ...]:
    """Those of :func:`table_rows`."""
    names = ["objective", "steps", "held-out loss"]
    for name in config.data:
        names += [f"{name}: {side}" for side in SIDES]
    return tuple(names)


def table_rows(
    scores: Mapping[str, Scores], losses: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, ...]]:
    """A row an objective and step."""
    rows = []
    for objective, of_objective in scores.items():
        steps = next(iter(of_objective.values()))
        for step in steps:
            row = [objective, str(step), f"{losses[objective][str(step)]:.3f}"]
            for of_data in of_objective.values():
                for side in SIDES:
                    score = side_score(of_data[step], side)
                    row.append("" if score is None else f"{score.value:.3f}")
            rows.append(tuple(row))
    return rows


def layer_rows(scores: Mapping[str, Scores]) -> list[tuple[str, ...]]:
    """A row an objective and set: every layer of the last checkpoint."""
    rows = []
    for objective, of_objective in scores.items():
        for name, of_data in of_objective.items():
            sides = of_data[max(of_data)]
            layers = [f"{score.value:.3f}" for side, score in sides.items() if side.isdigit()]
            rows.append((objective, name, *layers))
    return rows


def claims(scores: Mapping[str, Scores]) -> list[Claim]:
    """What the papers say, at the last checkpoint of each objective."""
    found = []
    for objective, of_objective in scores.items():
        words = OBJECTIVES[objective].words
        for name, of_data in of_objective.items():
            first, last = of_data[0], of_data[max(of_data)]
            kept, dropped = side_score(last, "logits"), side_score(last, ENCODER)
            before = side_score(first, ENCODER)
            assert kept is not None and dropped is not None and before is not None
            statement = f"{words}, {name}: the encoder serves better than the logits"
            found.append(Claim(statement, "encoder - logits", dropped - kept))
            statement = f"{words}, {name}: pre-training makes the encoder better"
            found.append(Claim(statement, "last step - step 0", dropped - before))
    if "masked" in scores and "replaced" in scores:
        for name, of_data in scores["masked"].items():
            masked = side_score(of_data[max(of_data)], ENCODER)
            of_replaced = scores["replaced"][name]
            replaced = side_score(of_replaced[max(of_replaced)], ENCODER)
            assert masked is not None and replaced is not None
            statement = f"{name}: replaced tokens give a better encoder than masked LM"
            found.append(Claim(statement, "replaced - masked", replaced - masked))
    return found


def checkpoints_text(config: Config) -> str:
    """How the last checkpoint of the first objective goes on, as command lines."""
    prompt = PROMPTS["reviews"]
    verbalizer = ",".join(f"{name}={word}" for name, word in prompt.words.items())
    folder = Path("runs/pretrain_and_probe") / config.objectives[0]
    return CHECKPOINTS.format(
        folder=(folder / f"step_{config.stops[-1]:05d}").as_posix(),
        template=prompt.template,
        verbalizer=verbalizer,
    ).rstrip()


def method(config: Config) -> list[str]:
    """How the figures were made, of the objectives that they have."""
    chosen = [OBJECTIVES[name] for name in config.objectives]
    encoders = ", ".join(objective.encoder for objective in chosen)
    heads = "".join(objective.head for objective in chosen)
    paragraphs = [text.format(encoders=encoders, heads=heads) for text in METHOD]
    return [*paragraphs, checkpoints_text(config)]


def differs(config: Config) -> list[str]:
    """What is not as in the papers, of the objectives that the figures have."""
    items: list[str] = [*DIFFERS]
    if "replaced" in config.objectives:
        items.append(AT_EQUAL_STEPS)
    return items


def page(
    config: Config, scores: Mapping[str, Scores], losses: Mapping[str, Mapping[str, float]]
) -> Page:
    """The page of the study."""
    layer_names = ["embedding", *(f"block {number + 1}" for number in range(config.layers))]
    names = columns(config)
    sets = ", ".join(config.text)
    return Page(
        name="pretrain_and_probe",
        title="While pre-training goes on",
        question=QUESTION,
        claims=claims(scores),
        why=WHY if has_flags_of(config, Config()) else (),
        figure=Figure(plot(scores, losses), CAPTION),
        tables=[
            Table(
                names,
                table_rows(scores, losses),
                right=len(names) - 1,
                title="Test accuracy by step",
            ),
            Table(
                ("objective", "data", *layer_names),
                layer_rows(scores),
                right=len(layer_names),
                title="Every layer of the last checkpoint",
            ),
        ],
        method=method(config),
        differs=differs(config),
        source=source_of(
            "experiments.pretrain_and_probe",
            config,
            f"{config.layers} layers of width {config.width}, {config.vocabulary:,} tokens, "
            f"{config.stops[-1]:,} steps of {config.batch_size} x {config.max_length} tokens on the "
            f"training texts of {sets}; probes by {config.labels} labels, {config.seeds} draws, "
            f"{config.test_rows} test rows",
        ),
    )


def plot(scores: Mapping[str, Scores], losses: Mapping[str, Mapping[str, float]]) -> Any:
    """A column an objective: a panel of accuracy a set, and the loss below."""
    sets = list(next(iter(scores.values())))
    size = (3.4 * len(scores) + 0.6, 2.3 * (len(sets) + 1))
    drawn, axes = plots.figure(len(sets) + 1, len(scores), size=size, sharex=True, sharey="row")
    for column, (objective, of_objective) in enumerate(scores.items()):
        for row, name in enumerate(sets):
            axis = axes[row, column]
            draw_sides(axis, of_objective[name])
            axis.set_ylabel(f"{name}: test accuracy" if column == 0 else "")
        axes[0, column].set_title(OBJECTIVES[objective].words, fontsize=10)
        steps = sorted(of_objective[sets[0]])
        axis = axes[-1, column]
        of_steps = [losses[objective][str(step)] for step in steps]
        relative = [loss / of_steps[0] for loss in of_steps]
        axis.plot(range(len(steps)), relative, "o-", color="black", ms=4, lw=1.4)
        axis.set_ylabel("held-out loss / loss at step 0" if column == 0 else "")
        axis.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
        axis.set_xlabel("step")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    axes[0, 0].margins(y=0.2)  # room for the legend
    axes[0, 0].legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    return drawn


def draw_sides(axis: Any, of_data: Mapping[int, Mapping[str, Score]]) -> None:
    """The sides of one objective on one set, by the place of a step among the steps."""
    steps = sorted(of_data)
    for number, (side, colour) in enumerate(SIDES.items()):
        found = [side_score(of_data[step], side) for step in steps]
        of_side = [score for score in found if score is not None]
        if of_side:
            places = [place + 0.07 * (number - 1) for place in range(len(steps))]
            draw.points(axis, places, of_side, colour, side)


if __name__ == "__main__":
    launch(Config, main)
