"""Entities in tags of words: their F1 as conlleval counts it, and seqeval by default.

An entity is right where its first word, its last word and its type are. Tags are B-, I- (either way
of them, IOB1 and IOB2), and E-, S- of IOBES or L-, U- of BILOU. As Tjong Kim Sang and Buchholz's
conlleval (CoNLL-2000), tags that contradict each other are read leniently: an I- after an O, or
after another type, begins an entity.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from adapt.tasks.metrics import NAN, Scores, is_of_a_class

OUTSIDE, BEGIN, INSIDE, END, SINGLE = range(5)
PREFIXES = {"B": BEGIN, "I": INSIDE, "E": END, "S": SINGLE, "L": END, "U": SINGLE}
RATIOS = ("f1", "precision", "recall")
ONE_TYPE = "entity"  # where classes are the letters alone
TAG = re.compile(r"([BIESLU])(?:-(.+))?")
TYPED = re.compile(r"[BIESLU]-.+")

# PER-B, B_PER, b-per
OTHER_SPELLING = re.compile(r"[BIESLU][-_.:/|].+|.+[-_.:/|][BIESLU]", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What the classes of a tagger say of entities."""

    prefixes: np.ndarray  # of every class, int [C]
    type_numbers: np.ndarray  # of every class, int [C]; -1 for O
    types: Sequence[str]


def scheme_of(names: Sequence[str]) -> Scheme | None:
    """The scheme of classes that are O and B-, I- and the like with a type; None of others.

    Classes may be the letters alone, where all entities are of one type. Then O and I, and nothing
    but such letters, have to be there.
    """
    matches = {name: TAG.fullmatch(name) for name in names if name != "O"}
    if not matches or not all(matches.values()):
        return None
    parsed = {name: match.groups() for name, match in matches.items() if match}
    typed = {name for name, (_, kind) in parsed.items() if kind}
    if typed and len(typed) < len(parsed):
        return None
    if not typed and not {"O", "I"} <= set(names):
        return None
    if not {letter for letter, _ in parsed.values()} & {"B", "I"}:
        return None
    types = sorted({kind or ONE_TYPE for _, kind in parsed.values()})
    prefixes = []
    numbers = []
    for name in names:
        letter, kind = parsed.get(name, ("", None))
        prefixes.append(PREFIXES.get(letter, OUTSIDE))
        numbers.append(types.index(kind or ONE_TYPE) if letter else -1)
    return Scheme(np.array(prefixes), np.array(numbers), types)


def other_spelling(names: Sequence[str]) -> str | None:
    """The first of the classes, where all are tags of entities that are spelled otherwise than
    :func:`scheme_of` reads them; where most are as it reads them, the first that is not.
    """
    tags = [name for name in names if name.upper() != "O"]
    if scheme_of(names) is not None or not tags:
        return None
    if len(tags) < len(names) and all(map(OTHER_SPELLING.fullmatch, tags)):
        return tags[0]
    strange = [name for name in names if name != "O" and not TYPED.fullmatch(name)]
    return strange[0] if strange and 2 * len(strange) < len(names) else None


@dataclasses.dataclass(frozen=True)
class Counts:
    """Entities by sentence and type, int [S, T] each."""

    right: np.ndarray
    predicted: np.ndarray
    true: np.ndarray


def count_entities(
    scheme: Scheme, predicted: np.ndarray, true: np.ndarray, is_first: np.ndarray
) -> Counts:
    """The entities of predicted and true classes, int [words]; ``is_first`` bool [words] says where
    a sentence begins.
    """
    sentence = np.cumsum(is_first) - 1
    shape = (int(sentence[-1]) + 1 if len(sentence) else 0, len(scheme.types))
    last_predicted = last_words(scheme, predicted, is_first)
    last_true = last_words(scheme, true, is_first)
    of_predicted = scheme.type_numbers[predicted]
    of_true = scheme.type_numbers[true]
    is_right = (last_true >= 0) & (last_predicted == last_true) & (of_predicted == of_true)

    def count(is_entity: np.ndarray, types: np.ndarray) -> np.ndarray:
        counts = np.zeros(shape, np.int64)
        np.add.at(counts, (sentence[is_entity], types[is_entity]), 1)
        return counts

    return Counts(
        right=count(is_right, of_true),
        predicted=count(last_predicted >= 0, of_predicted),
        true=count(last_true >= 0, of_true),
    )


def last_words(scheme: Scheme, classes: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """For every word that begins an entity the last word of it, int [words]; -1 for other words.

    The rules are conlleval's ``startOfChunk`` and ``endOfChunk``.
    """
    tag = scheme.prefixes[classes]
    kind = scheme.type_numbers[classes]
    before = np.where(is_first, OUTSIDE, np.roll(tag, 1))
    is_tagged = tag != OUTSIDE
    other_type = np.roll(kind, 1) != kind
    # E- and S- end an entity, and nothing goes on after O.
    after_end = (before == OUTSIDE) | (before == END) | (before == SINGLE)
    begins = is_tagged & ((tag == BEGIN) | (tag == SINGLE) | after_end | other_type)
    # What does not begin goes on, so an entity ends where the next word does not go on.
    goes_on = is_tagged & ~begins
    ends = is_tagged & ~np.append(goes_on[1:], False)
    last = np.full(len(tag), -1)
    last[begins] = np.flatnonzero(ends)
    return last


def entity_scores(scheme: Scheme, counts: Counts) -> Scores:
    """entity_f1, entity_precision and entity_recall of all entities; and ``f1:TYPE``,
    ``precision:TYPE``, ``recall:TYPE`` and ``support:TYPE`` of each type.

    As in seqeval, what would divide by 0 is 0; the scores of a type that is neither there nor
    predicted are nan.
    """
    computed = quotients(score_ratios(scheme, counts))
    scores = {name: value for name, value in computed.items() if not is_of_a_class(name)}
    for number, kind in enumerate(scheme.types):
        support = int(counts.true[:, number].sum())
        is_scored = support > 0 or counts.predicted[:, number].any()
        for ratio in RATIOS:
            name = f"{ratio}:{kind}"
            scores[name] = computed[name] if is_scored else NAN
        scores[f"support:{kind}"] = float(support)
    return scores


def quotients(ratios: dict[str, tuple[np.ndarray, np.ndarray]]) -> Scores:
    """Each numerator's sum by its denominator's; 0 where the latter is 0, as both then are."""
    return {
        name: float(above.sum() / max(below.sum(), 1)) for name, (above, below) in ratios.items()
    }


def score_ratios(scheme: Scheme, counts: Counts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each sentence adds to the numerator and to the denominator of a score, int [S] each, by
    score.
    """
    ratios = {}
    every_type = np.arange(len(scheme.types))
    for name, values in ratios_of(counts, every_type).items():
        ratios[f"entity_{name}"] = values
    for number, kind in enumerate(scheme.types):
        for name, values in ratios_of(counts, every_type[number : number + 1]).items():
            ratios[f"{name}:{kind}"] = values
    return ratios


def ratios_of(counts: Counts, types: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(numerator, denominator) of each of RATIOS for entities of some types, int [S] each."""
    right = counts.right[:, types].sum(1)
    predicted = counts.predicted[:, types].sum(1)
    true = counts.true[:, types].sum(1)
    values = ((2 * right, predicted + true), (right, predicted), (right, true))
    return dict(zip(RATIOS, values, strict=True))
