"""Plain text as examples of pre-training: a line each, long lines in several pieces."""

import functools
from collections.abc import Container
from typing import Any

import numpy as np

from adapt.data import masking, tables
from adapt.data.examples import from_sequences
from adapt.data.shapes import shape_rule
from adapt.data.tables import Table
from adapt.errors import DataError
from adapt.objectives.base import Corpus, Measure, Objective, hold_out, is_right
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.ragged import ragged
from adapt.training import losses
from adapt.training.context import ContextLoss, LossContext
from adapt.training.losses import Loss

LINES = 4096  # tokenized together


class TokenPrediction(Objective):
    """An objective whose one loss is the mean over predicted tokens."""

    head_name = "language-model head"

    @functools.cached_property
    def loss(self) -> Loss | ContextLoss:
        return losses.cross_entropy

    def new_head(self, pretrained: Pretrained) -> Any:
        """Tied to the embedding."""
        config = pretrained.config
        return get_family(config.family).language_model(config, True)

    def measures(self, context: LossContext) -> dict[str, Measure]:
        logits = context.outputs
        label = context.labels
        weight = context.batch["weight"]
        return {
            "loss": (losses.cross_entropy(logits, label), weight),
            "accuracy": (is_right(logits, label), weight),
        }


def read_lines(
    pretrained: Pretrained, table: Table, seed: int, untaught: Container[int] = ()
) -> tuple[Corpus, Corpus]:
    """(training, held-out) lines of a table's column ``text``. 5% are held out, at most 2,000.

    Blank lines are skipped, long lines become several examples. Raises :class:`DataError` for a
    text without two examples of two tokens, one of which is not ``untaught``.
    """
    tokenizer = tokenizer_of(pretrained)
    pieces = []
    for chunk in tables.chunks(table, ["text"], LINES):
        lines = [line for line in chunk["text"] if line.strip()]
        pieces += masking.split_into_pieces(tokenizer, lines)
    pieces = [piece for piece in pieces if len(piece) > 1 and teaches(piece, untaught)]
    if len(pieces) < 2:
        raise DataError(
            f"{table.name} has {len(pieces)} lines with words that the tokenizer knows: "
            "pre-training needs at least 2, one of them held out"
        )
    training, held_out = hold_out(len(pieces), seed)
    return corpus_of(pretrained, pieces, training), corpus_of(pretrained, pieces, held_out)


def teaches(piece: list[int], untaught: Container[int]) -> bool:
    """Whether some token of a piece can be a target."""
    return any(token not in untaught for token in piece)


def corpus_of(pretrained: Pretrained, pieces: list[list[int]], index: np.ndarray) -> Corpus:
    """Some of the pieces as examples."""
    tokens = ragged([pieces[i] for i in index])
    return Corpus(from_sequences(tokens, shape_rule(pretrained.config)))


def without_tokenizer(pretrained: Pretrained) -> str:
    """Why no text can be read for a checkpoint; "" where it can."""
    if pretrained.config.is_image:
        return "it is no text encoder, and this is for texts"
    return "" if pretrained.tokenizer is not None else "it has no tokenizer"
