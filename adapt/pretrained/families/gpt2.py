"""GPT-2 (Radford et al. 2019): causal, pre-norm, a final norm, the LM head tied to the token
embedding.
"""

from adapt.models import Classifier
from adapt.pretrained.families import QKV, Family, Row, block_rows, dense, heads, norm, under
from adapt.pretrained.families.types import Entries, Fields

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
USUAL = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
LANGUAGE_MODELS = ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")
# Conv1D kernels are [in, out] already; query, key and value are one tensor of three.
BLOCK = {
    "ln_1": "attention_norm",
    "attn.c_attn": QKV,
    "attn.c_proj": "attention/output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp/up",
    "mlp.c_proj": "mlp/down",
}
TABLE = [
    Row("wte.weight", ("encoder/embedding/token",)),
    Row("wpe.weight", ("encoder/embedding/position",)),
    *block_rows("h.#", BLOCK, layout="same"),
    *norm("ln_f", "encoder/final_norm"),
    Row("lm_head.weight", ("head/decoder/kernel",), "transposed"),
    *under(["classes"], dense("score", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    return fields | {"mlp_width": fields["mlp_width"] or 4 * fields["width"]}


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.classes_of_last,
        heads.token_classes,
        heads.spans,
        heads.causal_lm("wte.weight", *LANGUAGE_MODELS),
        pooling="last",
    ),
    complete,
    usual=USUAL,
    always={"causal": True, "pre_norm": True},
    pooling="last",
    prefix="transformer.",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask, in old files
    parts={"multiple_choice_head.": "multiple-choice head", **heads.SPAN_BIAS},
    classes={
        **heads.classes_of("GPT2", "classes", "token classes", "spans"),
        "causal LM": LANGUAGE_MODELS[0],
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
