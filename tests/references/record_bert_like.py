"""Record RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and ELECTRA as record.py records its families, beside it.

Run as `python tests/references/record_bert_like.py [CASE ...]` with torch and transformers.
"""

import re
import sys

import numpy as np
import record
import torch
import transformers as hf
from record import Case, Tensors, record_attentions, record_case

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 20, "max_position_embeddings": 16}


def roberta(kind: type = hf.RobertaConfig, **changes) -> hf.PretrainedConfig:
    return kind(**SIZES | {"type_vocab_size": 1} | changes)


def distilbert(**changes) -> hf.DistilBertConfig:
    base = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 20}
    return hf.DistilBertConfig(**base | {"max_position_embeddings": 14} | changes)


def electra(**changes) -> hf.ElectraConfig:
    return hf.ElectraConfig(**SIZES | {"embedding_size": 8} | changes)


def bare_names(tensors: Tensors, config: dict) -> Tensors:
    """A RobertaForMaskedLM as roberta-base is stored: the tied decoder's copies are in the file."""
    table = tensors["roberta.embeddings.word_embeddings.weight"]
    copies = {"lm_head.decoder.weight": table.clone()}
    copies["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    return tensors | copies


CASES = {
    "roberta_mlm": Case(hf.RobertaForMaskedLM, roberta(hidden_act="relu"), bare_names),
    "roberta_classifier": Case(
        hf.RobertaForSequenceClassification,
        roberta(num_hidden_layers=3, layer_norm_eps=1e-2, num_labels=3, intermediate_size=12),
    ),
    "roberta_bare": Case(  # 12 positions: all in use; two types, as data2vec's
        hf.RobertaModel,
        roberta(type_vocab_size=2, max_position_embeddings=14, hidden_act="gelu_new"),
    ),
    "roberta_spans": Case(hf.RobertaForQuestionAnswering, roberta(num_attention_heads=2)),
    "xlm_roberta_tags": Case(
        hf.XLMRobertaForTokenClassification, roberta(hf.XLMRobertaConfig, num_labels=5)
    ),
    "camembert_mlm_untied": Case(
        hf.CamembertForMaskedLM,
        roberta(hf.CamembertConfig, pad_token_id=3, tie_word_embeddings=False),
    ),
    "distilbert_mlm": Case(hf.DistilBertForMaskedLM, distilbert(activation="relu")),
    "distilbert_classifier": Case(
        hf.DistilBertForSequenceClassification,
        distilbert(
            n_layers=3, sinusoidal_pos_embds=True, num_labels=3, hidden_dim=8, vocab_size=24
        ),
    ),
    "distilbert_tags": Case(
        hf.DistilBertForTokenClassification,
        distilbert(n_heads=2, max_position_embeddings=12, num_labels=4),
    ),
    "electra_discriminator": Case(hf.ElectraForPreTraining, electra(hidden_act="relu")),
    "electra_generator": Case(
        hf.ElectraForMaskedLM, electra(layer_norm_eps=1e-2, hidden_act="gelu_new")
    ),
    "electra_generator_untied": Case(
        hf.ElectraForMaskedLM, electra(tie_word_embeddings=False, embedding_size=20, vocab_size=22)
    ),
    "electra_choices": Case(hf.ElectraForMultipleChoice, electra(num_hidden_layers=3)),
    "roberta_choices": Case(hf.RobertaForMultipleChoice, roberta(hidden_size=8)),
    "electra_classifier": Case(  # an embedding as wide as the encoder
        hf.ElectraForSequenceClassification,
        electra(
            num_hidden_layers=3,
            embedding_size=16,
            num_labels=3,
            type_vocab_size=1,
            intermediate_size=8,
            vocab_size=24,
        ),
    ),
}
WITH_ATTENTIONS = ("roberta_bare", "electra_discriminator")


def draw_inputs(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Texts without the padding token, by which some of these libraries count positions."""
    config = case.config
    mask = np.arange(12) < np.array([[12], [7], [1]])
    ids = rng.integers(5, config.vocab_size, mask.shape)
    inputs = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    types = getattr(config, "type_vocab_size", 0)
    if types:
        inputs["token_type_ids"] = rng.integers(0, types, mask.shape) * mask
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    record_randomise(model, rng)
    for name, parameter in model.named_parameters():
        if re.search(r"layer_norm\.weight$", name):  # which record.py takes for a bias
            parameter.data.add_(1)


class OneChoice:
    """A model of choices that gets one choice an example: `logits` [B, 1]."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.base_model = model.base_model
        self.eval = model.eval

    def __call__(self, **inputs: torch.Tensor):
        return self.model(**{name: value[:, None] for name, value in inputs.items()})


def outputs_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of record.py, and `span_logits` [B, 2, T] of starts and ends."""
    if type(model).__name__.endswith("ForMultipleChoice"):
        return record_outputs(OneChoice(model), inputs)
    found = record_outputs(model, inputs)
    if hasattr(model, "qa_outputs"):
        long = {name: torch.from_numpy(value.astype(np.int64)) for name, value in inputs.items()}
        with torch.no_grad():
            head = model(**long)
        found["span_logits"] = torch.stack([head.start_logits, head.end_logits], 1).numpy()
    return found


record_randomise = record.randomise
record_outputs = record.outputs_of


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    record.CASES = CASES
    record.draw_inputs = draw_inputs
    record.randomise = randomise
    record.outputs_of = outputs_of
    for name, case in CASES.items():
        if not names or name in names:
            record_case(name, case)
            if name in WITH_ATTENTIONS:
                record_attentions(name)


if __name__ == "__main__":
    main(sys.argv[1:])
