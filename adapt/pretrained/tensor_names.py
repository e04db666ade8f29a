"""How the tensors of a file are called: what a program put before their names is found and left
out.

    strip(["module.bert.embeddings.word_embeddings.weight", ...], {"embeddings.word_embeddings.weight", ...})

A checkpoint that was saved from inside another module has a prefix on all its names: ``module.`` of
DataParallel, ``_orig_mod.`` of torch.compile, ``model.`` of a Lightning module. Whatever it is, it
is what stands before the encoder's own names.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping

from adapt.errors import CheckpointError

# Parts of names that a wrapper of torch puts anywhere into them.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclasses.dataclass(frozen=True)
class Stripped:
    """Names without what programs put before them.

    ``names`` are {the name in a file: the name in the family's table}. ``of_encoder`` are those of
    them, in the file's spelling, that stood under the encoder's prefix. ``removed`` is what was
    left out, such as ``("module.",)``, apart from the family's own prefix. Two names outside the
    encoder that would be one keep their spelling.
    """

    names: Mapping[str, str]
    of_encoder: frozenset[str]
    removed: tuple[str, ...]


def strip(names: Iterable[str], encoder: Collection[str], own_prefix: str, where: str) -> Stripped:
    """The names of tensors without wrappers and prefixes.

    ``encoder`` are the names that the encoder's tensors have in the family's table, ``own_prefix``
    is what the original library puts before them. Raises :class:`CheckpointError` for a file with
    two whole encoders, and for a tensor of the encoder that is there twice.
    """
    unwrapped = {name: without_wrappers(name) for name in names}
    prefix = encoder_prefix(unwrapped.values(), encoder, where)
    outer = prefix.removesuffix(own_prefix)
    stripped: dict[str, str] = {}
    of_encoder = set()
    taken = set()
    for original, name in unwrapped.items():
        if name.startswith(prefix):
            of_encoder.add(original)
            name = name.removeprefix(prefix)
        else:
            name = name.removeprefix(outer)
        name = name.removeprefix(own_prefix)
        if name in taken and name in encoder:
            raise CheckpointError(
                f"the weights in {where} hold {name} twice, the second time as {original}"
            )
        if name in taken:
            name = original
        taken.add(name)
        stripped[original] = name
    parts = {part for original in unwrapped for part in original.split(".") if part in WRAPPERS}
    removed = [f"{part}." for part in WRAPPERS if part in parts]
    if outer:
        removed.append(outer)
    return Stripped(stripped, frozenset(of_encoder), tuple(removed))


def without_wrappers(name: str) -> str:
    """A tensor's name without the parts that wrappers of torch put into it, and with weight and
    bias for the gamma and beta of old files.
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    spelled = {"gamma": "weight", "beta": "bias"}
    parts[-1:] = [spelled.get(part, part) for part in parts[-1:]]
    return ".".join(parts)


def encoder_prefix(names: Iterable[str], encoder: Collection[str], where: str) -> str:
    """What stands before the encoder's names in a file: the prefix under which most of them are.

    Raises :class:`CheckpointError` where two prefixes have all of them.
    """
    found: collections.Counter[str] = collections.Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in encoder:
                found[".".join([*parts[:start], ""]) if start else ""] += 1
                break
    whole = [prefix for prefix, count in found.items() if count == len(encoder)]
    if len(whole) > 1:
        raise CheckpointError(
            f"the weights in {where} hold {len(whole)} encoders, under {' and '.join(map(repr, whole))}: "
            "save the one to adapt by itself"
        )
    return found.most_common(1)[0][0] if found else ""
