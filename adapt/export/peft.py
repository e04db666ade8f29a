"""A run of LoRA as a folder of PEFT: what was added to its base, and the head.

A module that is several of our layers side by side, such as GPT-2's ``c_attn``, has one A for all
of them there. Layers with an A of their own share a rank as large as all of theirs: the A's lie one
below the other, and B is zero where a layer meets another's A.
"""

import collections
import dataclasses
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import CheckpointError, ExportError
from adapt.export import card, inputs, layout, transformers
from adapt.export.folder import Folder, class_names, kind_in_words, makes_embeddings, model_entries
from adapt.models import Classifier, Distilled, Span, Tagger, peft
from adapt.pretrained import families, hub
from adapt.pretrained.families import Row, get_family
from adapt.pretrained.peft_entries import TASK_TYPES
from adapt.pretrained.peft_weights import BASE
from adapt.training.strategies import BIASES

logger = logging.getLogger(__name__)

TASKS_OF_KINDS = {kind: task for task, kind in TASK_TYPES.items()}
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Module:
    """What LoRA adds to one module: A [rank, in] and B [out, rank], scaled by ``alpha`` and the
    rank; and the lengths of the kernel [out] of DoRA, else None. Those of a convolution are
    :func:`as_convolution`'s.

    ``name`` is that of transformers' class, whose kernel is [in, out] where it is ``transposed``.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    alpha: float
    transposed: bool
    magnitude: np.ndarray | None

    @property
    def rank(self) -> int:
        """How many rows A has."""
        return len(self.a)


def peft_folder(run: hub.Pretrained, base: str) -> Folder:
    """The folder of a run of LoRA, which began with the checkpoint ``base``.

    A head that no class of transformers holds is left out. Raises :class:`ExportError` where more
    of the encoder was trained than what LoRA adds, and its biases.
    """
    check_lora(run)
    original = load_base(base)
    plain = without_lora(run)
    check_rest(plain, original, base)
    architecture, kind = class_of(plain)
    has_head = kind != "features"
    notes = [] if has_head else head_notes(run)
    if kind == "classes":
        plain, notes = transformers.fitted(plain)
    modules = lora_modules(run, plain, has_prefix=has_head)
    biases = bias_tensors(plain, original, modules, has_prefix=has_head)
    tensors = head_tensors(plain, original, has_prefix=has_head)
    entries = {
        "peft_type": "LORA",
        **task_entries(run, kind, architecture),
        "base_model_name_or_path": base_entry(base),
        "inference_mode": True,
        **lora_entries(run, modules),
        "bias": "all" if biases else "none",
        "modules_to_save": roots(tensors, get_family(run.config.family).prefix_of(plain.head))
        or None,
    }
    tensors |= lora_tensors(modules) | biases
    named = {f"{BASE}{name}": np.ascontiguousarray(t) for name, t in tensors.items()}
    config = layout.write_config(plain.config, plain.head if has_head else None)
    config |= model_entries(plain, architecture)
    files = {
        hub.ADAPTER: json.dumps(entries, indent=2) + "\n",
        "README.md": card.card(
            f"LoRA for {architecture}",
            "peft",
            loading_code(run, architecture, base_entry(base)),
            run.task if has_head else "",
            class_names(run) if has_head else [],
            notes,
        ),
    }
    return Folder(config, named, files, hub.ADAPTER_WEIGHTS)


def head_notes(run: hub.Pretrained) -> list[str]:
    """What the card says of a head that is not exported, which a warning says, too."""
    if makes_embeddings(run):
        return []
    head = kind_in_words(run)
    logger.warning(
        f"{run.source}: the head ({head}) is not exported, for no class of transformers holds it: "
        "the adapter is that of the encoder alone"
    )
    return [card.NO_HEAD.format(head=head)]


def lora_tensors(modules: Sequence[Module]) -> Tensors:
    """What LoRA adds to modules, by the names of their class."""
    tensors = {}
    for module in modules:
        tensors[f"{module.name}.lora_A.weight"] = module.a
        tensors[f"{module.name}.lora_B.weight"] = module.b
        if module.magnitude is not None:
            tensors[f"{module.name}.lora_magnitude_vector"] = module.magnitude
    return tensors


def check_lora(run: hub.Pretrained) -> None:
    """Raise :class:`ExportError` for a run without LoRA, or with what no file of PEFT says."""
    config = run.config
    if not config.lora_rank:
        raise ExportError(
            f"{run.source} has no LoRA, which is what `format` peft writes: train with lora:8, or "
            "give another `format`"
        )
    if config.adapter_width or config.prefix_tokens:
        raise ExportError(
            f"{run.source} was trained with adapters or a prefix beside LoRA, which no file of PEFT "
            "says: train with lora alone"
        )


def load_base(base: str) -> hub.Pretrained:
    """The checkpoint that a run began with. Raises :class:`ExportError` where PEFT can't load it."""
    try:
        original = hub.load_silently(base)
    except CheckpointError as error:
        raise ExportError(
            f"the checkpoint {base} that the run began with is not there, give its place as `base`: "
            f"{error}"
        ) from None
    folder = hub.resolve(base)
    if (folder / "model.json").exists() or (folder / hub.ADAPTER).exists():
        raise ExportError(
            f"the run began with {base}, which is a run of adapt or an adapter: PEFT takes neither as "
            "a base, export it, and give that folder as `base`"
        )
    return original


def base_entry(base: str) -> str:
    """How adapter_config.json names a base: a folder by its whole path, a hub id as it is."""
    is_folder = Path(base).expanduser().is_dir() or base in hub.BUNDLED
    return str(hub.resolve(base).resolve()) if is_folder else base


def without_lora(run: hub.Pretrained) -> hub.Pretrained:
    """The run with its weights as they are without LoRA."""
    params = tree.select(run.params, lambda path: not peft.is_peft_param(path))
    params = {"encoder": params["encoder"], "head": params.get("head", {})}
    return dataclasses.replace(run, params=params, config=peft.without_lora(run.config))


def check_rest(plain: hub.Pretrained, original: hub.Pretrained, base: str) -> None:
    """Raise :class:`ExportError` where a weight of the encoder is another one than the base's, and
    is no bias that a file of PEFT can have.
    """
    family = get_family(plain.config.family)
    for path in changed_paths(plain, original):
        # Of families whose modules have other names than their files, those of norms are not known.
        if family.modules or not re.fullmatch(BIASES, path):
            raise ExportError(
                f"{path} of {plain.source} is another than that of {base}: more than LoRA was "
                "trained, or another `base` is meant; `format` transformers writes all weights"
            )


def changed_paths(plain: hub.Pretrained, original: hub.Pretrained) -> list[str]:
    """The leaves of the encoder that are others than the base's."""
    ours = tree.paths(plain.params["encoder"], "encoder/")
    theirs = tree.paths(original.params["encoder"], "encoder/")
    changed = []
    for path, leaf in ours.items():
        if path not in theirs or not np.array_equal(leaf, theirs[path]):
            changed.append(path)
    return changed


def bias_tensors(
    plain: hub.Pretrained, original: hub.Pretrained, modules: Sequence[Module], has_prefix: bool
) -> Tensors:
    """All biases of the encoder by the names of the class, where one was trained; else nothing."""
    if not changed_paths(plain, original):
        return {}
    prefix = get_family(plain.config.family).prefix_of(plain.head) if has_prefix else ""
    wrapped = {module.name for module in modules}
    leaves = {path: np.asarray(leaf) for path, leaf in tree.paths(plain.params).items()}
    tensors = {}
    for row in families.tensor_rows(plain.config, leaves, plain.head):
        if not all(re.fullmatch(BIASES, path) for path in row.paths):
            continue
        module = prefix + row.name.removesuffix(".bias")
        inner = ".base_layer" if module in wrapped else ""
        values = [leaves[path] for path in row.paths]
        tensors[f"{module}{inner}.bias"] = row.to_tensor(values, plain.config.patch_size)
    return tensors


def class_of(plain: hub.Pretrained) -> tuple[str, str]:
    """(transformers' class, the kind of head it has); of a head that no class holds that of the
    encoder alone.
    """
    family = get_family(plain.config.family)
    architecture = transformers.class_of(plain)
    if architecture is not None:
        return architecture, families.head_kind(plain.head)
    return family.base_class or family.classes.get("features", "AutoModel"), "features"


def task_entries(run: hub.Pretrained, kind: str, architecture: str) -> dict[str, Any]:
    """``task_type`` where PEFT has one, which is of texts; else the class. Under FEATURE_EXTRACTION
    PEFT gives a class ``inputs_embeds``, which those of towers of texts do not take.
    """
    is_tower = run.config.is_image or get_family(run.config.family).ends_texts
    task = None if is_tower else TASKS_OF_KINDS.get(kind)
    if task is not None:
        return {"task_type": task, "auto_mapping": None}
    mapping = {"base_model_class": architecture, "parent_library": "transformers"}
    return {"task_type": None, "auto_mapping": mapping}


def lora_modules(run: hub.Pretrained, plain: hub.Pretrained, has_prefix: bool) -> list[Module]:
    """What LoRA adds, by the modules of transformers' class."""
    leaves = {path: np.asarray(leaf) for path, leaf in tree.paths(run.params).items()}
    modules = []
    for row in module_rows(plain):
        layers = [path.removesuffix("/kernel") for path in row.paths]
        if not any(f"{layer}/lora/a" in leaves for layer in layers):
            continue
        a, b = side_by_side(layers, leaves)
        name = row.name.removesuffix(".weight")
        if has_prefix:
            name = get_family(run.config.family).prefix_of(plain.head) + name
        divisor = math.sqrt(len(a)) if run.config.lora_stabilised else len(a)
        alpha = run.config.lora_scale * divisor
        magnitude = magnitudes(layers, leaves) if run.config.lora_magnitudes else None
        if row.layout == "neighbours":
            a, b, magnitude = as_convolution(a, b, magnitude)
        modules.append(Module(name, a, b, alpha, row.layout == "same", magnitude))
    return modules


def as_convolution(
    a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(A [rank, D, K], B [D, rank, 1], lengths [1, D, 1] or None) of torch's convolution over K
    neighbours, from A [rank, K * D], B [D, rank] and lengths [D].
    """
    by_neighbour = a.reshape(len(a), -1, len(b))
    if magnitude is not None:
        magnitude = magnitude[None, :, None]
    return by_neighbour.transpose(0, 2, 1), b[:, :, None], magnitude


def module_rows(plain: hub.Pretrained) -> list[Row]:
    """The rows of the encoder's dense layers, by the names of transformers' modules."""
    rows = families.module_rows(plain.config, tree.paths(plain.params), plain.head)
    kernels = []
    for row in rows:
        if row.name.endswith(".weight") and row.paths[0].startswith("encoder/"):
            kernels.append(row)
    return kernels


def side_by_side(
    layers: Sequence[str], leaves: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) of the module that is these layers side by side, in torch's [out, in]."""
    distinct: list[np.ndarray] = []
    index_of_a = {}
    for layer in layers:
        own = leaves.get(f"{layer}/lora/a")
        if own is None:
            continue
        same = [index for index, a in enumerate(distinct) if np.array_equal(a, own)]
        index_of_a[layer] = same[0] if same else len(distinct)
        if not same:
            distinct.append(own)
    rank = distinct[0].shape[1]
    rows = []
    for layer in layers:
        outputs = leaves[f"{layer}/kernel"].shape[1]
        b = np.zeros((outputs, rank * len(distinct)), np.float32)
        if layer in index_of_a:
            start = index_of_a[layer] * rank
            b[:, start : start + rank] = leaves[f"{layer}/lora/b"].T
        rows.append(b)
    return np.concatenate(distinct, 1).T, np.concatenate(rows)


def magnitudes(layers: Sequence[str], leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """The lengths of DoRA of these layers side by side; of one without LoRA those that it has."""
    found = []
    for layer in layers:
        own = np.linalg.norm(leaves[f"{layer}/kernel"], axis=0)
        found.append(leaves.get(f"{layer}/lora/magnitude", own))
    return np.concatenate(found)


def lora_entries(run: hub.Pretrained, modules: Sequence[Module]) -> dict[str, Any]:
    """The entries that say to which modules LoRA belongs, and of which rank and scale it is."""
    ranks = collections.Counter(module.rank for module in modules)
    rank = ranks.most_common(1)[0][0]
    alpha = next(module.alpha for module in modules if module.rank == rank)
    others = [module for module in modules if module.rank != rank]
    return {
        "r": rank,
        "lora_alpha": whole(alpha),
        "rank_pattern": {module.name: module.rank for module in others},
        "alpha_pattern": {module.name: whole(module.alpha) for module in others},
        "target_modules": target_names(run, [module.name for module in modules]),
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(module.transposed for module in modules),
        "init_lora_weights": True,
        "use_rslora": run.config.lora_stabilised,
        "use_dora": run.config.lora_magnitudes,
    }


def whole(value: float) -> float | int:
    """A number as a whole one, if it is one."""
    return round(value) if math.isclose(value, round(value)) else value


def target_names(run: hub.Pretrained, modules: Sequence[str]) -> list[str]:
    """The last parts of the modules' names where no other module of the family ends so; else their
    whole names.
    """
    family = get_family(run.config.family)
    others = set()
    for row in module_rows(without_lora(run)):
        name = row.name.removesuffix(".weight")
        if not any(module.endswith(name) for module in modules):
            others.add(last_part(name))
    for row in family.table:
        if not row.paths[0].startswith("encoder/"):
            others.add(last_part(row.name.removesuffix(".weight")))
    last = {last_part(module) for module in modules}
    return list(modules) if last & others else sorted(last)


def last_part(name: str) -> str:
    """What follows the last point of a module's name."""
    return name.rpartition(".")[2]


def head_tensors(plain: hub.Pretrained, original: hub.Pretrained, has_prefix: bool) -> Tensors:
    """The tensors of the modules of a head that are others than the base's, by the names of the
    class.

    Raises :class:`ExportError` for a head of pre-training that was trained.
    """
    if "head" not in plain.params or not plain.params["head"]:
        return {}
    if not has_prefix and not set(plain.params["head"]) <= {"pooler"}:
        return {}
    ours = layout.to_tensors(plain.config, {"head": plain.params["head"]}, plain.head)
    theirs = layout.to_tensors(original.config, {"head": original.params["head"]}, original.head)
    changed = set()
    for name, tensor in ours.items():
        if name not in theirs or not np.array_equal(tensor, theirs[name]):
            changed.add(name.split(".")[0])
    predicts = isinstance(plain.head, Classifier | Tagger | Span | Distilled)
    if changed and not predicts:
        raise ExportError(
            f"the head of {plain.source} was trained beside LoRA, and what pre-trains is not kept in "
            "a file of PEFT: give `format` transformers"
        )
    if has_prefix and predicts:
        # PEFT wants the module that classifies in any case.
        changed |= {name.split(".")[0] for name in ours if not is_counted(plain, name)}
    kept = {name: tensor for name, tensor in ours.items() if name.split(".")[0] in changed}
    if not has_prefix:
        return kept
    named = layout.with_prefix(plain.config, kept, plain.head)
    if "qa_outputs.weight" in named:  # a bias of zeros, which no softmax sees
        named["qa_outputs.bias"] = np.zeros(2, np.float32)
    return named


def is_counted(plain: hub.Pretrained, name: str) -> bool:
    """Whether the original library counts a tensor of the head to the encoder."""
    rows = [row for row in get_family(plain.config.family).table if row.name == name]
    return all(row.paths[0].startswith(families.OF_ENCODER) for row in rows)


def roots(tensors: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """The modules of a class that hold these tensors: ``["classifier", "pooler"]``."""
    return sorted({name.removeprefix(prefix).split(".")[0] for name in tensors})


def loading_code(run: hub.Pretrained, architecture: str, base: str) -> str:
    """The code of the card."""
    auto = transformers.auto_class(architecture)
    if run.config.is_image:
        return card.PEFT_IMAGES.format(auto=auto, base=base)
    padding = False
    if run.tokenizer is not None:
        named = inputs.named_tokens(run.tokenizer, run.tokenizer.backend)
        padding = inputs.padding_token(run.tokenizer.backend, named) is not None
    return card.PEFT_TEXTS.format(auto=auto, base=base, padding=padding)
