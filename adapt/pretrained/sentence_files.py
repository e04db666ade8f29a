"""How a checkpoint makes one vector of a text, as sentence-transformers' files in its folder say.

    read_embedding(folder, width)       # Embedding(pooling="cls", normalize=True, ...)

modules.json lists the steps: the transformer, its pooling (1_Pooling/config.json), dense layers
(2_Dense), normalisation. Its config_sentence_transformers.json has prompts, which are put before a
text. Without a modules.json sentence-transformers reads none of these, and neither is it done here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adapt.errors import CheckpointError
from adapt.pretrained import dense_layers
from adapt.pretrained.json_files import read_list, read_settings

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
# Names that the settings of the transformer have had, by the model it was.
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# sentence-transformers' name of a pooling -> ours
POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
# The entries that 1_Pooling/config.json had before there was pooling_mode, in the order in which
# several of them are joined.
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# What the settings of the transformer may hold without changing a vector of a text.
HARMLESS_MODEL_ARGS = (
    "add_pooling_layer",
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "trust_remote_code",
    "use_safetensors",
)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """How one vector is made of a text, where nobody asks for another way.

    * ``pooling``: None where the folder does not say.
    * ``normalize``: whether vectors are scaled to length 1.
    * ``prompts``: {name: what is put before a text}; ``default_prompt`` is the name of the one that
      every text gets.
    * ``dimensions``: how many of a vector's numbers are kept, from the first on; None: all.
    * ``similarity``: by what vectors are to be compared: cosine, dot, euclidean or manhattan.
    * ``pools_prompt``: whether the tokens of a prompt count in the pooling.
    * ``dense``: how many dense layers come after the pooling.
    * ``refused``: what else the folder asks for, which is not done here; "" if there is nothing.
    """

    pooling: str | None = None
    normalize: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    dimensions: int | None = None
    similarity: str | None = None
    pools_prompt: bool = True
    dense: int = 0
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Transformer:
    """What sentence-transformers' files say of the transformer itself."""

    max_length: Any = None
    lower_case: bool = False
    tokenizer_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""


def transformer_folder(folder: Path) -> Path:
    """Where the files of the transformer are: the folder itself, or the one in it that modules.json
    names.
    """
    for step in modules(folder):
        if module_class(step) == "Transformer":
            return inside(folder, step)
    return folder


def modules(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The steps of modules.json in their order; none where there is no such file."""
    steps = read_list(folder / MODULES)
    for step in steps:
        if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
            raise CheckpointError(f"{folder / MODULES} has a step without a type: fetch it again")
    return steps


def module_class(step: Mapping[str, Any]) -> str:
    """The class of a step, without the module that has it."""
    return step["type"].rsplit(".", 1)[-1]


def inside(folder: Path, step: Mapping[str, Any]) -> Path:
    """The folder of a step. Raises :class:`CheckpointError` for one outside the checkpoint's."""
    path = PurePosixPath(str(step.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(
            f"{folder / MODULES} has the path {path}, which is outside the folder"
        )
    return folder / path


def read_transformer(folder: Path) -> Transformer:
    """The settings of the transformer in its folder, sentence_bert_config.json."""
    for name in TRANSFORMER_FILES:
        content = read_settings(folder / name)
        if content:
            break
    else:
        return Transformer()
    model = inner_settings(content, folder / name, "model_kwargs", "model_args")
    tokenizer = inner_settings(content, folder / name, "processor_kwargs", "tokenizer_args")
    refused = ""
    others = {entry: value for entry, value in model.items() if entry not in HARMLESS_MODEL_ARGS}
    config = inner_settings(content, folder / name, "config_kwargs", "config_args")
    others |= {entry: value for entry, value in config.items() if entry not in HARMLESS_MODEL_ARGS}
    processing = inner_settings(content, folder / name, "processing_kwargs")
    others |= {entry: value for entry, value in processing.items() if value}
    task = content.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        others["transformer_task"] = task
    for entry, value in others.items():
        refused = f"{folder / name} says {entry} {value!r}"
    return Transformer(
        max_length=content.get("max_seq_length"),
        lower_case=bool(content.get("do_lower_case", False)),
        tokenizer_settings={k: v for k, v in tokenizer.items() if k != "trust_remote_code"},
        refused=refused,
    )


def inner_settings(content: Mapping[str, Any], file: Path, *entries: str) -> Mapping[str, Any]:
    """The object under the first of the entries that is there; {} where none is.

    Raises :class:`CheckpointError` for what is no object.
    """
    for entry in entries:
        found = content.get(entry)
        if found and not isinstance(found, Mapping):
            raise CheckpointError(f"{file} says {found!r} for {entry}: it must be an object")
        if found:
            return found
    return {}


def read_embedding(folder: Path, width: int) -> Embedding:
    """How the folder's own files make a vector of a text.

    ``width`` is the encoder's, which that of the pooling has to be. Raises :class:`CheckpointError`
    for files that can't be read or contradict the encoder. What is not done here is ``refused``.
    """
    steps = modules(folder)
    if not steps:
        return Embedding()
    refused = ""
    embedding = Embedding()
    for step in steps:
        kind = module_class(step)
        path = inside(folder, step)
        if kind == "Pooling":
            embedding = read_pooling(path / "config.json", width, embedding)
            refused = refused or embedding.refused
        elif kind == "Normalize":
            embedding = dataclasses.replace(embedding, normalize=True)
        elif kind == "Dense":
            refused = refused or dense_refusal(folder, step, embedding)
            embedding = dataclasses.replace(embedding, dense=embedding.dense + 1)
        elif kind == "Transformer":
            refused = refused or read_transformer(path).refused
        elif kind != "Dropout":  # which is off where nothing trains
            refused = refused or f"{folder / MODULES} has {kind} in {step.get('path', '')!r}"
    if embedding.pooling is None:
        refused = refused or f"{folder / MODULES} has no Pooling"
    return with_settings(dataclasses.replace(embedding, refused=refused), folder / SETTINGS)


def dense_refusal(folder: Path, step: Mapping[str, Any], embedding: Embedding) -> str:
    """What of a dense layer is not done here, after the steps of ``embedding``; "" for nothing."""
    here = f"{folder / MODULES} has Dense in {step.get('path', '')!r}"
    if embedding.pooling is None:
        return f"{here} before a Pooling"
    if embedding.normalize:
        return f"{here} after Normalize"
    file = inside(folder, step) / "config.json"
    reason = dense_layers.refusal(read_settings(file))
    return f"{file} says {reason}" if reason else ""


def dense_folders(folder: Path) -> list[Path]:
    """The folders of the dense layers, in their order."""
    return [inside(folder, step) for step in modules(folder) if module_class(step) == "Dense"]


def read_pooling(file: Path, width: int, embedding: Embedding) -> Embedding:
    """The embedding with what 1_Pooling/config.json says."""
    if not file.exists():
        raise CheckpointError(f"no {file}, which {MODULES} names: fetch the folder again")
    content = read_settings(file)
    modes = content.get("pooling_mode")
    if modes is None:
        modes = [mode for entry, mode in OLD_POOLINGS.items() if content.get(entry)] or ["mean"]
    modes = list(modes) if isinstance(modes, list) and modes else [modes]
    of_file = content.get("embedding_dimension", content.get("word_embedding_dimension", width))
    if of_file != width:
        raise CheckpointError(
            f"{file} is for vectors of {of_file}, and the encoder has {width}: one of them is of "
            "another checkpoint"
        )
    refused = ""
    if len(modes) > 1 or str(modes[0]) not in POOLINGS:
        refused = f"{file} says {' and '.join(map(str, modes))}"
    return dataclasses.replace(
        embedding,
        pooling=None if refused else POOLINGS[str(modes[0])],
        pools_prompt=bool(content.get("include_prompt", True)),
        refused=refused,
    )


def with_settings(embedding: Embedding, file: Path) -> Embedding:
    """The embedding with what config_sentence_transformers.json says: prompts, dimensions,
    similarity.
    """
    content = read_settings(file)
    prompts = content.get("prompts") or {}
    is_text = isinstance(prompts, Mapping) and all(
        isinstance(prompt, str | None) for prompt in prompts.values()
    )
    if not is_text:
        raise CheckpointError(f"{file} has prompts that are no texts by name: {prompts!r}")
    default = content.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(
            f"{file} has no prompt {default!r}, its default_prompt_name: it has "
            f"{', '.join(prompts) or 'none'}"
        )
    dimensions = content.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise CheckpointError(f"{file} says {dimensions!r} for truncate_dim: it must be at least 1")
    similarity = content.get("similarity_fn_name")
    refused = embedding.refused
    model_type = content.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        refused = refused or f"{file} says model_type {model_type}"
    return dataclasses.replace(
        embedding,
        prompts={name: prompt for name, prompt in prompts.items() if prompt},
        default_prompt=default,
        dimensions=dimensions,
        similarity=similarity if similarity in SIMILARITIES else None,
        refused=refused,
    )
