"""An adapter of PEFT put into the weights of its base: LoRA (Hu et al. 2021), rsLoRA, DoRA, IA3,
VeRA.

Which of our leaves a module of the original library is, and how its file lays it out, the table of
the family says. A module that is several of our layers side by side, such as GPT-2's ``c_attn``, is
put together, updated, and taken apart again.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import CheckpointError
from adapt.models import Classifier, Encoder, EncoderConfig, Model
from adapt.models.layers import LEAST_LENGTH
from adapt.pretrained import importing, tensor_names
from adapt.pretrained.families import (
    OF_ENCODER,
    Family,
    Row,
    architecture,
    get_family,
    head_kind,
    module_rows,
    tensor_rows,
)
from adapt.pretrained.importing import Imported, Shape, part_of, to_float32
from adapt.pretrained.peft_entries import ALL_LINEAR, Entries

BASE = "base_model.model."
# What a method adds to a module.
ADDED = (
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "ia3_l",
    "vera_lambda_b",
    "vera_lambda_d",
)
PREDICTING = ("classes", "token classes", "spans")
# Kinds of heads of which a base of another class has nothing.
NEW_HEADS = ("features", *PREDICTING)
UNKNOWN_HEAD = "adapter of an unknown head"
OF_BASE = "head of the base"
EMBEDDING = "encoder/embedding/token"
DECODER = "head/decoder/kernel"
SHARED = ("base_model.vera_A", "base_model.vera_B")

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a folder of PEFT holds.

    ``tensors`` are those of ``file`` by their names there, ``base`` is how the base is called.
    """

    entries: Entries
    tensors: Tensors
    file: str
    base: str


@dataclasses.dataclass(frozen=True)
class Parts:
    """The tensors of an adapter by what they are.

    ``added`` are {module: {one of ADDED: tensor}}, ``replaced`` {name: tensor} of modules that were
    trained as a whole, both by the names of the class without ``BASE``; ``shared`` are those of
    SHARED.
    """

    added: Mapping[str, Tensors]
    replaced: Tensors
    shared: Tensors


def parts_of(adapter: Adapter) -> Parts:
    """The adapter's tensors, in float32. Raises :class:`CheckpointError` for a name that PEFT's
    LoRA, IA3 and VeRA do not write.
    """
    added: dict[str, dict[str, np.ndarray]] = {}
    replaced = {}
    shared = {}
    for name, tensor in adapter.tensors.items():
        # With all biases PEFT also writes those of a module that another was trained in place of.
        if ".original_module." in name:
            continue
        values = to_float32(tensor, name, adapter.file)
        own = name.removeprefix(BASE).replace(".base_layer.", ".")
        own = own.replace(".modules_to_save.", ".")
        found = re.fullmatch(rf"(.+)\.({'|'.join(ADDED)})(\.weight)?", own)
        if name in SHARED:
            shared[name] = values
        elif found and name.startswith(BASE):
            added.setdefault(found[1], {})[found[2]] = values
        elif name.startswith(BASE) and not re.search(r"\.(lora|ia3|vera)_", own):
            replaced[own] = values
        else:
            raise CheckpointError(f"{name} in {adapter.file} is no tensor of LoRA, IA3 or VeRA")
    return Parts(added, replaced, shared)


def merge_adapter(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors, adapter: Adapter
) -> tuple[Mapping[str, Any], Imported]:
    """The base with the adapter in its weights: (entries of config.json for the adapter's class,
    head and parameters).

    ``hf`` and ``tensors`` are the base's. The head is the adapter's: the base's own stays where
    both are of the same class, where it is one of pre-training, and where the adapter does not say
    of which it is. Raises :class:`CheckpointError` for an adapter of another base, and where the
    task type asks for a head that the two do not make.
    """
    family = get_family(config.family)
    parts = parts_of(adapter)
    expected = importing.expected_tensors(config, Classifier(0))
    found = tensor_names.strip(tensors, expected.keys(), family.prefix, adapter.base)
    named = {found.names[original]: tensor for original, tensor in tensors.items()}
    class_name = class_of(family, adapter.entries)
    dropped: Tensors = {}
    if class_name is not None and class_name != architecture(hf):
        hf = {**hf, "architectures": [class_name]}
        dropped = replaced_head(family, named, expected, class_name)
    kept = {name: tensor for name, tensor in named.items() if name not in dropped}

    names = encoder_names(config)
    trained = {without_prefix(family, name): t for name, t in parts.replaced.items()}
    of_head = {name: tensor for name, tensor in trained.items() if name not in names}
    for name in of_head:
        check_is_head(family, name, names, adapter)
    imported = importing.to_params(config, hf, kept | of_head, adapter.base)
    kind = head_kind_of(family, class_name) if class_name else ""
    if kind and head_kind(imported.head) != kind:
        # The base's pooler, which a class for tokens does not have, stands in the way.
        alone = {name: tensor for name, tensor in kept.items() if name in expected}
        imported = importing.to_params(config, hf, alone | of_head, adapter.base)

    base = Base(config, imported, adapter.base)
    for name in trained.keys() & names:
        base.replace(name, trained[name], adapter.file)
    unread = add(base, parts, adapter, names)
    if unread.get(UNKNOWN_HEAD):
        base.drop_head()
    if dropped:
        unread[OF_BASE] = {name: tuple(dropped[name].shape) for name in dropped}
    unread = {**imported.unread, **unread}
    check_predicts(base, adapter, unread)
    return hf, Imported(base.head, base.params(), unread, found.removed)


def prefixes_of(family: Family) -> list[str]:
    """What the family's classes put before the names of their encoder's modules."""
    return [prefix for prefix in (family.prefix, *family.prefixes.values()) if prefix]


def without_prefix(family: Family, name: str) -> str:
    """The name of a module without what the class puts before it."""
    for prefix in prefixes_of(family):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def class_of(family: Family, entries: Entries) -> str | None:
    """transformers' class under which the adapter was trained; None where it does not say, or the
    family has none.
    """
    if entries.class_name:
        return entries.class_name
    if entries.head_kind == "features":
        return family.base_class or family.classes.get("features")
    return family.classes.get(entries.head_kind or "")


def head_kind_of(family: Family, class_name: str) -> str:
    """The kind of head of one of transformers' classes."""
    for kind, name in family.classes.items():
        if name == class_name:
            return kind
    return "features"


def replaced_head(
    family: Family, named: Tensors, expected: Collection[str], class_name: str
) -> Tensors:
    """The tensors of a base's own head where a class of the adapter has a new one in its place."""
    kind = head_kind_of(family, class_name)
    return of_other_head(family, named, expected, kind) if kind in NEW_HEADS else {}


def of_other_head(family: Family, named: Tensors, expected: Collection[str], kind: str) -> Tensors:
    """The tensors of a base that are neither its encoder's nor counted to it, nor called as one
    that only heads of this kind have: ModernBERT's classifier is on the dense layer of its masked
    LM.
    """
    counted = {
        row.name for row in family.table if row.paths[0].startswith(OF_ENCODER) or kind in row.kinds
    }
    others = {}
    for name, tensor in named.items():
        is_buffer = re.fullmatch(family.buffers, name) or part_of(family, name)
        if name not in expected and name not in counted and not is_buffer:
            others[name] = tensor
    return others


def check_predicts(
    base: "Base", adapter: Adapter, unread: Mapping[str, Mapping[str, Shape]]
) -> None:
    """Raise :class:`CheckpointError` where the task type asks for a head that predicts, and the
    adapter and its base make none.
    """
    kind = adapter.entries.head_kind
    if kind not in PREDICTING or head_kind(base.head) == kind:
        return
    own = [name for what, names in unread.items() if what != OF_BASE for name in names]
    left = f" (left over: {', '.join(own)})" if own else ""
    raise CheckpointError(
        f"task_type is {adapter.entries.task_type} beside {adapter.file}, and with {base.name} it "
        f"makes no such head{left}: merge the adapter into its base model first (merge_and_unload), "
        "or write task_type FEATURE_EXTRACTION for its encoder alone"
    )


def encoder_names(config: EncoderConfig) -> frozenset[str]:
    """The names of an encoder's tensors, those in files and those of modules."""
    leaves = tree.paths(Model(Encoder(config), Classifier(0)).shapes())
    rows = [*tensor_rows(config, leaves), *module_rows(config, leaves)]
    return frozenset(row.name for row in rows)


def check_is_head(family: Family, name: str, in_encoder: Collection[str], adapter: Adapter) -> None:
    """Raise :class:`CheckpointError` for a tensor under a module of the encoder that the encoder
    does not have.
    """
    roots = {known.split(".")[0] for known in in_encoder}
    if name.split(".")[0] in roots and not part_of(family, name):
        raise CheckpointError(
            f"{adapter.file} has {name}, and {adapter.base} has no such layer: the adapter is of "
            "another base"
        )


class Base:
    """The parameters of a base, whose tensors are read and written by their names in files or by
    those of modules.
    """

    def __init__(self, config: EncoderConfig, imported: Imported, name: str) -> None:
        self.config = config
        self.name = name
        self.head = imported.head
        self.leaves = dict(tree.paths(imported.params))
        self.rows = self.find_rows()

    def find_rows(self) -> dict[str, Row]:
        """The rows of the tensors that there are, by name."""
        rows = [
            *tensor_rows(self.config, self.leaves, self.head),
            *module_rows(self.config, self.leaves, self.head),
        ]
        return {row.name: row for row in rows}

    def params(self) -> tree.Tree:
        """The leaves as a tree."""
        params = tree.unflatten(dict(sorted(self.leaves.items())))
        return {"encoder": params["encoder"], "head": params.get("head", {})}

    def drop_head(self) -> None:
        """Leave the encoder alone."""
        self.head = Classifier(0, get_family(self.config.family).pooling)
        self.leaves = {
            path: leaf for path, leaf in self.leaves.items() if path.startswith("encoder/")
        }

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as its file has it."""
        row = self.rows[name]
        return row.to_tensor([self.leaves[path] for path in row.paths], self.config.patch_size)

    def untie(self) -> None:
        """Give a decoder that is the embedding a kernel of its own."""
        self.head = self.head.clone(tied=False)
        self.leaves[DECODER] = np.asarray(self.leaves[EMBEDDING]).T
        self.rows = self.find_rows()

    def is_tied_decoder(self, name: str) -> bool:
        """Whether a tensor is a decoder that is the embedding, which has no row of its own."""
        if not getattr(self.head, "tied", False):
            return False
        table = get_family(self.config.family).table
        return any(row.name == name and row.paths == (DECODER,) for row in table)

    def replace(self, name: str, tensor: np.ndarray, file: str) -> None:
        """Put another tensor in the place of one. A decoder that is the embedding stays as it was
        where that one is changed, as in PEFT. Raises :class:`CheckpointError` where the tensor has
        another shape.
        """
        row = self.rows[name]
        shape = self.tensor(name).shape
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in {file} and {list(shape)} in {self.name}: the "
                "adapter is of another base, or its base was resized"
            )
        if row.paths == (EMBEDDING,) and getattr(self.head, "tied", False):
            self.untie()
        self.leaves.update(zip(row.paths, row.to_leaves(tensor), strict=True))


def add(
    base: Base, parts: Parts, adapter: Adapter, in_encoder: frozenset[str]
) -> dict[str, dict[str, Shape]]:
    """Put what the method adds into the weights of the base; returns what of it was left out, as
    ``unread`` of :class:`Imported`.

    Raises :class:`CheckpointError` for a module that the base has not, and for a target of the
    adapter of which its file has nothing.
    """
    family = get_family(base.config.family)
    unread: dict[str, dict[str, Shape]] = {}
    done = set()
    for module, tensors in parts.added.items():
        name = without_prefix(family, module)
        if not adapter.entries.is_target(module):
            raise CheckpointError(
                f"{adapter.file} has {', '.join(tensors)} of {module}, which target_modules of "
                "adapter_config.json does not name"
            )
        if base.is_tied_decoder(f"{name}.weight"):
            base.untie()  # what PEFT adds to the decoder the embedding does not get
        if f"{name}.weight" in base.rows:
            add_to_module(base, name, module, tensors, parts.shared, adapter)
            done.add(f"{name}.weight")
            continue
        check_is_head(family, name, in_encoder, adapter)
        what = part_of(family, name) or UNKNOWN_HEAD
        shapes = {f"{module}.{key}": tuple(tensor.shape) for key, tensor in tensors.items()}
        unread.setdefault(what, {}).update(shapes)
    if not done & in_encoder:
        raise CheckpointError(
            f"{adapter.file} has nothing for a layer of {base.name}: the adapter is of another base"
        )
    check_whole(base, parts, done, adapter)
    return unread


def check_whole(base: Base, parts: Parts, done: set[str], adapter: Adapter) -> None:
    """Raise :class:`CheckpointError` where a dense layer of the encoder is a target and the file
    has nothing of it.
    """
    entries = adapter.entries
    if entries.target_modules is None or entries.target_modules == ALL_LINEAR:
        return
    family = get_family(base.config.family)
    prefix = ""
    for known in prefixes_of(family):
        if any(module.startswith(known) for module in parts.added):
            prefix = known
    leaves = base.leaves
    modules = module_rows(base.config, leaves)
    if not done & {row.name for row in modules}:
        modules = tensor_rows(base.config, leaves)
    for row in modules:
        module = prefix + row.name.removesuffix(".weight")
        is_dense = row.paths[0].startswith("encoder/block_") and row.paths[0].endswith("/kernel")
        if is_dense and row.name not in done and entries.is_target(module):
            raise CheckpointError(
                f"{adapter.file} has nothing of {module}, which target_modules of "
                "adapter_config.json names: it is damaged, or of another base"
            )


def add_to_module(
    base: Base, name: str, module: str, tensors: Tensors, shared: Tensors, adapter: Adapter
) -> None:
    """Put what belongs to one module into its weight, and by IA3 into its bias.

    ``name`` is the module's in the table, ``module`` that in its class.
    """
    row = base.rows[f"{name}.weight"]
    stored = base.tensor(row.name)
    # Conv1D of GPT-2 and embeddings are stored as [in, out], others as [out, in, ...].
    is_transposed = row.layout == "same"
    weight = stored.T if is_transposed else stored.reshape(len(stored), -1)
    entries = adapter.entries
    where = f"{module} in {adapter.file}"
    if entries.peft_type == "LORA":
        changed = with_low_rank(weight, tensors, entries, module, where)
    elif entries.peft_type == "VERA":
        changed = with_vectors(weight, tensors, shared, where)
    else:
        is_feedforward = entries.is_feedforward(module)
        scale = scale_of_ia3(weight, tensors, is_feedforward, where)
        changed = weight * scale
        bias = f"{name}.bias"
        if not is_feedforward and bias in base.rows:
            base.replace(bias, base.tensor(bias) * scale[:, 0], adapter.file)
    changed = changed.T if is_transposed else changed.reshape(stored.shape)
    base.replace(row.name, changed.astype(np.float32), adapter.file)


def take(
    tensors: Tensors, names: Sequence[str], shapes: Sequence[Sequence[int]], where: str
) -> list[np.ndarray]:
    """Tensors by their names, flattened but for the first axis. Raises :class:`CheckpointError`
    where one is missing, or of another shape.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{where} has no {' and '.join(missing)}: fetch the file again")
    found = [tensors[name] for name in names]
    for name, tensor, shape in zip(names, found, shapes, strict=True):
        if tensor.size != np.prod(shape) or len(tensor) not in (1, shape[0]):
            raise CheckpointError(
                f"{name} of {where} is {list(tensor.shape)}, and {list(shape)} fits the layer: the "
                "adapter is of another base"
            )
    return [tensor.reshape(shape) for tensor, shape in zip(found, shapes, strict=True)]


def with_low_rank(
    weight: np.ndarray, tensors: Tensors, entries: Entries, module: str, where: str
) -> np.ndarray:
    """W + s B A (Hu et al. 2021, eq. 3); of DoRA each row has its own length (Liu et al. 2024, eq.
    5). ``weight`` is [out, in].
    """
    outputs, inputs = weight.shape
    rank = entries.rank_of(module)
    names = ["lora_A", "lora_B"]
    if "lora_embedding_A" in tensors:
        names = ["lora_embedding_A", "lora_embedding_B"]
    a, b = take(tensors, names, [(rank, inputs), (outputs, rank)], where)
    updated = weight + np.float32(entries.scale_of(module)) * (b @ a)
    if not entries.use_dora:
        return updated
    if names[0] != "lora_A":
        raise CheckpointError(f"use_dora is true for the embedding {where}, which is not read")
    (magnitude,) = take(tensors, ["lora_magnitude_vector"], [(outputs,)], where)
    length = np.maximum(np.linalg.norm(updated, axis=1), LEAST_LENGTH)
    return updated * (magnitude / length)[:, None]


def with_vectors(weight: np.ndarray, tensors: Tensors, shared: Tensors, where: str) -> np.ndarray:
    """W + diag(b) B diag(d) A, with A and B of all layers (VeRA, Kopiczko et al. 2024, eq. 2)."""
    outputs, inputs = weight.shape
    if len(shared) != len(SHARED):
        raise CheckpointError(f"{where}: the file has no {' and '.join(SHARED)}: save it with them")
    a, b = (shared[name] for name in SHARED)
    if a.shape[1] < inputs or len(b) < outputs:
        raise CheckpointError(
            f"vera_A {list(a.shape)} and vera_B {list(b.shape)} are too small for {where}: the "
            "adapter is of another base"
        )
    names = ["vera_lambda_b", "vera_lambda_d"]
    lambda_b, lambda_d = take(tensors, names, [(outputs,), (len(a),)], where)
    return weight + (lambda_b[:, None] * b[:outputs]) @ (lambda_d[:, None] * a[:, :inputs])


def scale_of_ia3(
    weight: np.ndarray, tensors: Tensors, is_feedforward: bool, where: str
) -> np.ndarray:
    """By what IA3 multiplies a weight (Liu et al. 2022, 3.3): [1, in] before a feed-forward module,
    [out, 1] after another.
    """
    outputs, inputs = weight.shape
    shape = (1, inputs) if is_feedforward else (outputs, 1)
    (scale,) = take(tensors, ["ia3_l"], [shape], where)
    return scale
