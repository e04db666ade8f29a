"""Families of checkpoints: one file each, which says all that adapt has to know of it.

A file here ends in ``FAMILY = Family(...)``, and ``FAMILIES`` has it under the ``model_type`` of
its config.json. Siblings share a file: ``"adapt.pretrained.families.roberta:CAMEMBERT"`` is the
object ``CAMEMBERT`` of that file, often ``dataclasses.replace(FAMILY, prefix="camembert.")``. No
other file of adapt compares or names a family: what they need to know is a field of
:class:`Family`, and what a simple family does not need has a default there.

How the fields are used:

* config.json -> :class:`EncoderConfig`: the rows of ``config``, then ``usual``, ``always`` and
  ``complete``, which refuses by name what changes the computation and is not done here. Back: the
  rows and ``usual``, then ``entries``, which says what ``complete`` read and overrules the rows.
  Both have to make config.json again, so that adapt and transformers read the same.
* tensors -> leaves, and back: ``table``. A row counts where the model has its leaves, and, where
  the row has ``kinds``, where the head is of one of them: so a leaf can have other names under
  another head.
* a file's head: ``recognise`` gets the tensors without ``prefix`` and without ``buffers``.
* exports: ``classes`` has transformers' class by the kind of head, ``sequence_heads`` the heads
  that the class for sequences can hold, ``base_class`` the class without a head.

``head_kind`` has the kinds of heads. :mod:`adapt.pretrained.config_file` and
:mod:`adapt.pretrained.importing` read checkpoints by these objects, :mod:`adapt.export` writes
them.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import CheckpointError, ExtensionError
from adapt.models import (
    CausalLM,
    Classifier,
    EncoderConfig,
    MaskedLM,
    MaskedPixels,
    ReplacedTokens,
    Span,
    Tagger,
)
from adapt.pretrained.families import own_faults
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "quick_gelu": "quick_gelu",
    # Other names of the same functions.
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}
# Back: of several names of a function the first.
LIBRARY_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
# (tensor -> leaf, (leaf, side of a patch) -> tensor)
LAYOUTS: dict[
    str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray, int], np.ndarray]]
] = {
    "same": (lambda x: x, lambda x, _: x),
    # torch's [out, in]
    "transposed": (lambda x: x.T, lambda x, _: x.T),
    # a convolution kernel [out, in, 1, 1]
    "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x, _: x.T[:, :, None, None]),
    # a convolution kernel [D, C, P, P] as [P*P*C, D]
    "patches": (
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x, patch: x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    ),
    # a convolution kernel [D, D, K] as [K*D, D]
    "neighbours": (
        lambda x: x.transpose(2, 1, 0).reshape(-1, len(x)),
        lambda x, _: x.reshape(-1, x.shape[-1], x.shape[-1]).transpose(2, 1, 0),
    ),
    # a leading batch axis of 1, or two, taken off
    "token": (
        lambda x: x.reshape(x.shape[-2:] if x.shape[1] > 1 else x.shape[-1:]),
        lambda x, _: x.reshape((1,) * (3 - x.ndim) + x.shape),
    ),
    # a leading axis of 1 before several tokens, or one, taken off
    "tokens": (lambda x: x[0], lambda x, _: x[None]),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint and the leaf that it becomes, or several leaves side by side along
    the last axis.

    ``name`` is the tensor's and ``paths`` are the leaves'; ``#`` in both stands for the number of a
    block. ``layout`` is a name of :data:`LAYOUTS`. ``kinds`` are the kinds of heads under which the
    tensor has this name; empty: under all. ``only`` is (a field of the config, its value where the
    tensor has this name). Raises :class:`ExtensionError` for a layout that there is not, and for
    paths that are no tuple.

        >>> Row("tokens.weight", ("encoder/embedding/token",)).to_leaves(np.ones((5, 2)))[0].shape
        (5, 2)
    """

    name: str
    paths: tuple[str, ...]
    layout: str = "same"
    kinds: tuple[str, ...] = ()
    only: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.paths, tuple):
            raise ExtensionError(
                f"the row of {self.name!r} has {self.paths!r} for its leaves: give a tuple of paths"
            )
        if self.layout not in LAYOUTS:
            raise ExtensionError(
                f"the row of {self.name!r} has the layout {self.layout!r}: layouts are "
                f"{', '.join(LAYOUTS)}"
            )

    def to_leaves(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The leaves, in the order of ``paths``."""
        read, _ = LAYOUTS[self.layout]
        return np.split(read(tensor), len(self.paths), -1)

    def to_tensor(self, leaves: list[np.ndarray], patch_size: int) -> np.ndarray:
        """The tensor, from leaves in the order of ``paths``."""
        _, write = LAYOUTS[self.layout]
        # One leaf is not concatenated, which would write out a zero without memory.
        joined = leaves[0] if len(leaves) == 1 else np.concatenate(leaves, -1)
        return write(joined, patch_size)


def under(kinds: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The same rows for heads of these kinds alone."""
    return [dataclasses.replace(row, kinds=tuple(kinds)) for row in rows]


def where(field: str, value: Any, rows: Sequence[Row]) -> list[Row]:
    """The same rows for encoders whose config has this value alone."""
    return [dataclasses.replace(row, only=(field, value)) for row in rows]


def dense(name: str, *paths: str, layout: str = "transposed") -> list[Row]:
    """The rows of one dense layer, ``name.weight`` and ``name.bias``, or of several that are stored
    as one.
    """
    weight = Row(f"{name}.weight", tuple(f"{path}/kernel" for path in paths), layout)
    return [weight, Row(f"{name}.bias", tuple(f"{path}/bias" for path in paths))]


def norm(name: str, path: str) -> list[Row]:
    """The rows of one layer normalisation."""
    return [Row(f"{name}.weight", (f"{path}/scale",)), Row(f"{name}.bias", (f"{path}/bias",))]


def with_defaults(rows: Sequence[tuple[Any, ...]], **defaults: Any) -> list[tuple[Any, ...]]:
    """Rows of a configuration with other defaults, each by its entry of config.json."""
    changed = []
    for ours, theirs, *default in rows:
        default = [defaults[theirs]] if theirs in defaults else default
        changed.append((ours, theirs, *default))
    return changed


# The MLP of a block, by its names in transformers 5 and here.
PLAIN_MLP = {"mlp.fc1": "mlp/up", "mlp.fc2": "mlp/down"}
GATED_MLP = {"mlp.gate_proj": "mlp/gate", "mlp.up_proj": "mlp/up", "mlp.down_proj": "mlp/down"}
LEAVES_OF_ATTENTION = (
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/output",
)
# One tensor of all three.
QKV = LEAVES_OF_ATTENTION[:3]


def projections(attention: str, *names: str) -> dict[str, str]:
    """The names of attention's dense layers -> leaves, for :func:`block_rows`.

    ``names`` are those of query, key, value and, unless it is elsewhere, output, after that of the
    attention:

        >>> projections("self_attn", "q_proj", "k_proj", "v_proj")["self_attn.k_proj"]
        'attention/key'
    """
    leaves = LEAVES_OF_ATTENTION[: len(names)]
    return {f"{attention}.{name}": leaf for name, leaf in zip(names, leaves, strict=True)}


def block_rows(
    layer: str,
    names: Mapping[str, str | tuple[str, ...]],
    block: str = "encoder/block_#",
    layout: str = "transposed",
) -> list[Row]:
    """The rows of a block, by a table of {a name after ``layer``: a leaf after ``block``}.

    A leaf that ends in "norm" is a layer normalisation, one that ends in "scale" a single tensor,
    and any other a dense layer, whose kernel has this ``layout``; several leaves are dense layers
    that are stored as one.
    """
    rows = []
    for name, leaves in names.items():
        leaves = (leaves,) if isinstance(leaves, str) else leaves
        paths = [f"{block}/{leaf}" for leaf in leaves]
        if paths[0].endswith("norm"):
            rows += norm(f"{layer}.{name}", paths[0])
        elif paths[0].endswith("scale"):
            rows.append(Row(f"{layer}.{name}", tuple(paths)))
        else:
            rows += dense(f"{layer}.{name}", *paths, layout=layout)
    return rows


def block_modules(layer: str, attention: str, mlp: Mapping[str, str]) -> list[Row]:
    """The rows of a block's dense layers by the names that transformers 5 gives its modules.

    ``layer`` and ``attention`` are what it calls a block and the attention in it.
    """
    of_attention = projections(attention, "q_proj", "k_proj", "v_proj", "o_proj")
    return block_rows(layer, {**of_attention, **mlp})


# Heads that the original library counts to the encoder.
OF_ENCODER = ("head/pooler/", "head/map/", "head/patch_norm/", "head/mask_token")


def without(rows: Sequence[tuple[Any, ...]], *fields: str) -> list[tuple[Any, ...]]:
    """Rows of a configuration without those of these fields."""
    return [row for row in rows if row[0] not in fields]


# Rows of a configuration: those that all blocks have, those that most text models have, and those
# that models since BERT have beside their sizes.
BLOCK_SIZES = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
]
SIZES = [
    *BLOCK_SIZES,
    ("positions", "max_position_embeddings"),
    ("vocabulary", "vocab_size"),
]
TRAINING = [
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("init_range", "initializer_range", 0.02),
]


def as_they_are(hf: Entries, fields: Fields) -> Fields:
    """``complete`` of a family whose rows say all."""
    return fields


def as_said(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> EncoderConfig:
    """``settle`` of a family whose config.json says all."""
    return config


def as_it_is(hf: Entries) -> Entries:
    """``settings`` of a family whose config.json is the encoder's."""
    return hf


def no_entries(config: EncoderConfig, head: Any) -> Fields:
    """``entries`` of a family whose rows say all."""
    return {}


def language_model(config: EncoderConfig, tied: bool = True) -> Any:
    """The usual head of pre-training: a causal or a masked language model."""
    if config.causal:
        return CausalLM(config.vocabulary, tied)
    return MaskedLM(
        config.vocabulary,
        tied,
        activation=config.activation,
        norm_epsilon=config.norm_epsilon,
        width=config.embedding_width,
    )


def no_layer(config: EncoderConfig) -> Fields:
    """``head_layer`` of a family whose classes project what is pooled, or can be made to."""
    return {}


def no_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """``extra_tensors`` of a family whose classes hold what the table has."""
    return {}


# What :func:`head_kind` says of adapt's own heads.
HEAD_KINDS = (
    "features",
    "projection",
    "classes",
    "token classes",
    "spans",
    "masked LM",
    "masked LM and next sentence",
    "causal LM",
    "replaced tokens",
    "masked image",
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What adapt has to know of a family of checkpoints.

    * ``config``: rows (field of :class:`EncoderConfig`, its entry in config.json, default unless it
      is required); of a field's rows the first one is read and all are written.
    * ``table``: which tensor is which leaf.
    * ``modules``: rows of dense layers by the names of transformers' modules, where these are
      others than in a file: transformers 5 renames them as it loads one. Files of PEFT have these
      names.
    * ``recognise(config, hf, tensors) -> (head, tensors)``: the head whose weights are there, as a
      module, and the tensors by the names of ``table``. What it leaves among them that is in no row
      is left out, and said.
    * ``usual``: entries of config.json that change the computation, with the one value that is
      read; any other is refused, and these are written. A null counts as false.
    * ``always``: fields of :class:`EncoderConfig` that all its models have, whatever config.json
      says.
    * ``complete(hf, fields) -> fields``: what ``config`` and ``always`` can't say. It raises
      :class:`CheckpointError` for what is not read.
    * ``settings(hf) -> hf``: the entries of the encoder, where config.json nests them in others.
    * ``aliases``: another name of an entry in config.json -> the usual one, under which the rows
      and ``complete`` read it: the ``attribute_map`` of transformers' configuration.
    * ``entries(config, head) -> entries of config.json``: the inverse of ``complete``. ``head`` is
      None for an encoder alone.
    * ``settle(config, tensors) -> config``: what the tensors of a file, by its own names, say of
      the encoder.
    * ``pooling``: what a new head pools by, unless another pooling is asked for.
    * ``ends_texts``: the vector of a text is the state of the end token that the tokenizer puts
      after it, so that one which puts none there is refused, and a text is read as far as its first.
    * ``prefix``: what the original library puts before the names of the encoder and of its pooler
      where a head is on it.
    * ``prefixes``: kind of head -> another prefix, where transformers' class for it has another.
    * ``buffers``: a pattern of tensors to ignore, without the prefix.
    * ``parts``: how names of tensors begin that are known and of no use here -> what they are.
    * ``classes``: kind of head, see :func:`head_kind` -> transformers' class.
    * ``sequence_heads``: the heads that its class for sequences (or images) can hold, without their
      number of classes. A head on the first token alone fits one that has a dense layer before the
      logits, too: see :mod:`adapt.export.heads`.
    * ``head_layer(config) -> fields``: of new heads for sequences, tokens and spans, the layer
      before the projection that transformers' classes have and no weights can undo.
    * ``base_class``: transformers' class without a head, which sentence-transformers takes; ""
      where it takes none.
    * ``extra_tensors(config, class, tensors) -> tensors``: what that class holds beside the
      table's, by full names.
    * ``language_model(config, tied) -> head``: the head of pre-training.
    * ``pair_objective``: the objective of pre-training by which the second head beside its masked
      LM was trained, where it has one: a name of :data:`adapt.objectives.OBJECTIVES`.
    * ``masked_image(config) -> head``: the head that predicts the pixels of masked patches; None
      where its classes have none.
    * ``tokenizer``: the class of its tokenizer, a name of
      :data:`adapt.pretrained.tokenizer_files.TOKENIZERS`; "": tokenizer.json is taken as it is.
    * ``processor``: the class that makes pixels of its images, a name of
      :data:`adapt.pretrained.images.PROCESSORS`, where the folder names none.
    * ``counts_after_padding``: whether the original library counts the positions of a text by the
      id of the padding token, from the one after it on. An export where the padding token has
      another id is refused then.
    * ``any_size``: whether the original library makes the encoder fit pictures of any size, so that
      their size is that of preprocessor_config.json; ``smooth_positions``: whether it interpolates
      positions with anti-aliasing.

    Raises :class:`ExtensionError` for a field of a config, a pooling or a kind of head that there
    is not, where the family is made.
    """

    config: Sequence[tuple[Any, ...]]
    table: Sequence[Row]
    recognise: Callable[[EncoderConfig, Entries, Tensors], Found]
    complete: Callable[[Entries, Fields], Fields] = as_they_are
    entries: Callable[[EncoderConfig, Any], Fields] = no_entries
    settle: Callable[[EncoderConfig, Mapping[str, np.ndarray]], EncoderConfig] = as_said
    pooling: str = "mean"
    ends_texts: bool = False
    prefix: str = ""
    buffers: str = ""
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sequence_heads: Sequence[Classifier] = ()
    head_layer: Callable[[EncoderConfig], Fields] = no_layer
    base_class: str = ""
    extra_tensors: Callable[[EncoderConfig, str, Tensors], Tensors] = no_tensors
    language_model: Callable[[EncoderConfig, bool], Any] = language_model
    pair_objective: str = ""
    masked_image: Callable[[EncoderConfig], Any] | None = None
    tokenizer: str = ""
    settings: Callable[[Entries], Entries] = as_it_is
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    processor: str = "ViTImageProcessor"
    any_size: bool = False
    smooth_positions: bool = False
    modules: Sequence[Row] = ()
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    always: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counts_after_padding: bool = False

    def __post_init__(self) -> None:
        own_faults.check_rows(self.config, self.always)
        own_faults.check_pooling(self.pooling)
        own_faults.check_kinds(HEAD_KINDS, classes=self.classes, prefixes=self.prefixes)
        for row in self.table:
            own_faults.check_kinds(HEAD_KINDS, **{f"the row of {row.name!r}": row.kinds})
        own_faults.check_prefixes([self.prefix, *self.prefixes.values()])

    def prefix_of(self, head: Any) -> str:
        """The prefix of transformers' class for this head."""
        return self.prefixes.get(head_kind(head), self.prefix)


# The model_type of config.json -> the family, or "module:NAME" (NAME is FAMILY if it is not said),
# which is imported when it is needed.
FAMILIES: dict[str, Family | str] = {
    "albert": "adapt.pretrained.families.albert",
    "beit": "adapt.pretrained.families.beit",
    "bert": "adapt.pretrained.families.bert",
    "camembert": "adapt.pretrained.families.roberta:CAMEMBERT",
    "clip": "adapt.pretrained.families.clip",
    "clip_text_model": "adapt.pretrained.families.clip_text",
    "clip_vision_model": "adapt.pretrained.families.clip",
    "deberta-v2": "adapt.pretrained.families.deberta_v2",
    "deit": "adapt.pretrained.families.deit",
    "dinov2": "adapt.pretrained.families.dinov2",
    "dinov2_with_registers": "adapt.pretrained.families.dinov2:WITH_REGISTERS",
    "dinov3_vit": "adapt.pretrained.families.dinov3",
    "distilbert": "adapt.pretrained.families.distilbert",
    "electra": "adapt.pretrained.families.electra",
    "esm": "adapt.pretrained.families.esm",
    "gemma3_text": "adapt.pretrained.families.gemma3",
    "gpt2": "adapt.pretrained.families.gpt2",
    "gte": "adapt.pretrained.families.nomic:GTE",
    "llama": "adapt.pretrained.families.llama",
    "mistral": "adapt.pretrained.families.mistral",
    "modernbert": "adapt.pretrained.families.modernbert",
    "mpnet": "adapt.pretrained.families.mpnet",
    "mt5": "adapt.pretrained.families.t5:MT5",
    "nomic_bert": "adapt.pretrained.families.nomic:NOMIC",
    "qwen2": "adapt.pretrained.families.qwen",
    "qwen3": "adapt.pretrained.families.qwen:QWEN3",
    "roberta": "adapt.pretrained.families.roberta",
    "siglip": "adapt.pretrained.families.siglip",
    "siglip_vision_model": "adapt.pretrained.families.siglip",
    "smollm3": "adapt.pretrained.families.llama:SMOLLM3",
    "t5": "adapt.pretrained.families.t5",
    "umt5": "adapt.pretrained.families.t5:UMT5",
    "vit": "adapt.pretrained.families.vit",
    "xlm-roberta": "adapt.pretrained.families.roberta:XLM_ROBERTA",
}


def get_family(name: Any) -> Family:
    """The family of this ``model_type``. Raises :class:`CheckpointError` naming those that are
    known.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(
            f"unknown architecture {name!r} in config.json: adapt reads {', '.join(FAMILIES)}; for "
            "another `import` the module that adds it"
        )
    family = FAMILIES[name]
    if isinstance(family, Family):
        return family
    module, _, attribute = str(family).partition(":")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise CheckpointError(f"the family {name} is registered as {family}: {error}") from error
    found = getattr(imported, attribute or "FAMILY", None)
    if not isinstance(found, Family):
        raise CheckpointError(
            f"the family {name} is registered as {family}: {attribute or 'FAMILY'} in {module} has "
            "to be a Family"
        )
    return found


def head_kind(head: Any) -> str:
    """The kind of a head, one of :data:`HEAD_KINDS`, which decides the names of its tensors and
    transformers' class. A head of one's own has the kind "the head", a space and its class.

    "features" is a pooler or nothing, "projection" a dense layer that makes features, "classes" a
    classifier of sequences or images.
    """
    if head is None:
        return "features"
    if isinstance(head, Classifier):
        if head.classes:
            return "classes"
        return "projection" if head.pooling == "projection" else "features"
    if isinstance(head, Tagger):
        return "token classes"
    if isinstance(head, Span):
        return "spans"
    if isinstance(head, MaskedLM):
        return "masked LM and next sentence" if head.next_sentence else "masked LM"
    if isinstance(head, CausalLM):
        return "causal LM"
    if isinstance(head, ReplacedTokens):
        return "replaced tokens"
    if isinstance(head, MaskedPixels):
        return "masked image"
    return f"the head {type(head).__name__}"


def tensor_rows(config: EncoderConfig, leaves: tree.Tree, head: Any = None) -> list[Row]:
    """The rows of the family's table that are of these leaves under this head, block by block."""
    return rows_of(get_family(config.family).table, config, leaves, head)


def module_rows(config: EncoderConfig, leaves: tree.Tree, head: Any = None) -> list[Row]:
    """:func:`tensor_rows` by the names of transformers' modules: of each leaf one row."""
    own = rows_of(get_family(config.family).modules, config, leaves, head)
    renamed = {path for row in own for path in row.paths}
    table = tensor_rows(config, leaves, head)
    return [*own, *(row for row in table if not renamed.issuperset(row.paths))]


def rows_of(table: Sequence[Row], config: EncoderConfig, leaves: tree.Tree, head: Any) -> list[Row]:
    """The rows of a table that are of these leaves under this head, block by block."""
    kind = head_kind(head)
    rows = []
    for row in table:
        if row.kinds and kind not in row.kinds:
            continue
        if row.only and getattr(config, row.only[0]) != row.only[1]:
            continue
        for block in range(config.layers if "#" in row.name else 1):
            name = row.name.replace("#", str(block))
            paths = tuple(path.replace("#", f"{block:02d}") for path in row.paths)
            rows.append(dataclasses.replace(row, name=name, paths=paths))
    return [row for row in rows if leaves.keys() >= set(row.paths)]


def config_entries(config: EncoderConfig) -> Fields:
    """What the rows of the family say of a config, by their entries in config.json, and what is
    always the usual.
    """
    family = get_family(config.family)
    fields = dataclasses.asdict(config)
    fields["activation"] = LIBRARY_ACTIVATIONS[config.activation]
    rows = {theirs: fields[ours] for ours, theirs, *_ in family.config}
    return {**family.usual, **rows}


def architecture(hf: Entries) -> str:
    """The class that a checkpoint was saved from, by its config.json; "" where that does not say."""
    names = hf.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
