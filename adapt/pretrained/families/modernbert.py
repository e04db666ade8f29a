"""ModernBERT (Warner et al. 2024): rotary positions of two bases, local and global blocks, a gated
MLP, and few biases or none.
"""

from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM, Span, Tagger
from adapt.pretrained.families import (
    ACTIVATIONS,
    LIBRARY_ACTIVATIONS,
    QKV,
    SIZES,
    Family,
    Row,
    architecture,
    block_rows,
    dense,
    heads,
    norm,
    rope,
    under,
)
from adapt.pretrained.families.checks import check_count
from adapt.pretrained.families.local_layers import GLOBAL, LOCAL, layer_types, layer_types_of
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    *SIZES,
    ("activation", "hidden_activation", "gelu"),
    ("norm_epsilon", "norm_eps", 1e-5),
    ("norm_bias", "norm_bias", False),
    ("mlp_bias", "mlp_bias", False),
    ("qkv_bias", "attention_bias", False),
    ("output_bias", "attention_bias", False),
    ("dropout", "mlp_dropout", 0.0),
    ("dropout", "embedding_dropout", 0.0),
    ("attention_dropout", "attention_dropout", 0.0),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", 50283),
]
PREDICTING = ("classes", "token classes", "spans")
BLOCK = {
    "attn_norm": "attention_norm",
    "attn.Wqkv": QKV,
    "attn.Wo": "attention/output",
    "mlp_norm": "mlp_norm",
    "mlp.Wi": ("mlp/gate", "mlp/up"),
    "mlp.Wo": "mlp/down",
}
TABLE = [
    Row("embeddings.tok_embeddings.weight", ("encoder/embedding/token",)),
    *norm("embeddings.norm", "encoder/embedding/norm"),
    *block_rows("layers.#", BLOCK),
    *norm("final_norm", "encoder/final_norm"),
    *under(["masked LM"], dense("head.dense", "head/transform")),
    *under(["masked LM"], norm("head.norm", "head/norm")),
    *under(PREDICTING, dense("head.dense", "head/hidden")),
    *under(PREDICTING, norm("head.norm", "head/hidden_norm")),
    *dense("decoder", "head/decoder"),
    *under(PREDICTING[:2], dense("classifier", "head/classifier")),
    *under(["spans"], [Row("classifier.weight", ("head/span/kernel",), "transposed")]),
]


def complete(hf: Entries, fields: Fields) -> Fields:
    every = hf.get("global_attn_every_n_layers", 3)
    check_count(every, "global_attn_every_n_layers")
    kinds = layer_types(hf, fields, lambda index: index % every)
    return fields | {
        **rotary_fields(hf),
        "local_layers": tuple(index for index, kind in enumerate(kinds) if kind == LOCAL),
        "window": window(hf),
    }


def window(hf: Entries) -> int:
    """How far a local block sees ahead and back: half of ``local_attention``, or
    ``sliding_window``, by which transformers sets it, too.
    """
    said = {}
    for entry, default in (("local_attention", 128), ("sliding_window", None)):
        value = hf.get(entry, default)
        if entry in hf and type(value) is not int:
            raise CheckpointError(f"{entry} is {value!r} in config.json: it must be a number")
        said[entry] = value
    half = said["local_attention"] // 2
    own = said["sliding_window"]
    if own is None:
        return half
    if "local_attention" in hf and own != half:
        raise CheckpointError(
            f"sliding_window is {own} and local_attention {said['local_attention']} in config.json: "
            "the first has to be half of the second, remove the wrong one"
        )
    return own


def rotary_fields(hf: Entries) -> Fields:
    """The fields of global layers, which may be stretched, and the base of local ones."""
    parameters = rope.entries_of(hf, "rope_parameters")
    if parameters and not parameters.keys() & {GLOBAL, LOCAL}:
        raise CheckpointError(
            f"rope_parameters in config.json is for all layers: only those of {GLOBAL} and {LOCAL} "
            "are read"
        )
    everywhere = rope.rope_of_kind(hf, GLOBAL, "global_rope_theta", 160_000.0)
    local = rope.rope_of_kind(hf, LOCAL, "local_rope_theta", 10_000.0)
    local |= rope.scaling_of_kinds(hf)  # of both kinds
    if rope.scaling_fields(local).get("rotary_factor", 1) != 1:
        raise CheckpointError(
            f"the positions of {LOCAL} in config.json are scaled: only those of {GLOBAL} are read so"
        )
    return rope.scaling_fields(everywhere) | {"local_rotary_base": local["rope_theta"]}


def entries(config: EncoderConfig, head: Any) -> Fields:
    local_base = config.local_rotary_base or config.rotary_base
    plain = {"rope_type": "default"}
    scaling = rope.scaling_entry(config) or plain
    return {
        "layer_types": layer_types_of(config),
        "local_attention": 2 * config.window,
        "rope_parameters": {
            GLOBAL: {"rope_theta": config.rotary_base, **scaling},
            LOCAL: {"rope_theta": local_base, **plain},
        },
        **head_entries(head),
    }


def head_entries(head: Any) -> Fields:
    """What config.json says of the head."""
    if isinstance(head, MaskedLM):
        return {
            "classifier_activation": LIBRARY_ACTIVATIONS[head.activation],
            "classifier_bias": head.transform_bias,
            "decoder_bias": head.decoder_bias,
            "tie_word_embeddings": head.tied,
        }
    if not getattr(head, "hidden", ""):
        return {}
    said = {
        "classifier_activation": LIBRARY_ACTIVATIONS[head.hidden],
        "classifier_bias": head.hidden_bias,
    }
    if isinstance(head, Classifier):
        said["classifier_pooling"] = head.pooling
    return said


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """A masked LM, or a dense layer and a norm before what classifies sequences, tokens or spans."""
    name = hf.get("classifier_activation", "gelu")
    if "head.dense.weight" not in tensors or name not in ACTIVATIONS:
        return Classifier(0), tensors
    activation = ACTIVATIONS[name]
    bias = bool(hf.get("classifier_bias", False))
    if "classifier.weight" not in tensors:
        tied, tensors = heads.tie(hf, tensors, "decoder.weight", "embeddings.tok_embeddings.weight")
        head = MaskedLM(
            config.vocabulary,
            tied,
            activation=activation,
            norm_epsilon=config.norm_epsilon,
            transform_bias=bias,
            norm_bias=config.norm_bias,
            decoder_bias=bool(hf.get("decoder_bias", True)),
        )
        return head, tensors
    hidden = head_layer(config) | {"hidden": activation, "hidden_bias": bias}
    name = architecture(hf)
    if name.endswith("ForQuestionAnswering"):
        return Span(config.positions, **hidden), tensors
    classes = len(tensors["classifier.weight"])
    if name.endswith("ForTokenClassification"):
        return Tagger(classes, **hidden), tensors
    pooling = hf.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        return Classifier(0), tensors
    return Classifier(classes, pooling, **hidden), tensors


def language_model(config: EncoderConfig, tied: bool = True) -> MaskedLM:
    return MaskedLM(
        config.vocabulary,
        tied,
        norm_epsilon=config.norm_epsilon,
        transform_bias=False,
        norm_bias=config.norm_bias,
    )


def head_layer(config: EncoderConfig) -> Fields:
    """A dense layer, GELU and a norm, as a new head of transformers has them."""
    return {
        "hidden": "gelu",
        "hidden_bias": False,
        "hidden_norm": True,
        "hidden_norm_bias": config.norm_bias,
        "norm_epsilon": config.norm_epsilon,
    }


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """For spans a bias of zeros, which no softmax sees."""
    if not architecture.endswith("ForQuestionAnswering"):
        return {}
    return {"classifier.bias": np.zeros(2, np.float32)}


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    always={"pre_norm": True, "gated_mlp": True, "embedding_norm": True, "first_norm": False},
    prefix="model.",
    buffers=r"rotary_emb\..*inv_freq",
    classes=heads.classes_of("ModernBert", *heads.TEXT_KINDS),
    sequence_heads=[
        Classifier(0, pooling, hidden=activation, hidden_norm=True)
        for pooling in ("cls", "mean")
        for activation in sorted(set(ACTIVATIONS.values()))
    ],
    head_layer=head_layer,
    base_class="ModernBertModel",
    extra_tensors=extra_tensors,
    language_model=language_model,
)
