"""What transformers and sentence-transformers compute from an export; skipped where they are not
installed.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt.export import layout
from adapt.export.exporting import export
from adapt.features import encode
from adapt.pretrained import hub
from adapt.pretrained.images import ImageSettings, to_pixels
from tests.helpers import tiny
from tests.helpers.exports import (
    LANGUAGE_MODELS,
    REFERENCES,
    SENTENCE_TRANSFORMERS,
    TEXTS,
    answerer,
    embedder,
    finished,
    inputs,
    logits_of,
    predicted,
    pretrained,
    tagger,
)

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own warnings are theirs


BERT_LIKE = [
    ("electra_generator", "ElectraForMaskedLM"),
    ("electra_discriminator", "ElectraForPreTraining"),
]
DECODERS = [
    ("llama_lm_untied", "LlamaForCausalLM"),
    ("llama_lm_tied_linear", "LlamaForCausalLM"),
    ("mistral_lm_window", "MistralForCausalLM"),
    ("qwen2_lm_tied", "Qwen2ForCausalLM"),
    ("qwen3_lm_untied", "Qwen3ForCausalLM"),
    ("smollm3_lm_tied", "SmolLM3ForCausalLM"),
    ("gemma3_text_lm_tied", "Gemma3ForCausalLM"),
]
NOT_INSTALLED = "{} is not installed: pip install torch transformers sentence-transformers"


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason=NOT_INSTALLED.format("torch"))
    module.set_num_threads(1)
    return module


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers", reason=NOT_INSTALLED.format("transformers"))


@pytest.fixture
def sentence_transformers(torch):
    reason = NOT_INSTALLED.format("sentence-transformers")
    return pytest.importorskip("sentence_transformers", reason=reason)


def run_readme(folder: Path, monkeypatch, **names) -> dict:
    """All names after the code of the exported README.md has run in its folder, with ``names``."""
    readme = (folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    monkeypatch.chdir(folder)
    exec(code, names)
    return names


def load_whole(model_class, folder: Path):
    """The model; every weight is from the file, and every weight of the file is used."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def assert_close(outputs: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(outputs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("case", "pooling", "task", "classes"),
    [
        ("bert_bare_pooler", "pooler", "classification", 3),
        ("bert_bare_pooler", "cls", "classification", 3),
        ("bert_bare_pooler", "cls", "multilabel", 3),
        ("bert_bare_pooler", "pooler", "regression", 1),
        ("gpt2_bare", "last", "classification", 3),
        ("gpt2_bare", "last", "multilabel", 2),
        ("gpt2_bare", "last", "regression", 1),
        ("gpt2_lm_tied", "last", "classification", 3),
        ("gpt2_hub_layout", "last", "classification", 2),
        ("modernbert_mlm_tied", "mean", "classification", 3),
        ("roberta_bare", "pooler", "classification", 3),
        ("roberta_mlm", "cls", "classification", 3),
        ("xlm_roberta_tags", "cls", "regression", 1),
        ("distilbert_mlm", "cls", "classification", 3),
        ("electra_discriminator", "cls", "multilabel", 2),
        ("modernbert_classifier", "cls", "regression", 1),
        ("esm_tokens", "cls", "multilabel", 2),
        ("nomic_bare", "pooler", "classification", 3),
        ("gte_bare_no_types", "cls", "classification", 3),
        ("llama_lm_tied_linear", "last", "classification", 3),
        ("mistral_lm_window", "last", "classification", 3),
        ("qwen2_lm_tied", "last", "classification", 3),
        ("qwen3_bare", "last", "multilabel", 2),
        ("smollm3_lm_tied", "last", "regression", 1),
        ("gemma3_text_lm_tied", "last", "classification", 3),
    ],
)
def test_transformers_gives_the_same_logits_on_text(
    tmp_path, torch, transformers, monkeypatch, case, pooling, task, classes
):
    run = finished(tmp_path, case, pooling, classes, task)
    out = tmp_path / "out"
    expected = logits_of(run, TEXTS)
    export(run, out)
    model = load_whole(transformers.AutoModelForSequenceClassification, out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == run.tokenizer.max_length
    assert tokenizer.padding_side == "right"
    names = [model.config.id2label[number] for number in range(classes)]
    assert names == list(run.labels or ["LABEL_0"])
    for text in TEXTS:
        tokens, _ = run.tokenizer.encode([text])
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == tokens[0].tolist()

    with torch.no_grad():
        for text, logits in zip(TEXTS, expected, strict=True):
            inputs = tokenizer(text, truncation=True, return_tensors="pt")
            assert_close(model(**inputs).logits[0].numpy(), logits)
        outputs = run_readme(out, monkeypatch, texts=TEXTS)["outputs"]
        assert_close(outputs.logits.numpy(), expected)

    # The problem type is understood: the loss of targets that are 0.
    if task == "classification":
        targets = torch.zeros(len(TEXTS), dtype=torch.long)
        losses = -np.log(np.asarray(jax.nn.softmax(expected))[:, 0])
    elif task == "regression":
        targets = torch.zeros(len(TEXTS))
        losses = expected[:, 0] ** 2
    else:
        targets = torch.zeros(len(TEXTS), classes)
        losses = np.log1p(np.exp(expected))
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    assert math.isclose(model(**batch, labels=targets).loss.item(), losses.mean(), rel_tol=1e-4)


@pytest.mark.parametrize(
    ("case", "bias"), [("vit_classifier", True), ("vit_gray_no_qkv_bias", False)]
)
def test_transformers_gives_the_same_logits_on_images(
    tmp_path, torch, transformers, monkeypatch, case, bias
):
    run = finished(tmp_path, case, "cls", bias=bias)
    out = tmp_path / "out"
    images = inputs(run)
    expected = logits_of(run, images)
    export(run, out)
    model = load_whole(transformers.AutoModelForImageClassification, out)
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
    with torch.no_grad():
        for image, logits in zip(images, expected, strict=True):
            pixels = processor(image, return_tensors="pt")
            assert_close(model(**pixels).logits[0].numpy(), logits)
        outputs = run_readme(out, monkeypatch, images=images)["outputs"]
        assert_close(outputs.logits.numpy(), expected)
    assert model.config.id2label[2] == "ja 好"


@pytest.mark.parametrize(
    ("resize", "crop"), [(None, False), ((36, 40), True), ((36,), True), ((), True)]
)
def test_transformers_makes_the_same_pixels_by_the_exported_processor(
    tmp_path, transformers, resize, crop
):
    settings = ImageSettings(32, resample=3, mean=(0.4, 0.5, 0.6), resize=resize, crop=crop)
    content = json.dumps(layout.preprocessor(settings))
    (tmp_path / "preprocessor_config.json").write_text(content)
    pictures = [tiny.picture(1).resize((50, 41)), tiny.picture(2).resize((37, 60))]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = processor(pictures, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, to_pixels(pictures, settings), atol=1e-5)


@pytest.mark.parametrize(("case", "pooling", "format"), SENTENCE_TRANSFORMERS)
@pytest.mark.parametrize("bias", [True, False])
def test_sentence_transformers_encodes_to_the_logits(
    tmp_path, sentence_transformers, transformers, monkeypatch, caplog, case, pooling, format, bias
):
    run = finished(tmp_path, case, pooling, bias=bias)
    out = tmp_path / "out"
    expected = logits_of(run, TEXTS)
    export(run, out, format)
    transformers.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        names = run_readme(out, monkeypatch, texts=TEXTS)
    # No warning of weights that are missing, not used, or made anew. adapt itself says that a text
    # is mostly [UNK].
    of_peers = [record for record in caplog.records if not record.name.startswith("adapt.")]
    assert not of_peers, caplog.text
    model = names["model"]
    assert model.max_seq_length == run.tokenizer.max_length
    assert names["logits"].dtype == np.float32
    assert_close(names["logits"], expected)
    assert_close(np.stack([model.encode(text) for text in TEXTS]), expected)


@pytest.mark.parametrize(("case", "architecture"), [*LANGUAGE_MODELS, *BERT_LIKE, *DECODERS])
def test_transformers_gives_the_recorded_logits_of_language_models(
    tmp_path, torch, transformers, case, architecture
):
    recorded = np.load(REFERENCES / case / "outputs.npz")
    export(hub.load(pretrained(tmp_path, case)), tmp_path / "out")
    model = load_whole(getattr(transformers, architecture), tmp_path / "out")
    batch = {}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in recorded:
            batch[name] = torch.tensor(recorded[name]).long()
    with torch.no_grad():
        outputs = model(**batch)
    logits = outputs.prediction_logits if architecture == "BertForPreTraining" else outputs.logits
    is_text = recorded["attention_mask"].astype(bool)
    assert_close(logits.numpy()[is_text], recorded["logits"][is_text])


@pytest.mark.parametrize(
    "case",
    [
        "bert_bare_pooler",
        "gpt2_bare",
        "qwen3_bare",
        "gemma3_text_both_ways",
        "modernbert_mlm_tied",
        "esm_mlm_old",
        "esm_absolute",
        "nomic_bare",
        "gte_bare_no_types",
        "roberta_bare",
        "xlm_roberta_tags",
        "distilbert_mlm",
        "electra_discriminator",
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers_encodes_to_the_vectors(
    tmp_path, sentence_transformers, transformers, monkeypatch, caplog, case, pooling, normalize
):
    run = embedder(tmp_path, case, pooling, normalize)
    expected = encode(run, TEXTS)
    assert export(run, tmp_path / "out") == "sentence-transformers"
    caplog.clear()
    transformers.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        names = run_readme(tmp_path / "out", monkeypatch, texts=TEXTS)
    assert not caplog.records, caplog.text
    assert_close(names["vectors"], expected)
    assert_close(np.stack([names["model"].encode(text) for text in TEXTS]), expected)
    # It is a checkpoint that says how its vectors are made.
    assert_close(encode(hub.load(tmp_path / "out"), TEXTS), expected)


@pytest.mark.parametrize(
    "case",
    [
        "bert_bare_pooler",
        "gpt2_bare",
        "llama_lm_untied",
        "qwen2_lm_tied",
        "smollm3_lm_tied",
        "modernbert_tokens",
        "esm_tokens",
        "nomic_bare",
        "gte_bare_no_types",
        "roberta_bare",
        "xlm_roberta_tags",
        "distilbert_mlm",
        "electra_discriminator",
    ],
)
def test_transformers_gives_the_same_logits_of_words(
    tmp_path, transformers, torch, monkeypatch, case
):
    run = tagger(tmp_path, case)
    words = [text.split() for text in TEXTS[:3]]
    expected = predicted(run, words)
    assert export(run, tmp_path / "out") == "transformers"
    load_whole(transformers.AutoModelForTokenClassification, tmp_path / "out")
    with torch.no_grad():
        names = run_readme(tmp_path / "out", monkeypatch, words=words)
    logits = []
    for row in range(len(words)):
        seen = set()
        for token, word in enumerate(names["inputs"].word_ids(row)):
            if word is not None and word not in seen:
                seen.add(word)
                logits.append(names["outputs"].logits[row, token].numpy())
    assert_close(np.stack(logits), expected)
    assert names["model"].config.id2label[2] == "ja 好"


@pytest.mark.parametrize(
    "case",
    ["bert_bare_pooler", "gpt2_bare", "modernbert_mlm_tied", "distilbert_mlm", "xlm_roberta_tags"],
)
def test_transformers_gives_the_same_logits_of_spans(
    tmp_path, transformers, torch, monkeypatch, case
):
    run = answerer(tmp_path, case)
    # The exported lines cut a long context, and so does a run without windows.
    run = dataclasses.replace(run, tokenizer=run.tokenizer.replaced(stride=0))
    contexts = ["the film was good", "the cast was cold and the plot dull"]
    questions = ["so", "the cast"]
    expected = predicted(run, list(zip(contexts, questions, strict=True)))
    assert export(run, tmp_path / "out") == "transformers"
    load_whole(transformers.AutoModelForQuestionAnswering, tmp_path / "out")
    with torch.no_grad():
        names = run_readme(tmp_path / "out", monkeypatch, questions=questions, contexts=contexts)
    outputs = names["outputs"]
    for row, (start, end) in enumerate(expected):
        length = int(names["inputs"]["attention_mask"][row].sum())
        assert_close(outputs.start_logits[row, :length].numpy(), start[:length])
        assert_close(outputs.end_logits[row, :length].numpy(), end[:length])
