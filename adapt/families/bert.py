"""BERT (Devlin et al. 2019): post-norm blocks, learned positions, two segment types."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.families import Row, dense, norm
from adapt.models import Classifier, EncoderConfig, MaskedLM

MODEL_TYPES = ("bert",)
PREFIX = "bert."
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
    if hf.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"position_embedding_type {hf['position_embedding_type']!r} in config.json: only absolute is read"
        )
    if hf.get("is_decoder"):
        raise CheckpointError("is_decoder is true in config.json: only BERT encoders are read")
    return EncoderConfig(
        family="bert",
        layers=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"],
        positions=hf["max_position_embeddings"],
        vocabulary=hf["vocab_size"],
        types=hf.get("type_vocab_size", 2),
        activation=activation(hf.get("hidden_act", "gelu")),
        norm_epsilon=hf.get("layer_norm_eps", 1e-12),
        dropout=hf.get("hidden_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        init_range=hf.get("initializer_range", 0.02),
        pad_token=hf.get("pad_token_id") or 0,
    )


def activation(name: str) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(f"unknown activation {name!r} in config.json: adapt has {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def write_config(c: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": c.layers,
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_width,
        "max_position_embeddings": c.positions,
        "vocab_size": c.vocabulary,
        "type_vocab_size": c.types,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "initializer_range": c.init_range,
        "pad_token_id": c.pad_token,
    }


def canonical(name: str) -> str | None:
    """Without the ``bert.`` prefix, with weight and bias for gamma and beta; position ids are a buffer."""
    name = name.removeprefix(PREFIX)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return None if name == "embeddings.position_ids" else name


def recognise(hf: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """Masked-LM (and next-sentence) head, sequence classifier, pooler alone, or nothing."""
    tensors = dict(tensors)
    pooler = any(name.startswith("pooler.") for name in tensors)
    if any(name.startswith("cls.") for name in tensors):
        decoder_bias = tensors.pop("cls.predictions.decoder.bias", None)
        decoder, table = tensors.get("cls.predictions.decoder.weight"), tensors.get("embeddings.word_embeddings.weight")
        may_tie = hf.get("tie_word_embeddings", True)
        tied = may_tie and (decoder is None or (table is not None and np.array_equal(decoder, table)))
        if tied:
            tensors.pop("cls.predictions.decoder.weight", None)
        if decoder_bias is not None and not tied:  # of the two that an untied file holds, this one is used
            tensors["cls.predictions.bias"] = decoder_bias
        next_sentence = any(name.startswith("cls.seq_relationship.") for name in tensors)
        if pooler and not next_sentence:
            raise CheckpointError(
                "a masked-LM head with a pooler but without cls.seq_relationship is not a known BERT head"
            )
        epsilon = hf.get("layer_norm_eps", 1e-12)
        return MaskedLM(
            hf["vocab_size"], tied, next_sentence, activation(hf.get("hidden_act", "gelu")), epsilon
        ), tensors
    classes = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
    return Classifier(classes, "pooler" if pooler else "cls"), tensors


def table(c: EncoderConfig, head: Any) -> list[Row]:
    rows = [
        Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
        Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
        *([Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",))] if c.types else []),
        *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    ]
    for index in range(c.layers):
        theirs, ours = f"encoder.layer.{index}", f"encoder/block_{index:02d}"
        for name in ("query", "key", "value"):
            rows += dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        rows += dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
        rows += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        rows += dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
        rows += norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm")
    if isinstance(head, MaskedLM):
        rows += dense("cls.predictions.transform.dense", "head/transform")
        rows += norm("cls.predictions.transform.LayerNorm", "head/norm")
        rows += [Row("cls.predictions.bias", ("head/decoder/bias",))]
        rows += [] if head.tied else [Row("cls.predictions.decoder.weight", ("head/decoder/kernel",), "transposed")]
        rows += dense("cls.seq_relationship", "head/next_sentence") if head.next_sentence else []
    if getattr(head, "pooling", "") == "pooler" or getattr(head, "next_sentence", False):
        rows += dense("pooler.dense", "head/pooler")
    return rows + (dense("classifier", "head/classifier") if getattr(head, "classes", 0) else [])
