"""The tensors of a checkpoint -> a head and parameters, by the table of its family.

The encoder has to be whole. A head that is not known, or does not fit, is left out and said.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.errors import CheckpointError
from adapt.models import Classifier, Encoder, EncoderConfig, Model, Span
from adapt.pretrained import tensor_names
from adapt.pretrained.families import Family, Row, get_family, tensor_rows

LARGEST_WEIGHT = 1e18  # the square of a larger one is no number of float32


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
    rows = tensor_rows(config, leaves, head)
    check_all_leaves(config, leaves, rows)
    expected = {}
    for row in rows:
        zeros = [np.broadcast_to(np.float32(0), leaves[path].shape) for path in row.paths]
        tensor = row.to_tensor(zeros, config.patch_size)
        expected[row.name] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    return expected


def check_all_leaves(config: EncoderConfig, leaves: Iterable[str], rows: Sequence[Row]) -> None:
    """Raise :class:`CheckpointError` for a leaf that the table of the family has no row for, as
    where it spells the leaf's path otherwise.
    """
    without = set(leaves)
    for row in rows:
        without -= set(row.paths)
    if without:
        names = sorted(without)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise CheckpointError(
            f"the table of the family {config.family} has no row for {', '.join(names[:4])}{more}, "
            "which the model has by its config.json: add one, or correct the path in a row's leaves"
        )


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
    with_pooler = {**encoder, **pooler_of(family, named)}
    for tensors in (named, with_pooler, encoder):
        head, kept = family.recognise(config, hf, dict(tensors))
        expected = expected_tensors(config, head)
        used = {name: tensor for name, tensor in kept.items() if name in expected}
        unused = names_without(kept, expected)
        fits = not tree.differences(used, expected)
        if fits and not is_a_part(family, head, unused):
            not_tried = names_without(named, tensors)
            return head, used, not_tried + unused
    no_head = Classifier(0, family.pooling)
    return no_head, dict(encoder), names_without(named, encoder)


def pooler_of(family: Family, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a pooler."""
    names = {row.name for row in family.table if row.paths[0].startswith("head/pooler/")}
    return {name: tensor for name, tensor in named.items() if name in names}


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
