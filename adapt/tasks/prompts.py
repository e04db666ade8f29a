"""Prompts: a template with the texts of a row in it, whose mask a word fills.

    prompt = Prompt.of("{text} It was [MASK].", ["text"], tokenizer, causal=False)
    encoded, masks = prompt.encode(tokenizer, [("a good film",)])
    prompt.word_tokens(tokenizer, "great")          # [Word(token=2307, string="great")]

A prompt is one sequence, and reads as a person would write it: a word that fills the mask has the
space that the template has before it, which tokenizers of bytes and SentencePiece keep in its token.
A causal encoder has no mask: it says the word after the prompt.
"""

import dataclasses
import string
from collections.abc import Sequence

import numpy as np

from adapt.data.masking import MASK_TOKENS, mask_id
from adapt.errors import StrategyError
from adapt.pretrained.tokenizer import Encoded, Encoding, LongTexts, Tokenizer, texts_of
from adapt.ragged import ragged

EXAMPLE = "{text} It was [MASK]."
SAMPLE = "a"  # stands for a text where the tokens of a word are looked up


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A prompt as text: where in it, in characters, are the texts of its row, and the mask."""

    text: str
    spans: list[tuple[int, int]]
    mask: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Word:
    """A token of a word as the vocabulary has it: ``Ġgreat``."""

    token: int
    string: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A template that was understood: ``pieces`` are literal text, the number of one of the
    ``count`` texts of a row, or None, the mask. ``mask`` is its token's id; None: the encoder is
    causal, and the prompt ends before the mask.
    """

    pieces: tuple[str | int | None, ...]
    count: int
    mask: int | None
    mask_text: str = ""

    @classmethod
    def of(
        cls, template: str, columns: Sequence[str], tokenizer: Tokenizer, causal: bool
    ) -> "Prompt":
        """The prompt of a template. ``{text}`` is the text of a row, or of several the
        ``{text_a}``, the ``{text_b}`` and so on, or any of them by the name of its column.

        Raises :class:`StrategyError` for a template that is not understood, that leaves a text out,
        or that does not have one mask.
        """
        mask = None if causal else mask_id(tokenizer)
        mask_text = "" if mask is None else str(tokenizer.backend.id_to_token(mask))
        names = names_of(columns)
        pieces: list[str | int | None] = []
        for literal, name, spec, conversion in parsed(template):
            pieces += split_at_masks(literal, mask_text)
            if name is None:
                continue
            if name not in names or spec or conversion:
                known = ", ".join(f"{{{own}}}" for own in names)
                raise StrategyError(f"`template` has the placeholder {{{name}}}: give {known}")
            pieces.append(names[name])
        check_texts(template, pieces, columns)
        masks = pieces.count(None)
        if causal and masks == 0:
            pieces += ["" if template[-1:].isspace() else " ", None]
            masks = 1
        if masks != 1:
            masks_text = f"{masks} masks" if masks else "no mask"
            raise StrategyError(
                f"`template` {template!r} has {masks_text}: write [MASK] once, where the word is"
            )
        if causal and pieces[-1] is not None:
            raise StrategyError(
                f"`template` {template!r} goes on after its mask, and a causal language model says "
                "what comes next: put [MASK] at the end"
            )
        return cls(tuple(pieces), len(columns), mask, mask_text)

    @property
    def template(self) -> str:
        """The template with texts by their number: what reads any columns."""
        parts = []
        for piece in self.pieces:
            if piece is None:
                parts.append("[MASK]")
            elif isinstance(piece, int):
                parts.append(f"{{{placeholder(piece, self.count)}}}")
            else:
                parts.append(piece.replace("{", "{{").replace("}", "}}"))
        return "".join(parts)

    def render(self, texts: Sequence[str], word: str | None = None) -> Rendered:
        """The prompt of a row, with its mask, or with a word in its place.

        That of a causal encoder ends before the space that the next word begins with.
        """
        filling = self.mask_text if word is None else word
        text = ""
        spans = [(0, 0)] * self.count
        mask = (0, 0)
        for piece in self.pieces:
            start = len(text)
            if piece is None:
                text += filling
                mask = (start, len(text))
            elif isinstance(piece, int):
                text += texts[piece]
                spans[piece] = (start, len(text))
            else:
                text += piece
        if self.mask is None and word is None:
            # The space belongs to the next word's token; one that ends a text of the row stays.
            end_of_texts = max(stop for _, stop in spans)
            text = text[:end_of_texts] + text[end_of_texts:].rstrip(" ")
        return Rendered(text, spans, mask)

    def encode(
        self, tokenizer: Tokenizer, rows: Sequence[Sequence[str]]
    ) -> tuple[Encoded, np.ndarray]:
        """(token ids of the prompt of every row, the position in each, int64 [N], whose output says
        the word).

        A prompt that is too long loses tokens of its texts, the longest first, and none of its
        template: the last ones of a text, or the first where the checkpoint truncates on the left.
        Raises :class:`StrategyError` where a text would lose all of them.
        """
        rendered = [self.render(row) for row in rows]
        encodings = tokenizer.uncut.encode_batch([prompt.text for prompt in rendered])
        sequences = []
        positions = np.zeros(len(rows), np.int64)
        long = LongTexts("head", tokenizer.max_length)
        for row, (encoding, prompt) in enumerate(zip(encodings, rendered, strict=True)):
            ids = np.array(encoding.ids, np.int32)
            position = self.output_position(encoding, prompt)
            kept = kept_positions(encoding, prompt, tokenizer)
            if len(kept) < len(ids):
                left_out = len(ids) - len(kept)
                long += LongTexts(long.rule, long.max_length, 1, tokens_left_out=left_out)
            sequences.append(ids[kept])
            positions[row] = np.searchsorted(kept, position)
        tokens = ragged(sequences)
        tokenizer.unknown.count(tokens, [prompt.text for prompt in rendered])
        return Encoded(tokens, long), positions

    def output_position(self, encoding: Encoding, prompt: Rendered) -> int:
        """The token whose output says the word: the mask, or the last one of a causal prompt."""
        own = texts_of(encoding) >= 0
        if self.mask is not None:
            ends = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 1]
            is_inside = (ends > prompt.mask[0]) & (ends <= prompt.mask[1])
            own &= is_inside & (np.array(encoding.ids) == self.mask)
        found = np.flatnonzero(own)
        if not len(found):
            raise StrategyError(
                f"`template`: the tokenizer makes no {self.mask_text or 'token'} of "
                f"{prompt.text[-40:]!r}: put spaces around [MASK]"
            )
        return int(found[-1])

    def word_tokens(self, tokenizer: Tokenizer, word: str) -> list[Word]:
        """The tokens of a word where it fills the mask: one, if the head can say it.

        Raises :class:`StrategyError` for a word that is one token with the text around it.
        """
        texts = [SAMPLE] * self.count
        filled = self.render(texts, word)
        (encoding,) = tokenizer.uncut.encode_batch([filled.text])
        start, stop = filled.mask
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        own = texts_of(encoding) >= 0
        if self.mask is None:
            # What follows the prompt, so that a space of its own is a token to be said, too.
            before = self.render(texts).text
            (prompt,) = tokenizer.uncut.encode_batch([before])
            is_word = own & (np.cumsum(own) > int((texts_of(prompt) >= 0).sum()))
            first = len(before)
        else:
            is_word = own & (offsets[:, 0] < stop) & (offsets[:, 1] > start)
            first = start
        positions = np.flatnonzero(is_word)
        first_read = offsets[positions, 0].min(initial=stop)
        read = filled.text[first_read : offsets[positions, 1].max(initial=0)]
        if read.strip() != filled.text[first:stop].strip():
            raise StrategyError(
                f"`template`: with {word!r} in its mask the tokenizer reads {read!r} as one: put "
                "spaces around [MASK]"
            )
        ids = [encoding.ids[position] for position in positions]
        return [Word(number, str(tokenizer.backend.id_to_token(number))) for number in ids]


def parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """The literals and placeholders of a template; braces are doubled where they are text."""
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise StrategyError(
            f"`template` {template!r}: {error}: write a brace that is text twice"
        ) from None


def names_of(columns: Sequence[str]) -> dict[str, int]:
    """The number of each text by its names: its column's, and its placeholder's."""
    names = {}
    for number in range(len(columns)):
        names[placeholder(number, len(columns))] = number
    return names | {column: number for number, column in enumerate(columns)}


def placeholder(number: int, count: int) -> str:
    """``text``, or of several texts ``text_a``, ``text_b`` and so on; after 26 of them a number."""
    if count == 1:
        return "text"
    letters = string.ascii_lowercase
    return f"text_{letters[number] if number < len(letters) else number}"


def split_at_masks(literal: str, mask_text: str) -> list[str | None]:
    """Literal text with None for each mask, spelled as [MASK], or as the tokenizer does."""
    spellings = [mask_text] if mask_text else MASK_TOKENS[1:]
    for name in spellings:
        literal = literal.replace(name, MASK_TOKENS[0])
    pieces: list[str | None] = []
    for number, piece in enumerate(literal.split(MASK_TOKENS[0])):
        if number:
            pieces.append(None)
        if piece:
            pieces.append(piece)
    return pieces


def check_texts(template: str, pieces: Sequence[str | int | None], columns: Sequence[str]) -> None:
    """Raise :class:`StrategyError` unless every text stands once in a template."""
    for number, column in enumerate(columns):
        count = pieces.count(number)
        if count == 1:
            continue
        name = placeholder(number, len(columns))
        times = f"{count} times" if count else "nowhere"
        raise StrategyError(
            f"`template` {template!r} has the text of column '{column}' {times}: write {{{name}}} once"
        )


def kept_positions(encoding: Encoding, prompt: Rendered, tokenizer: Tokenizer) -> np.ndarray:
    """The positions of the tokens that are read of a prompt, int64 [n]."""
    length = len(encoding)
    excess = length - tokenizer.max_length
    if excess <= 0:
        return np.arange(length)
    of_texts = [positions_of(encoding, span) for span in prompt.spans]
    counts = [len(positions) for positions in of_texts]
    room = sum(counts) - excess
    if room < len(counts):
        raise StrategyError(
            f"`max_length` {tokenizer.max_length} has no room for a text beside the "
            f"{length - sum(counts)} tokens of `template`: give a larger one"
        )
    dropped = np.zeros(length, bool)
    for positions, share in zip(of_texts, shares(counts, room), strict=True):
        if tokenizer.side == "left":
            dropped[positions[: len(positions) - share]] = True
        else:
            dropped[positions[share:]] = True
    return np.flatnonzero(~dropped)


def positions_of(encoding: Encoding, span: tuple[int, int]) -> np.ndarray:
    """The tokens that end in these characters. One that also has characters after them is of what
    follows.
    """
    ends = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 1]
    is_inside = (ends > span[0]) & (ends <= span[1])
    return np.flatnonzero(is_inside & (texts_of(encoding) >= 0))


def shares(counts: Sequence[int], room: int) -> list[int]:
    """How many of its tokens each text may have of ``room``: the longest are cut first."""
    kept = list(counts)
    for done, number in enumerate(np.argsort(counts, kind="stable")):
        kept[number] = min(counts[number], room // (len(counts) - done))
        room -= kept[number]
    return kept
