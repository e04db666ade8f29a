"""A name becomes a loaded checkpoint: a folder, a finished run, a bundled asset, or a hub id."""

import dataclasses
import json
import logging
import operator
import os
import typing
from collections.abc import Container, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from adapt import buckets, files, signatures, tree
from adapt.errors import CheckpointError, ExtensionError, StrategyError, first_line
from adapt.models import (
    HEADS,
    POOLINGS,
    Classifier,
    Encoder,
    EncoderConfig,
    Model,
    OnHead,
    Span,
    Tagger,
)
from adapt.models.heads import POOLINGS_OF_CHECKPOINTS, pooling_names
from adapt.options import Long, ModelOptions, is_of, wanted
from adapt.pretrained import (
    assets,
    config_file,
    families,
    image_sizes,
    importing,
    peft_entries,
    peft_weights,
    sentence_files,
)
from adapt.pretrained.dense_layers import DenseLayer, dense_layer
from adapt.pretrained.images import LARGEST, ImageSettings, read_image_settings
from adapt.pretrained.sentence_files import Embedding
from adapt.pretrained.tokenizer import Tokenizer, check_long_rule
from adapt.pretrained.tokenizer_files import (
    NAMED,
    in_lower_case,
    load_tokenizer,
    read_tokenizer,
    vocabulary_file,
    without_rows,
)
from adapt.training import checkpoint
from adapt.training.step import place_kernels

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
# Files of PEFT.
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# The folders of deltas that are being loaded, each for the one before it.
referring: ContextVar[tuple[Path, ...]] = ContextVar("referring", default=())

BUNDLED = [name for name, asset in assets.ASSETS.items() if "model.safetensors" in asset.files]
# The entries of config.json on labels.
LABELS = ("id2label", "label2id", "problem_type")
# transformers' problem_type -> the task, and whether its outputs are classes, which have names
PROBLEM_TYPES = {
    "multi_label_classification": ("multilabel", True),
    "regression": ("regression", False),
}
LABEL_TYPES = {"str": str, "int": int, "float": float, "bool": "True".__eq__}
# An embedding is often made larger than its vocabulary: to a multiple of 64 or 128 rows, and
# Qwen's, of 152,000, by as many as 400.
SPARE_ROWS = 127
SPARE_SHARE = 1 / 256  # of its rows
# What the first folders of CLIP have for the id of the end token, which is their highest.
CLIP_WITHOUT_END = 2
TENSORS_SHOWN = 6  # of those that are discarded
PATTERNS = ["*.json", "*.safetensors", "*vocab.txt", "*merges.txt"]


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
    # what the labels were in the training data: "str", "int", "float" or "bool"
    label_type: str = "str"
    # of a finished run: "task stars" -> the module that registers it, for all that are not adapt's
    # own
    imports: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # of a checkpoint's tensors those that are neither the encoder's nor the head's: what they are
    # -> {name in the file: shape}; and the prefixes that its names had
    unread: Mapping[str, Mapping[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    stripped: tuple[str, ...] = ()
    # how a vector is made of a text where nobody asks for another way, and the dense layers that
    # embedding.dense counts
    embedding: Embedding = dataclasses.field(default_factory=Embedding)
    dense: tuple[DenseLayer, ...] = ()
    # what else is to be said of the folder's files
    notes: tuple[str, ...] = ()
    # what is on the device, of this object alone: see on_device
    memo: dict[str, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels as the training data had them: numbers where they were numbers there."""
        return tuple(LABEL_TYPES[self.label_type](name) for name in self.labels)

    @property
    def model(self) -> Model:
        """The encoder under the checkpoint's own head."""
        return Model(Encoder(self.config), self.head)

    def on_device(self, dtype: str = "float32") -> tree.Tree:
        """``params`` on the first device of this process: put there at the first call, and again
        where a leaf has been replaced since. The encoder's kernels are in ``dtype``.
        """
        leaves = jax.tree.leaves(self.params)
        before = self.memo.get("leaves", [])
        is_same = len(leaves) == len(before) and all(map(operator.is_, leaves, before))
        if not is_same or self.memo["dtype"] != dtype:
            self.memo["leaves"] = leaves
            self.memo["dtype"] = dtype
            self.memo["params"] = place_kernels(self.params, None if dtype == "float32" else dtype)
        return self.memo["params"]

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


def loaded(pretrained: Pretrained | str | Path) -> Pretrained:
    """The checkpoint, which :func:`load` loads where it is a name."""
    return pretrained if isinstance(pretrained, Pretrained) else load(pretrained)


def source_of(pretrained: Pretrained | str | Path) -> str:
    """The name that a checkpoint was loaded by, or is going to be."""
    return pretrained.source if isinstance(pretrained, Pretrained) else str(pretrained)


def load(name: str | Path, base: str | Path | None = None) -> Pretrained:
    """Load from a folder in the Hugging Face layout, a finished run, a bundled asset's name, or a
    hub id. A folder may be in a bucket: ``gs://bucket/folder``.

    A folder of PEFT is loaded with its base, and the adapter is merged into its weights. ``base``
    names it where it is not what adapter_config.json says.

    The encoder is whole or there is an error. A head that is not known does not stand in its way:
    it is discarded, and a warning and ``unread`` say which tensors that were.

    Raises :class:`CheckpointError` with what is wrong, where, and the mend.
    """
    pretrained = load_silently(name, base)
    for note in notes_on(pretrained):
        logger.warning(note)
    return pretrained


def load_silently(name: str | Path, base: str | Path | None = None) -> Pretrained:
    """:func:`load` without its notes: what it left out is in ``unread`` and ``stripped``."""
    check_is_name(name)
    folder = resolve(str(name))
    with buckets.errors_name(name):
        return load_folder(folder, str(name), base)


def notes_on(pretrained: Pretrained) -> list[str]:
    """What is to be said of a checkpoint that was read: prefixes, tensors that are not used, and
    files that contradict each other.
    """
    said = list(pretrained.notes)
    if pretrained.stripped:
        prefixes = " and ".join(f"'{prefix}'" for prefix in pretrained.stripped)
        said.append(f"{pretrained.source}: names of tensors are read without {prefixes}")
    for what, tensors in pretrained.unread.items():
        said.append(f"{pretrained.source}: {what} discarded: {listed(tensors)}")
    return said


def unread_record(pretrained: Pretrained) -> dict[str, Any]:
    """``unread`` of a checkpoint as lineage.json has it among what was discarded; {} if there is
    nothing.
    """
    if not pretrained.unread:
        return {}
    record = {}
    for what, tensors in pretrained.unread.items():
        record[what] = {name: list(shape) for name, shape in tensors.items()}
    return {"unread": record}


def listed(tensors: Mapping[str, tuple[int, ...]]) -> str:
    """Names of tensors with their shapes, the first few of many."""
    shown = [f"{name} {list(shape)}" for name, shape in tensors.items()]
    more = f" and {len(shown) - TENSORS_SHOWN} more" if len(shown) > TENSORS_SHOWN else ""
    return ", ".join(shown[:TENSORS_SHOWN]) + more


def check_is_name(name: Any) -> None:
    """Raise :class:`CheckpointError` for what names no checkpoint, such as a run in memory."""
    if isinstance(name, str | os.PathLike):
        return
    mend = "give its `pretrained`" if hasattr(name, "pretrained") else "give a folder or a name"
    raise CheckpointError(f"what is of type {type(name).__name__} is no checkpoint: {mend}")


def load_folder(folder: Path, source: str, base: str | Path | None = None) -> Pretrained:
    """The checkpoint in a local folder, which is or was copied from ``source``."""
    if (folder / "model.json").exists():
        check_no_base(source, base)
        return load_run_folder(folder, source)
    inner = sentence_files.transformer_folder(folder)
    if (inner / ADAPTER).exists() and not has_weights(inner):
        return load_adapter(folder, source, base)
    check_no_base(source, base)
    hf, config, tensors = read_model_files(inner)
    imported = importing.to_params(config, hf, tensors, str(inner))
    notes = label_notes(hf, imported.head, inner)
    return with_inputs(imported_model(source, config, hf, imported, notes), folder, hf)


def read_model_files(folder: Path) -> tuple[dict[str, Any], EncoderConfig, dict[str, np.ndarray]]:
    """(the entries of config.json, the encoder's configuration, the tensors) of a folder of
    weights.
    """
    hf = read_json(folder, "config.json")
    check_model_type(hf, folder)
    check_no_adapter(folder)
    config = config_file.read_config(hf, str(folder))
    tensors = read_tensors(folder)
    return hf, families.get_family(config.family).settle(config, tensors), tensors


def imported_model(
    source: str,
    config: EncoderConfig,
    hf: Mapping[str, Any],
    imported: importing.Imported,
    notes: tuple[str, ...],
) -> Pretrained:
    """A model of another library, without what makes its inputs."""
    task, labels = class_names(hf, imported.head)
    return Pretrained(
        source,
        config,
        imported.head,
        imported.params,
        task=task,
        labels=labels,
        unread=imported.unread,
        stripped=imported.stripped,
        notes=notes,
    )


def check_no_base(source: str, base: str | Path | None) -> None:
    """Raise :class:`CheckpointError` for a base of what is no adapter."""
    if base is not None:
        raise CheckpointError(f"{source} is no adapter of PEFT: leave out the base {base}")


def has_weights(folder: Path) -> bool:
    """Whether a folder has a model's own weights."""
    return any((folder / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))


def check_no_adapter(folder: Path) -> None:
    """Raise :class:`CheckpointError` for a folder with an adapter of PEFT beside a model's weights."""
    file = folder / ADAPTER
    if file.exists():
        raise CheckpointError(
            f"{file} is of an adapter of PEFT, and {WEIGHTS} is beside it: remove the one that does "
            "not count"
        )


def load_adapter(folder: Path, source: str, base: str | Path | None = None) -> Pretrained:
    """The base of a folder of PEFT with the adapter merged into its weights.

    The tokenizer, and how vectors are made, are the base's unless the folder has its own. Raises
    :class:`CheckpointError` for what is not obeyed, and where the base is missing or another one.
    """
    inner = sentence_files.transformer_folder(folder)
    file = inner / ADAPTER
    entries = peft_entries.parse(read_json(inner, ADAPTER), str(file))
    base_folder = adapter_base(entries, file, base)
    base_inner = sentence_files.transformer_folder(base_folder)
    hf, config, tensors = read_model_files(base_inner)
    adapter = peft_weights.Adapter(
        entries, read_tensors(inner, ADAPTER_WEIGHTS), str(inner / ADAPTER_WEIGHTS), str(base_inner)
    )
    hf, imported = peft_weights.merge_adapter(config, hf, tensors, adapter)
    hf = with_labels(hf, inner, imported.head)
    note = (
        f"{source}: the adapter ({entries.peft_type}) is merged into {base_folder}, so that a LoRA "
        "trained on it is a new one"
    )
    pretrained = imported_model(source, config, hf, imported, (note,))
    pretrained = with_inputs(pretrained, base_folder, hf)
    if vocabulary_file(inner) is not None:
        own = with_inputs(dataclasses.replace(pretrained, tokenizer=None), folder, hf)
        pretrained = dataclasses.replace(own, embedding=pretrained.embedding)
    if (folder / sentence_files.MODULES).exists():
        embedding = sentence_files.read_embedding(folder, config.width)
        pretrained = dataclasses.replace(pretrained, embedding=embedding)
    return pretrained


def adapter_base(entries: peft_entries.Entries, file: Path, base: str | Path | None = None) -> Path:
    """The folder of the base of an adapter. Raises :class:`CheckpointError` where there is none."""
    name = base if base is not None else entries.base_model_name_or_path
    remedy = f"write its place into base_model_name_or_path of {file} (adapt.load takes it as base)"
    if not name:
        raise CheckpointError(f"{file} does not say which base the adapter is of: {remedy}")
    if entries.revision not in (None, "main") and not Path(name).expanduser().is_dir():
        raise CheckpointError(
            f"revision is {entries.revision!r} in {file}: fetch that of {name}, and {remedy}"
        )
    try:
        folder = resolve(str(name))
    except CheckpointError as error:
        raise CheckpointError(
            f"the base of the adapter {file} is not there, {remedy}: {error}"
        ) from None
    if (folder / "model.json").exists():
        raise CheckpointError(
            f"{name}, the base of the adapter {file}, is a run of adapt: export it, and {remedy}"
        )
    return folder


def with_labels(hf: Mapping[str, Any], folder: Path, head: Any) -> Mapping[str, Any]:
    """The entries of a base's config.json with the labels of an adapter's head: those of a
    config.json beside the adapter, or the base's where it has as many.
    """
    own = read_json(folder, "config.json") if (folder / "config.json").exists() else {}
    classes = getattr(head, "classes", 0)
    hf = {**hf, "num_labels": classes} | {name: own[name] for name in LABELS if name in own}
    names = hf.get("id2label")
    if not isinstance(names, dict) or len(names) != classes:
        hf = {name: value for name, value in hf.items() if name not in ("id2label", "label2id")}
    return hf


def label_notes(hf: Mapping[str, Any], head: Any, folder: Path) -> tuple[str, ...]:
    """Where the entries of config.json on labels contradict each other, or the head."""
    names = hf.get("id2label")
    classes = getattr(head, "classes", 0)
    if not isinstance(names, dict) or classes < 1:
        return ()
    file = folder / "config.json"
    if len(names) != classes:
        return (f"{file}: id2label names {len(names)} labels and the head has {classes}: not used",)
    numbers = hf.get("label2id")
    if isinstance(numbers, dict):
        for number, name in names.items():
            if isinstance(name, str) and str(numbers.get(name, number)) != str(number):
                return (
                    f"{file}: {name!r} is label {number} by id2label, which is used, and "
                    f"{numbers[name]} by label2id",
                )
    return ()


def check_model_type(hf: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`CheckpointError` for a config.json that does not say of which family it is."""
    if "model_type" in hf:
        return
    known = " or ".join(f'"{name}"' for name in families.FAMILIES)
    class_name = families.architecture(hf).lower()
    mend = f'add "model_type": {known} to it'
    for name in sorted(families.FAMILIES, key=len):  # the longest that fits counts
        if class_name.startswith(name.replace("-", "").replace("_", "")):
            mend = (
                f'its architectures name {hf["architectures"][0]}: add "model_type": "{name}" to it'
            )
    raise CheckpointError(
        f"{folder / 'config.json'} has no model_type, which says of which family the encoder is: "
        f"{mend}"
    )


def with_attention_dropout(pretrained: Pretrained, rate: float | None) -> Pretrained:
    """The checkpoint with another dropout of attention's weights; None: its own."""
    if rate is None:
        return pretrained
    config = dataclasses.replace(pretrained.config, attention_dropout=rate)
    return dataclasses.replace(pretrained, config=config)


def with_options(pretrained: Pretrained, options: ModelOptions, seed: int = 0) -> Pretrained:
    """The checkpoint with the dropout of the options, their length of a text and what is read of
    longer ones, their size of pictures, or new weights.

    Raises :class:`StrategyError` for a ``max_length`` that the encoder does not have, and as
    :func:`with_long` does.
    """
    config = pretrained.config
    if options.dropout is not None:
        changed = dataclasses.replace(
            config, dropout=options.dropout, attention_dropout=options.dropout
        )
        pretrained = dataclasses.replace(pretrained, config=changed)
    pretrained = with_attention_dropout(pretrained, options.attention_dropout)
    if options.max_length is not None and pretrained.tokenizer is not None:
        if not 3 <= options.max_length <= config.positions:
            raise StrategyError(
                f"`max_length` {options.max_length} must be 3 to {config.positions}, "
                "the encoder's positions"
            )
        tokenizer = pretrained.tokenizer.cut_to(options.max_length)
        pretrained = dataclasses.replace(pretrained, tokenizer=tokenizer)
    pretrained = with_long(pretrained, options.long)
    pretrained = with_image_size(pretrained, options.image_size)
    if options.random_weights:
        fresh = jax.device_get(pretrained.model.init(jax.random.key(seed + 1)))
        pretrained = dataclasses.replace(pretrained, params=fresh)
    return pretrained


def with_image_size(pretrained: Pretrained, size: int | None) -> Pretrained:
    """The checkpoint for pictures of ``size`` pixels a side, with interpolated positions, which a
    warning says; None: its own size.

    Raises :class:`StrategyError` for an encoder of texts, and for what is no multiple of a patch.
    """
    settings = pretrained.image_settings
    if size is None or (settings is not None and size == settings.size):
        return pretrained
    if settings is None:
        raise StrategyError(
            f"`image_size` {size} is of pictures, and {pretrained.source} is a text encoder: leave "
            "it out"
        )
    patch = pretrained.config.patch_size
    if not 0 < size <= LARGEST or size % patch:
        raise StrategyError(
            f"`image_size` {size} is no multiple of {patch}, the side of a patch: give "
            f"{max(round(size / patch), 1) * patch}"
        )
    changed, note = for_image_size(pretrained, size)
    logger.warning(note)
    return dataclasses.replace(changed, image_settings=settings.scaled_to(size))


def for_image_size(pretrained: Pretrained, size: int) -> tuple[Pretrained, str]:
    """(the checkpoint with an encoder for pictures of this size, a note that says so)."""
    config = pretrained.config
    smooth = families.get_family(config.family).smooth_positions
    changed, params = image_sizes.with_image_size(config, pretrained.params, size, smooth)
    old, new = (side // config.patch_size for side in (config.image_size, size))
    note = (
        f"{pretrained.source}: positions of {old} x {old} patches are interpolated to {new} x {new}"
    )
    return dataclasses.replace(pretrained, config=changed, params=params), note


def with_long(pretrained: Pretrained, long: Long | None) -> Pretrained:
    """The checkpoint with a rule for long texts; None: its own.

    Raises :class:`StrategyError` for what is no rule, and for an encoder of images.
    """
    if long is None:
        return pretrained
    check_long_rule(long)
    if pretrained.config.is_image:
        raise StrategyError(
            f"`long` {long} is of texts, and {pretrained.source} is an image encoder: leave it out"
        )
    tokenizer = tokenizer_of(pretrained).with_long(long)
    if tokenizer is pretrained.tokenizer:
        return pretrained
    return dataclasses.replace(pretrained, tokenizer=tokenizer)


def class_names(hf: Mapping[str, Any], head: Any) -> tuple[str, tuple[str, ...]]:
    """(task, labels) of a checkpoint whose head predicts, from its kind, id2label and problem_type;
    else nothing.

    Names go by their numbers: a file may list "10" before "2".
    """
    if isinstance(head, Span):
        return "span", ()
    classes = getattr(head, "classes", 0)
    if isinstance(head, Classifier) and families.architecture(hf).endswith("ForMultipleChoice"):
        return "choice", ()
    if isinstance(head, Classifier) and classes == 1 and not hf.get("problem_type"):
        return "regression", ()  # which transformers takes one output for
    names = hf.get("id2label")
    if names is None and classes == hf.get("num_labels", 2):
        # What transformers calls the two classes that a config.json need not name.
        names = {str(number): f"LABEL_{number}" for number in range(classes)}
    problem = hf.get("problem_type")
    numbers = [str(number) for number in range(classes)]
    if not numbers or not isinstance(names, dict) or set(names) != set(numbers):
        return "", ()
    task, has_names = PROBLEM_TYPES.get(str(problem), ("classification", True))
    if isinstance(head, Tagger):
        task, has_names = "tags", True
    if not has_names:
        return task, ()
    return task, tuple(str(names[number]) for number in numbers)


def is_causal_lm(hf: Mapping[str, Any]) -> bool:
    """Whether config.json says a causal language model, whose vectors sentence-transformers pools
    by the last token where its own files do not say how, as a new head does here.
    """
    return families.architecture(hf).endswith("ForCausalLM") and hf.get("is_causal") is not False


def read_dense(folder: Path, embedding: Embedding, width: int) -> tuple[DenseLayer, ...]:
    """The dense layers after the pooling of states of this width; none where the folder asks for
    something that is not done.
    """
    layers: list[DenseLayer] = []
    if embedding.refused:
        return ()
    for path in sentence_files.dense_folders(folder):
        if not (path / "config.json").exists():
            raise CheckpointError(
                f"no config.json in {path}, which {sentence_files.MODULES} names: fetch the folder "
                "again"
            )
        settings = read_json(path, "config.json")
        layers.append(dense_layer(settings, read_tensors(path), width, path))
        width = layers[-1].width
    return tuple(layers)


def with_inputs(model: Pretrained, folder: Path, hf: Mapping[str, Any]) -> Pretrained:
    """The checkpoint with what turns raw inputs into arrays, the tokenizer or the image settings,
    and how a vector is made of a text.

    ``folder`` is the checkpoint's, ``hf`` its config.json.
    """
    config = model.config
    inner = sentence_files.transformer_folder(folder)
    if config.is_image:
        family = families.get_family(config.family)
        settings = read_image_settings(
            inner, config.image_size, config.channels, family.processor, family.any_size
        )
        if settings.size != config.image_size:
            model, note = for_image_size(model, settings.size)
            model = dataclasses.replace(model, notes=(*model.notes, note))
        return dataclasses.replace(model, image_settings=settings)
    embedding = sentence_files.read_embedding(folder, config.width)
    if embedding.pooling is None and not embedding.refused and is_causal_lm(hf):
        embedding = dataclasses.replace(embedding, pooling="last")
    dense = read_dense(folder, embedding, config.width)
    model = dataclasses.replace(model, embedding=embedding, dense=dense)
    transformer = sentence_files.read_transformer(inner)
    own_class = families.get_family(config.family).tokenizer
    found = read_tokenizer(inner, own_class, hf, transformer.tokenizer_settings)
    if found is None:
        return model
    if transformer.lower_case:
        in_lower_case(found.backend)
    lengths = {"max_seq_length": transformer.max_length, "model_max_length": found.max_length}
    max_length = config.positions
    for name, length in lengths.items():
        if length is None:
            continue
        if type(length) is not int or length < 3:
            raise CheckpointError(
                f"{name} {length!r} in {inner} is not a number of tokens from 3 on"
            )
        max_length = min(length, config.positions)
        break
    model = dataclasses.replace(model, notes=(*model.notes, *found.notes))
    tokenizer = Tokenizer(found.backend, max_length, named=found.named)
    return with_tokenizer(model, tokenizer, inner)


def with_tokenizer(model: Pretrained, tokenizer: Tokenizer, folder: Path) -> Pretrained:
    """The model with the tokenizer of ``folder``, none of whose ids is beyond the embedding.

    Raises :class:`CheckpointError` for a vocabulary that is larger than the embedding. A token that
    was merely added to it, such as one for padding, is left out where it has no row, and said. A
    vocabulary much smaller than the embedding is said, too: the end of its file may be missing.
    """
    rows = model.config.vocabulary
    notes = model.notes
    if tokenizer.size > rows:
        try:
            backend, left_out = without_rows(tokenizer.backend, rows)
        except ValueError:
            raise CheckpointError(
                f"the tokenizer in {folder} gives ids up to {tokenizer.size - 1}, the embedding has "
                f"{rows} rows: the tokenizer belongs to another checkpoint"
            ) from None
        tokenizer = tokenizer.replaced(backend=backend)
        tokens = ", ".join(repr(token) for token in left_out)
        notes = (*notes, f"{folder}: the embedding has no row for {tokens}: left out")
    elif rows - tokenizer.size > max(SPARE_ROWS, SPARE_SHARE * rows):
        notes = (
            *notes,
            f"{folder}: the tokenizer has {tokenizer.size:,} tokens and the embedding {rows:,} rows: "
            "is the end of its vocabulary missing?",
        )
    if families.get_family(model.config.family).ends_texts:
        tokenizer = tokenizer.replaced(end=end_of_texts(model.config, tokenizer, folder))
    return dataclasses.replace(model, tokenizer=tokenizer, notes=notes)


def end_of_texts(config: EncoderConfig, tokenizer: Tokenizer, folder: Path) -> int:
    """The id of the end token that the tokenizer puts after a text. Raises
    :class:`CheckpointError` for one that puts none there.
    """
    added = tokenizer.backend.encode("").ids
    end = config.end_token
    if end == CLIP_WITHOUT_END:
        end = max(added, default=None)
    if not added or added[-1] != end:
        raise CheckpointError(
            f"the tokenizer in {folder} puts no end token after a text, whose state is its vector: "
            "its tokenizer.json needs a post_processor that does"
        )
    return added[-1]


def resolve(name: str) -> Path:
    """The local folder of a checkpoint's name; what is in a bucket is copied into the cache.

    Raises :class:`CheckpointError` when nothing is found.
    """
    if files.is_remote(name):
        return download(name)
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
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            allow_patterns=PATTERNS,
            cache_dir=assets.cache_folder() / "hub",
            local_files_only=not reached,
        )
        return Path(folder)
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = first_line(error) if reached else "it cannot be reached from here"
        raise CheckpointError(
            f"no checkpoint {name!r}: no such folder, no bundled name ({bundled}), and the hub "
            f"gave none: {reason}"
        ) from None


def download(name: str) -> Path:
    """The local copy of a checkpoint in a bucket; of a run without the state that only `resume`
    needs.

    Raises :class:`BucketError`.
    """
    buckets.check(name)
    unneeded = []
    folder = files.to_path(name) / "checkpoints"
    if buckets.exists(folder / checkpoint.INDEX):
        index = checkpoint.read_index(folder)
        last = index.get("last")
        if last and last["folder"] != index.get("best", last)["folder"]:
            unneeded.append(f"checkpoints/{last['folder']}/")

    def is_needed(file_name: str) -> bool:
        return not file_name.startswith(tuple(unneeded))

    return buckets.download(name, assets.cache_folder() / "buckets", is_needed)


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises :class:`CheckpointError` where there is no
    such file, or none with an object.
    """
    path = folder / file
    try:
        content = files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"no {file} in {folder}: a checkpoint folder has config.json and model.safetensors"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def read_tensors(folder: Path, file: str = WEIGHTS) -> dict[str, np.ndarray]:
    """All tensors of a ``file``, or of the shards that an index beside it names; see
    :func:`map_tensors`.

    Raises :class:`CheckpointError` for files that are missing, corrupt, or of another format.
    """
    index = folder / f"{file}.index.json"
    weight_map: dict[str, str] = {}
    names = [file]
    if not (folder / file).exists():
        if not index.exists():
            raise CheckpointError(f"no {file} in {folder}{other_format(folder)}")
        weight_map = read_weight_map(index)
        names = sorted(set(weight_map.values()))
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        try:
            tensors |= map_tensors(folder / name)
        except FileNotFoundError:
            raise CheckpointError(
                f"{index} names {name}, which is not in the folder: fetch it again"
            ) from None
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            what = signatures.stand_in(signatures.head_of(folder / name))
            if what is not None:
                raise CheckpointError(f"{folder / name} holds no tensors: {what}") from None
            raise CheckpointError(
                f"{folder / name} is truncated or corrupt ({error}): fetch it again"
            ) from None
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise CheckpointError(
            f"{index} names tensors that the shards do not hold: {', '.join(absent[:3])}: fetch "
            "it again"
        )
    return tensors


# By transformers, in the folder of the weights.
CONVERT = (
    "python -c \"from transformers import AutoModel as M; M.from_pretrained('.'%s)"
    ".save_pretrained('.')\""
)
OTHER_FORMATS = {
    ".bin": "is a pickle, which is not opened; convert it there: " + CONVERT % "",
    ".h5": "is TensorFlow's; convert it there by transformers 4: " + CONVERT % ", from_tf=True",
    ".msgpack": "is Flax's; convert it there by transformers 4: " + CONVERT % ", from_flax=True",
    ".pt": "is a pickle, which is not opened; write its state_dict by safetensors.torch.save_file",
    ".onnx": "is not read; get the model with model.safetensors",
    ".gguf": "is not read; get the model with model.safetensors",
    ".safetensors": "is there: rename it if that is the model",
}
SAME_FORMATS = {".pth": ".pt", ".ckpt": ".pt"}
OTHER_NAMES = {
    "adapter_model.bin": "is a pickle, which is not opened: save the adapter by safetensors",
    ADAPTER_WEIGHTS: f"is of an adapter of PEFT, whose {ADAPTER} is missing: put it there",
}


def other_format(folder: Path) -> str:
    """Which weights of another format a folder holds instead, and how to convert them; "" if none."""
    for path in sorted(folder.iterdir()):
        ending = SAME_FORMATS.get(path.suffix, path.suffix)
        mend = OTHER_NAMES.get(path.name) or OTHER_FORMATS.get(ending)
        if mend and path.name != "training_args.bin":
            return f": {path.name} {mend}"
    return ""


def read_weight_map(index: Path) -> dict[str, str]:
    """``{tensor: file}`` of model.safetensors.index.json."""
    weight_map = read_json(index.parent, index.name).get("weight_map")
    if isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values()):
        return weight_map
    raise CheckpointError(f"{index} has no weight_map of tensors to files: fetch it again")


# The types of tensors that are mapped, as safetensors calls them.
MAPPED: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16}


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file. Floating-point ones are mapped: a page is read where it is
    used, and never held.

    The file is opened twice: by safetensors, which checks the header against the file and reads
    other dtypes, and by NumPy, since safetensors copies what it reads.
    """
    tensors = {}
    with safetensors.safe_open(path, framework="numpy") as file:
        content = np.memmap(path, np.uint8, "r")
        # The size of the header in 8 bytes, the header, the tensors.
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = files.parse_json(content[8:start].tobytes().decode())
        for name in list(file.keys()):
            dtype = MAPPED.get(header[name]["dtype"])
            if dtype is None:
                tensors[name] = file.get_tensor(name)
                continue
            first, last = header[name]["data_offsets"]
            values = content[start + first : start + last].view(dtype)
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
        "label_type": model.label_type,
        "max_length": model.tokenizer.max_length if model.tokenizer else None,
        "long": model.tokenizer.long if model.tokenizer else None,
        "stride": model.tokenizer.stride if model.tokenizer else None,
        "special_tokens": model.tokenizer.named if model.tokenizer else None,
        "base": base,
        "images": dataclasses.asdict(model.image_settings) if model.image_settings else None,
        "imports": dict(model.imports),
        "embedding": dataclasses.asdict(model.embedding),
    }
    if model.tokenizer:
        model.tokenizer.save(folder)
    files.write_json(folder / "model.json", content)


def save_head(folder: Path, head: Any) -> None:
    """Write ``head`` of a run's model.json anew, with what training decided at its end."""
    content = read_json(folder, "model.json")
    files.write_json(folder / "model.json", content | {"head": head_settings(head)})


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
        hash(head)  # what is compiled for it is found again by it
        comes_back = make_head(json.loads(json.dumps(head_settings(head)))) == head
    except TypeError as error:
        raise StrategyError(f"the head {kind} can't be written to model.json: {error}") from None
    if not comes_back:
        raise StrategyError(
            f"the head {kind} is another one after it was written to model.json: give its fields "
            "values that JSON has"
        )


def load_run_folder(folder: Path, source: str) -> Pretrained:
    """A finished (or stopped) run: its best checkpoint, encoder and head.

    Raises :class:`CheckpointError` for a folder that this version of adapt did not write, and
    :class:`ExtensionError` where a module has to be imported first.
    """
    content = read_json(folder, "model.json")
    try:
        run = parse_run(content, folder, source)
        base = parse_base(content)
        max_length = content["max_length"]
        if not is_of(max_length, int | None):
            raise ValueError(f"max_length is {max_length!r}")
        long = content.get("long") or "head"  # older runs have none
        check_long_rule(long)
        stride = parse_stride(content)
        named = parse_special_tokens(content)
    except (CheckpointError, ExtensionError):
        raise
    except (KeyError, TypeError, ValueError, StrategyError) as error:
        raise CheckpointError(
            f"{folder / 'model.json'} was not written by this version of adapt: {error}"
        ) from None
    encoder = base_encoder(folder, base) if base else None
    params = checkpoint.load_params(folder / "checkpoints", run.model.shapes(), encoder)
    run = dataclasses.replace(run, params=params)
    if run.image_settings is not None:
        return run
    longest = min(max_length or run.config.positions, run.config.positions)
    tokenizer = load_tokenizer(folder, longest, long)
    if tokenizer is None:
        return run
    return with_tokenizer(run, tokenizer.replaced(stride=stride, named=named), folder)


def parse_stride(content: Mapping[str, Any]) -> int | None:
    """The distance of the windows that spans are read in, by model.json; older runs have none."""
    stride = content.get("stride")
    if stride is not None and (type(stride) is not int or stride < 0):
        raise ValueError(f"stride {stride!r}")
    return stride


def parse_special_tokens(content: Mapping[str, Any]) -> dict[str, str | None]:
    """The special tokens by transformers' names, by model.json; older runs have none."""
    named = dict(content.get("special_tokens") or {})
    for name, token in named.items():
        if name not in NAMED or not isinstance(token, str | None):
            raise ValueError(f"special_tokens {name!r}: {token!r}")
    return named


def parse_run(content: Mapping[str, Any], folder: Path, source: str) -> Pretrained:
    """What the model.json of ``folder`` says, yet without parameters and tokenizer.

    Raises KeyError, TypeError and ValueError for whatever is not as :func:`save_model` writes it.
    """
    imports = dict(content.get("imports", {}))
    config = EncoderConfig(**content["encoder"])
    check_setting_types(config)
    check_imported(folder, imports, "family", config.family, families.FAMILIES)
    if config.activation not in families.ACTIVATIONS.values():
        raise ValueError(f"unknown activation {config.activation!r}")
    config_file.check_config(config, str(folder / "model.json"))
    check_imported(folder, imports, "head", content["head"]["kind"], HEADS)
    head = make_head(content["head"])
    if type(head).__module__ == Classifier.__module__:  # others may be annotated in any way
        check_setting_types(head)
    if isinstance(head, OnHead):
        check_setting_types(head.make_below())
    if isinstance(head, Classifier):
        check_imported(folder, imports, "pooling", head.pooling, POOLINGS)
        if head.pooling not in pooling_names():
            raise ValueError(f"unknown pooling {head.pooling!r}")
    labels = tuple(content["labels"])
    if not all(isinstance(label, str) for label in labels):
        raise ValueError("labels that are no texts")
    classes = getattr(head, "classes", len(labels))
    if labels and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes")
    label_type = content.get("label_type", "str")  # older runs have none
    if label_type not in LABEL_TYPES:
        raise ValueError(f"unknown label_type {label_type!r}")
    image_settings = None
    if content["images"]:
        fields = {name: as_tuples(value) for name, value in dict(content["images"]).items()}
        image_settings = ImageSettings(**fields)
        check_setting_types(image_settings)
    return Pretrained(
        source=source,
        config=config,
        head=head,
        params={},
        image_settings=image_settings,
        task=content["task"],
        labels=labels,
        label_type=label_type,
        imports=imports,
        embedding=parse_embedding(content, head),
    )


def parse_embedding(content: Mapping[str, Any], head: Any) -> Embedding:
    """How a run makes vectors, by its model.json; of an older run as its head pools."""
    fields = content.get("embedding")
    if fields is None:
        return Embedding(pooling=getattr(head, "pooling", None))
    embedding = Embedding(**fields)
    check_setting_types(embedding)
    return embedding


def check_setting_types(settings: Any) -> None:
    """Raise ValueError for a field of a dataclass that is not of the type that it is annotated
    with, as JSON that was edited or damaged leaves it.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        if field.name in ("parent", "name"):  # of a module of Flax
            continue
        value = getattr(settings, field.name)
        if not is_of(value, hints[field.name]):
            raise ValueError(f"{field.name} is {value!r}: {wanted(hints[field.name])}")


def embedding_of_run(base: Embedding, head: Any, embeds: bool) -> Embedding:
    """How a run with this ``head`` makes vectors, which began with a checkpoint that does it as
    ``base`` says.

    A head that predicts was trained on pooled states as they are. Where vectors are what is trained
    (``embeds``), they are normalised as the checkpoint's are. No prompt was put before a text.
    """
    pooling = getattr(head, "pooling", None)
    if pooling is None:
        return base
    if not embeds:
        return Embedding(pooling=pooling)
    return dataclasses.replace(
        base,
        pooling=pooling,
        default_prompt=None,
        dimensions=None,
        pools_prompt=True,
        dense=0,
        refused="",
    )


def default_pooling(pretrained: Pretrained) -> str:
    """What a new head pools by, unless another pooling is asked for: the checkpoint's own, or that
    of its family.

    A pooling by weights that the checkpoint lacks is that of the checkpoint's head.
    """
    pooling = pretrained.embedding.pooling or families.get_family(pretrained.config.family).pooling
    if pooling in POOLINGS_OF_CHECKPOINTS and pooling not in pretrained.params["head"]:
        return getattr(pretrained.head, "pooling", "mean")
    return pooling


def known_poolings(pretrained: Pretrained) -> list[str]:
    """What a head on this encoder can pool by: images have poolings of their own, and a projection
    is one of the texts whose checkpoint has it.
    """
    if pretrained.config.is_image:
        return list(pooling_names())
    known = [*POOLINGS, "attention"]
    if "projection" in pretrained.params["head"]:
        known.append("projection")
    return known


def pooling_fields(pretrained: Pretrained, pooling: str) -> dict[str, Any]:
    """What a :class:`Classifier` has to know of the encoder to pool in this way: as the
    checkpoint's own head does, where that pools so.
    """
    if pooling in POOLINGS or pooling == "attention":
        return {}
    own = pretrained.head
    if not isinstance(own, Classifier) or own.pooling != pooling:
        return {"leading": pretrained.config.leading_tokens}
    names = (
        "leading",
        "projection",
        "projected",
        "heads",
        "mlp_width",
        "activation",
        "norm_epsilon",
    )
    return {name: getattr(own, name) for name in names}


def parse_base(content: Mapping[str, Any]) -> dict[str, str] | None:
    """``source`` and ``digest`` of the encoder to which delta checkpoints refer, by model.json;
    None where checkpoints hold their encoder.
    """
    base = content.get("base")
    if not base:
        return None
    if not all(isinstance(base[name], str) for name in ("source", "digest")):
        raise ValueError(f"base {base!r}")
    return base


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
    """``{"encoder": ...}`` that the delta in ``folder`` refers to.

    Raises :class:`CheckpointError` where there is none, or one of another digest.
    """
    source = base["source"]
    mend = f"put it back, or write its place into base.source of {folder / 'model.json'}"
    here = folder.resolve()
    if here in referring.get():
        raise CheckpointError(f"{folder} refers to itself for its encoder, {mend}")
    token = referring.set((*referring.get(), here))
    try:
        encoder = {"encoder": load_silently(source).params["encoder"]}
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} holds what trained on the encoder of {source}, {mend}: {error}"
        ) from None
    finally:
        referring.reset(token)
    digest = tree.digest(encoder["encoder"])
    if digest != base["digest"]:
        raise CheckpointError(
            f"the encoder of {source} has the digest {digest[:12]}, and {folder} was trained on "
            f"one with {base['digest'][:12]}: {mend}"
        )
    return encoder
