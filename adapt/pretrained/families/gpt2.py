"""GPT-2 (Radford et al. 2019): causal, pre-norm, a final norm, the LM head tied to the token
embedding.
"""

from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import CausalLM, Classifier, EncoderConfig, Span, Tagger
from adapt.pretrained.families import (
    Family,
    Fields,
    Row,
    Tensors,
    architecture,
    dense,
    norm,
    tie,
    under,
)

PARTS = {
    "multiple_choice_head.": "multiple-choice head",
    "qa_outputs.bias": "span bias of no effect",
}
CONFIG = [
    ("layers", "n_layer"),
    ("width", "n_embd"),
    ("heads", "n_head"),
    ("mlp_width", "n_inner", None),
    ("positions", "n_positions"),
    ("vocabulary", "vocab_size"),
    ("activation", "activation_function", "gelu_new"),
    ("norm_epsilon", "layer_norm_epsilon", 1e-5),
    ("dropout", "resid_pdrop", 0.1),
    ("dropout", "embd_pdrop", 0.1),
    ("attention_dropout", "attn_pdrop", 0.1),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", None),
    ("end_token", "eos_token_id", None),
    ("end_token", "bos_token_id", None),
]
LANGUAGE_MODELS = ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")  # of a tied head a file holds nothing
QKV = [f"encoder/block_#/attention/{name}" for name in ("query", "key", "value")]
TABLE = [  # Conv1D kernels are [in, out] already; query, key and value are one tensor of three
    Row("wte.weight", ("encoder/embedding/token",)),
    Row("wpe.weight", ("encoder/embedding/position",)),
    *norm("h.#.ln_1", "encoder/block_#/attention_norm"),
    *dense("h.#.attn.c_attn", *QKV, layout="same"),
    *dense("h.#.attn.c_proj", "encoder/block_#/attention/output", layout="same"),
    *norm("h.#.ln_2", "encoder/block_#/mlp_norm"),
    *dense("h.#.mlp.c_fc", "encoder/block_#/mlp/up", layout="same"),
    *dense("h.#.mlp.c_proj", "encoder/block_#/mlp/down", layout="same"),
    *norm("ln_f", "encoder/final_norm"),
    Row("lm_head.weight", ("head/decoder/kernel",), "transposed"),
    *under(["classes"], dense("score", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    for flag, default in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if hf.get(flag, default) != default:
            raise CheckpointError(f"{flag} is {hf[flag]} in config.json: only {default} is read")
    width = fields["mlp_width"] or 4 * fields["width"]
    end = fields["end_token"] or 0
    always = {"causal": True, "pre_norm": True}
    return (
        fields
        | always
        | {"mlp_width": width, "end_token": end, "pad_token": fields["pad_token"] or end}
    )


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """LM head, tied or stored; a classifier of sequences (score) or of tokens (classifier); answers
    to questions; or nothing.
    """
    if "score.weight" in tensors:
        return Classifier(len(tensors["score.weight"]), "last", bias=False), tensors
    if "classifier.weight" in tensors:
        return Tagger(len(tensors["classifier.weight"])), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    tied, tensors = tie(hf, tensors, "lm_head.weight", "wte.weight")
    if "lm_head.weight" in tensors or (tied and architecture(hf) in LANGUAGE_MODELS):
        return CausalLM(config.vocabulary, tied), tensors
    return Classifier(0, "last"), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    pooling="last",
    prefix="transformer.",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask, in old files
    parts=PARTS,
    classes={
        "classes": "GPT2ForSequenceClassification",
        "token classes": "GPT2ForTokenClassification",
        "spans": "GPT2ForQuestionAnswering",
        "causal LM": "GPT2LMHeadModel",
    },
    sequence_heads=[Classifier(0, "last", bias=False)],
    base_class="GPT2Model",
    tokenizer="GPT2Tokenizer",
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)
