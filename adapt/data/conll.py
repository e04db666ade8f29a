"""Files with a word a line, as CoNLL's tasks publish them, as rows of words and tags.

    EU      NNP  B-NP  B-ORG
    rejects VBZ  B-VP  O

    Peter   NNP  B-NP  B-PER

A row is a sentence, whose columns are lists with a field of every word. They are called ``1``,
``2`` and so on, those of CoNLL-U as its standard calls them; ``text`` and ``label`` are two of them
again, the first and the last, or ``form`` and ``upos``. Columns are separated by tabs, where the
first word's line has one, else by spaces. Sentences are separated by blank lines and by
``-DOCSTART-``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from adapt.errors import DataError

DOCUMENT = re.compile(r"-DOCSTART-([ \t]|\Z)")
TEXT = "text"
LABEL = "label"
# CoNLL-U's ten, https://universaldependencies.org/format.html
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
WORD_NUMBER = re.compile(r"\d+")  # of CoNLL-U: 1-2 spans two words, 8.1 is one that was left out
# What a line before a sentence says of it: "# text = ...", and MultiCoNER's "# id ...".
COMMENT = re.compile(r"# (id\s|[\w.:-]+ = )")
TAG = re.compile(r"O|[BIESLU](-.+)?")
LOOKED_AT = 1000  # lines by which a .txt file is known

Sentence = list[list[str]]  # the fields of its words
Line = tuple[int, str]  # its number from 1, and its content


def read_conll(path: Path, lines: Iterable[str]) -> tuple[list[str], Iterator[list[list[str]]]]:
    """(the names of the columns, for each sentence its columns).

    ``lines`` are those of the file. Raises :class:`DataError`, with the line, for a word with more
    or fewer fields than the first one, a field that is blank, and a file without a word.
    """
    numbered = enumerate(lines, 1)
    head = []
    first = None
    for number, line in numbered:
        head.append((number, line))
        if not line.strip() or is_document(line):
            continue
        if first is None or first[1].startswith("#"):  # which may be a comment
            first = (number, line)
        if not line.startswith("#"):
            break
    if first is None:
        raise DataError(f"{path} has no words")
    form = Form(path, *first)
    rows = map(form.row, sentences(form, chain(head, numbered)))
    return form.header, rows


class Form:
    """How a file is laid out: what separates its columns, how many there are, and their names."""

    def __init__(self, path: Path, number: int, first: str):
        """``first`` is the first line with a word, the ``number``-th one."""
        self.path = path
        self.has_tabs = "\t" in first
        self.width = len(self.fields(first))
        self.is_universal = ".conllu" in path.name.lower()
        self.names = [str(number) for number in range(1, self.width + 1)]
        self.text = 0  # the numbers of two columns, from 0
        self.label = self.width - 1
        if self.is_universal:
            self.names = list(UNIVERSAL)
            self.text = UNIVERSAL.index("form")
            self.label = UNIVERSAL.index("upos")
        if self.width < 2:
            raise DataError(
                f"{path}: line {number} has one field: a word and its tag are wanted, with a tab or "
                "spaces between them"
            )
        if self.width != len(self.names):
            raise DataError(
                f"{path}: line {number} has {self.width} fields, and a word of CoNLL-U has "
                f"{len(self.names)}: call the file .conll where it is none"
            )

    @property
    def header(self) -> list[str]:
        return [TEXT, LABEL, *self.names]

    def fields(self, line: str) -> list[str]:
        if self.has_tabs:
            return [field.strip(" ") for field in line.split("\t")]
        return re.split("[ \t]+", line.strip(" \t"))

    def row(self, sentence: Sentence) -> list[list[str]]:
        """The columns of :attr:`header`, each with a field of every word."""
        columns = [list(column) for column in zip(*sentence, strict=True)]
        return [columns[self.text], columns[self.label], *columns]

    def is_comment(self, line: str) -> bool:
        """Whether a line before a sentence is no word of it."""
        if not line.startswith("#"):
            return False
        if self.is_universal or len(self.fields(line)) != self.width:
            return True
        return not self.has_tabs and COMMENT.match(line) is not None

    def is_word(self, fields: Sequence[str]) -> bool:
        """Whether a line of CoNLL-U is a word, and not a span of them or one that was left out."""
        return not self.is_universal or WORD_NUMBER.fullmatch(fields[0]) is not None

    def checked_fields(self, number: int, line: str) -> list[str]:
        """The fields of a word. Raises :class:`DataError` for more or fewer than the first word
        has, and for a blank one.
        """
        fields = self.fields(line)
        if len(fields) != self.width:
            separator = "tabs" if self.has_tabs else "spaces"
            raise DataError(
                f"{self.path}: line {number} has {len(fields)} fields, and the first word of the "
                f"file has {self.width}, with {separator} between them"
            )
        if not all(fields):
            blank = fields.index("") + 1
            raise DataError(f"{self.path}: line {number}: field {blank} is blank")
        return fields


def sentences(form: Form, lines: Iterable[Line]) -> Iterator[Sentence]:
    """The sentences of a file; those without a word are left out."""
    sentence: Sentence = []
    for number, line in lines:
        if not line.strip(" \t") or is_document(line):
            if sentence:
                yield sentence
            sentence = []
        elif sentence or not form.is_comment(line):
            fields = form.checked_fields(number, line)
            if form.is_word(fields):
                sentence.append(fields)
    if sentence:
        yield sentence


def is_document(line: str) -> bool:
    """Whether a line says that a document begins, as CoNLL-2003's do."""
    return DOCUMENT.match(line) is not None


def is_conll(lines: Iterable[str]) -> bool:
    """Whether lines of text can be nothing but words with tags: as many fields in each of at least
    two, a last one that is ``O`` or begins with B-, I- and the like, and blank lines.

    That is how .txt files are told, which CoNLL-2003's own are.
    """
    width = 0
    words = 0
    has_blank = False
    has_outside = False
    for line in islice(lines, LOOKED_AT):
        if not line.strip():
            has_blank = True
            continue
        if is_document(line):
            continue
        fields = line.split()
        width = width or len(fields)
        if len(fields) != width or width < 2 or not TAG.fullmatch(fields[-1]):
            return False
        has_outside = has_outside or fields[-1] == "O"
        words += 1
    return words > 1 and has_blank and has_outside
