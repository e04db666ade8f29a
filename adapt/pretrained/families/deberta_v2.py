"""DeBERTa-v2 and v3 (He et al. 2021; 2023): BERT's blocks with attention to content and to relative
positions apart.
"""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    ACTIVATIONS,
    LIBRARY_ACTIVATIONS,
    Family,
    Row,
    bert,
    block_rows,
    dense,
    heads,
    norm,
    projections,
    with_defaults,
)
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = with_defaults(bert.CONFIG, type_vocab_size=0, layer_norm_eps=1e-7)
WITH_TANH = {**ACTIVATIONS, "tanh": "tanh"}  # of layers beside the blocks
CONVOLUTION = "encoder/block_00/convolution"
BLOCK = {
    **projections("attention.self", "query_proj", "key_proj", "value_proj"),
    "attention.self.pos_key_proj": "attention/position_key",
    "attention.self.pos_query_proj": "attention/position_query",
    **bert.AFTER_HEADS,
}
TABLE = [
    *bert.EMBEDDING,
    Row("encoder.rel_embeddings.weight", ("encoder/relative/table",)),
    *norm("encoder.LayerNorm", "encoder/relative/norm"),
    *block_rows(bert.LAYER, BLOCK),
    *dense("encoder.conv.conv", f"{CONVOLUTION}/dense", layout="neighbours"),
    *norm("encoder.conv.LayerNorm", f"{CONVOLUTION}/norm"),
    *bert.MASKED_LM,
    *dense("pooler.dense", "head/hidden"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]
PARTS = {
    "mask_predictions.": "replaced-token head",
    "lm_predictions.": "masked-LM head of the generator",
    "embeddings.position_embeddings.": "positions of no effect",
    "encoder.LayerNorm.": "norm of relative positions of no effect",
    "pooler.": "pooler",
    **heads.SPAN_BIAS,
}
# What a masked-LM head is called by "legacy": false, and in this table.
NEW_NAMES = {
    "lm_predictions.lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_predictions.lm_head.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "lm_predictions.lm_head.bias": "cls.predictions.bias",
}
TERMS = ("c2p", "p2c")


def complete(hf: Entries, fields: Fields) -> Fields:
    width = fields["width"]
    head_width = width // fields["heads"]
    check_usual(hf, embedding_size=width, attention_head_size=head_width)
    terms = listed(hf.get("pos_att_type") or [])
    if set(terms) - set(TERMS):
        raise CheckpointError(f"pos_att_type is {terms} in config.json: only c2p and p2c are known")
    fields["attention_scale"] = (head_width * (1 + len(terms))) ** -0.5
    if not hf.get("position_biased_input", True):
        fields["position_kind"] = "none"
    if hf.get("conv_kernel_size"):
        fields |= convolution_fields(hf)
    if hf.get("relative_attention", False):
        fields |= relative_fields(hf, terms, fields["positions"])
    return fields


def listed(value: str | list[str]) -> tuple[str, ...]:
    """Words of config.json: a list, or a text like ``p2c|c2p``; in one order, each once."""
    words = value.lower().split("|") if isinstance(value, str) else value
    return tuple(sorted({word.strip() for word in words}))


def relative_fields(hf: Entries, terms: tuple[str, ...], positions: int) -> Fields:
    """The table of differences, and what becomes of it."""
    if not terms:
        raise CheckpointError(
            "relative_attention is true in config.json and pos_att_type names no c2p or p2c"
        )
    distance = hf.get("max_relative_positions", -1)
    if distance < 1:
        distance = positions
    buckets = hf.get("position_buckets", -1)
    return {
        "relative_buckets": buckets if buckets > 0 else distance,
        "relative_distance": distance if buckets > 0 else 0,
        "relative_terms": terms,
        "relative_norm": "layer_norm" in listed(hf.get("norm_rel_ebd", "none")),
        "relative_kernels": not hf.get("share_att_key", False),
    }


def convolution_fields(hf: Entries) -> Fields:
    """The convolution beside the first block."""
    size = hf["conv_kernel_size"]
    name = hf.get("conv_act", "tanh")
    check_usual(hf, conv_groups=1)
    if type(size) is not int or size < 1 or size % 2 == 0:
        raise CheckpointError(f"conv_kernel_size is {size!r} in config.json: give an odd number")
    if name not in WITH_TANH:
        raise CheckpointError(
            f"conv_act is {name!r} in config.json: adapt has {', '.join(WITH_TANH)}"
        )
    return {"convolution": size, "convolution_activation": WITH_TANH[name]}


def entries(config: EncoderConfig, head: Any) -> Fields:
    width = config.width // config.heads
    terms = config.relative_terms or TERMS[: round(config.attention_scale**-2 / width) - 1]
    found: Fields = {
        "relative_attention": bool(config.relative_terms),
        "pos_att_type": list(terms),
        "position_biased_input": config.position_kind == "learned",
        "legacy": True,  # the names of a masked-LM head
        "conv_kernel_size": config.convolution,
    }
    if config.convolution:
        activation = config.convolution_activation
        found["conv_act"] = LIBRARY_ACTIVATIONS.get(activation, activation)
    if config.relative_terms:
        found |= {
            "position_buckets": config.relative_buckets if config.relative_distance else -1,
            "max_relative_positions": config.relative_distance or config.relative_buckets,
            "norm_rel_ebd": "layer_norm" if config.relative_norm else "none",
            "share_att_key": not config.relative_kernels,
        }
    if getattr(head, "hidden", ""):
        found["pooler_hidden_act"] = LIBRARY_ACTIVATIONS.get(head.hidden, head.hidden)
    return found


def masked_lm(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A masked LM. Beside v3's head for replaced tokens it is the generator's, of another encoder."""
    replaced = any(name.startswith("mask_predictions.") for name in tensors)
    if not replaced and "lm_predictions.lm_head.bias" in tensors:
        tensors = heads.with_names(tensors, NEW_NAMES)
    return heads.masked_lm(bert.BIAS, bert.DECODER, bert.BIAS)(config, hf, tensors)


def classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of texts by their first token, after a layer that is called a pooler."""
    hidden = WITH_TANH.get(hf.get("pooler_hidden_act", "gelu"))
    if hidden is None:
        return None
    return heads.classes_after("pooler.dense.weight", hidden, "classifier.weight")(
        config, hf, tensors
    )


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(masked_lm, heads.spans, classes, heads.token_classes_by_name, pooling="cls"),
    complete,
    entries,
    prefix="deberta.",
    buffers=r"embeddings\.position_ids",
    parts=PARTS,
    classes=heads.classes_of("DebertaV2", *heads.TEXT_KINDS),
    sequence_heads=[Classifier(0, "cls", hidden=name) for name in ("gelu", "tanh", "relu")],
    base_class="DebertaV2Model",
    extra_tensors=heads.second_bias_or_pooler(bert.DECODER, bert.BIAS, pooler=""),
    tokenizer="DebertaV2Tokenizer",
)
