"""What a prompt brings with few labels: the head of pre-training kept, or discarded.

    python -m experiments.prompting --short
    python -m experiments.prompting --docs docs

A cloze template with a masked-LM head (Schick and Schütze 2021; Gao et al. 2021), or a
prompt that a causal LM goes on with, against a new head on the same encoder, by labels
a class. Every side sees the same draws of examples, trains as much of the encoder, and has
the same rates to choose from by the labels it has; a probe, logistic regression on frozen
features, stands beside. Without training there is the prompt alone, or with an instruction
that names the answers, or with an answered example of each class before it.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.cells import Cells
from adapt.comparison.material import FEW
from adapt.data import bundled
from adapt.pretrained.hub import tokenizer_of
from experiments.study import draw, near_tasks
from experiments.study.options import StudyRunOptions, open_study
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, accuracy_of, mean_of, with_interval

COLUMNS = (
    "checkpoint",
    "data",
    "labels a class (mean)",
    "probe",
    "new head",
    "prompt",
    "with instruction",
    "prompt - new head (95% interval)",
    "with instruction - prompt (95% interval)",
)
NUMBERS = len(COLUMNS) - 2
NONE = 0  # labels a class: the prompt alone
SHOWN = 1  # one of each class is shown in the prompt, and nothing is trained
ROOM = 48  # tokens that a prompt with answered examples leaves for the text
WORD = "word"  # the set whose classes are words: what a language model was trained to say
WORD_SETS = ("reviews", "amazon", "nyt")  # whose test texts it is made of
WORD_ROWS = 2000
QUESTION = (
    "A cloze template with the masked-LM head, as in "
    "[Schick and Schütze (2021)](https://aclanthology.org/2021.eacl-main.20) and "
    "[Gao et al. (2021)](https://aclanthology.org/2021.acl-long.295), or a prompt that a causal LM "
    "goes on with, against a new head on the same encoder: what does keeping the head bring when "
    "labels are few? And what does an instruction that names the answers bring to a model that was "
    "never trained to follow one?"
)
CAPTION = (
    'Test accuracy by labels a class; at 0 the prompt alone, without training, and at "1 shown" with '
    "an answered example of each class in it. Bars are 95% intervals over seeds and test examples."
)
METHOD = (
    "Every side sees the same draws of examples. A new head and a prompt train the encoder with the "
    "strategy `{strategy}`, and have the same rates to choose from by the labels that they have; the probe "
    "is logistic regression on frozen features. Differences are paired by seed and test example. A draw "
    "of up to {few} labels in all has as many of each class; a larger one is by chance, and labels a "
    "class are its mean.",
    "Prompts and instructions were written down before any result was seen: {prompts}. The prompt of a "
    "causal LM ends before its answer. An instruction is given without training only. Each word is one token "
    "of the checkpoint's tokenizer; another one would be refused.",
    "`word` asks what a causal LM was trained to say: which of ten frequent words comes next, after "
    "the beginning of a sentence. The sentences are those of the test parts of {word_sets}, on which "
    "the causal LM was not trained. There a new head and the probe read the state that the prompt is "
    "answered at, that of the mask or of the last word.",
    "An answered example of each class in the prompt, without training, is what Brown et al. "
    "([2020](https://arxiv.org/abs/2005.14165)) call in-context learning; each seed draws other "
    "examples, and an instruction stands before them once. Where they do not fit into the positions "
    "of a checkpoint the cell is empty.",
    "Claims are means over sets; in an earlier form of this page, with reviews alone, each checkpoint and "
    "number of labels had its own.",
)
CAUSAL_FOLDER = "runs/causal_256"
CAUSAL_LM = (
    "The causal LM has 2 layers of width 128 and 256 positions, and was trained on 2.1 million tokens of "
    "bundled text: `python -m experiments.pretrain_and_probe --objectives causal --max-length 256 "
    f"--batch-size 4 --out {CAUSAL_FOLDER}`."
)
NOT_WHOLE = (
    "The papers train the whole model, and here it is `{strategy}`, on every side alike: the table of tokens, "
    "most of so small an encoder, is not trained."
)
DIFFERS = (
    "tiny-bert has two layers, and was tuned for sparse retrieval after its pre-training, so that it "
    "fills masks poorly; the papers' models have 12 to 24 layers and fill them well. Instructions are "
    "followed by models that are a thousand times larger, and mostly were tuned to.",
    "One template and one word a class. The papers choose among several, or join them.",
    "The rate is chosen among a few by a fifth of the labels, on every side alike.",
)
WHY: Sequence[str] = (
    "Keeping the head pays where the answer is what it was trained to say. Asked for the next word, the causal "
    "LM's prompt is right for .373 without a label; with 4 labels a class it is at .363, a probe at .247 and a "
    "new head at .199. With 32 the three are at .388, .355 and .339. tiny-bert fills masks poorly: with 4 labels its "
    "prompt is .047 ahead of its new head, and with .153 near the most frequent word, .137; with 32 it is .079 ahead.",
    "On reviews and questions a prompt decides nothing with 4 labels a class, as the mean of the two; on reviews by "
    "itself that of tiny-bert is .065 ahead of a new head, just beyond its own interval. With 32 a new head does better on "
    "questions, .403 where the causal LM's prompt has .298; on tiny-bert the two are .747 and .707, and the "
    "interval holds 0. As the mean over all sets this and the next word cancel each other. On reviews no side "
    "of the causal LM leaves the chance of one half.",
    "No gain by an instruction is decided, and one above .020 is unlikely: without training it changes the "
    "accuracy by -.005 as the mean over checkpoints and sets, and by .040 at the most. Untrained, every form of "
    "prompt on reviews and questions, with answered examples or without, stays near the most frequent class, or "
    "below it.",
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
    """How a set is asked: a template, and the words of its classes in the order of their names.

    ``lead`` stands before everything, once.
    """

    template: str
    words: Mapping[str, str]
    lead: str = ""

    def asked_of(self, causal: bool) -> str:
        """The whole prompt for a masked LM, or a causal one, where it ends with the mask."""
        return self.lead + self.form_of(causal)

    def form_of(self, causal: bool) -> str:
        if not causal:
            return self.template
        before, mask, _ = self.template.partition("[MASK]")
        return before + mask

    def after(self, rows: Sequence[tuple[str, str]], causal: bool) -> str:
        """The prompt after rows (text, class) that are answered in the same way."""
        answered = []
        for text, label in rows:
            literal = text.replace("{", "{{").replace("}", "}}")
            filled = self.template.replace("[MASK]", self.words[label])
            answered.append(filled.replace("{text}", literal))
        return self.lead + " ".join([*answered, self.form_of(causal)])


QUESTIONS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "thing",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}
ITSELF = {word: word for word in sorted(near_tasks.WORDS)}
# By set: the plain prompt, and the one with an instruction that names the answers.
PROMPTS = {
    "reviews": Prompt("{text} It was [MASK].", {"negative": "terrible", "positive": "great"}),
    "trec": Prompt("{text} This asks for a [MASK].", QUESTIONS),
    WORD: Prompt("{text} [MASK]", ITSELF),
}
INSTRUCTIONS = {
    "reviews": Prompt(
        "{text} Answer: [MASK].",
        {"negative": "negative", "positive": "positive"},
        "Is this review positive or negative? ",
    ),
    "trec": Prompt(
        "{text} Answer: [MASK].",
        QUESTIONS,
        "Does this question ask for an abbreviation, a description, a thing, a person, a place or a "
        "number? ",
    ),
    WORD: Prompt(
        "{text} [MASK]",
        ITSELF,
        "Which of these words comes next: the, of, and, to, in, is, it, that, with or for? ",
    ),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to adapt: a task of :func:`adapt.compare`, and prompts of those that have one.

    A probe trains nothing of the encoder; the others train by the strategy of the study.
    """

    task: str
    colour: str
    prompts: Mapping[str, Prompt] = dataclasses.field(default_factory=dict)  # by set


PROBE = "probe"
NEW_HEAD = "new head"
PROMPT = "prompt"
INSTRUCTION = "with instruction"
SIDES = {
    PROBE: Side("classification", plots.GREY),
    NEW_HEAD: Side("classification", plots.BLUE),
    PROMPT: Side("cloze", plots.RED, PROMPTS),
    INSTRUCTION: Side("cloze", plots.GREEN, INSTRUCTIONS),
}
ASKED = (PROMPT, INSTRUCTION)  # without training
TRAINED = (PROBE, NEW_HEAD, PROMPT)
DIFFERENCES = ((PROMPT, NEW_HEAD), (INSTRUCTION, PROMPT))  # (the better one, the other)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is compared, and how often."""

    title: ClassVar[str] = "study"

    # with a masked-LM head, or a causal one
    checkpoints: tuple[str, ...] = ("tiny-bert",)
    # sets that have a prompt: reviews, trec, word
    data: tuple[str, ...] = tuple(PROMPTS)
    # labels a class, a fifth of which choose the rate and the step
    labels: tuple[int, ...] = (4, 32)
    # each draws other examples, another order, and of a new head other weights
    seeds: int = 5
    # what of the encoder is trained, on every side but the probe
    strategy: str = "full"
    # factors of the learning rates, of which each side chooses one
    rates: tuple[float, ...] = (1.0, 3.0)
    # rows of the test set
    test_rows: int = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StudyOptions, StudyRunOptions):
    """The flags of the command."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {"data": tuple(PROMPTS)}

    out: Path = Path("runs/prompting")


CAUSAL = f"{CAUSAL_FOLDER}/causal/step_02048"
# The flags whose figures WHY speaks of.
PUBLISHED = Config(checkpoints=("tiny-bert", CAUSAL), strategy="top:2")


# The sides' scores by labels a class, 0 and 1 without training; of a set, and of a checkpoint.
Scores = dict[int, dict[str, Score]]
ScoresOfSets = dict[str, Scores]


def main(config: Config) -> dict[str, Any]:
    if config.short:
        config = dataclasses.replace(config, **SHORT)
    open_study("experiments.prompting", config, chosen=("checkpoints", "data"))
    scores: dict[str, ScoresOfSets] = {}
    majority: dict[str, float] = {}
    for checkpoint in config.checkpoints:
        pretrained = adapt.load(checkpoint)
        of_sets = scores.setdefault(short_name(checkpoint), {})
        for name in config.data:
            of_sets[name] = study(pretrained, name, config)
            majority[name] = most_frequent(rows_of(name, pretrained, PROMPT, config)[1])
    result = {}
    for checkpoint, of_sets in scores.items():
        result[checkpoint] = {name: plain(of_set) for name, of_set in of_sets.items()}
    drawn = plot(scores, majority)
    publish(page(config, scores, drawn), result, config)
    return result


def short_name(checkpoint: str) -> str:
    """The last two parts of a folder: ``causal/step_00512``."""
    return "/".join(Path(checkpoint).parts[-2:])


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a set as a side reads them: their texts, their classes, and by which pooling."""

    texts: list[str]
    labels: list[str]
    pooling: str | None = None  # None: the default of the encoder

    def part(self, chosen: slice) -> "Rows":
        return Rows(self.texts[chosen], self.labels[chosen], self.pooling)


def rows_of(
    name: str, pretrained: adapt.Pretrained, side_name: str, config: Config
) -> tuple[Rows, Rows]:
    """(training rows, the test set) of a set for a side: of a bundled set the first rows of its test
    part, which is in random order.
    """
    if name == WORD:
        rows = words_asked(pretrained, bool(SIDES[side_name].prompts), config.test_rows)
        return rows.part(slice(config.test_rows, None)), rows.part(slice(config.test_rows))
    train = bundled.read(name, "train")
    test = bundled.read(name, "test")
    test_part = slice(config.test_rows)
    return Rows(train["text"], train["label"]), Rows(
        test["text"][test_part], test["label"][test_part]
    )


def words_asked(pretrained: adapt.Pretrained, in_prompt: bool, test_rows: int) -> Rows:
    """Beginnings of sentences, and the words that come next, as :mod:`experiments.study.near_tasks`
    makes them.

    A prompt puts its own mask after them. A new head reads the last state, of a masked LM that of a
    mask in the text.
    """
    texts = [text for name in WORD_SETS for text in bundled.read(name, "test")["text"]]
    data = near_tasks.causal(texts, test_rows + WORD_ROWS)
    if in_prompt:
        return Rows(data.inputs, data.labels)
    pooling = near_tasks.pooling_at_last_word(pretrained)
    if pretrained.config.causal:
        return Rows(data.inputs, data.labels, pooling)
    return Rows([f"{text} [MASK]" for text in data.inputs], data.labels, pooling)


def most_frequent(test: Rows) -> float:
    """The accuracy of one answer to everything, the best one."""
    counts = [test.labels.count(label) for label in set(test.labels)]
    return max(counts) / len(test.labels)


def study(pretrained: adapt.Pretrained, name: str, config: Config) -> Scores:
    """Every side at every budget, and the prompts without training."""
    classes = list(PROMPTS[name].words)
    shown = short_name(pretrained.source)
    console.say(f"{shown}, {name}: without training")
    scores: Scores = {NONE: {}}
    for side_name in ASKED:
        prompt = SIDES[side_name].prompts[name]
        train, test = rows_of(name, pretrained, side_name, config)
        targets = np.array([classes.index(label) for label in test.labels], np.int32)
        template = prompt.asked_of(pretrained.config.causal)
        outputs = asked(pretrained, template, prompt, test)
        scores[NONE][side_name] = accuracy_of([outputs] * config.seeds, targets)
        with_rows = []
        for seed in range(config.seeds):
            rows = one_of_each(train, seed)
            with_rows.append(prompt.after(rows, pretrained.config.causal))
        if all(has_room(pretrained, template) for template in with_rows):
            of_seeds = [asked(pretrained, template, prompt, test) for template in with_rows]
            scores.setdefault(SHOWN, {})[side_name] = accuracy_of(of_seeds, targets)
    for side_name in TRAINED:
        console.say(f"{shown}, {name}: {side_name}")
        cells, labels = compare_side(pretrained, name, side_name, config)
        targets = np.array([classes.index(label) for label in labels], np.int32)
        for count in config.labels:
            strategy = strategy_of(side_name, config)
            of_seeds = outputs_of(cells, strategy, count * len(classes), config.seeds)
            scores.setdefault(count, {})[side_name] = accuracy_of(of_seeds, targets)
    return scores


def asked(pretrained: adapt.Pretrained, template: str, prompt: Prompt, test: Rows) -> np.ndarray:
    """The outputs of a prompt without training, [N, C]."""
    run = adapt.zero_shot(pretrained, template, prompt.words)
    return run.predict(test.texts).outputs


def has_room(pretrained: adapt.Pretrained, template: str) -> bool:
    """Whether the encoder has positions for a template and some text."""
    tokens = tokenizer_of(pretrained).uncut.encode(template).ids
    return len(tokens) + ROOM <= pretrained.config.positions


def one_of_each(rows: Rows, seed: int) -> list[tuple[str, str]]:
    """A row (text, class) of every class, in random order."""
    random = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for row in random.permutation(len(rows.texts)):
        found.setdefault(rows.labels[row], rows.texts[row])
    labels = random.permutation(sorted(found))
    return [(found[label], str(label)) for label in labels]


def compare_side(
    pretrained: adapt.Pretrained, name: str, side_name: str, config: Config
) -> tuple[Cells, list[str]]:
    """(the fits of one side at every budget, the classes of the test set)."""
    side = SIDES[side_name]
    given: dict[str, Any] = {}
    if name in side.prompts:
        prompt = side.prompts[name]
        given["template"] = prompt.asked_of(pretrained.config.causal)
        given["verbalizer"] = prompt.words
    train, test = rows_of(name, pretrained, side_name, config)
    if train.pooling is not None:
        given["pooling"] = train.pooling
    of_checkpoint = short_name(pretrained.source).replace("/", "-")
    out = config.folder / f"{of_checkpoint}-{name}-{side_name.replace(' ', '-')}"
    resume = config.resume and (out / "config.json").exists()
    adapt.compare(
        pretrained,
        train.texts,
        train.labels,
        test=(test.texts, test.labels),
        task=side.task,
        strategies=[strategy_of(side_name, config)],
        budgets=[str(count * len(PROMPTS[name].words)) for count in config.labels],
        rates=config.rates,
        seeds=config.seeds,
        batch_size=16,
        out=out,
        resume=resume,
        overwrite=not resume,
        **given,
    )
    return Cells(out / "cells"), test.labels


def strategy_of(side_name: str, config: Config) -> str:
    """The strategy of a side in :func:`adapt.compare`."""
    return PROBE if side_name == PROBE else config.strategy


def outputs_of(cells: Cells, strategy: str, budget: int, seeds: int) -> list[np.ndarray]:
    """The outputs on the test set, [N, C], of each seed's fit."""
    outputs = []
    for seed in range(seeds):
        outputs.append(cells.outputs_of((strategy, str(budget), seed))["test"])
    return outputs


def difference(sides: Mapping[str, Score], better: str, worse: str) -> Score | None:
    """By how much one side is better than another."""
    if better not in sides or worse not in sides:
        return None
    return sides[better] - sides[worse]


def claims(scores: Mapping[str, ScoresOfSets]) -> list[Claim]:
    """That a prompt is better than a new head where labels are few, far from the objective and near
    it; that it still is with the most; and that an instruction is better than none.
    """
    of_all = [of_set for of_sets in scores.values() for of_set in of_sets.values()]
    trained = [count for count, sides in of_all[0].items() if NEW_HEAD in sides]
    fewest, most = min(trained), max(trained)
    found = []
    for checkpoint, of_sets in scores.items():
        far = [of_set for name, of_set in of_sets.items() if name != WORD]
        near = [of_set for name, of_set in of_sets.items() if name == WORD]
        if far:
            where = " and ".join(name for name in of_sets if name != WORD)
            statement = f"{checkpoint}, {fewest} labels a class, {where}: the prompt is better"
            found.append(claim(statement, far, fewest, PROMPT, NEW_HEAD))
        if near:
            statement = f"{checkpoint}, {fewest} labels a class, {WORD}: the prompt is better"
            found.append(claim(statement, near, fewest, PROMPT, NEW_HEAD))
    if most > fewest:
        statement = f"{most} labels a class: the prompt is better"
        found.append(claim(statement, of_all, most, PROMPT, NEW_HEAD))
    statement = "without training the prompt is better with an instruction"
    found.append(claim(statement, of_all, NONE, INSTRUCTION, PROMPT))
    return found


def claim(statement: str, of_sets: Sequence[Scores], count: int, better: str, worse: str) -> Claim:
    """That one side is better than another, as the mean over sets."""
    gains = [of_set[count][better] - of_set[count][worse] for of_set in of_sets]
    over = "" if len(gains) == 1 else f", mean of {len(gains)}"
    return Claim(statement, f"{better} - {worse}{over}", mean_of(gains))


def plain(scores: Scores) -> dict[str, Any]:
    """Scores as JSON has them."""
    content = {}
    for count, sides in scores.items():
        named = dict(sides)
        for better, worse in DIFFERENCES:
            gain = difference(sides, better, worse)
            if gain is not None:
                named[f"{better} - {worse}"] = gain
        content[str(count)] = {name: score.plain for name, score in named.items()}
    return content


def table_rows(scores: Mapping[str, ScoresOfSets]) -> list[tuple[str, ...]]:
    """A row a checkpoint, set and budget, as :data:`COLUMNS` names its values."""
    rows = []
    for checkpoint, of_sets in scores.items():
        for name, of_set in of_sets.items():
            for count in sorted(of_set):
                sides = of_set[count]
                cells = []
                for side in SIDES:
                    cells.append(f"{sides[side].value:.3f}" if side in sides else "")
                for better, worse in DIFFERENCES:
                    gain = difference(sides, better, worse)
                    cells.append("" if gain is None else with_interval(gain, sign=True))
                rows.append((checkpoint, name, shown_count(count), *cells))
    return rows


def shown_count(count: int) -> str:
    """What table and figure call a number of labels a class."""
    return f"{SHOWN} shown" if count == SHOWN else str(count)


def asked_in_words(names: Sequence[str]) -> str:
    """Prompts and instructions of sets, in a sentence."""
    said = []
    for name in names:
        prompt = PROMPTS[name]
        instruction = INSTRUCTIONS[name]
        words = ", ".join(prompt.words.values())
        answers = ", ".join(instruction.words.values())
        beside = "" if answers == words else f" ({answers})"
        said.append(
            f"of {name} `{prompt.template}` ({words}) and `{instruction.lead}{instruction.template}`{beside}"
        )
    return "; ".join(said)


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
        method=method(config),
        differs=differs(config),
        source=source_of(
            "experiments.prompting",
            config,
            f"Test accuracy on {config.test_rows:,} rows, mean of {config.seeds} seeds, the best of "
            f"{len(config.rates)} rates by a fifth of the labels",
        ),
    )


def method(config: Config) -> list[str]:
    """How, in paragraphs."""
    sets = ", ".join(WORD_SETS)
    prompts = asked_in_words(config.data)
    filled = []
    uses_causal = any(name.startswith(CAUSAL_FOLDER) for name in config.checkpoints)
    for paragraph in (*METHOD, CAUSAL_LM) if uses_causal else METHOD:
        filled.append(
            paragraph.replace("{few}", str(FEW))
            .replace("{strategy}", config.strategy)
            .replace("{prompts}", prompts)
            .replace("{word_sets}", sets)
        )
    return filled


def differs(config: Config) -> list[str]:
    """What is not as in the papers."""
    is_whole = config.strategy == "full"
    return [*DIFFERS] if is_whole else [*DIFFERS, NOT_WHOLE.replace("{strategy}", config.strategy)]


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
        axis.set_xlabel("labels a class (shaded: no training)")
    handles = axes[0, 0].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    return drawn


def draw_set(axis: Any, of_set: Scores) -> None:
    """Every side of one checkpoint on one set, at the place of its budget."""
    counts = sorted(of_set)
    untrained = sum(NEW_HEAD not in of_set[count] for count in counts)
    axis.axvspan(-0.4, untrained - 0.5, color=plots.GREY, alpha=0.15, lw=0)
    for number, (side, of_side) in enumerate(SIDES.items()):
        places = []
        scores = []
        for place, count in enumerate(counts):
            if side in of_set[count]:
                places.append(place + 0.08 * (number - 1))
                scores.append(of_set[count][side])
        if scores:
            draw.points(axis, places, scores, of_side.colour, side)
    axis.set_xticks(range(len(counts)), [shown_count(count) for count in counts])
    axis.set_xlim(-0.4, len(counts) - 0.6)


if __name__ == "__main__":
    launch(Config, main)
