"""JSON files that are one object: SQuAD's own files as rows, others refused with the mend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.errors import DataError

Object = dict[str, Any]


def is_squad(content: Any) -> bool:
    """Whether an object is a file of SQuAD: ``{"data": [{"paragraphs": [...]}, ...]}``."""
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not articles:
        return False
    return all(isinstance(article, dict) and "paragraphs" in article for article in articles)


def holds_rows(content: Any) -> bool:
    """Whether an object is no row, but has a field ``data`` with rows."""
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        return False
    return all(isinstance(row, dict) for row in rows)


def squad_rows(path: Path | str, content: Any) -> list[Object]:
    """A row for every question of a file of SQuAD 1.1 or 2.0, in its order.

    Columns are ``id``, ``title``, ``context``, ``question`` and ``answers``, the last with the
    lists ``text`` and ``answer_start``, empty for a question without an answer; it is None where
    the file keeps the answers to itself, as that of a hidden test does.

    Raises :class:`DataError` for what has another form (Rajpurkar et al. 2016 and 2018).
    """
    rows: list[Object] = []
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    rows.append(squad_row(article, paragraph, question))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: question {len(rows) + 1} has not SQuAD's form: {type(error).__name__}: {error}"
        ) from error
    return rows


def squad_row(
    article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Mapping[str, Any]
) -> Object:
    """One question as a row."""
    answers = [] if question.get("is_impossible") else question.get("answers")
    spans = None
    if answers is not None:
        spans = {
            "text": [answer["text"] for answer in answers],
            "answer_start": [answer["answer_start"] for answer in answers],
        }
    return {
        "id": str(question.get("id", "")),
        "title": article.get("title"),
        "context": paragraph["context"],
        "question": question["question"],
        "answers": spans,
    }


def no_rows(path: Path, content: Mapping[str, Any]) -> DataError:
    """The error of a file that is one object and no row, and what to do."""
    for name, values in content.items():
        if isinstance(values, list) and values and all(isinstance(row, dict) for row in values):
            return DataError(
                f"{path} is one JSON object, whose field '{name}' has {len(values):,} rows: give a "
                f"file of these alone, such as jq .{name} makes it"
            )
    return DataError(
        f"{path} is one JSON object and has no rows: give a list of objects, or one object a line"
    )
