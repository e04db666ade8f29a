"""One of several classes, said by a word that fills the mask of a prompt: the head of pre-training is
kept (Schick and Schütze 2021; Gao et al. 2021).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from adapt.data import examples, tables
from adapt.data.examples import Examples
from adapt.data.labels import Labels, label_type
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.models import LanguageModel, MaskedLM
from adapt.options import TaskOptions, is_of, listed
from adapt.pretrained.hub import LABEL_TYPES, Pretrained, describe, tokenizer_of
from adapt.pretrained.tokenizer import Tokenizer
from adapt.ragged import Ragged
from adapt.tasks.base import CHUNK, MANY, TASKS
from adapt.tasks.classification import Classification
from adapt.tasks.prompts import EXAMPLE, Prompt

Verbalizer = Mapping[Any, str | Sequence[str]]  # the words of each class


class Cloze(Classification):
    """One class an example, said by words; labels int32 [N], logits [N, C].

    An example is a prompt with its texts, and its output that of the head of pre-training at the
    mask, or after the prompt of a causal encoder, for the words of the classes alone. The mask is a
    token of its example with a label, as a word of tags is: labels are Ragged, one each.
    """

    further_texts = (0, MANY)
    takes_images = False
    pools = False
    has_row_per_example = False
    probed_as = None
    problem_type = None
    own_options: ClassVar = ("template", "verbalizer")

    # The prompt

    def with_options(
        self, pretrained: Pretrained, options: TaskOptions, columns: Sequence[str]
    ) -> Pretrained:
        """The checkpoint whose head says the classes by words: those of the options, or of the run
        that it is. Its ``labels`` are the classes.
        """
        self.check_own_options(options)
        before = language_model(pretrained)
        if options.template is None and options.verbalizer is None and before.is_kept:
            words = dict(zip(pretrained.labels, before.words, strict=True))
            return with_prompt(pretrained, before.template, words, columns)
        if options.template is None or options.verbalizer is None:
            missing = "template" if options.template is None else "verbalizer"
            raise StrategyError(
                f"`task` {self.name} needs a `{missing}`: give `template`, such as {EXAMPLE!r}, and "
                "`verbalizer`, such as 'positive=great,negative=terrible'"
            )
        words = parse_verbalizer(options.verbalizer)
        return with_prompt(pretrained, options.template, words, columns)

    def all_names(
        self, pretrained: Pretrained, names: Sequence[str], table: Table, column: str
    ) -> list[str]:
        """The classes of the verbalizer, among which are those of the table."""
        for name in names:
            if name not in pretrained.labels:
                raise StrategyError(
                    f"`verbalizer` has no word for the class '{name}' of {table.name}: add {name}=WORD"
                )
        check_label_type(pretrained.labels, label_type(table, column))
        return list(pretrained.labels)

    # Examples

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        for column in columns:
            tables.check_texts(table, column)
        tokenizer = tokenizer_of(pretrained)
        prompt = prompt_of(pretrained, columns)
        encoded = []
        places = []
        for chunk in tables.chunks(table, columns, CHUNK):
            rows = list(zip(*(chunk[column] for column in columns), strict=True))
            of_chunk, of_masks = prompt.encode(tokenizer, rows)
            encoded.append(of_chunk)
            places.append(of_masks)
        count = len(table)
        values = np.stack([np.concatenate(places), np.asarray(labels)], 1).astype(np.int32)
        at_masks = Ragged(values, np.arange(count), np.ones(count, np.int64))
        return examples.from_tokens(pretrained, encoded, at_masks)

    def strata(self, part: Examples) -> Any:
        return part.targets

    # The head

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        """The head of pre-training, without what it has for other objectives."""
        head = language_model(pretrained)
        if isinstance(head, MaskedLM):
            head = head.clone(next_sentence=False, pooler=False)
        return head

    def head_notes(self, run: Pretrained) -> dict[str, str]:
        head = language_model(run)
        words = []
        for name, ids in zip(run.labels, head.word_tokens, strict=True):
            strings = [repr(tokenizer_of(run).backend.id_to_token(number)) for number in ids]
            words.append(f"{name} {' '.join(strings)}")
        return {"prompt": repr(head.template), "words": ", ".join(words)}

    # Exports

    def output_note(self, classes: Sequence[str]) -> str:
        return ""  # the notes of a head that is kept say it


def with_prompt(
    pretrained: Pretrained, template: str, words: Verbalizer, columns: Sequence[str]
) -> Pretrained:
    """The checkpoint whose head says classes by ``words`` in the prompt of ``template``.

    ``columns`` are those of the texts. Raises :class:`StrategyError` for a checkpoint without a
    language model's head, for a template that is not understood, and for words that are no token or
    not one.
    """
    head = language_model(pretrained)
    tokenizer = tokenizer_of(pretrained)
    causal = not isinstance(head, MaskedLM)
    prompt = Prompt.of(template, columns, tokenizer, causal)
    spelled = checked_words(words)
    ids = []
    owner: dict[int, str] = {}
    for name, of_class in spelled.items():
        tokens = tuple(token_of(tokenizer, prompt, name, word) for word in of_class)
        for token, word in zip(tokens, of_class, strict=True):
            if token in owner:
                raise StrategyError(
                    f"`verbalizer`: {name}={word} is the same token as {owner[token]}: give another "
                    "word"
                )
            owner[token] = f"{name}={word}"
        ids.append(tokens)
    kept = head.clone(
        template=prompt.template, words=tuple(spelled.values()), word_tokens=tuple(ids)
    )
    return dataclasses.replace(pretrained, head=kept, labels=tuple(spelled))


def language_model(pretrained: Pretrained) -> LanguageModel:
    """The head of a checkpoint. Raises :class:`StrategyError` for one of another kind."""
    if isinstance(pretrained.head, LanguageModel):
        return pretrained.head
    head = "none" if pretrained.head is None else describe(pretrained.head)
    raise StrategyError(
        f"{pretrained.source} has no language model's head, which `task` cloze keeps (its head: "
        f"{head}): give a checkpoint with one, or `task` classification"
    )


def prompt_of(run: Pretrained, columns: Sequence[str]) -> Prompt:
    """The prompt of a checkpoint as :func:`with_prompt` makes it, for texts in these columns."""
    head = language_model(run)
    causal = not isinstance(head, MaskedLM)
    # By their place: the columns of other data may have other names.
    placed = [""] * len(columns)
    return Prompt.of(head.template, placed, tokenizer_of(run), causal)


def parse_verbalizer(text: str) -> dict[str, list[str]]:
    """``positive=great|good,negative=terrible``, or the same as JSON, as the words of each class.

    Raises :class:`StrategyError` for what is neither.
    """
    if text.lstrip().startswith("{"):
        return parse_json(text)
    words: dict[str, list[str]] = {}
    for entry in text.split(","):
        name, equals, of_class = entry.partition("=")
        name = name.strip()
        if not equals or not name:
            raise StrategyError(
                f"`verbalizer` {entry!r} is not CLASS=WORD, as in 'positive=great|good,negative=bad'"
            )
        if name in words:
            raise StrategyError(f"`verbalizer` names the class '{name}' twice: {name}=WORD|WORD")
        words[name] = of_class.split("|")
    return words


def parse_json(text: str) -> dict[str, list[str]]:
    """The words of each class in a JSON object."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise StrategyError(f"`verbalizer` is no JSON: {error}") from None
    words = {}
    for name, of_class in content.items():
        if not is_of(of_class, str | tuple[str, ...]):
            raise StrategyError(f"`verbalizer`: {name} has {of_class!r}: give a word, or a list")
        words[name] = listed(of_class)
    return words


def checked_words(verbalizer: Verbalizer) -> dict[str, tuple[str, ...]]:
    """The words of each class, without spaces around them.

    Raises :class:`StrategyError` for fewer than two classes, and for a class without a word.
    """
    words = {}
    for name, of_class in verbalizer.items():
        stripped = tuple(str(word).strip() for word in listed(of_class))
        if not stripped or not all(stripped):
            raise StrategyError(f"`verbalizer` has no word for the class '{name}': {name}=WORD")
        words[str(name)] = stripped
    if len(words) < 2:
        raise StrategyError(f"`verbalizer` names {len(words)} class: give two or more")
    return words


def token_of(tokenizer: Tokenizer, prompt: Prompt, name: str, word: str) -> int:
    """The token of a word. Raises :class:`StrategyError` where it has several, or is unknown."""
    tokens = prompt.word_tokens(tokenizer, word)
    shown = " ".join(repr(token.string) for token in tokens) or "nothing"
    if len(tokens) != 1:
        raise StrategyError(
            f"`verbalizer` {name}={word}: the tokenizer makes {len(tokens)} tokens of it ({shown}): "
            "give a word that is one token"
        )
    if tokens[0].string in unknown_spellings(tokenizer):
        raise StrategyError(
            f"`verbalizer` {name}={word}: the tokenizer does not know it ({shown}): give a word of "
            "its vocabulary"
        )
    return tokens[0].token


def unknown_spellings(tokenizer: Tokenizer) -> set[str]:
    """How a tokenizer's unknown token may be spelled: a unigram does not say which it is."""
    named = tokenizer.named.get("unk_token")
    return {"[UNK]", "<unk>"} | ({named} if named else set())


def check_label_type(names: Sequence[str], kind: str) -> None:
    """Raise :class:`StrategyError` for a class that is none of the type of the labels."""
    for name in names:
        try:
            LABEL_TYPES[kind](name)
        except ValueError:
            raise StrategyError(
                f"`verbalizer` names the class '{name}', and labels are of type {kind}"
            ) from None


TASK = Cloze()
TASKS["cloze"] = TASK
