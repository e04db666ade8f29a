"""GPT-2 (Radford et al. 2019): causal, pre-norm, a final norm, the LM head tied to the token
embedding.
"""

from adapt.models import CausalLM, Classifier, EncoderConfig
from adapt.pretrained.families import QKV, Family, Row, architecture, dense, heads, norm, under
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

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
USUAL = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
USUAL |= {"add_cross_attention": False}
LANGUAGE_MODELS = ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")  # of a tied head a file holds nothing
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
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    check_usual(hf, **USUAL)
    width = fields["mlp_width"] or 4 * fields["width"]
    end = fields["end_token"] or 0
    always = {"causal": True, "pre_norm": True}
    return (
        fields
        | always
        | {"mlp_width": width, "end_token": end, "pad_token": fields["pad_token"] or end}
    )


def classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of sequences."""
    classes = len(tensors.get("score.weight", ()))
    return (Classifier(classes, "last", bias=False), tensors) if classes else None


def language_model(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A language model's head, tied or stored."""
    tied, tensors = heads.tie(hf, tensors, "lm_head.weight", "wte.weight")
    if "lm_head.weight" in tensors or (tied and architecture(hf) in LANGUAGE_MODELS):
        return CausalLM(config.vocabulary, tied), tensors
    return None


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(classes, heads.token_classes, heads.spans, language_model, pooling="last"),
    complete,
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
