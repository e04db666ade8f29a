"""A run as the folder of a sentence-transformers model: transformer, pooling and a dense layer."""

from typing import Any

import numpy as np

from adapt import tree
from adapt.export import card, layout
from adapt.export.folder import Folder, class_names, head_kind, json_text, model_entries
from adapt.export.inputs import input_files
from adapt.pretrained import hub

# Our pooling -> how 1_Pooling/config.json calls it.
POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
ARCHITECTURES = {"bert": "BertModel", "gpt2": "GPT2Model"}
# (family, kind of the head) -> the class of the encoder
CLASSES = {
    (family, f"{pooling} pooling"): architecture
    for family, architecture in ARCHITECTURES.items()
    for pooling in ("mean", "max", "cls")
}
MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))


def sentence_transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """Transformer, pooling and dense, by names that all versions read. No normalisation: ``encode``
    gives logits.
    """
    head = run.params["head"]["classifier"]
    kind = head_kind(run.head, run.config)
    architecture = CLASSES[run.config.family, kind]
    run, files, notes = input_files(run)
    for name, content in settings_files(run).items():
        files[name] = json_text(content)
    files["README.md"] = card.card(
        f"{architecture} with {kind} and a dense layer",
        "sentence-transformers",
        card.SENTENCES,
        run.task,
        class_names(run),
        [card.LOGITS, *notes],
    )
    config = layout.write_config(run.config) | model_entries(run, architecture)
    encoder = layout.to_tensors(run.config, tree.drop(run.params, "head"))
    dense = {
        "in_features": run.config.width,
        "out_features": run.head.classes,
        "bias": run.head.bias,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    weights = {"linear.weight": np.ascontiguousarray(np.asarray(head["kernel"]).T)}
    if run.head.bias:
        weights["linear.bias"] = np.asarray(head["bias"])
    return {"": Folder(config, encoder, files), "2_Dense": Folder(dense, weights, {})}


def settings_files(run: hub.Pretrained) -> dict[str, Any]:
    """The library's own JSON files by name, without those of the dense layer."""
    modules = []
    for index, (name, path) in enumerate(MODULES):
        type_name = f"sentence_transformers.models.{name}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": type_name})
    assert run.tokenizer is not None
    transformer: dict[str, Any] = {
        "max_seq_length": run.tokenizer.max_length,
        "do_lower_case": False,
    }
    if run.config.family == "bert":
        # Otherwise a random pooler is made, with a warning.
        transformer["model_args"] = {"add_pooling_layer": False}
    pooling: dict[str, Any] = {"word_embedding_dimension": run.config.width}
    for name, library_name in POOLINGS.items():
        pooling[f"pooling_mode_{library_name}"] = name == run.head.pooling
    return {
        "modules.json": modules,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": None,
        },
        "1_Pooling/config.json": pooling,
    }
