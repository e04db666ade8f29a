"""Record MPNet, ALBERT, T5's encoder and DeBERTa-v2/v3 as record.py records its families, beside it.

Run as `python tests/references/record_relative.py [CASE ...]` with torch and transformers. relative_buckets.npz
has the buckets that the libraries give differences of positions: `differences` [D], int, and one array [D] for
each setting, named by library, buckets and distance.
"""

import sys

import numpy as np
import record
import torch
import transformers as hf
from record import HERE, Case, record_attentions, record_case
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.t5.modeling_t5 import T5Attention

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 14, "max_position_embeddings": 24}


def mpnet(**changes) -> hf.MPNetConfig:
    return hf.MPNetConfig(**SIZES | changes)


def albert(**changes) -> hf.AlbertConfig:
    return hf.AlbertConfig(**SIZES | {"embedding_size": 6, "num_hidden_layers": 3} | changes)


def deberta(**changes) -> hf.DebertaV2Config:
    return hf.DebertaV2Config(**SIZES | {"relative_attention": True} | changes)


def t5(kind: type = hf.T5Config, **changes) -> hf.PretrainedConfig:
    base = {"vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 14, "num_layers": 2, "num_heads": 2}
    return kind(**base | {"relative_attention_max_distance": 20} | changes)


CASES = {
    "t5_encoder": Case(hf.T5EncoderModel, t5(layer_norm_epsilon=1e-2)),
    "t5_generation": Case(  # the encoder of it is recorded
        hf.T5ForConditionalGeneration,
        t5(feed_forward_proj="gated-gelu", num_decoder_layers=1, num_heads=3),
    ),
    "mt5_tokens": Case(
        hf.MT5ForTokenClassification,
        t5(
            hf.MT5Config,
            feed_forward_proj="gated-silu",
            num_layers=3,
            relative_attention_num_buckets=10,
        ),
    ),
    "umt5_encoder": Case(hf.UMT5EncoderModel, t5(hf.UMT5Config)),
    "albert_pretraining": Case(hf.AlbertForPreTraining, albert(hidden_act="gelu")),
    "albert_mlm_untied": Case(
        hf.AlbertForMaskedLM,
        albert(tie_word_embeddings=False, embedding_size=16, layer_norm_eps=1e-2),
    ),
    "albert_classifier": Case(
        hf.AlbertForSequenceClassification,
        albert(num_attention_heads=2, type_vocab_size=1, hidden_act="relu", num_labels=3),
    ),
    "deberta_v3": Case(
        hf.DebertaV2Model,
        deberta(
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
        ),
    ),
    "deberta_v2_convolution": Case(
        hf.DebertaV2Model,
        deberta(
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
            conv_kernel_size=3,
            conv_act="gelu",
            layer_norm_eps=1e-2,
        ),
    ),
    "deberta_v2_mlm": Case(
        hf.DebertaV2ForMaskedLM,
        deberta(
            position_buckets=6,
            max_relative_positions=12,
            pos_att_type=["p2c", "c2p"],
            num_attention_heads=2,
            layer_norm_eps=1e-2,
            hidden_act="relu",
        ),
    ),
    "deberta_v2_classifier": Case(
        hf.DebertaV2ForSequenceClassification,
        deberta(max_relative_positions=5, pos_att_type=["c2p"], type_vocab_size=2, num_labels=3),
    ),
    "deberta_v2_tokens": Case(  # its scores are scaled for terms that they do not have
        hf.DebertaV2ForTokenClassification,
        deberta(relative_attention=False, pos_att_type=["p2c", "c2p"], num_hidden_layers=3),
    ),
    "mpnet_mlm": Case(hf.MPNetForMaskedLM, mpnet()),
    "mpnet_classifier": Case(
        hf.MPNetForSequenceClassification,
        mpnet(num_hidden_layers=3, layer_norm_eps=1e-2, hidden_act="relu", num_labels=3),
    ),
    "mpnet_bare": Case(hf.MPNetModel, mpnet(num_attention_heads=2, hidden_act="gelu_new")),
}
WITH_ATTENTIONS = (
    "albert_classifier",
    "deberta_v3",
    "t5_encoder",
    "mpnet_bare",
)
# Lengths on both sides of where buckets begin to hold several differences.
LENGTHS = (16, 9, 1)
record_outputs = record.outputs_of
BUCKETS = {"t5": [(32, 128), (32, 256), (16, 20), (10, 17)], "deberta": [(256, 512), (8, 20)]}


def draw_inputs(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Texts without the padding token, by which some of these libraries count positions."""
    config = case.config
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = rng.integers(5, config.vocab_size, mask.shape)
    inputs = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, mask.shape) * mask
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def outputs_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the encoder, where there is a decoder; ALBERT's order of sentences, too."""
    found = record_outputs(model.get_encoder() if hasattr(model, "decoder") else model, inputs)
    if hasattr(model, "sop_classifier"):
        pooled = torch.from_numpy(found["pooler_output"])
        with torch.no_grad():
            found["seq_relationship_logits"] = model.sop_classifier(pooled).numpy()
    return found


def record_buckets() -> None:
    differences = np.concatenate([np.arange(-300, 301), [-5000, -511, -512, -513, 700, 5000]])
    arrays = {"differences": differences}
    for buckets, distance in BUCKETS["t5"]:
        found = T5Attention._relative_position_bucket(
            torch.from_numpy(differences), True, buckets, distance
        )
        arrays[f"t5_{buckets}_{distance}"] = found.numpy()
    for buckets, distance in BUCKETS["deberta"]:
        found = make_log_bucket_position(torch.from_numpy(differences), buckets, distance)
        arrays[f"deberta_{buckets}_{distance}"] = found.to(torch.long).numpy()
    np.savez_compressed(
        HERE / "relative_buckets.npz", **{name: x.astype(np.int16) for name, x in arrays.items()}
    )


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    record.draw_inputs = draw_inputs
    record.outputs_of = outputs_of
    for name in sys.argv[1:] or CASES:
        record_case(name, CASES[name])
        if name in WITH_ATTENTIONS:
            record_attentions(name, CASES[name])
    if not sys.argv[1:]:
        record_buckets()


if __name__ == "__main__":
    main()
