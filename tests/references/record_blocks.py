"""Record ModernBERT, ESM-2, NomicBERT and GTE as record.py records the first families.

Run as `python tests/references/record_blocks.py` with what record.py needs. The folders and their arrays
are as there. Windows are shorter than the texts, the bases of rotary positions so low that all frequencies
show, and one text of ESM has masked tokens.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers as hf
from record import HERE, outputs_of
from safetensors.torch import load_file, save_file
from transformers.models.esm.configuration_esm import get_default_vocab_list

MASK = 32  # of ESM
LENGTHS = (12, 7, 1)
PROTEINS = [
    "MKTAYIAKQR",
    "MK<mask>AY",
    "M K T",
    "mkt",
    "MKbzT  x y\tK",
    "M.K-T<null_1>J",
    "<cls>MK<eos>",
    "<masks> M",
    "",
    "  M ",
]


def modernbert(**changes) -> hf.ModernBertConfig:
    base = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    base |= {"intermediate_size": 16, "max_position_embeddings": 20, "local_attention": 6}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1}
    ends = {"eos_token_id": 2, "sep_token_id": 2}
    return hf.ModernBertConfig(**base | tokens | ends | changes)


def esm(**changes) -> hf.EsmConfig:
    base = {"vocab_size": 33, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    base |= {"intermediate_size": 28, "max_position_embeddings": 20, "pad_token_id": 1}
    positions = {"position_embedding_type": "rotary", "mask_token_id": MASK, "rope_theta": 50.0}
    return hf.EsmConfig(**base | positions | {"token_dropout": True} | changes)


def rotary_bert(kind: type, theta: float, **changes):
    base = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    base |= {"intermediate_size": 24, "max_position_embeddings": 20}
    rotary = {"rope_type": "default", "rope_theta": theta}
    return kind(**base | {"rope_parameters": rotary} | changes)


def rope(full: float, sliding: float) -> dict:
    return {
        "full_attention": {"rope_type": "default", "rope_theta": full},
        "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
    }


def old_modernbert(tensors: dict, config: dict) -> dict:
    """config.json as transformers 4 writes it."""
    types = config.pop("layer_types")
    parameters = config.pop("rope_parameters")
    config["global_attn_every_n_layers"] = types.index("full_attention", 1)
    config["global_rope_theta"] = parameters["full_attention"]["rope_theta"]
    config["local_rope_theta"] = parameters["sliding_attention"]["rope_theta"]
    del config["tie_word_embeddings"]
    return tensors


def old_esm(tensors: dict, config: dict) -> dict:
    """As facebook's ESM-2 files: the frequencies in every layer, rounded to float16; and a table of
    positions that nothing reads.
    """
    frequencies = tensors.pop("esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
    rounded = frequencies.half().float()
    assert not torch.equal(rounded, frequencies)
    for layer in range(config["num_hidden_layers"]):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        tensors[name] = rounded.clone()
    table = torch.zeros(config["max_position_embeddings"], config["hidden_size"])
    positions = torch.arange(config["max_position_embeddings"])[None]
    embeddings = {"position_embeddings.weight": table, "position_ids": positions}
    return tensors | {f"esm.embeddings.{name}": tensor for name, tensor in embeddings.items()}


class Case(NamedTuple):
    """A class, its config, and how the files differ from what save_pretrained writes."""

    model: type
    config: hf.PretrainedConfig
    edit: Callable[[dict, dict], dict] | None = None


LABELS = {"id2label": {0: "negative", 1: "neutral", 2: "positive"}}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
CASES = {
    "modernbert_mlm_tied": Case(
        hf.ModernBertForMaskedLM,
        modernbert(num_hidden_layers=4, rope_parameters=rope(70.0, 9.0)),
    ),
    "modernbert_classifier": Case(
        hf.ModernBertForSequenceClassification,
        modernbert(
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=rope(40.0, 200.0),
            classifier_pooling="mean",
            classifier_activation="silu",
            hidden_activation="gelu_pytorch_tanh",
            norm_eps=1e-2,
            **BIASES,
            **LABELS,
        ),
    ),
    "modernbert_mlm_untied_old": Case(
        hf.ModernBertForMaskedLM,
        modernbert(
            global_attn_every_n_layers=2,
            rope_parameters=rope(500.0, 20.0),
            local_attention=5,
            num_attention_heads=3,
            decoder_bias=False,
            tie_word_embeddings=False,
            classifier_bias=True,
        ),
        old_modernbert,
    ),
    "modernbert_tokens": Case(
        hf.ModernBertForTokenClassification,
        modernbert(num_hidden_layers=2, local_attention=2, **LABELS),
    ),
    "esm_mlm_old": Case(hf.EsmForMaskedLM, esm(), old_esm),
    "esm_classifier": Case(
        hf.EsmForSequenceClassification,
        esm(emb_layer_norm_before=True, token_dropout=False, layer_norm_eps=1e-2, **LABELS),
    ),
    "esm_tokens": Case(
        hf.EsmForTokenClassification, esm(rope_theta=300.0, num_attention_heads=2, **LABELS)
    ),
    "esm_absolute": Case(
        hf.EsmModel, esm(position_embedding_type="absolute", emb_layer_norm_before=True)
    ),
    "nomic_mlm": Case(hf.NomicBertForMaskedLM, rotary_bert(hf.NomicBertConfig, 30.0)),
    "nomic_bare": Case(
        hf.NomicBertModel,
        rotary_bert(
            hf.NomicBertConfig, 200.0, num_attention_heads=2, head_dim=8, layer_norm_eps=1e-2
        ),
    ),
    "nomic_classifier": Case(
        hf.NomicBertForSequenceClassification,
        rotary_bert(hf.NomicBertConfig, 90.0, hidden_act="gelu", **LABELS),
    ),
    "gte_mlm_untied": Case(
        hf.GteForMaskedLM, rotary_bert(hf.GteConfig, 60.0, tie_word_embeddings=False)
    ),
    "gte_bare_no_types": Case(
        hf.GteModel,
        rotary_bert(hf.GteConfig, 20.0, type_vocab_size=0, layer_norm_eps=1e-2),
    ),
    "gte_classifier": Case(
        hf.GteForSequenceClassification,
        rotary_bert(hf.GteConfig, 60.0, hidden_act="relu", type_vocab_size=2, **LABELS),
    ),
}
WITH_ATTENTIONS = ("modernbert_tokens", "nomic_bare")


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Values so large that attention is far from uniform and every bias and scale shows."""
    for name, parameter in model.named_parameters():
        draw = rng.standard_normal(tuple(parameter.shape))
        if parameter.ndim == 1 and name.endswith("weight"):
            draw = 1 + 0.3 * draw
        elif parameter.ndim == 1:
            draw = 0.3 * draw
        elif "embeddings" in name:
            draw = 0.5 * draw
        else:
            draw = 1.2 * draw / np.sqrt(parameter.shape[1])
        parameter.data.copy_(torch.from_numpy(draw))


def draw_inputs(config: hf.PretrainedConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = rng.integers(6, config.vocab_size, mask.shape)
    if config.model_type == "esm":
        ids = np.minimum(ids, MASK - 1)
        ids[0, [2, 3, 9]] = MASK
    inputs = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, mask.shape) * mask
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def record_residues() -> None:
    """What ESM's tokenizer makes of proteins, and of what is none."""
    folder = HERE / "esm_classifier"
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "vocab.txt"
        vocabulary.write_text("\n".join(get_default_vocab_list()))
        tokenizer = hf.EsmTokenizer(str(vocabulary), model_max_length=20)
    tokenizer.save_pretrained(folder)
    ids = {text: tokenizer(text)["input_ids"] for text in PROTEINS}
    (folder / "residues.json").write_text(json.dumps(ids) + "\n")
    first, second = PROTEINS[:2]
    print("residues:", sorted(path.name for path in folder.iterdir()), tokenizer(first, second))


def record_case(name: str, case: Case) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = case.model(case.config)
    randomise(model, rng)
    inputs = draw_inputs(case.config, rng)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if case.edit:
        file, settings = folder / "model.safetensors", folder / "config.json"
        config = json.loads(settings.read_text())
        save_file(case.edit(load_file(file), config), file, {"format": "pt"})
        settings.write_text(json.dumps(config, indent=2) + "\n")

    # What is recorded is what the original library makes of the folder.
    again, info = case.model.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], (name, info)
    recorded = outputs_of(again, inputs)
    np.savez_compressed(folder / "outputs.npz", **inputs, **recorded)
    if name in WITH_ATTENTIONS:
        long = {key: torch.from_numpy(value.astype(np.int64)) for key, value in inputs.items()}
        with torch.no_grad():
            attentions = torch.stack(again(**long, output_attentions=True).attentions)
        np.savez_compressed(folder / "attentions.npz", attentions=attentions.numpy())
    double = outputs_of(again.double(), inputs)
    rounding = max(np.nanmax(np.abs(double[key] - recorded[key])) for key in recorded)
    print(f"{name}: {sorted(recorded)}, float32 against float64 {rounding:.1e}")


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    for name, case in CASES.items():
        record_case(name, case)
    record_residues()


if __name__ == "__main__":
    main()
