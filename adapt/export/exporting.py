"""A run, encoder and head together, as a folder that the torch world loads: transformers or
sentence-transformers.

    export(adapt.load("runs/finetune"), "exported")

What is written is made as data first; only :func:`export` touches the disk. Neither library is
needed here. In float32 the logits agree within 1e-4.
"""

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from adapt import tree
from adapt.errors import ExportError, OutputError
from adapt.export import card, layout, sentence_transformers, transformers
from adapt.export.folder import Folder, kind_in_words
from adapt.export.peft import peft_folder
from adapt.files import local_path, need_space, replace_folder
from adapt.models import CausalLM, MaskedLM, peft
from adapt.pretrained import hub
from adapt.pretrained.families import get_family

logger = logging.getLogger(__name__)

# Format -> the class by which it expresses a run, None where it can't. "auto" takes the first that
# can.
FORMATS = {
    "transformers": transformers.class_of,
    "sentence-transformers": sentence_transformers.class_of,
}
PEFT = "peft"  # which is chosen by its name alone


def export(
    run: hub.Pretrained,
    out: str | Path,
    format: str = "auto",
    overwrite: bool = False,
    long: Literal["head"] | None = None,
    base: str | Path | None = None,
) -> str:
    """Write ``run`` to the new folder ``out``, whole or not at all; returns the format used.

    ``format`` is "transformers", "sentence-transformers", or "auto": transformers where it can
    express the model; or "peft": what LoRA added to its base, with the head. ``base`` names that
    base where it is not where the run says. ``long`` "head" exports a run that reads long texts in
    another way; what is written reads their first tokens, as these libraries do. Raises
    :class:`ExportError` for what a format can't express, naming what exports, and
    :class:`OutputError` for a folder that exists (without ``overwrite``), that holds the run
    itself, or that the disk has no room for.
    """
    out = local_path(out, "out").resolve()
    check_reads_head(run, long)
    if base is not None and format != PEFT:
        raise ExportError(f"`base` {base} is of `format` {PEFT}: leave it out")
    if format == PEFT:
        check_absent(out, run, overwrite)
        folders = {"": peft_folder(run, base_of(run, base))}
    else:
        run = with_merged_lora(run)
        if isinstance(run.head, MaskedLM | CausalLM):
            run = without_language_model(run, format)
        check_absent(out, run, overwrite)
        format = choose_format(run, format)
        folders = make_folders(run, format)
    check_replaceable(out)
    write(folders, out)
    return format


def write(folders: Mapping[str, Folder], out: Path) -> None:
    """Write the folders, by their places under ``out``, whole or not at all. Raises
    :class:`OutputError` for a disk without room.
    """
    size = 0
    for folder in folders.values():
        size += sum(tensor.nbytes for tensor in folder.tensors.values())
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        need_space(out.parent, size, "the export")
        for name, folder in folders.items():
            layout.write_folder(
                beside / name, folder.config, folder.tensors, folder.files, folder.weights
            )
        replace_folder(beside, out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def base_of(run: hub.Pretrained, base: str | Path | None) -> str:
    """The checkpoint that a run began with: ``base``, or what the folder of the run says.

    Raises :class:`ExportError` where it says nothing, and for a folder of PEFT, which is read with
    its adapter merged.
    """
    folder = Path(run.source).expanduser()
    if not run.config.lora_rank and (folder / hub.ADAPTER).exists():
        raise ExportError(
            f"{run.source} is an adapter of PEFT already, and read it is merged into its base: use "
            "the folder as it is, or give another `format`"
        )
    if base is not None:
        return str(base)
    if (folder / "model.json").exists() and (folder / "config.json").exists():
        checkpoint = hub.read_json(folder, "config.json").get("checkpoint")
        if checkpoint:
            return str(checkpoint)
    raise ExportError(f"{run.source} does not say which checkpoint it began with: give `base`")


def without_language_model(run: hub.Pretrained, format: str) -> hub.Pretrained:
    """A run with a language model's head as sentence-transformers takes it: without. Other formats
    take the head, and a note says so where the folder also says how it makes vectors.
    """
    if format == "sentence-transformers":
        params = tree.drop(run.params, "head")
        return dataclasses.replace(run, head=None, params=params)
    if run.embedding.pooling is not None:
        logger.warning(
            f"{run.source} is exported as a language model; how it makes vectors is not: for that "
            "give `format` sentence-transformers"
        )
    return run


def check_reads_head(run: hub.Pretrained, long: str | None) -> None:
    """Raise :class:`ExportError` for a run whose rule for long texts other libraries do not have,
    unless ``long`` is "head".
    """
    if long not in (None, "head"):
        raise ExportError(f"`long` {long} does not export: give head, or leave it out")
    own = run.tokenizer.long if run.tokenizer else "head"
    if own != "head" and long is None:
        raise ExportError(
            f"{run.source} was trained with `long` {own}, and what is exported reads the first "
            "tokens of a long text: give `long` head if that is what you want"
        )


def check_absent(out: Path, run: hub.Pretrained, overwrite: bool) -> None:
    """Raise :class:`OutputError` for a folder that is neither empty nor may be replaced."""
    if not out.exists():
        return
    is_empty = out.is_dir() and not any(out.iterdir())
    may_replace = out.is_dir() and overwrite
    if not is_empty and not may_replace:
        raise OutputError(
            f"the output folder {out} exists: give `overwrite` to replace it, or another `out`"
        )
    if Path(run.source).expanduser().resolve().is_relative_to(out):
        raise OutputError(
            f"the output folder {out} holds the run that is exported: give another `out`"
        )


def check_replaceable(out: Path) -> None:
    """Raise :class:`OutputError` for a folder with files that no export wrote."""
    if not out.exists() or not any(out.iterdir()):
        return
    readme = out / "README.md"
    if not readme.is_file() or card.MARK not in readme.read_text("utf-8"):
        raise OutputError(
            f"{out} is no folder that export wrote, so `overwrite` leaves it alone: "
            "remove it yourself"
        )


# What stands in a config that no exported class has.
TRAINED_WITH = {
    "lora_rank": "lora",
    "adapter_width": "adapters",
    "prefix_tokens": "a prefix of keys and values",
}


def with_merged_lora(run: hub.Pretrained) -> hub.Pretrained:
    """The run with LoRA merged into its weights.

    Raises :class:`ExportError` for adapters and prefixes, which no library's class has.
    """
    params, config = peft.merge_lora(run.params, run.config)
    for name in peft.PEFT_FIELDS:
        value = getattr(config, name)
        if value:
            raise ExportError(
                f"{run.source} was trained with {TRAINED_WITH[name]}, which no class of transformers "
                "has: train with lora, which is merged into the weights, or another strategy"
            )
    return dataclasses.replace(run, params=params, config=config)


def choose_format(run: hub.Pretrained, format: str) -> str:
    """The format to use. Raises :class:`ExportError`, which names what exports, where there is
    none.
    """
    able = [name for name, class_of in FORMATS.items() if class_of(run)]
    if format not in ("auto", *FORMATS):
        raise ExportError(
            f"unknown format {format!r}: give auto, {', '.join(FORMATS)} or {PEFT}; "
            f"{what_exports(run)}"
        )
    if not able or format not in ("auto", *able):
        to = "" if format == "auto" else f" to {format}"
        raise ExportError(
            f"{run.config.family} with {kind_in_words(run)} does not export{to}; "
            f"{what_exports(run)}"
        )
    if run.config.is_image:
        missing = None if run.image_settings else "image settings"
    else:
        missing = None if run.tokenizer else "tokenizer"
    if missing:
        raise ExportError(
            f"{run.source} has no {missing}, which the export needs: add its files to the folder"
        )
    return able[0] if format == "auto" else format


def what_exports(run: hub.Pretrained) -> str:
    """What exports of the run's family, in words."""
    name = run.config.family
    family = get_family(name)
    kinds = transformers.what_exports(run.config)
    to = [f"to transformers {', '.join(kinds)}"] if kinds else []
    if family.base_class:
        poolings = ", ".join(sentence_transformers.DENSE_POOLINGS)
        to.append(
            f"to sentence-transformers {poolings} pooling, and embeddings by these or by last"
        )
    return f"what exports of {name}: {'; '.join(to) or 'nothing'}"


def make_folders(run: hub.Pretrained, format: str) -> dict[str, Folder]:
    """The contents of the export, by the name of each folder below its own."""
    if format == "transformers":
        return transformers.transformers_folders(run)
    return sentence_transformers.sentence_transformers_folders(run)
