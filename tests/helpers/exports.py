"""Small runs to export: recorded random encoders with a tokenizer and a random head, and what `predict` says of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from adapt import tree
from adapt.features import image_batches, text_batches
from adapt.models import Classifier, Span, Tagger
from adapt.pretrained import hub
from adapt.pretrained.families import get_family
from adapt.run import Run
from adapt.training.loop import evaluate
from adapt.training.step import make_eval
from tests.helpers import bert_like_files, rotary_files
from tests.helpers.decoder_files import DECODERS, write_tokenizer

REFERENCES = Path(__file__).parents[1] / "references"
TEXTS = [
    "the film was good",
    "so",
    "the plot was so very dull and the cast was cold and the score was poor and so the end",  # truncated
    "a warm cast [MASK] [PAD] and unknown letters",
    "good <|endoftext|>",
]
TRANSFORMERS = [
    ("bert_bare_pooler", "pooler", "transformers"),
    ("bert_bare_pooler", "cls", "transformers"),
    ("gpt2_bare", "last", "transformers"),
    ("vit_classifier", "cls", "transformers"),
    ("vit_gray_no_qkv_bias", "cls", "transformers"),
    ("roberta_bare", "cls", "transformers"),
]
SENTENCE_TRANSFORMERS = [
    (case, pooling, "sentence-transformers")
    for case in ("bert_bare_pooler", "gpt2_bare")
    for pooling in ("mean", "max", "cls")
]
LANGUAGE_MODELS = [
    ("bert_mlm_tied", "BertForMaskedLM"),
    ("bert_mlm_untied_sharded", "BertForMaskedLM"),
    ("bert_mlm_relu", "BertForMaskedLM"),
    ("bert_pretraining", "BertForPreTraining"),
    ("gpt2_lm_tied", "GPT2LMHeadModel"),
    ("gpt2_lm_untied", "GPT2LMHeadModel"),
    ("modernbert_mlm_tied", "ModernBertForMaskedLM"),
    ("modernbert_mlm_untied_old", "ModernBertForMaskedLM"),
    ("esm_mlm_old", "EsmForMaskedLM"),
    ("nomic_mlm", "NomicBertForMaskedLM"),
    ("gte_mlm_untied", "GteForMaskedLM"),
    ("roberta_mlm", "RobertaForMaskedLM"),
    ("distilbert_mlm", "DistilBertForMaskedLM"),
    ("electra_generator_untied", "ElectraForMaskedLM"),
]


def pretrained(folder: Path, case: str, gap: bool = True) -> Path:
    """A recorded random checkpoint as a folder of its own under ``folder``, with a tokenizer."""
    folder = folder / "checkpoints" / case
    shutil.copytree(
        REFERENCES / case, folder, ignore=shutil.ignore_patterns("*.npz"), dirs_exist_ok=True
    )
    words = sorted(
        {word for text in TEXTS for word in text.split() if word.isalpha()} - {"unknown", "letters"}
    )
    if case.startswith("bert"):
        (folder / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
        )
    elif case.startswith(
        "gpt2"
    ):  # a space and a letter may be one token; the last of 100 ids is the end of a text
        letters = sorted(set("".join(words)))
        tokens = [*letters, "Ġ", *(f"Ġ{letter}" for letter in letters)]
        tokens += [] if gap else [f"unused {number}" for number in range(len(tokens), 99)]
        ids = {token: number for number, token in enumerate(tokens)} | {"<|endoftext|>": 99}
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text(
            "#version: 0.2\n" + "".join(f"Ġ {letter}\n" for letter in letters)
        )
    elif case.startswith(DECODERS):
        write_tokenizer(folder, words, before=["<s>"])
    elif case.startswith(bert_like_files.BERT_LIKE):
        bert_like_files.write_tokenizer(folder, case, words)
    elif case.startswith(rotary_files.ROTARY):
        rotary_files.write_tokenizer(folder, case, words)
    return folder


def finished(
    folder: Path,
    case: str,
    pooling: str,
    classes: int = 3,
    task: str = "classification",
    bias: bool | None = None,
    gap: bool = True,
) -> hub.Pretrained:
    """A run with a random head, no weight of it 0 or 1; a decoder's last token gets no bias unless
    told.
    """
    run = hub.load(pretrained(folder, case, gap))
    biased = bias if bias is not None else not (run.config.causal and pooling == "last")
    layer = get_family(run.config.family).head_layer(run.config)
    head = Classifier(classes, pooling, biased, dropout=0.1, **layer)
    run = dataclasses.replace(run, head=head, task=task)
    rng = np.random.default_rng(5)
    head = tree.map_paths(
        lambda _, leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), run.model.shapes()["head"]
    )
    labels = () if task == "regression" else ("no", "maybe; so", "ja 好")[:classes]
    return dataclasses.replace(run, params=run.params | {"head": head}, labels=labels)


def inputs(run: hub.Pretrained) -> list:
    if not run.config.is_image:
        return TEXTS
    rng = np.random.default_rng(7)
    shapes, bands = [(40, 56), (20, 30), (32, 32)], run.config.channels
    arrays = [
        rng.integers(0, 256, (*shape, bands) if bands == 3 else shape, np.uint8) for shape in shapes
    ]
    return [Image.fromarray(array) for array in arrays]


def logits_of(run: hub.Pretrained, raw: list) -> np.ndarray:
    """What `predict` computes: packed rows."""
    stream = (image_batches if run.config.is_image else text_batches)(run, [raw])
    batches = ((streamed.index, streamed.batch) for streamed in stream)
    return evaluate(make_eval(run.model), run.params, batches, len(raw))


def with_random_head(run: hub.Pretrained) -> hub.Pretrained:
    """The run with a random head, no weight of it 0 or 1."""
    rng = np.random.default_rng(5)
    head = tree.map_paths(
        lambda _, leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), run.model.shapes()["head"]
    )
    return dataclasses.replace(run, params=run.params | {"head": head})


def embedder(folder: Path, case: str, pooling: str, normalize: bool) -> hub.Pretrained:
    """What a run of embeddings is."""
    run = hub.load(pretrained(folder, case))
    embedding = dataclasses.replace(run.embedding, pooling=pooling, normalize=normalize)
    params = {"encoder": run.params["encoder"], "head": {}}
    return dataclasses.replace(
        run, head=Classifier(0, pooling), params=params, task="contrastive", embedding=embedding
    )


def tagger(folder: Path, case: str) -> hub.Pretrained:
    """A run of tags."""
    run = hub.load(pretrained(folder, case))
    labels = ("no", "maybe; so", "ja 好")
    head = Tagger(3, **get_family(run.config.family).head_layer(run.config))
    return with_random_head(dataclasses.replace(run, head=head, task="tags", labels=labels))


def answerer(folder: Path, case: str) -> hub.Pretrained:
    """A run of spans."""
    run = hub.load(pretrained(folder, case))
    layer = get_family(run.config.family).head_layer(run.config)
    head = Span(run.tokenizer.max_length, **layer)
    return with_random_head(dataclasses.replace(run, head=head, task="span"))


def predicted(run: hub.Pretrained, raw: list) -> np.ndarray:
    """The outputs of the head, as a finished run predicts."""
    settings = {"text_column": "text"}
    if isinstance(raw[0], tuple):
        settings["text_pair_column"] = "text_pair"
    return Run(run, {}, settings, {}, []).predict(raw).outputs
