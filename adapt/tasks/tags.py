"""A class for every word of a text."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapt.data import examples, misnamed, tables
from adapt.data.examples import Examples
from adapt.data.labels import (
    Labels,
    class_names,
    class_numbers,
    label_text,
    plain_spelling,
    read_labels,
    shortened,
    tag_list,
    word_list,
)
from adapt.data.tables import Table
from adapt.errors import DataError
from adapt.models import Tagger
from adapt.options import TaskOptions
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Encoded, Tokenizer, gather, left_out
from adapt.ragged import Ragged, ragged
from adapt.tasks import entities, metrics
from adapt.tasks.base import CHUNK, TASKS, Answers, Row, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TagLabels(Ragged):
    """Classes of words, int32; those from the number of outputs on are the ``unseen`` ones."""

    unseen: tuple[str, ...] = ()  # classes that no output is of


class Tags(Task):
    """A class a word; labels are Ragged int32 of the words, logits [words, C].

    Words and tags are lists, JSON lists in a string, or words with spaces between them. A word is
    scored at its first token. A word that is cut off, or of which no token is left, is not scored.

    Where all classes are O and B-, I- and the like with a type, entities are scored, and their F1
    decides; see :mod:`adapt.tasks.entities`. A tag that training did not have counts as wrong,
    whatever is said of its word, and is in no loss.
    """

    further_texts = (0, 0)
    takes_words = True
    takes_images = False
    pools = False
    has_class_weights = True
    loss = staticmethod(losses.cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        names = class_names(table, column, self.name, tag_list)
        example = entities.other_spelling(names)
        if example is not None:
            logger.warning(
                f"{table.name}: tags such as {example!r} are scored as words: for the F1 of entities "
                "write them as O, B-PER and I-PER are"
            )
        return names

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """Raises DataError for tags that training did not have where they can't be meant as classes
        of their own; see :func:`unseen_tags`.
        """
        unseen = unseen_tags(table, column, names)
        encoded = ragged(class_numbers(table, column, [*names, *unseen], tag_list))
        return TagLabels(encoded.values, encoded.starts, encoded.lengths, unseen=tuple(unseen))

    def no_labels(self, table: Table, columns: Sequence[str]) -> Labels:
        """The numbers of the words, so that it is known which word an output is of."""
        numbered = []
        for chunk in word_chunks(table, columns[0]):
            numbered += [np.arange(len(words)) for words in chunk]
        return ragged(numbered)

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        """Labels become int32 [words, 2]: the place of the word's first token, and its class."""
        assert isinstance(labels, Ragged)
        if len(labels) > 1 and labels.lengths.max() == 1:
            check_single_words(table, columns[0])
        part, lost = tagged_examples(pretrained, table, columns[0], labels)
        words = int(labels.lengths.sum())
        if lost.cut_off:
            logger.warning(
                f"{table.name}: {lost.cut_off} of {words} words lie beyond the {part.max_length} "
                "tokens of an example: not scored"
            )
        if lost.without_token:
            logger.warning(
                f"{table.name}: the tokenizer makes no token of {lost.without_token} of {words} "
                f"words, such as {lost.example}: not scored"
            )
        return part

    def check_scored(self, part: Examples, where: str, needs_loss: bool = False) -> None:
        if not part.num_outputs:
            raise DataError(
                f"{where}: the tokenizer makes no token of any of its words, so that nothing is "
                "left to learn or to score"
            )

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        config = pretrained.config
        layer = get_family(config.family).head_layer(config)
        return Tagger(len(names), config.dropout, **layer)

    def deciding_metric(self, names: Sequence[str]) -> str:
        return self.primary_metric if entities.scheme_of(names) is None else "entity_f1"

    def mean_loss(self, outputs: np.ndarray, labels: Any, size: int = 1024) -> float:
        """The mean over the words whose class has an output; nan where none has."""
        has_output = labels < outputs.shape[-1]
        if not has_output.any():
            return metrics.NAN
        return super().mean_loss(outputs[has_output], labels[has_output], size)

    def scored_names(self, part: Examples, names: Sequence[str]) -> Sequence[str]:
        assert isinstance(part.labels, TagLabels)
        return [*names, *part.labels.unseen]

    def truth(self, part: Examples) -> np.ndarray:
        """int [words, 2]: the class, and 1 where a sentence begins, which ends what an entity is."""
        assert isinstance(part.labels, Ragged)
        lengths = part.labels.lengths
        is_first = np.zeros(part.num_outputs, np.int32)
        is_first[(np.cumsum(lengths) - lengths)[lengths > 0]] = 1
        return np.stack([part.targets, is_first], 1)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        of_words = metrics.tags(outputs, labels[:, 0])
        scheme = entities.scheme_of(names)
        if scheme is None:
            return of_words
        of_entities = entities.entity_scores(scheme, count(scheme, outputs, labels))
        whole = {
            name: value for name, value in of_entities.items() if not metrics.is_of_a_class(name)
        }
        return whole | of_words | of_entities  # those of a single type come last

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return {"accuracy": metrics.is_right(outputs, labels[:, 0])}

    def score_ratios(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        scheme = entities.scheme_of(names)
        if scheme is None:
            return {}
        return entities.score_ratios(scheme, count(scheme, outputs, labels))

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        return metrics.majority(train[:, 0], test[:, 0])

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        return ["prediction"]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are lists with a tag for each word; None for words of which no token is left."""
        assert isinstance(part.labels, Ragged)
        tags = outputs.argmax(-1)
        word_numbers = part.targets
        labels = []
        start = 0
        for chunk in word_chunks(table, columns[0]):
            for words in chunk:
                stop = start + int(part.labels.lengths[len(labels)])
                of_words: list[Any] = [None] * len(words)
                for output in range(start, stop):
                    of_words[word_numbers[output]] = run.classes[tags[output]]
                labels.append(of_words)
                start = stop
        return Answers(labels)

    def cells(self, run: Pretrained, label: list[Any]) -> Row:
        names = [tag if tag is None else label_text(tag) for tag in label]
        return [json.dumps(names, ensure_ascii=False)]


def check_single_words(table: Table, column: str) -> None:
    """Say that all rows of a table are single words. Raises DataError where one of its files has
    blank lines between them, which divide sentences in a file with a word a line.
    """
    what = f"{table.name}: every row is a single word"
    for file in table.files:
        if misnamed.is_word_a_row(file, column):
            raise DataError(
                f"{what}, and {file.name} has blank lines between rows, as between sentences: a "
                "file with a word a line, without a header, is called .conll"
            )
    logger.warning(
        f"{what}, read without its sentence: a file with a word a line, without a header, is "
        "called .conll"
    )


def unseen_tags(table: Table, column: str, names: Sequence[str]) -> list[str]:
    """The tags of a table that are not among ``names``, those of training; logs how many words have
    them.

    Raises DataError, with the row, for one that is spelled otherwise in training or is no tag of
    entities as those of training are, and where no tag but O is one of training.
    """
    known = set(names)
    spelling = {plain_spelling(name): name for name in names}
    first_row: dict[str, int] = {}
    words = 0
    is_known = False
    for row, tags in read_labels(table, column, tag_list):
        for tag in tags:
            is_known = is_known or (tag in known and tag != "O")
            if tag not in known:
                words += 1
                first_row.setdefault(tag, row)
    shown = shortened(", ".join(names))
    for tag, row in first_row.items():
        where = f"{table.name}: row {row}: tag '{tag}'"
        if plain_spelling(tag) in spelling:
            raise DataError(
                f"{where} is '{spelling[plain_spelling(tag)]}' in training: write it so"
            )
        if entities.scheme_of(names) and not entities.scheme_of([*names, tag]):
            raise DataError(f"{where} is no tag of entities as those of training are ({shown})")
        if not is_known:
            raise DataError(f"{where} is unseen in training, as all tags are but O ({shown})")
    unseen = sorted(first_row)
    if unseen:
        logger.warning(
            f"{table.name}: {words:,} words have tags that training did not have "
            f"({shortened(', '.join(unseen))}): they count as wrong, as no output is of them"
        )
    return unseen


def count(scheme: entities.Scheme, logits: np.ndarray, labels: np.ndarray) -> entities.Counts:
    """The entities of the classes with the largest logits [words, C], and of labels [words, 2]."""
    return entities.count_entities(scheme, logits.argmax(-1), labels[:, 0], labels[:, 1] > 0)


@dataclasses.dataclass
class Lost:
    """How many words of a table have no token, by why."""

    cut_off: int = 0
    without_token: int = 0
    example: str = ""  # of a word that the tokenizer makes nothing of

    def count(self, sentence: list[str], words: np.ndarray, is_full: bool) -> None:
        """Count the words of a sentence but those that have a token, ``words`` int [n].

        Only a sentence that fills its example can have been cut, at either end.
        """
        with_token = set(words.tolist())
        first = min(with_token, default=0)
        last = max(with_token, default=-1)
        for number, word in enumerate(sentence):
            if number in with_token:
                continue
            if is_full and not first <= number <= last:
                self.cut_off += 1
            else:
                self.without_token += 1
                self.example = self.example or ascii(word)


def tagged_examples(
    pretrained: Pretrained, table: Table, column: str, labels: Ragged
) -> tuple[Examples, Lost]:
    """(examples whose labels are (place, class) of words that have a token, the other words) of
    words with a label each.

    Raises DataError for a row with more or fewer labels than words.
    """
    tokenizer = tokenizer_of(pretrained)
    tokenized = []
    words_left = []  # of each row
    placed = []  # [words, 2]
    lost = Lost()
    row = 0
    for sentences in word_chunks(table, column):
        check_label_counts(table, row, sentences, labels)
        encoded, word_of_token = tokenize_words(tokenizer, sentences)
        tokenized.append(encoded)
        tokens = encoded.tokens
        token, sentence, word = first_tokens(tokens, word_of_token)
        classes = labels.values[labels.starts[row + sentence] + word]
        left = np.bincount(sentence, minlength=len(sentences))
        words_left.append(left)
        for number in np.flatnonzero(left < labels.lengths[row : row + len(left)]):
            is_full = bool(tokens.lengths[number] >= tokenizer.max_length)
            lost.count(sentences[number], word[sentence == number], is_full)
        placed.append(np.stack([token - tokens.starts[sentence], classes], 1))
        row += len(sentences)
    lengths = np.concatenate(words_left)
    values = np.concatenate(placed).astype(np.int32)
    unseen = labels.unseen if isinstance(labels, TagLabels) else ()
    places = TagLabels(values, np.cumsum(lengths) - lengths, lengths, unseen=unseen)
    return examples.from_tokens(pretrained, tokenized, places), lost


def check_label_counts(
    table: Table, first_row: int, sentences: list[list[str]], labels: Ragged
) -> None:
    """Raise DataError for the first row with more or fewer labels than words."""
    for row, words in enumerate(sentences, first_row):
        if len(words) != labels.lengths[row]:
            raise DataError(
                f"{table.name}: row {row + 1} has {len(words)} words and {labels.lengths[row]} "
                "labels"
            )


def first_tokens(
    tokens: Ragged, word_of_token: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first token of every word: its place in ``tokens.values``, its sentence and its word."""
    token = np.flatnonzero(word_of_token >= 0)
    sentence = np.repeat(np.arange(len(tokens)), tokens.lengths)[token]
    word = word_of_token[token]
    # Words of different sentences are different: number them all through.
    in_all = sentence * (word_of_token.max(initial=0) + 1) + word
    _, first = np.unique(in_all, return_index=True)
    return token[first], sentence[first], word[first]


def tokenize_words(tokenizer: Tokenizer, sentences: list[list[str]]) -> tuple[Encoded, np.ndarray]:
    """(token ids, the word of each of them int64 [total]).

    Words count from 0 in their sentence; a token of none, such as [CLS], has -1. Words but the
    first get a space before them, which tells byte-level tokenizers that they begin one.
    """
    spaced = []
    for first, *others in sentences:
        spaced.append([first, *(f" {word}" for word in others)])
    encodings = tokenizer.backend.encode_batch(spaced, is_pretokenized=True)
    word_of_token = []
    for encoding in encodings:
        word_of_token += [-1 if word is None else word for word in encoding.word_ids]
    encoded = gather(encodings, left_out(encodings), tokenizer.max_length)
    tokenizer.unknown.count(encoded.tokens, sentences)
    return encoded, np.array(word_of_token, np.int64)


def word_chunks(table: Table, column: str) -> Iterator[list[list[str]]]:
    """Each row's words, some thousand rows at a time. Raises DataError for a row without any."""
    first_row = 1
    for chunk in tables.chunks(table, [column], CHUNK):
        sentences = []
        for row, value in enumerate(chunk[column], first_row):
            where = f"{table.name}: row {row}"
            try:
                words = word_list(value)
            except ValueError as error:
                said = f"column '{column}': '{shortened(value)}' {error}"
                raise DataError(f"{where}: {said}") from error
            check_words(words, where, column)
            sentences.append(words)
        yield sentences
        first_row += len(sentences)


def check_words(words: list[Any], where: str, column: str) -> None:
    """Raise DataError for a list without words, and for a word that is blank or no text."""
    if not words:
        raise DataError(f"{where} has no words in column '{column}'")
    for number, word in enumerate(words, 1):
        if isinstance(word, str) and word.strip():
            continue
        what = "is white space alone" if isinstance(word, str) else "is no text"
        raise DataError(
            f"{where} has no words in column '{column}': word {number}, {word!a}, {what}; "
            "leave it out with its tag"
        )


TASKS["tags"] = Tags()
