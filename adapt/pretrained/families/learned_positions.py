"""Learned positions that count from the padding token's id on, as RoBERTa's do: the first token has
the row after the padding token's in the table.
"""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families.types import Fields


def fields_after_padding(pad: Any, positions: Any) -> Fields:
    """The fields for ``pad_token_id`` and ``max_position_embeddings``.

    Raises :class:`CheckpointError` where they leave no position.
    """
    if type(pad) is not int or type(positions) is not int or not 0 <= pad < positions - 1:
        raise CheckpointError(
            f"pad_token_id is {pad!r} and max_position_embeddings {positions!r} in config.json: the "
            "first token has the row after the padding token's in the table of positions"
        )
    return {"position_offset": pad + 1, "positions": positions - pad - 1}


def entries_after_padding(config: EncoderConfig) -> Fields:
    """``max_position_embeddings``, the number of rows of the table."""
    return {"max_position_embeddings": config.positions + config.position_offset}
