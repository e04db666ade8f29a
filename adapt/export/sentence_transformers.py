"""A run as the folder of a sentence-transformers model: transformer and pooling, and a dense layer
where it predicts, or a normalisation where it makes vectors of length 1.
"""

from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import ExportError
from adapt.export import card, layout
from adapt.export.folder import (
    Folder,
    class_names,
    embedding_pooling,
    json_text,
    kind_in_words,
    makes_embeddings,
    model_entries,
)
from adapt.export.inputs import input_files
from adapt.pretrained import hub
from adapt.pretrained.dense_layers import DenseLayer, settings_of, tensors_of
from adapt.pretrained.families import get_family

# Our pooling -> how 1_Pooling/config.json calls it.
POOLINGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "last": "lasttoken",
}
DENSE_POOLINGS = ("mean", "max", "cls")


def class_of(run: hub.Pretrained) -> str | None:
    """transformers' class of the encoder; None if no folder can express the run."""
    name = get_family(run.config.family).base_class
    if not name:
        return None
    if makes_embeddings(run):
        return name if embedding_pooling(run) in POOLINGS else None
    kinds = [f"{pooling} pooling" for pooling in DENSE_POOLINGS]
    return name if kind_in_words(run) in kinds else None


def sentence_transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """The folders by their names, with files that all versions read."""
    if makes_embeddings(run):
        return embedding_folders(run)
    return predicting_folders(run)


def embedding_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """Transformer and pooling, and a normalisation where vectors are to have the length 1.

    Raises :class:`ExportError` for vectors that are cut off, which no file of the library says, and
    for a folder that asks for a step that is not done here.
    """
    embedding = run.embedding
    if embedding.refused:
        raise ExportError(f"{embedding.refused}, which adapt does not do: it does not export")
    if embedding.dimensions is not None:
        raise ExportError(
            f"{run.source} keeps {embedding.dimensions} numbers of a vector, which no file of "
            "sentence-transformers says"
        )
    dense = run.dense[: embedding.dense]
    if len(dense) != embedding.dense:
        raise ExportError(f"{run.source} does not hold the dense layers that its checkpoint has")
    kind = kind_in_words(run)
    architecture = get_family(run.config.family).base_class
    run, files, notes = input_files(run)
    modules = ["Transformer", "Pooling", *["Dense"] * len(dense)]
    if embedding.normalize:
        modules.append("Normalize")
    settings = settings_files(run, modules, embedding_pooling(run))
    settings["config_sentence_transformers.json"] = {
        "prompts": dict(embedding.prompts),
        "default_prompt_name": embedding.default_prompt,
        "similarity_fn_name": embedding.similarity or "cosine",
    }
    for name, content in settings.items():
        files[name] = json_text(content)
    tensors = encoder_tensors(run)
    poolers = [tensor for name, tensor in tensors.items() if name.startswith("pooler.")]
    if poolers and not any(map(np.any, poolers)):
        notes = [*notes, card.ZERO_POOLER]
    title = f"{architecture}: {kind} pooling"
    files["README.md"] = card.card(title, "sentence-transformers", card.EMBEDDINGS, "", [], notes)
    config = layout.write_config(run.config) | model_entries(run, architecture)
    folders = {"": Folder(config, tensors, files)}
    for number, layer in enumerate(dense, 2):
        folders[f"{number}_Dense"] = Folder(settings_of(layer), tensors_of(layer), {})
    return folders


def predicting_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """Transformer, pooling and dense. No normalisation: ``encode`` gives logits."""
    head = run.params["head"]["classifier"]
    kind = kind_in_words(run)
    architecture = get_family(run.config.family).base_class
    run, files, notes = input_files(run)
    settings = settings_files(run, ["Transformer", "Pooling", "Dense"], run.head.pooling)
    for name, content in settings.items():
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
    bias = np.asarray(head["bias"]) if run.head.bias else None
    layer = DenseLayer(np.asarray(head["kernel"]), bias, "Identity")
    return {
        "": Folder(config, encoder_tensors(run), files),
        "2_Dense": Folder(settings_of(layer), tensors_of(layer), {}),
    }


def encoder_tensors(run: hub.Pretrained) -> dict[str, np.ndarray]:
    """The encoder's tensors, and what else the library's class holds."""
    params = tree.drop(run.params, "head") if "head" in run.params else run.params
    family = get_family(run.config.family)
    tensors = layout.to_tensors(run.config, params)
    return tensors | family.extra_tensors(run.config, family.base_class, tensors)


def settings_files(run: hub.Pretrained, modules: list[str], pooling: str) -> dict[str, Any]:
    """The library's own JSON files by name, without those of the dense layer."""
    steps = []
    for index, name in enumerate(modules):
        steps.append(
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{name}",
                "type": f"sentence_transformers.models.{name}",
            }
        )
    assert run.tokenizer is not None
    transformer = {"max_seq_length": run.tokenizer.max_length, "do_lower_case": False}
    pooled: dict[str, Any] = {"word_embedding_dimension": run.config.width}
    for name, library_name in POOLINGS.items():
        pooled[f"pooling_mode_{library_name}"] = name == pooling
    pooled["include_prompt"] = run.embedding.pools_prompt
    return {
        "modules.json": steps,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": None,
        },
        "1_Pooling/config.json": pooled,
    }
