"""Labels of spans: what a value of a label column says, and whether it is true of its text.

An answer is where it begins, where it has ended, and its text where the label has it.

    read_answers(table, 1, {"text": ["Cork"], "answer_start": [18]})        # [(18, 22, "Cork")]
    read_answers(table, 2, {"text": [], "answer_start": []})                # []: no answer
"""

from collections.abc import Iterator, Sequence
from typing import Any

from adapt.data.labels import shortened
from adapt.data.offsets import UNIT_NAMES, agreeing_unit, characters_before, num_units
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.files import parse_json
from adapt.options import Offsets

Answer = tuple[int, int, str | None]  # where it begins, where it has ended, the text


def read_answers(table: Table, row: int, value: Any, unit: Offsets = "characters") -> list[Answer]:
    """The answers of a row: (where it begins, where it has ended, the text or None), in units; []
    for a question without an answer.

    Raises DataError with the row.
    """
    answers: list[Answer] = []
    try:
        span = parse_json(value) if isinstance(value, str) else value
        if isinstance(span, dict) and span["text"] == span["answer_start"] == []:
            return []
        if isinstance(span, dict):
            starts = as_answers(span["answer_start"])
            texts = as_answers(span["text"])
            for start, text in zip(starts, texts, strict=True):
                end = whole(start) + num_units(text, unit)
                answers.append((whole(start), end, str(text)))
        else:
            start, end = map(whole, span)
            answers.append((start, end, None))
    except (ValueError, TypeError, KeyError, AttributeError):
        answers = []
    if not answers or not all(0 <= start < end for start, end, _ in answers):
        raise DataError(
            f"{table.name}: row {row}: {value!r} is no span: give [start, end], or answer_start "
            "and text as SQuAD has them, both [] for no answer"
        )
    return answers


def answers_in_texts(
    table: Table, label_column: str, text_column: str, unit: Offsets = "characters"
) -> Iterator[tuple[str, str, list[Answer]]]:
    """(what an error of it begins with, the text, its answers) of every row.

    Raises DataError as :func:`read_answers` does.
    """
    labels = numbered_values(table, label_column)
    texts = numbered_values(table, text_column)
    for (row, value), (_, text) in zip(labels, texts, strict=True):
        yield f"{table.name}: row {row}", text or "", read_answers(table, row, value, unit)


def as_answers(value: Any) -> list[Any]:
    """The values of several answers; one answer may stand without a list."""
    return value if isinstance(value, list) else [value]


def whole(value: Any) -> int:
    """A whole number. Raises ValueError for another, which int() would cut, and for a boolean."""
    if isinstance(value, bool) or not float(value).is_integer():
        raise ValueError(f"{value} is no whole number")
    return int(value)


def in_characters(where: str, context: str, answers: Sequence[Answer], unit: Offsets) -> Any:
    """The answers of a row as a label whose offsets count characters.

    Raises DataError where one does not stand at its offset, or where that is no place in the text.
    """
    spans = []
    for answer in answers:
        check_answer(where, context, answer, unit)
        places = [characters_before(context, offset, unit) for offset in answer[:2]]
        if None in places:
            raise DataError(
                f"{where}: the span {answer[0]} to {answer[1]} lies beyond its text or within a "
                f"character, counted in {UNIT_NAMES[unit]} as `offsets` {unit} says"
            )
        spans.append(places)
    if any(text is None for _, _, text in answers):
        return spans[0]  # [start, end], which is one
    starts = [start for start, _ in spans]
    return {"text": [text for _, _, text in answers], "answer_start": starts}


def check_answer(where: str, context: str, answer: Answer, unit: Offsets = "characters") -> None:
    """Raise DataError where an answer's text does not stand at its offset."""
    start, _, text = answer
    if text is None:
        return
    place = characters_before(context, start, unit)
    if place is not None and context.startswith(text, place):
        return
    shown = "nothing" if place is None else shortened(context[place : place + len(text)])
    said = f"{where}: the answer {shortened(text)!r} is not at {start}, where its text has "
    said += f"{shown!r}: "
    if text not in context:
        raise DataError(f"{said}it is nowhere in the text, so answer or text was changed")
    agreeing = agreeing_unit(context, start, text)
    if agreeing is not None:
        raise DataError(
            f"{said}its offset counts {UNIT_NAMES[agreeing]}, not {UNIT_NAMES[unit]}: "
            f"give `offsets` {agreeing}"
        )
    first = num_units(context[: context.index(text)], unit)
    raise DataError(f"{said}it begins at {first}; offsets count {UNIT_NAMES[unit]} from 0")
