"""adapter_config.json of PEFT: every entry is obeyed, or has no effect here, or is refused by name.

    entries = parse({"peft_type": "LORA", "r": 8, "lora_alpha": 16, ...}, "adapter_config.json")
    entries.is_target("bert.encoder.layer.0.attention.self.query")

docs/peft.md has a row for every entry.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from adapt.errors import CheckpointError
from adapt.options import is_of, wanted

Names = tuple[str, ...] | str | None  # a list of names, or a regular expression
ALL_LINEAR = "all-linear"

# task_type -> the kind of head, see :func:`adapt.pretrained.families.head_kind`
TASK_TYPES = {
    "SEQ_CLS": "classes",
    "TOKEN_CLS": "token classes",
    "QUESTION_ANS": "spans",
    "CAUSAL_LM": "causal LM",
    "FEATURE_EXTRACTION": "features",
}
# Entries that say how an adapter is trained or initialised, or repeat what its tensors show.
NO_EFFECT = (
    "peft_version",
    "inference_mode",
    "runtime_config",
    "bias",
    "fan_in_fan_out",
    "lora_dropout",
    "vera_dropout",
    "d_initial",
    "init_weights",
    "init_ia3_weights",
    "projection_prng_key",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "megatron_core",
    "qalora_group_size",
)
# Entries that change what is computed, in a way that is not done here.
REFUSED = (
    "megatron_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "lora_bias",
    "ensure_weight_tying",
)
# Initialisations after which the base has its own weights; others take a part out of them.
HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True)
class Entries:
    """What is read of adapter_config.json, by the names that it has there."""

    peft_type: Literal["LORA", "IA3", "VERA"]
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    auto_mapping: Mapping[str, Any] | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    feedforward_modules: Names = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    modules_to_save: tuple[str, ...] | None = None
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    save_projection: bool = True

    @property
    def head_kind(self) -> str | None:
        """The kind of head that the adapter was trained under; None where no entry says so."""
        return TASK_TYPES[self.task_type] if self.task_type else None

    @property
    def class_name(self) -> str | None:
        """The class of the base that auto_mapping names, if it does."""
        return (self.auto_mapping or {}).get("base_model_class")

    def is_target(self, module: str) -> bool:
        """Whether the adapter belongs to the module of this full name in its class."""
        if self.exclude_modules and matches(self.exclude_modules, module):
            return False
        for kept in self.modules_to_save or ():
            if re.match(rf"(^|.*\.){kept}($|\..*)", module):
                return False
        targets = self.target_modules
        if targets is None or targets == ALL_LINEAR:  # None: PEFT's own choice for the family
            return True
        if not matches(targets, module):
            return False
        # A name that is there in full is not asked for its layer.
        return isinstance(targets, str) or module in targets or self.is_of_layers(module)

    def is_feedforward(self, module: str) -> bool:
        """Whether IA3 scales the inputs of a module, not its outputs."""
        return bool(self.feedforward_modules) and matches(self.feedforward_modules, module)

    def is_of_layers(self, module: str) -> bool:
        """Whether a module is in one of ``layers_to_transform``, where these are named."""
        layers = self.layers_to_transform
        if layers is None or layers == ():
            return True
        wanted_layers = (layers,) if isinstance(layers, int) else layers
        patterns = [rf"(?:^|.*?\.){pattern}" for pattern in as_names(self.layers_pattern)]
        # Without a pattern PEFT asks for two names before the number: "bert.encoder.layer.3.".
        for pattern in patterns or [r".*?\.[^.]*"]:
            found = re.match(rf"{pattern}\.(\d+)\.", module)
            if found:
                return int(found[1]) in wanted_layers
        return False

    def rank_of(self, module: str) -> int:
        """The rank of a module."""
        return first_match(self.rank_pattern or {}, module, self.r)

    def scale_of(self, module: str) -> float:
        """By what B A of a module is multiplied: alpha / r, or alpha / sqrt(r) of rsLoRA."""
        alpha = first_match(self.alpha_pattern or {}, module, self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def as_names(names: tuple[str, ...] | str | None) -> tuple[str, ...]:
    """One name or several or none as a tuple."""
    return (names,) if isinstance(names, str) else names or ()


def matches(names: Sequence[str] | str, module: str) -> bool:
    """Whether a module has one of these names, or ends in one, or fits the regular expression."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def first_match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that fits the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def parse(content: Mapping[str, Any], file: str) -> Entries:
    """The entries of ``file``. Raises :class:`CheckpointError` for one that is not obeyed here, by
    its name, and for a value that is none of it.
    """
    kind = content.get("peft_type")
    if kind not in ("LORA", "IA3", "VERA"):
        raise CheckpointError(
            f"peft_type is {kind!r} in {file}: LORA, IA3 and VERA are read, merge others into their "
            "base model first (merge_and_unload)"
        )
    hints = typing.get_type_hints(Entries)
    fields = {}
    for name, value in content.items():
        if name in hints and not is_of(value, hints[name]):
            raise CheckpointError(f"{name} is {value!r} in {file}: give {wanted(hints[name])}")
        if name in hints:
            fields[name] = tuple(value) if isinstance(value, list) else value
        elif name not in NO_EFFECT and value not in (None, False, [], {}):
            unknown = "" if name in REFUSED else "is no known entry and "
            raise CheckpointError(
                f"{name} {unknown}is {value!r} in {file}, which is not done here: merge the adapter "
                "into its base model first (merge_and_unload)"
            )
    entries = Entries(**fields)
    check(entries, file)
    return entries


def check(entries: Entries, file: str) -> None:
    """Raise :class:`CheckpointError` for values that no adapter can have, or that are not read."""
    if entries.task_type is not None and entries.task_type not in TASK_TYPES:
        raise CheckpointError(
            f"task_type is {entries.task_type!r} in {file}: {', '.join(TASK_TYPES)} are read"
        )
    init = entries.init_lora_weights
    if init not in HARMLESS_INITS:
        raise CheckpointError(
            f"init_lora_weights is {init!r} in {file}, which takes a part out of the base's weights: "
            "save the adapter by PEFT with path_initial_model_for_weight_conversion, or merge it "
            "(merge_and_unload)"
        )
    if not entries.save_projection:
        raise CheckpointError(
            f"save_projection is false in {file}: vera_A and vera_B are drawn by torch then, save "
            "the adapter with them"
        )
    ranks = [entries.r, *(entries.rank_pattern or {}).values()]
    if min(ranks) < 1:
        raise CheckpointError(f"r or a rank of rank_pattern in {file} is below 1")
    for name, pattern in patterns_of(entries):
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(
                f"{name} in {file} has {pattern!r}, which is no regular expression: {error}"
            ) from None


def patterns_of(entries: Entries) -> Iterator[tuple[str, str]]:
    """(entry, regular expression) of all that PEFT reads as such."""
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(getattr(entries, name), str):
            yield name, getattr(entries, name)
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        for pattern in getattr(entries, name) or ():
            yield name, pattern
    for pattern in as_names(entries.layers_pattern):
        yield "layers_pattern", pattern
