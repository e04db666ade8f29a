"""MPNet (Song et al. 2020): BERT's blocks with a bias for distances, RoBERTa's positions and heads."""

import dataclasses
from typing import Any

from adapt.pretrained.families import Row, dense, norm, roberta, without
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields

BUCKETS = 32  # the original library computes by these, whatever the size of the table
ATTENTION = "encoder.layer.#.attention"
TABLE = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    Row("encoder.relative_attention_bias.weight", ("encoder/relative/table",)),
    *dense(f"{ATTENTION}.attn.q", "encoder/block_#/attention/query"),
    *dense(f"{ATTENTION}.attn.k", "encoder/block_#/attention/key"),
    *dense(f"{ATTENTION}.attn.v", "encoder/block_#/attention/value"),
    *dense(f"{ATTENTION}.attn.o", "encoder/block_#/attention/output"),
    *norm(f"{ATTENTION}.LayerNorm", "encoder/block_#/attention_norm"),
    *dense("encoder.layer.#.intermediate.dense", "encoder/block_#/mlp/up"),
    *dense("encoder.layer.#.output.dense", "encoder/block_#/mlp/down"),
    *norm("encoder.layer.#.output.LayerNorm", "encoder/block_#/mlp_norm"),
    *[row for row in roberta.TABLE if row.paths[0].startswith("head/")],
]


def complete(hf: Entries, fields: Fields) -> Fields:
    """Positions count from the padding token's id on, which is 1 whatever config.json says."""
    check_usual(hf, relative_attention_num_buckets=BUCKETS)
    if hf.get("pad_token_id") is not None:
        check_usual(hf, pad_token_id=1)
    fields = roberta.complete({**hf, "pad_token_id": 1}, fields)
    return fields | {"relative_buckets": BUCKETS, "relative_distance": 128}


def entries(config: Any, head: Any) -> Fields:
    return roberta.entries(config, head) | {"relative_attention_num_buckets": BUCKETS}


FAMILY = dataclasses.replace(
    roberta.sibling("MPNet"),
    config=without(roberta.CONFIG, "types"),
    table=TABLE,
    complete=complete,
    entries=entries,
    prefix="mpnet.",
    buffers=r"embeddings\.position_ids",
)
