"""MPNet (Song et al. 2020): BERT's blocks with a bias for distances, RoBERTa's positions and heads."""

import dataclasses

from adapt.pretrained.families import Row, bert, block_rows, projections, roberta, without
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields

BUCKETS = 32  # the original library computes by these, whatever the size of the table
BLOCK = {
    **projections("attention.attn", "q", "k", "v", "o"),
    "attention.LayerNorm": "attention_norm",
    **bert.MLP,
}
TABLE = [
    *bert.EMBEDDING,
    Row("encoder.relative_attention_bias.weight", ("encoder/relative/table",)),
    *block_rows(bert.LAYER, BLOCK),
    *[row for row in roberta.TABLE if row.paths[0].startswith("head/")],
]


def complete(hf: Entries, fields: Fields) -> Fields:
    """Positions count from the padding token's id on, which is 1 whatever config.json says."""
    if hf.get("pad_token_id") is not None:
        check_usual(hf, pad_token_id=1)
    return roberta.complete({**hf, "pad_token_id": 1}, fields)


FAMILY = dataclasses.replace(
    roberta.sibling("MPNet"),
    config=without(roberta.CONFIG, "types"),
    table=TABLE,
    usual={**bert.FAMILY.usual, "relative_attention_num_buckets": BUCKETS},
    always={"relative_buckets": BUCKETS, "relative_distance": 128},
    complete=complete,
    prefix="mpnet.",
    buffers=r"embeddings\.position_ids",
)
