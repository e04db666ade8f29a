"""GPT-2 (Radford et al. 2019): causal, pre-norm, a final norm, the LM head tied to the token embedding."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.families import Row, norm
from adapt.families.bert import ACTIVATIONS, activation
from adapt.models import CausalLM, Classifier, EncoderConfig

MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
    for flag, default in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if hf.get(flag, default) != default:
            raise CheckpointError(f"{flag} is {hf[flag]} in config.json: only {default} is read")
    return EncoderConfig(
        family="gpt2",
        layers=hf["n_layer"],
        width=hf["n_embd"],
        heads=hf["n_head"],
        mlp_width=hf.get("n_inner") or 4 * hf["n_embd"],
        positions=hf["n_positions"],
        vocabulary=hf["vocab_size"],
        causal=True,
        pre_norm=True,
        activation=activation(hf.get("activation_function", "gelu_new")),
        norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
        dropout=hf.get("resid_pdrop", 0.1),
        attention_dropout=hf.get("attn_pdrop", 0.1),
        init_range=hf.get("initializer_range", 0.02),
        pad_token=hf.get("pad_token_id") or hf.get("eos_token_id") or 0,
        end_token=hf.get("eos_token_id") or 0,
    )


def write_config(c: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": c.layers,
        "n_embd": c.width,
        "n_head": c.heads,
        "n_inner": c.mlp_width,
        "n_positions": c.positions,
        "vocab_size": c.vocabulary,
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.attention_dropout,
        "initializer_range": c.init_range,
        "pad_token_id": c.pad_token,
        "bos_token_id": c.end_token,
        "eos_token_id": c.end_token,
    }


def canonical(name: str) -> str | None:
    """Without the ``transformer.`` prefix; the causal mask is a buffer in old files."""
    name = name.removeprefix(PREFIX)
    return None if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name) else name


def recognise(hf: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """LM head, tied or stored; a sequence classifier (score); or nothing."""
    tensors, wants = dict(tensors), hf.get("architectures") or [""]
    if "score.weight" in tensors:
        return Classifier(len(tensors["score.weight"]), "last", bias=False), tensors
    stored, embedding = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if (
        stored is not None
        and hf.get("tie_word_embeddings", True)
        and embedding is not None
        and np.array_equal(stored, embedding)
    ):
        tensors.pop("lm_head.weight")
        stored = None
    if stored is not None or wants[0] == "GPT2LMHeadModel":
        return CausalLM(hf["vocab_size"], tied=stored is None and hf.get("tie_word_embeddings", True)), tensors
    return Classifier(0, "last"), tensors


def table(c: EncoderConfig, head: Any) -> list[Row]:
    """GPT-2's Conv1D kernels are [in, out] already; query, key and value are one tensor of three."""
    rows = [Row("wte.weight", ("encoder/embedding/token",)), Row("wpe.weight", ("encoder/embedding/position",))]
    for index in range(c.layers):
        theirs, ours = f"h.{index}", f"encoder/block_{index:02d}"
        for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
            qkv = tuple(f"{ours}/attention/{name}/{leaf}" for name in ("query", "key", "value"))
            rows += [
                Row(f"{theirs}.attn.c_attn.{kind}", qkv),
                Row(f"{theirs}.attn.c_proj.{kind}", (f"{ours}/attention/output/{leaf}",)),
                Row(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}/mlp/up/{leaf}",)),
                Row(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}/mlp/down/{leaf}",)),
            ]
        rows += norm(f"{theirs}.ln_1", f"{ours}/attention_norm") + norm(f"{theirs}.ln_2", f"{ours}/mlp_norm")
    rows += norm("ln_f", "encoder/final_norm")
    if isinstance(head, CausalLM) and not head.tied:
        rows += [Row("lm_head.weight", ("head/decoder/kernel",), "transposed")]
    if getattr(head, "classes", 0):
        rows += [Row("score.weight", ("head/classifier/kernel",), "transposed")]
    return rows
