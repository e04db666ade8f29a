"""What the decoders since Llama have in common: causal, RMS norms, rotary positions, shared keys and
values, a gated MLP. Their families are files of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any

from adapt.models import CausalLM, Classifier, EncoderConfig, Tagger
from adapt.pretrained.families import SIZES, Family, Row, architecture, dense, heads, norm
from adapt.pretrained.families.checks import check_count
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    *SIZES,
    ("activation", "hidden_act", "silu"),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("attention_dropout", "attention_dropout", 0.0),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", None),
    ("end_token", "eos_token_id", None),
]
# The norms of a block: their name and ours.
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def table(norms: Mapping[str, str] = NORMS) -> list[Row]:
    """The rows of a decoder."""
    attention = "encoder/block_#/attention"
    rows = [Row("embed_tokens.weight", ("encoder/embedding/token",))]
    for theirs, ours in norms.items():
        rows += norm(f"layers.#.{theirs}", f"encoder/block_#/{ours}")
    for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
        rows += dense(f"layers.#.self_attn.{theirs}_proj", f"{attention}/{ours}")
    for theirs, ours in {"q": "query", "k": "key"}.items():
        rows += norm(f"layers.#.self_attn.{theirs}_norm", f"{attention}/{ours}_norm")
    for name in ("gate", "up", "down"):
        rows += dense(f"layers.#.mlp.{name}_proj", f"encoder/block_#/mlp/{name}")
    rows += norm("norm", "encoder/final_norm")
    rows.append(Row("lm_head.weight", ("head/decoder/kernel",), "transposed"))
    rows += dense("score", "head/classifier")
    rows.append(heads.SPAN)
    return rows


def common_fields(hf: Entries, fields: Fields, kv_heads: int = 0, head_width: int = 0) -> Fields:
    """What every decoder has. ``kv_heads`` and ``head_width`` are the model's where its config.json
    does not say them; 0: as many as heads, and what the heads have of the width.
    """
    check_count(fields["width"], "hidden_size")
    check_count(fields["heads"], "num_attention_heads")
    end = fields["end_token"] if fields["end_token"] is not None else 0
    pad = fields["pad_token"] if fields["pad_token"] is not None else end
    always = {"pre_norm": True, "norm_kind": "rms", "gated_mlp": True}
    without = {"qkv_bias": False, "output_bias": False, "mlp_bias": False, "dropout": 0.0}
    attention = {
        "kv_heads": hf.get("num_key_value_heads", kv_heads) or fields["heads"],
        "head_width": hf.get("head_dim", head_width) or 0,
        "causal": hf.get("is_causal") is not False,  # some embedding models read both ways
    }
    return fields | always | without | attention | {"end_token": end, "pad_token": pad}


def common_entries(config: EncoderConfig) -> Fields:
    """The entries that :func:`common_fields` reads."""
    entries = {"num_key_value_heads": config.kv_heads}
    if config.head_width:
        entries["head_dim"] = config.head_width
    if not config.causal:
        entries["is_causal"] = False
    return entries


def biases(hf: Entries) -> Fields:
    """Attention's biases, which are four or none."""
    bias = bool(hf.get("attention_bias", False))
    return {"qkv_bias": bias, "output_bias": bias}


def classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of sequences or, with a bias, of tokens."""
    classes = len(tensors.get("score.weight", ()))
    if not classes:
        return None
    has_bias = "score.bias" in tensors
    return (Tagger(classes) if has_bias else Classifier(classes, "last", bias=False)), tensors


def language_model(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A language model's head, tied or stored."""
    tied, tensors = heads.tie(hf, tensors, "lm_head.weight", "embed_tokens.weight")
    if "lm_head.weight" in tensors or (tied and architecture(hf).endswith("ForCausalLM")):
        return CausalLM(config.vocabulary, tied), tensors
    return None


def family(
    name: str,
    complete: Callable[[Mapping[str, Any], Fields], Fields],
    entries: Callable[[EncoderConfig, Any], Fields],
    tokenizer: str = "",
) -> Family:
    """The family whose classes are called ``name``."""
    return Family(
        CONFIG,
        table(),
        heads.first_of(classes, heads.spans, language_model, pooling="last"),
        complete,
        entries,
        pooling="last",
        prefix="model.",
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        parts=heads.SPAN_BIAS,
        classes=heads.classes_of(name, "classes", "token classes", "causal LM"),
        sequence_heads=[Classifier(0, "last", bias=False)],
        base_class=f"{name}Model",
        tokenizer=tokenizer,
    )
