"""A name becomes a loaded checkpoint: a folder, a finished run, a bundled asset, or a hub id."""

import dataclasses
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from adapt import files, tree
from adapt.errors import CheckpointError, ExtensionError, StrategyError
from adapt.models import HEADS, POOLINGS, Classifier, Encoder, EncoderConfig, Model
from adapt.options import ModelOptions
from adapt.pretrained import assets, families
from adapt.pretrained.images import ImageSettings, read_image_settings
from adapt.pretrained.tokenizer import Tokenizer, load_tokenizer
from adapt.training import checkpoint

BUNDLED = [name for name, asset in assets.ASSETS.items() if "model.safetensors" in asset.files]
# transformers' problem_type -> the task, and whether its outputs are classes, which have names
PROBLEM_TYPES = {
    "multi_label_classification": ("multilabel", True),
    "regression": ("regression", False),
}
PATTERNS = ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory.

        pretrained = load("tiny-bert")
        pretrained.config.width            # 128
        pretrained.params["encoder"]       # a tree of float32 numpy arrays, mapped from the file

    ``params`` is ``{"encoder": ..., "head": ...}``; ``head`` is the module that ``params["head"]``
    belongs to. A text encoder has a ``tokenizer``, an image encoder ``image_settings``.
    """

    source: str
    config: EncoderConfig
    head: Any
    params: tree.Tree
    tokenizer: Tokenizer | None = None
    image_settings: ImageSettings | None = None
    # of a finished run: classification, multilabel, regression and so on; of pre-training: mlm, clm
    task: str = ""
    labels: tuple[str, ...] = ()
    # of a finished run: "task stars" -> the module that registers it, for all that are not adapt's
    # own
    imports: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The encoder under the checkpoint's own head."""
        return Model(Encoder(self.config), self.head)

    def __repr__(self) -> str:
        """The source, family, size and head in one line; never a parameter."""
        c = self.config
        size = f"{c.layers} layers, width {c.width}, {tree.count(self.params):,} parameters"
        task = f"; task: {self.task}" if self.task else ""
        return f"Pretrained({self.source!r}: {c.family}, {size}; head: {describe(self.head)}{task})"


def describe(head: Any) -> str:
    """What a head puts out, in a few words."""
    classes = getattr(head, "classes", None)
    pooling = getattr(head, "pooling", "")
    if classes == 0:
        return "pooler" if pooling == "pooler" else f"embeddings, pooling {pooling}"
    words = type(head).__name__
    if classes is not None:
        words += " of 1 output" if classes == 1 else f" of {classes} classes"
    if pooling:
        words += f", pooling {pooling}"
    return words


def tokenizer_of(pretrained: Pretrained) -> Tokenizer:
    """The checkpoint's tokenizer. Raises :class:`StrategyError` if it has none."""
    if pretrained.tokenizer is None:
        raise StrategyError(
            f"{pretrained.source} has no tokenizer: add tokenizer.json, vocab.txt, or vocab.json "
            "with merges.txt"
        )
    return pretrained.tokenizer


def image_settings_of(pretrained: Pretrained) -> ImageSettings:
    """How the checkpoint's images become pixels. Raises :class:`StrategyError` for an encoder of
    texts.
    """
    if pretrained.image_settings is None:
        raise StrategyError(
            f"{pretrained.source} is not an image encoder: give `text_column`, not `image_column`"
        )
    return pretrained.image_settings


def check_inputs(pretrained: Pretrained, image_column: str | None) -> None:
    """Raise :class:`StrategyError` unless the column fits the encoder: texts, or images where it
    has patches.
    """
    if pretrained.config.is_image and image_column is None:
        raise StrategyError(
            f"{pretrained.source} is an image encoder: name the image column with `image_column`"
        )
    if not pretrained.config.is_image and image_column is not None:
        raise StrategyError(
            f"{pretrained.source} is a text encoder: `image_column` does not go with it, give "
            "`text_column`"
        )
    if not pretrained.config.is_image:
        tokenizer_of(pretrained)


def load(name: str | Path) -> Pretrained:
    """Load from a folder in the Hugging Face layout, a finished run, a bundled asset's name, or a
    hub id.

    Raises :class:`CheckpointError` with what is wrong, where, and the mend; nothing is ever loaded
    in part.
    """
    folder = resolve(str(name))
    if (folder / "model.json").exists():
        return load_run(folder, str(name))
    hf = read_json(folder, "config.json")
    if "model_type" not in hf:
        raise CheckpointError(
            f"{folder / 'config.json'} has no model_type: is it a config of the Hugging Face "
            "layout?"
        )
    config = families.read_config(hf, str(folder))
    head, params = families.to_params(config, hf, read_tensors(folder), str(folder))
    task, labels = class_names(hf, head)
    return with_inputs(
        Pretrained(str(name), config, head, params, task=task, labels=labels), folder, None
    )


def load_with_options(options: ModelOptions, seed: int = 0) -> Pretrained:
    """The checkpoint of the options with their dropout, their length of a text, or new weights.

    Raises :class:`StrategyError` for a ``max_length`` that the encoder does not have.
    """
    pretrained = load(options.checkpoint)
    config = pretrained.config
    if options.dropout is not None:
        changed = dataclasses.replace(
            config, dropout=options.dropout, attention_dropout=options.dropout
        )
        pretrained = dataclasses.replace(pretrained, config=changed)
    if options.max_length is not None and pretrained.tokenizer is not None:
        if not 3 <= options.max_length <= config.positions:
            raise StrategyError(
                f"`max_length` {options.max_length} must be 3 to {config.positions}, "
                "the encoder's positions"
            )
        tokenizer = pretrained.tokenizer.cut_to(options.max_length)
        pretrained = dataclasses.replace(pretrained, tokenizer=tokenizer)
    if options.random_weights:
        fresh = jax.device_get(pretrained.model.init(jax.random.key(seed + 1)))
        pretrained = dataclasses.replace(pretrained, params=fresh)
    return pretrained


def class_names(hf: Mapping[str, Any], head: Any) -> tuple[str, tuple[str, ...]]:
    """(task, labels) of a checkpoint whose head is a classifier, from id2label and problem_type;
    else nothing.

    Names go by their numbers: a file may list "10" before "2".
    """
    names = hf.get("id2label")
    problem = hf.get("problem_type")
    numbers = [str(number) for number in range(getattr(head, "classes", 0))]
    if not numbers or not isinstance(names, dict) or set(names) != set(numbers):
        return "", ()
    task, has_classes = PROBLEM_TYPES.get(str(problem), ("classification", True))
    return task, tuple(str(names[number]) for number in numbers) if has_classes else ()


def with_inputs(model: Pretrained, folder: Path, max_length: int | None) -> Pretrained:
    """Add what second_start raw input into arrays: the tokenizer, or the image settings."""
    config = model.config
    if config.is_image:
        return dataclasses.replace(
            model, image_settings=read_image_settings(folder, config.image_size, config.channels)
        )
    if max_length is None and (file := folder / "sentence_bert_config.json").exists():
        max_length = read_json(folder, file.name).get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < 3):
        raise CheckpointError(
            f"max_seq_length {max_length!r} in {folder} is not a number of tokens from 3 on"
        )
    tokenizer = load_tokenizer(folder, min(max_length or config.positions, config.positions))
    if tokenizer is not None and tokenizer.size > config.vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} gives ids up to {tokenizer.size - 1}, the embedding has "
            f"{config.vocabulary} rows: "
            "the tokenizer belongs to another checkpoint"
        )
    return dataclasses.replace(model, tokenizer=tokenizer)


def resolve(name: str) -> Path:
    """The local folder of a checkpoint's name. Raises :class:`CheckpointError` when nothing is
    found.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{name} is a file: give the folder that holds config.json and model.safetensors"
        )
    if name in BUNDLED:
        return assets.fetch(name)
    bundled = ", ".join(BUNDLED)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise CheckpointError(
            f"no checkpoint folder {name!r}: give a folder, a bundled name ({bundled}) or a hub id"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    reached = assets.is_hub_reachable()
    where: dict[str, Any] = {
        "cache_dir": assets.cache_folder() / "hub",
        "local_files_only": not reached,
    }
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS, **where))
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = said if reached else "it cannot be reached from here"
        raise CheckpointError(
            f"no checkpoint {name!r}: no such folder, no bundled name ({bundled}), and the hub "
            f"gave none: {reason}"
        ) from None


def read_json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"no {file} in {folder}: a checkpoint folder has config.json and model.safetensors"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json names;
    see :func:`mapped`.
    """
    index = folder / "model.safetensors.index.json"
    weight_map = {}
    files = ["model.safetensors"]
    if index.exists() and not (folder / files[0]).exists():
        weight_map = read_json(folder, index.name).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) for file in weight_map.values()
        ):
            raise CheckpointError(f"{index} has no weight_map of tensors to files: fetch it again")
        files = sorted(set(weight_map.values()))
    elif not (folder / files[0]).exists():
        pickled = [
            f.name
            for pattern in ("*.bin", "*.pt", "*.msgpack", "*.h5")
            for f in folder.glob(pattern)
        ]
        hint = f" (found {pickled[0]}; convert it to safetensors first)" if pickled else ""
        raise CheckpointError(f"no model.safetensors in {folder}{hint}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            tensors |= map_tensors(folder / file)
        except FileNotFoundError:
            raise CheckpointError(
                f"{index} names {file}, which is not in the folder: fetch it again"
            ) from None
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder / file} is truncated or corrupt ({error}): fetch it again"
            ) from None
    if absent := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(
            f"{index} names tensors that the shards do not hold: {', '.join(absent[:3])}: fetch "
            "it again"
        )
    return tensors


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; those of float32 are mapped: a page is read where it is
    used, and never held.

    The file is opened twice: by safetensors, which checks the header against the file and reads
    other dtypes, and by NumPy, since safetensors copies what it reads.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        dtypes = {name: file.get_slice(name).get_dtype() for name in names}
        copied = {name: file.get_tensor(name) for name in names if dtypes[name] != "F32"}
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(
        raw[:8].tobytes(), "little"
    )  # the header's size, the header, the tensors
    header = json.loads(raw[8:start].tobytes())
    tensors = {}
    for name in names:
        if name in copied:
            tensors[name] = copied[name]
            continue
        first, last = header[name]["data_offsets"]
        values = raw[start + first : start + last].view("<f4")
        tensors[name] = np.asarray(values.reshape(header[name]["shape"]))
    return tensors


def save_model(folder: Path, model: Pretrained, base: Mapping[str, str] | None = None) -> None:
    """Write what a run's folder needs beside its checkpoints: model.json and the tokenizer.

    ``base`` is the ``source`` and the ``digest`` of the encoder to which delta checkpoints refer.
    """
    content = {
        "encoder": dataclasses.asdict(model.config),
        "head": head_settings(model.head),
        "task": model.task,
        "labels": list(model.labels),
        "max_length": model.tokenizer.max_length if model.tokenizer else None,
        "base": base,
        "images": dataclasses.asdict(model.image_settings) if model.image_settings else None,
        "imports": dict(model.imports),
    }
    if model.tokenizer:
        model.tokenizer.save(folder)
    files.write_json(folder / "model.json", content)


def head_settings(head: Any) -> dict[str, Any]:
    """What model.json says of a head: its ``kind``, a name of ``HEADS``, and its fields."""
    settings: dict[str, Any] = {"kind": type(head).__name__}
    for field in dataclasses.fields(head):
        if field.name not in ("dtype", "parent", "name"):
            settings[field.name] = getattr(head, field.name)
    return settings


def make_head(settings: Mapping[str, Any]) -> Any:
    """The head of :func:`head_settings`, which JSON gives back with lists for tuples."""
    fields = {name: as_tuples(value) for name, value in settings.items() if name != "kind"}
    return HEADS[settings["kind"]](**fields)


def as_tuples(value: Any) -> Any:
    """Lists as tuples, also those in lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def check_head(head: Any) -> None:
    """Raise :class:`StrategyError` for a head that could not be read back from a run's folder."""
    kind = type(head).__name__
    if HEADS.get(kind) is not type(head):
        raise StrategyError(
            f"the head {kind} is not registered, so a run with it could not be read back: add "
            f"HEADS[{kind!r}] = {kind}"
        )
    try:
        comes_back = make_head(json.loads(json.dumps(head_settings(head)))) == head
    except TypeError as error:
        raise StrategyError(f"the head {kind} can't be written to model.json: {error}") from None
    if not comes_back:
        raise StrategyError(
            f"the head {kind} is another one after it was written to model.json: give its fields "
            "values that JSON has"
        )


def load_run(folder: Path, source: str) -> Pretrained:
    """A finished (or stopped) run: its best checkpoint, encoder and head."""
    content = read_json(folder, "model.json")
    try:
        imports = dict(content.get("imports", {}))
        config = EncoderConfig(**content["encoder"])
        check_imported(folder, imports, "family", config.family, families.FAMILIES)
        check_imported(folder, imports, "head", content["head"]["kind"], HEADS)
        head = make_head(content["head"])
        run = Pretrained(
            source,
            config,
            head,
            {},
            task=content["task"],
            labels=tuple(content["labels"]),
            imports=imports,
        )
        images = content["images"]
        max_length = content["max_length"]
        base = content.get("base")
        if base and not all(isinstance(base[name], str) for name in ("source", "digest")):
            raise ValueError(f"base {base!r}")
        if isinstance(head, Classifier):
            check_imported(folder, imports, "pooling", head.pooling, POOLINGS)
            if head.pooling not in (*POOLINGS, "attention"):
                raise ValueError(f"unknown pooling {head.pooling!r}")
        classes = getattr(head, "classes", len(run.labels))
        if run.labels and len(run.labels) != classes:
            raise ValueError(f"{len(run.labels)} labels for {classes} classes")
    except ExtensionError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'model.json'} was not written by this version of adapt: {error}"
        ) from None
    encoder = base_encoder(folder, base) if base else None
    params = checkpoint.load_params(folder / "checkpoints", run.model.shapes(), encoder)
    run = dataclasses.replace(run, params=params)
    if images:
        images |= {"mean": tuple(images["mean"]), "std": tuple(images["std"])}
        return dataclasses.replace(run, image_settings=ImageSettings(**images))
    return with_inputs(run, folder, max_length)


def check_imported(
    folder: str | Path, imports: Mapping[str, str], kind: str, name: str, known: Container[str]
) -> None:
    """Raise :class:`ExtensionError` for a name of the run in ``folder`` whose module has to be
    imported first.
    """
    module = imports.get(f"{kind} {name}")
    if module is not None and name not in known:
        raise ExtensionError(
            f"{folder} has the {kind} {name!r} of the module {module}: `import` {module} first"
        )


def base_encoder(folder: Path, base: Mapping[str, str]) -> tree.Tree:
    """``{"encoder": ...}`` that the delta in ``folder`` refers to. Raises :class:`CheckpointError`
    for any other.
    """
    mend = f"put it back, or write its place into base.source of {folder / 'model.json'}"
    try:
        found = {"encoder": load(base["source"]).params["encoder"]}
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} holds what trained on the encoder of {base['source']}, {mend}: {error}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{folder} refers to itself for its encoder, {mend}") from None
    if (digest := tree.digest(found["encoder"])) != base["digest"]:
        what = f"digest {digest[:12]}, and {folder} was trained on one with {base['digest'][:12]}"
        raise CheckpointError(f"the encoder of {base['source']} has the {what}: {mend}")
    return found
