"""SQuAD's scores of answers: Rajpurkar et al. 2016, 6.1, and 2018, 5, as the official scripts
compute them, but as shares and not in percent.

    normalized("The  city of Graz!")                  # "city of graz"
    f1("in Graz", ["the city of Graz", "Graz"])       # 2/3
"""

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from adapt.data.spans import SpanFile, SpanWindows

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
NAN = float("nan")

# (an answer, the answers that are right) -> a score
AnswerScore = Callable[[str, Sequence[str]], float]


def normalized(text: str) -> str:
    """A text in lower case without punctuation, articles and needless white space."""
    kept = "".join(sign for sign in text.lower() if sign not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 where the answer is one of ``gold`` after :func:`normalized`, else 0."""
    return float(normalized(answer) in map(normalized, gold))


def f1(answer: str, gold: Sequence[str], of_no_words: float = 1.0) -> float:
    """The best F1 of the answer's words, each as often as it stands there, over ``gold``.

    ``of_no_words`` is the F1 of two answers without words, such as "the" and "?!": 1 in
    evaluate-v2.0.py, 0 in evaluate-v1.1.py.
    """
    words = normalized(answer).split()
    return max(f1_of_words(words, normalized(one).split(), of_no_words) for one in gold)


def f1_of_words(words: Sequence[str], gold: Sequence[str], of_no_words: float = 1.0) -> float:
    """2 * shared / (words + gold); where neither has a word ``of_no_words``, and 0 where one has
    none.
    """
    if not words and not gold:
        return of_no_words
    shared = collections.Counter(words) & collections.Counter(gold)
    count = sum(shared.values())
    return 2 * count / (len(words) + len(gold))


@dataclasses.dataclass(frozen=True)
class Found:
    """The best answer to each of Q questions, over all windows of its text."""

    spans: list[tuple[int, int, str]]  # characters, the end exclusive, and the text
    margins: np.ndarray  # float64 [Q]: by how much no answer is better than it; -inf: never


def best_answers(logits: np.ndarray, labels: SpanWindows) -> Found:
    """The best answer of every question whose windows ``labels`` has. logits [windows, 2, L].

    The score of a span is the sum of its start's and its end's logits. That of no answer is the one
    of the first token, [CLS], in the window where it is least (Devlin et al. 2019, 4.3).
    """
    in_text = labels.in_text(logits.shape[2])
    of_text = np.where(in_text[:, None], logits, -np.inf)
    tokens = best_spans(of_text)
    number = np.arange(len(logits))
    scores = of_text[number, 0, tokens[:, 0]] + of_text[number, 1, tokens[:, 1]]
    # The best window of each question, of equal ones the first, comes first.
    order = np.lexsort((number, -scores, labels.questions))
    _, first = np.unique(labels.questions[order], return_index=True)
    best = order[first]
    spans = []
    for window in best.tolist():
        if np.isfinite(scores[window]):
            spans.append(labels.text(window, *tokens[window].tolist()))
        else:  # a text of which the tokenizer makes no token
            spans.append((0, 0, ""))
    return Found(spans, null_margins(logits, labels, scores[best]))


def null_margins(logits: np.ndarray, labels: SpanWindows, best_scores: np.ndarray) -> np.ndarray:
    """By how much no answer is better than the best one, float64 [Q]; -inf in a file in which every
    question has an answer.

    ``best_scores`` [Q] are those of the best answers, -inf where a text has no token.
    """
    if not labels.file.has_null:
        return np.full(len(best_scores), -np.inf)
    no_answer = np.full(len(best_scores), np.inf)
    np.minimum.at(no_answer, labels.questions, logits[:, :, 0].sum(1, np.float64))
    is_answer = np.isfinite(best_scores)
    return np.where(is_answer, no_answer - np.where(is_answer, best_scores, 0), no_answer)


def best_spans(logits: np.ndarray) -> np.ndarray:
    """The (start, end) with start <= end whose logits sum to the most. [N, 2, L] -> int [N, 2]."""
    start = logits[:, 0]
    end = logits[:, 1]
    best_end = (np.maximum.accumulate(start, 1) + end).argmax(1)
    may_start = np.arange(start.shape[1]) <= best_end[:, None]
    best_start = np.where(may_start, start, -np.inf).argmax(1)
    return np.stack([best_start, best_end], 1)


def is_counted(labels: SpanWindows) -> np.ndarray:
    """Which questions are scored, bool [Q]: not those whose answer lies in what was cut off."""
    file = labels.file
    if not file.is_cut:
        return np.ones(len(labels.rows), bool)
    return (file.is_found | file.is_unanswerable)[labels.rows]


def gold_answers(labels: SpanWindows, row: int) -> list[str]:
    """The texts that an answer is compared with: [""] for a question without an answer.

    As evaluate-v2.0.py does, answers without words are left out of a file as SQuAD 2.0 is.
    """
    gold = labels.file.gold(row)
    if labels.file.has_unanswerable:
        gold = [text for text in gold if normalized(text)]
    return gold or [""]


def question_scores(logits: np.ndarray, labels: SpanWindows) -> dict[str, np.ndarray]:
    """exact_match and f1 of every question, float64 [Q], the best over its answers.

    Where some question of the file has no answer, also HasAns_exact, HasAns_f1, NoAns_exact and
    NoAns_f1, nan for the questions of the other kind. All are nan for an answer that was cut off.
    """
    found = best_answers(logits, labels)
    answers = []
    for (_, _, text), margin in zip(found.spans, found.margins, strict=True):
        answers.append("" if margin > 0 else text)
    exact = compared(answers, labels, exact_match)
    f1_scores = compared(answers, labels, f1_of_format(labels.file))
    exact[~is_counted(labels)] = NAN
    f1_scores[~is_counted(labels)] = NAN
    file = labels.file
    scores = {"exact_match": exact, "f1": f1_scores}
    if file.has_unanswerable:
        is_null = file.is_unanswerable[labels.rows]
        for name, is_kind in (("HasAns", ~is_null), ("NoAns", is_null)):
            scores[f"{name}_exact"] = np.where(is_kind, exact, NAN)
            scores[f"{name}_f1"] = np.where(is_kind, f1_scores, NAN)
    return scores


def f1_of_format(file: SpanFile) -> AnswerScore:
    """:func:`f1` as the official script of the file's format computes it.

    Where neither answer has a word, evaluate-v1.1.py gives 0: the two share none. In
    evaluate-v2.0.py both then say that there is no answer, which is right.
    """
    return functools.partial(f1, of_no_words=float(file.has_unanswerable))


def compared(answers: Sequence[str], labels: SpanWindows, score: AnswerScore) -> np.ndarray:
    """The score of the answer to each question, float64 [Q]."""
    values = []
    for answer, row in zip(answers, labels.rows.tolist(), strict=True):
        values.append(score(answer, gold_answers(labels, row)))
    return np.array(values, np.float64)


def best_threshold(logits: np.ndarray, labels: SpanWindows) -> float:
    """By how much no answer has to be better than an answer to be given: the best F1 of a set.

    It lies between the margins of two questions, or beyond all of them; of equally good ones the
    smallest counts.
    """
    found = best_answers(logits, labels)
    texts = [text for _, _, text in found.spans]
    f1_of_answer = compared(texts, labels, f1_of_format(labels.file))
    f1_of_none = labels.file.is_unanswerable[labels.rows].astype(np.float64)
    gain_of_answer = np.where(is_counted(labels), f1_of_answer - f1_of_none, 0)

    margins, place = np.unique(found.margins, return_inverse=True)
    gains = np.bincount(place, gain_of_answer)
    # Threshold i gives the answers to the questions with the i smallest margins.
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    below_all = margins[0] - 1
    between = (margins[1:] + margins[:-1]) / 2
    above_all = margins[-1] + 1
    thresholds = np.concatenate([[below_all], between, [above_all]])

    best = thresholds[totals >= totals.max() - 1e-9]
    nearest_to_zero = np.abs(best).argmin()
    return float(best[nearest_to_zero])


def majority_answer(train: SpanWindows, test: SpanWindows) -> float:
    """The exact match on the test of the answer that most training questions have; "" is none."""
    counts = collections.Counter()
    for row in train.rows.tolist():
        counts[normalized(gold_answers(train, row)[0])] += 1
    ((answer, _),) = counts.most_common(1)
    is_right = compared([answer] * len(test.rows), test, exact_match)[is_counted(test)]
    return float(is_right.mean()) if len(is_right) else NAN
