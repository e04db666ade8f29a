"""A run, encoder and head together, as a folder that the torch world loads: transformers or sentence-transformers.

What is written is pure data first (:func:`transformers_folders`, :func:`sentence_transformers_folders`); only
:func:`export` touches the disk. Neither library is needed here. In float32 the logits agree within 1e-4.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt import tree
from adapt.errors import ExportError, OutputError
from adapt.export import card, layout
from adapt.models import CausalLM, Classifier, EncoderConfig, MaskedLM, peft
from adapt.pretrained import families, hub
from adapt.training import checkpoint

SEQUENCES = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"
# (family, head as `kind` says it) -> transformers' class, and the Auto class that finds it
TRANSFORMERS = {
    ("bert", "pooler pooling"): ("BertForSequenceClassification", SEQUENCES),
    ("bert", "cls pooling"): ("BertForSequenceClassification", SEQUENCES),
    ("gpt2", "last pooling and no bias"): ("GPT2ForSequenceClassification", SEQUENCES),
    ("vit", "cls pooling"): ("ViTForImageClassification", IMAGES),
    ("bert", "masked LM"): ("BertForMaskedLM", "AutoModelForMaskedLM"),
    ("bert", "masked LM and next sentence"): ("BertForPreTraining", "AutoModelForPreTraining"),
    ("gpt2", "causal LM"): ("GPT2LMHeadModel", "AutoModelForCausalLM"),
}
SENTENCE_TRANSFORMERS = {
    (family, f"{pooling} pooling"): architecture
    for family, architecture in (("bert", "BertModel"), ("gpt2", "GPT2Model"))
    for pooling in ("mean", "max", "cls")
}
FORMATS = {
    "transformers": TRANSFORMERS,
    "sentence-transformers": SENTENCE_TRANSFORMERS,
}  # auto: the first that can
EXPORTS = (
    "what exports: to transformers, BERT with pooler or cls pooling, GPT-2 with last pooling and no bias, ViT with cls "
    "pooling, and language models; to sentence-transformers, BERT and GPT-2 with mean, max or cls pooling"
)
PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
HEADS = ("classifier.", "cls.", "lm_head.", "score.")  # how names that take no prefix begin
PAD = "<|pad|>"
SPECIAL = {  # what transformers calls a special token -> how the tokenizers of these families spell it
    "pad_token": ("[PAD]", "<pad>", PAD),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<|endoftext|>",),
    "eos_token": ("<|endoftext|>",),
}


@dataclasses.dataclass(frozen=True)
class Folder:
    """What goes into one folder: config.json, model.safetensors, and other files by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    files: Mapping[str, str]


def export(run: hub.Pretrained, out: Path, format: str = "auto", overwrite: bool = False) -> str:
    """Write ``run`` to the new folder ``out``, whole or not at all; returns the format used.

    ``format`` is "transformers", "sentence-transformers", or "auto": transformers where it can express the model.
    Raises :class:`ExportError` for what a format can't express, naming what exports, and :class:`OutputError` for
    a folder that exists (without ``overwrite``), that holds the run itself, or that the disk has no room for.
    """
    out = Path(out).resolve()
    run = merged(run)
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise OutputError(
            f"the output folder {out} exists: give --overwrite to replace it, or another --out"
        )
    if out.exists() and Path(run.source).expanduser().resolve().is_relative_to(out):
        raise OutputError(
            f"the output folder {out} holds the run that is exported: give another --out"
        )
    format = choose(run, format)
    readme = out / "README.md"
    if (
        out.exists()
        and any(out.iterdir())
        and not (readme.is_file() and card.MARK in readme.read_text("utf-8"))
    ):
        raise OutputError(
            f"{out} is no folder that export wrote, so --overwrite leaves it alone: remove it yourself"
        )
    contents = (
        transformers_folders if format == "transformers" else sentence_transformers_folders
    )(run)
    size = sum(tensor.nbytes for folder in contents.values() for tensor in folder.tensors.values())
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        checkpoint.need_space(out.parent, size)
        for name, folder in contents.items():
            layout.write_folder(beside / name, folder.config, folder.tensors, folder.files)
        layout.replace_folder(beside, out)
    except OSError as fault:
        raise OutputError(f"cannot write {out}: {fault.strerror or fault}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return format


def merged(run: hub.Pretrained) -> hub.Pretrained:
    """The run with LoRA merged into its weights. Raises :class:`ExportError` for additions that no library's class has."""
    params, config = peft.merge_lora(run.params, run.config)
    if left := [name for name in peft.PEFT_FIELDS if getattr(config, name)]:
        raise ExportError(
            f"{run.source} has {left[0]} {getattr(config, left[0])}, which the torch world's classes lack"
        )
    return dataclasses.replace(run, params=params, config=config)


def kind(head: Any, config: EncoderConfig) -> str:
    """What a head is, in the words of the tables above."""
    if isinstance(head, Classifier):
        if head.layers or head.columns:
            return "a mix of layers" if head.layers else "several label columns"
        bias = (" and a bias" if head.bias else " and no bias") if head.pooling == "last" else ""
        return f"{head.pooling} pooling{bias}" if head.classes else "no task head"
    if isinstance(head, MaskedLM):
        if (head.activation, head.norm_epsilon) != (config.activation, config.norm_epsilon):
            return "a masked LM of another activation or epsilon than the encoder's"
        return "masked LM and next sentence" if head.next_sentence else "masked LM"
    return "causal LM" if isinstance(head, CausalLM) else f"the head {type(head).__name__}"


def choose(run: hub.Pretrained, format: str) -> str:
    """The format to use. Raises :class:`ExportError`, which names what exports, where there is none."""
    family, head = key = run.config.family, kind(run.head, run.config)
    able = [name for name, table in FORMATS.items() if key in table]
    if format not in ("auto", *FORMATS):
        raise ExportError(
            f"unknown format {format!r}: give auto, {' or '.join(FORMATS)}; {EXPORTS}"
        )
    if not able or format not in ("auto", *able):
        to = "" if format == "auto" else f" to {format}"
        raise ExportError(f"{family} with {head} does not export{to}; {EXPORTS}")
    if (run.images if run.config.is_image else run.tokenizer) is None:
        missing = "image settings" if run.config.is_image else "tokenizer"
        raise ExportError(
            f"{run.source} has no {missing}, which the export needs: add its files to the folder"
        )
    return able[0] if format == "auto" else format


def transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """The one folder of a transformers checkpoint."""
    family = run.config.family
    trained = kind(run.head, run.config)
    architecture, auto = TRANSFORMERS[family, trained]
    notes = []
    if (family, trained) == ("bert", "cls pooling"):
        run = straight_pooler(run)
        notes = [card.STRAIGHT_POOLER]
    if isinstance(run.head, Classifier) and not run.head.bias and family != "gpt2":
        run = with_bias(run)
    run, files, more = with_inputs(run)
    tensors = with_prefix(run.config, layout.to_tensors(run.config, run.params))
    if (
        "cls.predictions.decoder.weight" in tensors
    ):  # untied: of the two biases in a file, the library uses this one
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    padding = (
        isinstance(run.head, Classifier) or family == "bert"
    )  # GPT-2's language model has no token for it
    code = (card.IMAGES if run.config.is_image else card.TEXTS).format(auto=auto, padding=padding)
    title = f"{architecture}, trained with {trained}"
    files["README.md"] = card.card(
        title, "transformers", code, run.task, class_names(run), [*notes, *more]
    )
    return {
        "": Folder(layout.write_config(run.config) | described(run, architecture), tensors, files)
    }


def sentence_transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """Transformer, pooling and dense, by names that all versions read. No normalisation: ``encode`` gives logits."""
    head = run.params["head"]["classifier"]
    trained = kind(run.head, run.config)
    architecture = SENTENCE_TRANSFORMERS[run.config.family, trained]
    run, files, notes = with_inputs(run)
    parts = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    assert run.tokenizer is not None
    transformer: dict[str, Any] = {
        "max_seq_length": run.tokenizer.max_length,
        "do_lower_case": False,
    }
    if run.config.family == "bert":
        transformer["model_args"] = {
            "add_pooling_layer": False
        }  # else a random one is made, with a warning
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    dense = {
        "in_features": run.config.width,
        "out_features": run.head.classes,
        "bias": run.head.bias,
    }
    contents = {
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{name}",
            }
            for index, (name, path) in enumerate(parts)
        ],
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": None,
        },
        "1_Pooling/config.json": {"word_embedding_dimension": run.config.width}
        | {f"pooling_mode_{theirs}": ours == run.head.pooling for ours, theirs in modes.items()},
    }
    files |= {name: text(content) for name, content in contents.items()}
    title = f"{architecture} with {trained} and a dense layer"
    notes = [card.LOGITS, *notes]
    files["README.md"] = card.card(
        title, "sentence-transformers", card.SENTENCES, run.task, class_names(run), notes
    )
    config = layout.write_config(run.config) | described(run, architecture)
    weights = {"linear.weight": np.ascontiguousarray(np.asarray(head["kernel"]).T)}
    weights |= {"linear.bias": np.asarray(head["bias"])} if run.head.bias else {}
    return {
        "": Folder(config, layout.to_tensors(run.config, tree.drop(run.params, "head")), files),
        "2_Dense": Folder(
            dense | {"activation_function": "torch.nn.modules.linear.Identity"}, weights, {}
        ),
    }


def with_prefix(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of a family's table as the original library's classes with a head spell them."""
    prefix = families.family_module(config.family).PREFIX
    return {
        name if name.startswith(HEADS) else prefix + name: tensor
        for name, tensor in tensors.items()
    }


def straight_pooler(run: hub.Pretrained) -> hub.Pretrained:
    """A head on the first token as BERT's pooler and classifier.

    tanh(y) = y (1 - y^2/3 + ...): scaled by 2^-16, which is exact, an x of 20 comes through to 3e-8 of itself.
    """
    classifier = run.params["head"]["classifier"]
    width = run.config.width
    scale = np.float32(2.0**-16)
    pooler = {
        "kernel": np.eye(width, dtype=np.float32) * scale,
        "bias": np.zeros(width, np.float32),
    }
    head = {
        "pooler": pooler,
        "classifier": classifier | {"kernel": np.asarray(classifier["kernel"]) / scale},
    }
    pooled = dataclasses.replace(run.head, pooling="pooler")
    return dataclasses.replace(run, head=pooled, params=run.params | {"head": head})


def with_bias(run: hub.Pretrained) -> hub.Pretrained:
    """A head without a bias as one with zeros."""
    params = tree.graft(run.params, "head/classifier/bias", np.zeros(run.head.classes, np.float32))
    return dataclasses.replace(run, head=dataclasses.replace(run.head, bias=True), params=params)


def with_inputs(run: hub.Pretrained) -> tuple[hub.Pretrained, dict[str, str], list[str]]:
    """The run, the files that turn text or pictures into its arrays, and notes on them.

    A head that pools needs padding, by a token that no text holds: where the tokenizer has none it gets one, and the
    embedding a row of zeros for it. (transformers takes for GPT-2's last token the last that is not padding: with
    <|endoftext|> as padding, a text that ends in it would be read wrong.)
    """
    if run.images:
        notes = [card.RESIZING] + [card.GRAY] * (run.images.channels == 1)
        return run, {"preprocessor_config.json": text(layout.preprocessor(run.images))}, notes
    tokenizer = run.tokenizer
    assert tokenizer is not None
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    notes = []
    if isinstance(run.head, Classifier):
        if "pad_token" not in special_tokens(backend):
            backend.add_special_tokens([PAD])
            # Read as it will be read: where ids have a gap, that gives the token another id than adding it did.
            backend = type(backend).from_str(backend.to_str())
            notes = [card.ADDED_PADDING.format(pad=PAD)]
        pad = backend.token_to_id(special_tokens(backend)["pad_token"])
        if pad is None or list(backend.get_vocab().values()).count(pad) > 1:
            raise ExportError(
                f"{PAD} can't be added to the tokenizer, whose ids have a gap: add a padding token to it"
            )
        run = with_padding(run, pad)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; BertTokenizer rebuilds it
        "model_max_length": tokenizer.max_length,
        "model_input_names": inputs
        if run.config.types
        else inputs[::2],  # GPT-2 would embed types as tokens
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    named = special_tokens(backend)
    files = {
        "tokenizer_config.json": text(settings | named),
        "special_tokens_map.json": text(named),
    }
    return run, files | {"tokenizer.json": backend.to_str(pretty=True)}, notes


def special_tokens(backend: Any) -> dict[str, str]:
    """The special tokens by transformers' names. Those alone: naming any other would change how texts are split."""
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    found = {
        name: next((s for s in spellings if s in special), None)
        for name, spellings in SPECIAL.items()
    }
    return {name: token for name, token in found.items() if token is not None}


def with_padding(run: hub.Pretrained, pad: int) -> hub.Pretrained:
    """The run with ``pad`` as its padding token, and an embedding that reaches it."""
    encoder = run.params["encoder"]
    table = np.asarray(encoder["embedding"]["token"])
    table = np.pad(table, ((0, max(pad + 1 - len(table), 0)), (0, 0)))
    params = run.params | {
        "encoder": encoder | {"embedding": encoder["embedding"] | {"token": table}}
    }
    config = dataclasses.replace(run.config, vocabulary=len(table), pad_token=pad)
    return dataclasses.replace(run, params=params, config=config)


def described(run: hub.Pretrained, architecture: str) -> dict[str, Any]:
    """What config.json says beside the encoder's shapes."""
    config: dict[str, Any] = {"architectures": [architecture], "dtype": "float32"}
    if not isinstance(run.head, Classifier):
        return config | {"tie_word_embeddings": run.head.tied}
    names = class_names(run)
    config |= {"num_labels": len(names), "id2label": dict(enumerate(names))}
    config |= {"label2id": {name: index for index, name in enumerate(names)}}
    return config | ({"problem_type": PROBLEMS[run.task]} if run.task in PROBLEMS else {})


def class_names(run: hub.Pretrained) -> list[str]:
    """The run's own; transformers' LABEL_0, LABEL_1, ... where it has none, as in regression; none without classes."""
    return list(run.labels) or [
        f"LABEL_{index}" for index in range(getattr(run.head, "classes", 0))
    ]


def text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
