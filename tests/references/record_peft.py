"""Record adapters of PEFT on the random checkpoints of this folder, and what it computes with them.

Run as `python tests/references/record_peft.py` with torch, transformers and peft, after
the other scripts. Each folder adapters/<case>/ is what `save_pretrained` writes, with outputs.npz beside
it; `base_model_name_or_path` is the name of the base's folder here. Every tensor of an adapter is random:
zeros would hide a wrong mapping. Arrays in outputs.npz are those of record.py.
"""

import dataclasses
import json
import shutil
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

HERE = Path(__file__).parent


@dataclasses.dataclass
class Case:
    """An adapter on a recorded checkpoint: its configuration, and transformers' class if it is not
    the one that the checkpoint is of.
    """

    base: str
    config: peft.PeftConfig
    model: type | None = None
    labels: int | None = None


def lora(targets, **entries) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=targets, **{"r": 3, "lora_alpha": 5} | entries)


CASES = {
    "bert_classifier": Case(
        "bert_mlm_tied",
        lora(["query", "value"], task_type="SEQ_CLS", modules_to_save=["pooler"]),
        hf.BertForSequenceClassification,
        3,
    ),
    "bert_patterns": Case(
        "bert_bare_pooler",
        lora(
            "all-linear",
            task_type="FEATURE_EXTRACTION",
            rank_pattern={"layer.0.attention.self.query": 2, "dense": 4},
            alpha_pattern={r"layer\.1\..*": 7},
            use_rslora=True,
            bias="all",
            exclude_modules=["key"],
        ),
    ),
    "bert_dora": Case("bert_bare_pooler", lora(r".*layer\.1\.(.*)dense", use_dora=True)),
    "bert_ia3": Case(
        "bert_bare_pooler",
        peft.IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "bert_vera": Case(
        "bert_bare_pooler", peft.VeraConfig(r=3, target_modules=["query", "intermediate.dense"])
    ),
    "roberta_tags": Case(
        "roberta_bare",
        lora(["query", "dense"], task_type="TOKEN_CLS", layers_to_transform=[1]),
        hf.RobertaForTokenClassification,
        4,
    ),
    "gpt2_lm": Case(
        "gpt2_lm_tied", lora(["c_attn", "c_proj"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    ),
    "gpt2_embedding": Case("gpt2_bare", lora(["c_attn", "wte"], use_rslora=True)),
    "modernbert_new_classifier": Case(
        "modernbert_mlm_tied",
        lora(["Wqkv", "Wi"], task_type="SEQ_CLS"),
        hf.ModernBertForSequenceClassification,
        3,
    ),
    "modernbert": Case("modernbert_classifier", lora(["Wqkv", "Wi", "Wo"], use_dora=True)),
    "qwen3_classifier": Case(
        "qwen3_bare",
        lora(["q_proj", "v_proj", "down_proj"], task_type="SEQ_CLS"),
        hf.Qwen3ForSequenceClassification,
        3,
    ),
    "llama_lm": Case(
        "llama_lm_untied",
        lora(["q_proj", "k_proj", "gate_proj", "lm_head"], task_type="CAUSAL_LM"),
    ),
    "vit_classifier": Case(
        "vit_classifier",
        lora(["q_proj", "fc1", "projection"], modules_to_save=["classifier"], use_rslora=True),
    ),
    "gte": Case("gte_bare_no_types", lora(["q_proj", "v_proj", "up_proj", "o_proj"])),
}


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draw what the adapter trains, of such a size that it shows."""
    for name, parameter in model.named_parameters():
        is_added = "lora_" in name or "ia3_" in name or "vera_lambda" in name
        if not parameter.requires_grad and not is_added:
            continue
        draw = rng.standard_normal(tuple(parameter.shape))
        if "magnitude" in name or "ia3_" in name:
            parameter.data.mul_(torch.from_numpy(1 + 0.3 * draw).float())
        else:
            parameter.data.copy_(torch.from_numpy(draw * 0.2))


@torch.no_grad()
def outputs_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    model.eval()
    found = model(**inputs, output_hidden_states=True)
    base = model.get_base_model().base_model(**inputs)
    arrays = {"last_hidden_state": base.last_hidden_state, "logits": found.get("logits")}
    arrays["pooler_output"] = base.get("pooler_output")
    return {name: value.numpy() for name, value in arrays.items() if value is not None}


def record_case(name: str, case: Case) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    torch.manual_seed(zlib.crc32(name.encode()))
    base_folder = HERE / case.base
    says = json.loads((base_folder / "config.json").read_text())
    model_class = case.model or getattr(hf, says["architectures"][0])
    options = {} if case.labels is None else {"num_labels": case.labels}
    base = model_class.from_pretrained(base_folder, **options)
    pads = hasattr(base.config, "pad_token_id")
    if pads and base.config.pad_token_id is None:
        base.config.pad_token_id = 0
    model = peft.get_peft_model(base, case.config)
    randomise(model, rng)
    with np.load(base_folder / "outputs.npz") as file:
        names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
        inputs = {key: file[key] for key in names if key in file}
    tensors = {}
    for key, value in inputs.items():
        tensors[key] = torch.from_numpy(value)
        if value.dtype == np.int32:
            tensors[key] = tensors[key].long()
    recorded = outputs_of(model, tensors)

    folder = HERE / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    entries = json.loads(file.read_text())
    entries["base_model_name_or_path"] = case.base
    for entry, value in entries.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            entries[entry] = sorted(value)  # PEFT writes a set
    file.write_text(json.dumps(entries, indent=2) + "\n")
    np.savez_compressed(folder / "outputs.npz", **inputs, **recorded)

    # Read back by PEFT, the folder has to be the model that was recorded.
    again = peft.PeftModel.from_pretrained(
        model_class.from_pretrained(base_folder, **options), folder
    )
    if pads:
        again.get_base_model().config.pad_token_id = base.config.pad_token_id
    for key, value in outputs_of(again, tensors).items():
        assert np.allclose(value, recorded[key], atol=1e-6), (name, key)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {sorted(recorded)}, {size / 1024:.0f} KiB")


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    for name, case in CASES.items():
        record_case(name, case)
    versions = {name: version(name) for name in ("numpy", "torch", "transformers", "peft")}
    (HERE / "adapters" / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
