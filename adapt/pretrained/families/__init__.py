"""Families of checkpoints: one file each, which says all that adapt has to know of it.

A file here ends in ``FAMILY = Family(...)``, and ``FAMILIES`` has it under the ``model_type`` of its
config.json. Siblings share a file: ``"adapt.pretrained.families.roberta:CAMEMBERT"`` is the object
``CAMEMBERT`` of that file, often ``dataclasses.replace(FAMILY, prefix="camembert.")``. No other file
of adapt compares or names a family: what they need to know is a field of :class:`Family`, and what a
simple family does not need has a default there.

How the fields are used:

* config.json -> :class:`EncoderConfig`: the rows of ``config``, then ``complete``, which refuses by
  name what changes the computation and is not done here. Back: the rows, then ``entries``, which
  says what ``complete`` read and overrules the rows. Both have to make config.json again, so that
  adapt and transformers read the same.
* tensors -> leaves, and back: ``table``. A row counts where the model has its leaves, and, where the
  row has ``kinds``, where the head is of one of them: so a leaf can have other names under another
  head.
* a file's head: ``recognise`` gets the tensors without ``prefix`` and without ``buffers``.
* exports: ``classes`` has transformers' class by the kind of head, ``sequence_heads`` the heads that
  the class for sequences can hold, ``base_class`` the class without a head.

``head_kind`` has the kinds of heads.
"""

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import CheckpointError
from adapt.models import (
    POSITION_KINDS,
    CausalLM,
    Classifier,
    Encoder,
    EncoderConfig,
    MaskedLM,
    Model,
    ReplacedTokens,
    Span,
    Tagger,
)
from adapt.pretrained import tensor_names

LARGEST_WEIGHT = 1e18  # the square of a larger one is no number of float32
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
    # a convolution kernel [D, C, P, P] as [P*P*C, D]
    "patches": (
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x, patch: x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1),
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
    tensor has this name).
    """

    name: str
    paths: tuple[str, ...]
    layout: str = "same"
    kinds: tuple[str, ...] = ()
    only: tuple[str, Any] | None = None

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


Fields = dict[str, Any]
Tensors = dict[str, np.ndarray]


def as_they_are(hf: Mapping[str, Any], fields: Fields) -> Fields:
    """``complete`` of a family whose rows say all."""
    return fields


def as_said(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> EncoderConfig:
    """``settle`` of a family whose config.json says all."""
    return config


def as_it_is(hf: Mapping[str, Any]) -> Mapping[str, Any]:
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
        config.vocabulary, tied, activation=config.activation, norm_epsilon=config.norm_epsilon
    )


def no_layer(config: EncoderConfig) -> Fields:
    """``head_layer`` of a family whose classes project what is pooled, or can be made to."""
    return {}


def no_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """``extra_tensors`` of a family whose classes hold what the table has."""
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """What adapt has to know of a family of checkpoints.

    * ``config``: rows (field of :class:`EncoderConfig`, its entry in config.json, default unless it
      is required); of a field's rows the first one is read and all are written.
    * ``table``: which tensor is which leaf.
    * ``recognise(config, hf, tensors) -> (head, tensors)``: the head whose weights are there, as a
      module, and the tensors by the names of ``table``. What it leaves among them that is in no row
      is left out, and said.
    * ``complete(hf, fields) -> fields``: what the rows of ``config`` can't say. It raises
      :class:`CheckpointError` for what is not read.
    * ``settings(hf) -> hf``: the entries of the encoder, where config.json nests them in others.
    * ``aliases``: another name of an entry in config.json -> the usual one, under which the rows and
      ``complete`` read it: the ``attribute_map`` of transformers' configuration.
    * ``entries(config, head) -> entries of config.json``: the inverse of ``complete``. ``head`` is
      None for an encoder alone.
    * ``settle(config, tensors) -> config``: what the tensors of a file, by its own names, say of the
      encoder.
    * ``pooling``: what a new head pools by, unless another pooling is asked for.
    * ``prefix``: what the original library puts before the names of the encoder and of its pooler
      where a head is on it.
    * ``buffers``: a pattern of tensors to ignore, without the prefix.
    * ``parts``: how names of tensors begin that are known and of no use here -> what they are.
    * ``classes``: kind of head, see :func:`head_kind` -> transformers' class.
    * ``sequence_heads``: the heads that its class for sequences (or images) can hold, without their
      number of classes. A head on the first token alone fits one that has a dense layer before the
      logits, too: see :mod:`adapt.export.heads`.
    * ``head_layer(config) -> fields``: of new heads for sequences, tokens and spans, the layer
      before the projection that transformers' classes have and no weights can undo.
    * ``base_class``: transformers' class without a head, which sentence-transformers takes; "" where
      it takes none.
    * ``extra_tensors(config, class, tensors) -> tensors``: what that class holds beside the table's,
      by full names.
    * ``language_model(config, tied) -> head``: the head of pre-training.
    * ``tokenizer``: the class of its tokenizer, a name of
      :data:`adapt.pretrained.tokenizer_files.TOKENIZERS`; "": tokenizer.json is taken as it is.
    * ``processor``: the class that makes pixels of its images, a name of
      :data:`adapt.pretrained.images.PROCESSORS`, where the folder names none.
    * ``any_size``: whether the original library makes the encoder fit pictures of any size, so that
      their size is that of preprocessor_config.json; ``smooth_positions``: whether it interpolates
      positions with anti-aliasing.
    """

    config: Sequence[tuple[Any, ...]]
    table: Sequence[Row]
    recognise: Callable[[EncoderConfig, Mapping[str, Any], Tensors], tuple[Any, Tensors]]
    complete: Callable[[Mapping[str, Any], Fields], Fields] = as_they_are
    entries: Callable[[EncoderConfig, Any], Fields] = no_entries
    settle: Callable[[EncoderConfig, Mapping[str, np.ndarray]], EncoderConfig] = as_said
    pooling: str = "mean"
    prefix: str = ""
    buffers: str = ""
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sequence_heads: Sequence[Classifier] = ()
    head_layer: Callable[[EncoderConfig], Fields] = no_layer
    base_class: str = ""
    extra_tensors: Callable[[EncoderConfig, str, Tensors], Tensors] = no_tensors
    language_model: Callable[[EncoderConfig, bool], Any] = language_model
    tokenizer: str = ""
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] = as_it_is
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    processor: str = "ViTImageProcessor"
    any_size: bool = False
    smooth_positions: bool = False


# The model_type of config.json -> the family, or "module:NAME" (NAME is FAMILY if it is not said),
# which is imported when it is needed.
FAMILIES: dict[str, Family | str] = {
    "bert": "adapt.pretrained.families.bert",
    "roberta": "adapt.pretrained.families.roberta",
    "xlm-roberta": "adapt.pretrained.families.roberta:XLM_ROBERTA",
    "camembert": "adapt.pretrained.families.roberta:CAMEMBERT",
    "distilbert": "adapt.pretrained.families.distilbert",
    "electra": "adapt.pretrained.families.electra",
    "esm": "adapt.pretrained.families.esm",
    "gpt2": "adapt.pretrained.families.gpt2",
    "llama": "adapt.pretrained.families.llama",
    "smollm3": "adapt.pretrained.families.llama:SMOLLM3",
    "mistral": "adapt.pretrained.families.mistral",
    "qwen2": "adapt.pretrained.families.qwen",
    "qwen3": "adapt.pretrained.families.qwen:QWEN3",
    "gemma3_text": "adapt.pretrained.families.gemma3",
    "gte": "adapt.pretrained.families.nomic:GTE",
    "modernbert": "adapt.pretrained.families.modernbert",
    "nomic_bert": "adapt.pretrained.families.nomic:NOMIC",
    "vit": "adapt.pretrained.families.vit",
    "albert": "adapt.pretrained.families.albert",
    "mpnet": "adapt.pretrained.families.mpnet",
    "deberta-v2": "adapt.pretrained.families.deberta_v2",
    "t5": "adapt.pretrained.families.t5",
    "mt5": "adapt.pretrained.families.t5:MT5",
    "umt5": "adapt.pretrained.families.t5:UMT5",
    "deit": "adapt.pretrained.families.deit",
    "beit": "adapt.pretrained.families.beit",
    "dinov2": "adapt.pretrained.families.dinov2",
    "dinov2_with_registers": "adapt.pretrained.families.dinov2:WITH_REGISTERS",
    "dinov3_vit": "adapt.pretrained.families.dinov3",
    "clip": "adapt.pretrained.families.clip",
    "clip_vision_model": "adapt.pretrained.families.clip",
    "siglip": "adapt.pretrained.families.siglip",
    "siglip_vision_model": "adapt.pretrained.families.siglip",
}


def get_family(name: Any) -> Family:
    """The family of this ``model_type``. Raises :class:`CheckpointError` naming those that are
    known.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(
            f"unknown architecture {name!r} in config.json: adapt reads {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    if isinstance(family, Family):
        return family
    module, _, attribute = family.partition(":")
    found = getattr(importlib.import_module(module), attribute or "FAMILY", None)
    if not isinstance(found, Family):
        raise CheckpointError(
            f"the family {name} is registered as {family}: {attribute or 'FAMILY'} in {module} has "
            "to be a Family"
        )
    return found


def head_kind(head: Any) -> str:
    """The kind of a head, which decides the names of its tensors and transformers' class.

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
    return f"the head {type(head).__name__}"


def tensor_rows(config: EncoderConfig, leaves: tree.Tree, head: Any = None) -> list[Row]:
    """The rows of the family's table that are of these leaves under this head, block by block."""
    kind = head_kind(head)
    rows = []
    for row in get_family(config.family).table:
        if row.kinds and kind not in row.kinds:
            continue
        if row.only and getattr(config, row.only[0]) != row.only[1]:
            continue
        for block in range(config.layers if "#" in row.name else 1):
            name = row.name.replace("#", str(block))
            paths = tuple(path.replace("#", f"{block:02d}") for path in row.paths)
            rows.append(dataclasses.replace(row, name=name, paths=paths))
    return [row for row in rows if leaves.keys() >= set(row.paths)]


def read_config(hf: Mapping[str, Any], where: str) -> EncoderConfig:
    """config.json -> what fixes an encoder. Raises :class:`CheckpointError` where it does not.

    ``where`` is the folder of the file. A family does not know it: its errors say "config.json",
    which becomes the path here.
    """
    try:
        return encoder_config(hf, where)
    except CheckpointError as error:
        said = str(error)
        if where not in said:
            said = said.replace("config.json", f"{where}/config.json", 1)
        raise CheckpointError(said) from error


def encoder_config(hf: Mapping[str, Any], where: str) -> EncoderConfig:
    """What :func:`read_config` gives, by the rows of the family and its ``complete``."""
    model_type = hf["model_type"]
    family = get_family(model_type)
    hf = usual_entries(family.settings(hf), family.aliases)
    fields: Fields = {"family": model_type}
    for ours, theirs, *default in reversed(family.config):
        if theirs not in hf and not default:
            raise CheckpointError(f"{where}/config.json has no entry {theirs!r}")
        fields[ours] = hf.get(theirs, *default)
    if "quantization_config" in hf:
        raise CheckpointError(
            f"quantization_config in {where}/config.json: only weights in floating point are read"
        )
    fields = family.complete(hf, fields)
    fields["activation"] = activation(fields["activation"])
    for name in ("pad_token", "end_token"):
        if name in fields:
            fields[name] = token_id(fields[name], name, where)
    config = EncoderConfig(**fields)
    check_config(config, f"config.json in {where}")
    if not config.is_image and not 0 <= config.pad_token < config.vocabulary:
        # A padding token without a row. Padding is masked here, so that any token will do.
        config = dataclasses.replace(config, pad_token=0)
    return config


def usual_entries(hf: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """The entries with those that have another name under the usual one, too.

    Raises :class:`CheckpointError` where both are there and say different things: transformers takes
    the other name then, which the original library may not know.
    """
    found = dict(hf)
    for other, usual in aliases.items():
        if other not in hf:
            continue
        if hf.get(usual, hf[other]) != hf[other]:
            raise CheckpointError(
                f"{other} is {hf[other]!r} and {usual} is {hf[usual]!r} in config.json: both are "
                "names of one entry, remove the wrong one"
            )
        found[usual] = hf[other]
    return found


def config_entries(config: EncoderConfig) -> Fields:
    """What the rows of the family say of a config, by their entries in config.json."""
    fields = dataclasses.asdict(config)
    fields["activation"] = LIBRARY_ACTIVATIONS[config.activation]
    return {theirs: fields[ours] for ours, theirs, *_ in get_family(config.family).config}


def activation(name: Any) -> str:
    """Our name of an activation of config.json. Raises :class:`CheckpointError` for an unknown
    one.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(
            f"unknown activation {name!r} in config.json: adapt has {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def token_id(value: Any, name: str, where: str) -> int:
    """The id of a token, or the first of several. Raises :class:`CheckpointError` for anything
    else.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if type(value) is not int:
        raise CheckpointError(f"config.json in {where} says {value!r} for {name}: give its id")
    return value


def tie(
    hf: Mapping[str, Any], tensors: Mapping[str, np.ndarray], decoder: str, embedding: str
) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the decoder is the embedding, and the tensors without the copy of it that a file may
    hold.
    """
    stored = tensors.get(decoder)
    same = stored is None or np.array_equal(stored, tensors.get(embedding, ()))
    tied = bool(hf.get("tie_word_embeddings", True)) and same
    kept = dict(tensors)
    if tied:
        kept.pop(decoder, None)
    return tied, kept


def with_decoder_bias(tensors: Tensors, tied: bool, decoder_bias: str, bias: str) -> Tensors:
    """The tensors with one bias of a masked-LM head, under the name ``bias``.

    An untied file may hold a second one, ``decoder_bias``, and then transformers computes with that.
    """
    kept = dict(tensors)
    second = kept.pop(decoder_bias, None)
    if second is not None and not tied:
        kept[bias] = second
    return kept


def architecture(hf: Mapping[str, Any]) -> str:
    """The class that a checkpoint was saved from, by its config.json; "" where that does not say."""
    names = hf.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Imported:
    """The tensors of a checkpoint as a head and parameters, and what of them was left out.

    ``unread`` are {what they are: {name in the file: shape}}, such as ``{"unknown head":
    {"crf.transitions": (9, 9)}}``; ``stripped`` are the prefixes that names had.
    """

    head: Any
    params: tree.Tree
    unread: Mapping[str, Mapping[str, Shape]]
    stripped: tuple[str, ...]


def to_params(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str
) -> Imported:
    """Tensors of a checkpoint -> its head and parameters, strict about the encoder.

    What is not the encoder's never stands in its way: a head that is not known, or does not fit, is
    ``unread``. Raises :class:`CheckpointError` for an encoder that is not whole, with a diff in the
    table's names: ``-`` missing, ``+`` not known, ``!`` misshapen.
    """
    family = get_family(config.family)
    expected = expected_tensors(config, Classifier(0))
    found = tensor_names.strip(tensors, expected.keys(), family.prefix, where)
    originals = {}
    named = {}
    for original, name in found.names.items():
        if not re.fullmatch(family.buffers, name):
            originals[name] = original
            named[name] = tensors[original]

    roots = {name.split(".")[0] for name in expected}
    encoder = {}
    for name, tensor in named.items():
        is_inside = originals[name] in found.of_encoder and name.split(".")[0] in roots
        if name in expected or (is_inside and not part_of(family, name)):
            encoder[name] = tensor
    # Where none of the names is the encoder's, all of them show what the file has instead.
    shown = encoder if expected.keys() & encoder.keys() else named
    wrong = tree.differences(shown, expected)
    if wrong:
        raise CheckpointError(
            f"the weights in {where} do not fit its config.json (- missing, + not known, ! "
            f"misshapen):{wrong}"
        )

    head, used, left = fitting_head(config, hf, named, encoder)
    flat = {}
    for row in tensor_rows(config, tree.paths(Model(Encoder(config), head).shapes()), head):
        tensor = to_float32(used[row.name], row.name, where)
        flat |= zip(row.paths, row.to_leaves(tensor), strict=True)
    params = tree.unflatten(dict(sorted(flat.items())))
    params = {"encoder": params["encoder"], "head": params.get("head", {})}
    unread: dict[str, dict[str, Shape]] = {}
    for name in left:
        what = part_of(family, name) or "unknown head"
        unread.setdefault(what, {})[originals[name]] = tuple(named[name].shape)
    return Imported(head, params, unread, found.removed)


def expected_tensors(config: EncoderConfig, head: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The tensors that a file has to have for the encoder under ``head``, by the table's names.

    The model says which leaves there are and of which shapes. A zero without memory, laid out as
    the file lays a tensor out, says which shape the file must have: so a diff is in the file's own
    names and shapes.
    """
    leaves = tree.paths(Model(Encoder(config), head).shapes())
    expected = {}
    for row in tensor_rows(config, leaves, head):
        zeros = [np.broadcast_to(np.float32(0), leaves[path].shape) for path in row.paths]
        tensor = row.to_tensor(zeros, config.patch_size)
        expected[row.name] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    return expected


def part_of(family: Family, name: str) -> str:
    """What a tensor is of that the family knows and has no use for, such as the decoder of
    masked-image pre-training; "" for any other.
    """
    for beginning, what in family.parts.items():
        if name.startswith(beginning):
            return what
    return ""


def fitting_head(
    config: EncoderConfig,
    hf: Mapping[str, Any],
    named: Mapping[str, np.ndarray],
    encoder: Mapping[str, np.ndarray],
) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    """(the head, its tensors and the encoder's, the names of those that are left).

    The head is the one that the family recognises, if its tensors are there in their shapes, and
    with nothing unknown beside them where it predicts: a classifier under a CRF would answer
    otherwise than the model did. Else it is the pooler alone, and else none.
    """
    family = get_family(config.family)
    of_pooler = {row.name for row in family.table if row.paths[0].startswith("head/pooler/")}
    pooler = {name: tensor for name, tensor in named.items() if name in of_pooler}
    for tensors in (named, {**encoder, **pooler}, encoder):
        head, kept = family.recognise(config, hf, dict(tensors))
        expected = expected_tensors(config, head)
        used = {name: tensor for name, tensor in kept.items() if name in expected}
        left = names_without(kept, expected)
        if not tree.differences(used, expected) and not is_a_part(family, head, left):
            return head, used, names_without(named, tensors) + left
    return Classifier(0, family.pooling), dict(encoder), names_without(named, encoder)


def is_a_part(family: Family, head: Any, left: Sequence[str]) -> bool:
    """Whether a head that predicts is a part of what the model predicted by: of the tensors that
    are ``left``, some are unknown.
    """
    predicts = isinstance(head, Span) or getattr(head, "classes", 0) > 0
    return predicts and not all(part_of(family, name) for name in left)


def names_without(named: Mapping[str, Any], taken: Mapping[str, Any]) -> list[str]:
    """The names that are not taken."""
    return [name for name in named if name not in taken]


def to_float32(tensor: np.ndarray, name: str, where: str) -> np.ndarray:
    """Raises :class:`CheckpointError` for integers (a quantised file), for what is not finite, and
    for numbers that no training reaches: a flipped bit of an exponent makes them, and after a layer
    normalisation the features would be finite, and all the same.
    """
    if tensor.dtype.kind in "biu":
        raise CheckpointError(
            f"{name} in {where} is of type {tensor.dtype}: adapt reads floating-point weights, "
            "no others"
        )
    with np.errstate(over="ignore"):
        tensor = tensor.astype(np.float32, copy=False)
    largest = max(abs(tensor.min()), abs(tensor.max())) if tensor.size else 0.0  # or NaN
    if not largest < LARGEST_WEIGHT:
        what = f"as large as {largest:.0e}" if np.isfinite(largest) else "that are not finite"
        raise CheckpointError(f"{name} in {where} holds values {what}: the checkpoint is damaged")
    return tensor


def check_config(config: EncoderConfig, file: str) -> None:
    """Raise :class:`CheckpointError` for sizes that make no encoder; ``file`` says them."""
    says = f"{file} says"
    for name in (
        "layers",
        "width",
        "heads",
        "mlp_width",
        "positions",
        *([] if config.is_image else ["vocabulary"]),
    ):
        size = getattr(config, name)
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(f"{says} {size!r} for {name}: it must be at least 1")
        if size >= 2**31:
            raise CheckpointError(f"{says} {size} for {name}: it must be below 2^31")
    for name in ("norm_epsilon", "dropout", "attention_dropout", "init_range"):
        value = getattr(config, name)
        most = 1.0 if name.endswith("dropout") else 1e6
        if type(value) not in (int, float) or not 0 <= value < most:
            raise CheckpointError(
                f"{says} {value!r} for {name}: it must be a number from 0 to {most}"
            )
    check_heads(config, says)
    check_positions(config, says)


def check_heads(config: EncoderConfig, says: str) -> None:
    """Raise :class:`CheckpointError` for heads that do not share the width, or each other's keys."""
    for name in ("head_width", "kv_heads"):
        size = getattr(config, name)
        if type(size) is not int or not 0 <= size < 2**31:
            raise CheckpointError(
                f"{says} {size!r} for {name}: it must be a whole number from 1 on"
            )
    if not config.head_width and config.width % config.heads:
        raise CheckpointError(
            f"{says} {config.heads} heads, which does not divide the width {config.width}"
        )
    if config.kv_heads and config.heads % config.kv_heads:
        raise CheckpointError(
            f"{says} {config.kv_heads} heads of keys and values, which does not divide "
            f"{config.heads} heads"
        )


def check_positions(config: EncoderConfig, says: str) -> None:
    """Raise :class:`CheckpointError` for places of tokens that can't be told to a block."""
    if config.position_kind not in POSITION_KINDS:
        kinds = ", ".join(POSITION_KINDS)
        raise CheckpointError(
            f"{says} {config.position_kind!r} for position_kind: adapt has {kinds}"
        )
    if any(block not in range(config.layers) for block in config.local_layers):
        raise CheckpointError(
            f"{says} {list(config.local_layers)} for local_layers: it has {config.layers} layers"
        )
    if type(config.window) is not int or not 0 <= config.window < 2**31:
        raise CheckpointError(
            f"{says} {config.window!r} for window: it must be a whole number from 0 to 2^31"
        )
    if config.position_kind != "rotary":
        return
    for name in ("rotary_base", "local_rotary_base"):
        base = getattr(config, name)
        least = 1.0 if name == "rotary_base" else 0.0
        if type(base) not in (int, float) or not least <= base < math.inf:
            raise CheckpointError(f"{says} {base!r} for {name}: it must be a number above {least}")
    if config.rotary_dtype not in ("float32", "float16"):
        raise CheckpointError(
            f"{says} {config.rotary_dtype!r} for rotary_dtype: it must be float32 or float16"
        )
    for name in ("rotary_factor", "rotary_slow", "rotary_fast"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise CheckpointError(f"{says} {value!r} for {name}: it must be a number above 0")
    if type(config.rotary_length) is not int or not 0 <= config.rotary_length < 2**31:
        raise CheckpointError(
            f"{says} {config.rotary_length!r} for rotary_length: it must be a whole number from 0 on"
        )
    if config.rotary_slow >= config.rotary_fast:
        raise CheckpointError(
            f"{says} {config.rotary_slow} for rotary_slow: it must be below rotary_fast, "
            f"{config.rotary_fast}"
        )
    if config.width_of_head % 2:
        raise CheckpointError(
            f"{says} {config.heads} heads of an odd width, which rotary positions can't halve"
        )
    if config.is_image and config.width_of_head % 4:
        raise CheckpointError(
            f"{says} {config.heads} heads of width {config.width_of_head}: rotary positions of "
            "patches want a multiple of 4"
        )
