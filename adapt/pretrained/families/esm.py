"""ESM-2 (Lin et al. 2023), of proteins: pre-norm, rotary positions, embeddings that are scaled for
what is masked; and ESM-1b, which has learned positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM, Tagger
from adapt.models.rotary import frequencies
from adapt.pretrained.families import Family, Fields, Row, Tensors, dense, norm, tie, under

PARTS = {
    "pooler.": "pooler",
    "contact_head.": "contact head",
    "embeddings.position_embeddings.": "positions of no effect",
}
CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    ("positions", "max_position_embeddings", 1026),
    ("vocabulary", "vocab_size"),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id"),
    ("embedding_norm", "emb_layer_norm_before", None),
    ("token_dropout", "token_dropout", False),
    ("mask_token", "mask_token_id", None),
    ("rotary_base", "rope_theta", 10000.0),
    ("rotary_dtype", "rotary_dtype", "float32"),  # adapt's own: other programs read the tensor
]
BLOCK = "encoder/block_#"
TABLE = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    *norm("embeddings.layer_norm", "encoder/embedding/norm"),
    *norm("encoder.layer.#.attention.LayerNorm", f"{BLOCK}/attention_norm"),
    *dense("encoder.layer.#.attention.self.query", f"{BLOCK}/attention/query"),
    *dense("encoder.layer.#.attention.self.key", f"{BLOCK}/attention/key"),
    *dense("encoder.layer.#.attention.self.value", f"{BLOCK}/attention/value"),
    *dense("encoder.layer.#.attention.output.dense", f"{BLOCK}/attention/output"),
    *norm("encoder.layer.#.LayerNorm", f"{BLOCK}/mlp_norm"),
    *dense("encoder.layer.#.intermediate.dense", f"{BLOCK}/mlp/up"),
    *dense("encoder.layer.#.output.dense", f"{BLOCK}/mlp/down"),
    *norm("encoder.emb_layer_norm_after", "encoder/final_norm"),
    *dense("lm_head.dense", "head/transform"),
    *norm("lm_head.layer_norm", "head/norm"),
    Row("lm_head.bias", ("head/decoder/bias",)),
    Row("lm_head.decoder.weight", ("head/decoder/kernel",), "transposed"),
    *dense("pooler.dense", "head/pooler"),
    *under(["classes"], dense("classifier.dense", "head/hidden")),
    *under(["classes"], dense("classifier.out_proj", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
]
ONLY = {"is_decoder": False, "add_cross_attention": False, "is_folding_model": False}
ONLY |= {"hidden_act": "gelu"}
FREQUENCIES = "rotary_embeddings.inv_freq"


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    for name, value in ONLY.items():
        if hf.get(name, value) not in (value, None):
            raise CheckpointError(f"{name} is {hf[name]!r} in config.json: only {value!r} is read")
    kind = hf.get("position_embedding_type", "absolute")
    if kind not in ("absolute", "rotary"):
        raise CheckpointError(
            f"position_embedding_type {kind!r} in config.json: absolute and rotary are read"
        )
    if fields["token_dropout"] and type(fields["mask_token"]) is not int:
        raise CheckpointError("token_dropout in config.json wants a mask_token_id")
    said = {
        "pre_norm": True,
        "embedding_norm": bool(fields["embedding_norm"]),
        "token_dropout": bool(fields["token_dropout"]),
        "mask_token": fields["mask_token"] or 0,
    }
    if kind == "rotary":
        return fields | said | {"position_kind": "rotary"}
    pad = fields["pad_token"]
    positions = fields["positions"]
    if type(pad) is not int or type(positions) is not int:
        raise CheckpointError(
            f"pad_token_id {pad!r} and max_position_embeddings {positions!r} in config.json: "
            "positions count by them, give two numbers"
        )
    return fields | said | {"position_offset": pad + 1, "positions": positions - pad - 1}


def entries(config: EncoderConfig, head: Any) -> Fields:
    is_rotary = config.position_kind == "rotary"
    return {
        "position_embedding_type": "rotary" if is_rotary else "absolute",
        "max_position_embeddings": config.positions + config.position_offset,
    }


def settle(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> EncoderConfig:
    """The config with the precision of the frequencies that the file has, which are used."""
    names = sorted(name for name in tensors if name.endswith(FREQUENCIES))
    if not names or config.position_kind != "rotary":
        return config
    stored = tensors[names[0]].astype(np.float32)
    for dtype in ("float32", "float16"):
        ours = frequencies(config.width_of_head, config.rotary_base, dtype)
        if stored.shape == ours.shape and np.allclose(stored, ours, rtol=1e-5, atol=0):
            return dataclasses.replace(config, rotary_dtype=dtype)
    raise CheckpointError(
        f"{names[0]} holds other frequencies than those of a rope_theta of {config.rotary_base}"
    )


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """A masked LM; a classifier of sequences or of tokens; the pooler alone, or nothing."""
    if any(name.startswith("lm_head.") for name in tensors):
        embedding = "embeddings.word_embeddings.weight"
        tied, tensors = tie(hf, tensors, "lm_head.decoder.weight", embedding)
        head = MaskedLM(config.vocabulary, tied, norm_epsilon=config.norm_epsilon)
        return head, tensors
    if "classifier.out_proj.weight" in tensors:
        classes = len(tensors["classifier.out_proj.weight"])
        return Classifier(classes, "cls", hidden="tanh"), tensors
    if "classifier.weight" in tensors:
        return Tagger(len(tensors["classifier.weight"])), tensors
    return Classifier(0, "pooler" if "pooler.dense.weight" in tensors else "mean"), tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """The frequencies, a contact head of zeros, and for the encoder alone such a pooler."""
    prefix = FAMILY.prefix
    extra = {}
    if architecture == FAMILY.base_class:
        prefix = ""
        if "pooler.dense.weight" not in tensors:
            extra["pooler.dense.weight"] = np.zeros((config.width, config.width), np.float32)
            extra["pooler.dense.bias"] = np.zeros(config.width, np.float32)
    extra[f"{prefix}contact_head.regression.weight"] = np.zeros(
        (1, config.layers * config.heads), np.float32
    )
    extra[f"{prefix}contact_head.regression.bias"] = np.zeros(1, np.float32)
    if config.position_kind == "rotary":
        base = config.rotary_base
        of_file = frequencies(config.width_of_head, base, config.rotary_dtype)
        extra[prefix + FREQUENCIES] = of_file
    return extra


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    prefix="esm.",
    buffers=rf"embeddings\.position_ids|(encoder\.layer\..*)?{FREQUENCIES}",
    parts=PARTS,
    classes={
        "classes": "EsmForSequenceClassification",
        "token classes": "EsmForTokenClassification",
        "masked LM": "EsmForMaskedLM",
    },
    sequence_heads=[Classifier(0, "cls", hidden="tanh")],
    base_class="EsmModel",
    extra_tensors=extra_tensors,
    settle=settle,
    tokenizer="EsmTokenizer",
)
