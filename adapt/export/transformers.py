"""A run as the folder of a transformers checkpoint, encoder and head together."""

import json
from collections.abc import Mapping

import numpy as np

from adapt.data.masking import MASK_TOKENS, mask_id
from adapt.export import card, heads, layout
from adapt.export.folder import (
    Folder,
    class_names,
    kind_in_words,
    makes_embeddings,
    model_entries,
)
from adapt.export.inputs import input_files
from adapt.models import Classifier, EncoderConfig, MaskedLM, Span, Tagger, is_kept
from adapt.models.heads import pooling_names
from adapt.pretrained import families, hub
from adapt.pretrained.families import get_family
from adapt.pretrained.tokenizer_files import is_byte_level


def class_of(run: hub.Pretrained) -> str | None:
    """transformers' class for the run, encoder and head together; None if none can express it."""
    family = get_family(run.config.family)
    if makes_embeddings(run):
        # sentence-transformers has no encoders of pictures alone, and no projections.
        kind = families.head_kind(run.head)
        has_own_class = run.config.is_image or kind == "projection"
        return family.classes.get(kind) if has_own_class else None
    kind = kind_in_words(run)
    if isinstance(run.head, Classifier):
        if heads.target_of(run.head, family) is None:
            return None
        kind = families.head_kind(run.head)
    return family.classes.get(kind)


def auto_class(name: str) -> str:
    """The Auto class that finds a class of transformers: ``AutoModelForMaskedLM``."""
    if name.endswith("LMHeadModel"):
        return "AutoModelForCausalLM"
    if "For" not in name:
        return "AutoModel" if name.endswith("Model") else name
    return f"AutoModelFor{name.rpartition('For')[2]}"


def what_exports(config: EncoderConfig) -> list[str]:
    """The heads of a family that export, in words."""
    family = get_family(config.family)
    layer = family.head_layer(config)
    poolings = []
    for pooling in pooling_names():
        for bias in (True, False):
            head = Classifier(1, pooling, bias, **layer)
            if heads.target_of(head, family) and pooling not in poolings:
                poolings.append(pooling if bias else f"{pooling} (without a bias)")
    kinds = []
    for kind in family.classes:
        if kind == "classes":
            kinds.append(f"{' or '.join(poolings)} pooling")
        else:
            kinds.append(kind)
    return kinds


def transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """The one folder of a transformers checkpoint."""
    family = get_family(run.config.family)
    kind = kind_in_words(run)
    architecture = class_of(run)
    assert architecture is not None
    run, notes = fitted(run)
    if isinstance(run.head, Span):
        notes += answer_notes(run)
    if is_kept(run.head):
        notes.append(prompt_note(run))
    run, files, input_notes = input_files(run)
    tensors = layout.to_tensors(run.config, run.params, run.head)
    tensors = layout.with_prefix(run.config, tensors, run.head)
    tensors |= family.extra_tensors(run.config, architecture, tensors)
    if "qa_outputs.weight" in tensors:
        tensors["qa_outputs.bias"] = np.zeros(2, np.float32)
    files["README.md"] = card.card(
        f"{architecture}, trained with {kind}",
        "transformers",
        loading_code(run, files, auto_class(architecture)),
        run.task,
        class_names(run),
        [*notes, *input_notes],
    )
    config = layout.write_config(run.config, run.head) | model_entries(run, architecture)
    return {"": Folder(config, tensors, files)}


def fitted(run: hub.Pretrained) -> tuple[hub.Pretrained, list[str]]:
    """(the run with its classifier as transformers' class holds it, notes on it for the card)."""
    if not isinstance(run.head, Classifier) or not run.head.classes:
        return run, []
    target = heads.target_of(run.head, get_family(run.config.family))
    assert target is not None
    return heads.fit(run, target)


def prompt_note(run: hub.Pretrained) -> str:
    """What the card of a run of prompts says of its template and its words."""
    assert run.tokenizer is not None
    template = run.head.template
    where = "at the mask"
    if isinstance(run.head, MaskedLM):
        own = run.tokenizer.backend.id_to_token(mask_id(run.tokenizer))
        template = template.replace(MASK_TOKENS[0], str(own))
    else:
        template = template.removesuffix(MASK_TOKENS[0]).rstrip(" ")
        where = "of the last token"
    lines = []
    for name, words, tokens in zip(run.labels, run.head.words, run.head.word_tokens, strict=True):
        spelled = [f"{word} ({token})" for word, token in zip(words, tokens, strict=True)]
        lines.append(f"- {name}: {', '.join(spelled)}")
    return card.PROMPT.format(template=template, where=where, classes="\n".join(lines))


def answer_notes(run: hub.Pretrained) -> list[str]:
    """What the card of a run of spans says of long contexts, and of questions without an answer."""
    assert run.tokenizer is not None and isinstance(run.head, Span)
    notes = []
    if run.tokenizer.stride:
        notes.append(
            card.WINDOWS.format(tokens=run.tokenizer.max_length, stride=run.tokenizer.stride)
        )
    if run.head.null_threshold is not None:
        notes.append(card.NO_ANSWER.format(threshold=run.head.null_threshold))
    return notes


def loading_code(run: hub.Pretrained, files: Mapping[str, str], auto: str) -> str:
    """The code of the card. ``files`` are those of :func:`input_files`."""
    if run.config.is_image:
        return card.IMAGES.format(auto=auto)
    assert run.tokenizer is not None
    if isinstance(run.head, Tagger):
        code = card.SPACED_WORDS if is_byte_level(run.tokenizer.backend) else card.WORDS
        return code.format(auto=auto)
    if isinstance(run.head, Span):
        return card.CONTEXTS.format(auto=auto)
    # A language model's tokenizer may have no token for padding.
    padding = "pad_token" in json.loads(files["special_tokens_map.json"])
    return card.TEXTS.format(auto=auto, padding=padding)
