"""What transformers and sentence-transformers compute from an export; skipped where they are not installed."""

import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt.export.exporting import export
from adapt.pretrained import hub
from tests.helpers.exports import (
    LANGUAGE_MODELS,
    REFERENCES,
    SENTENCE_TRANSFORMERS,
    TEXTS,
    finished,
    inputs,
    logits_of,
    pretrained,
)

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own warnings are theirs


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


def readme_code(folder: Path, monkeypatch, **given) -> dict:
    """Run the code of the exported README.md in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    monkeypatch.chdir(folder)
    exec(code, given)
    return given


def loaded(transformers, folder: Path, auto: str):
    """The model, after a look at the report: every weight is from the file, and every weight of the file is used."""
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


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
    ],
)
def test_transformers_gives_the_same_logits_on_text(
    tmp_path, torch, transformers, monkeypatch, case, pooling, task, classes
):
    run, out = finished(tmp_path, case, pooling, classes, task), tmp_path / "out"
    ours = logits_of(run, TEXTS)
    export(run, out)
    model = loaded(transformers, out, "AutoModelForSequenceClassification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert (
        tokenizer.model_max_length == run.tokenizer.max_length and tokenizer.padding_side == "right"
    )
    assert [model.config.id2label[i] for i in range(classes)] == list(run.labels or ["LABEL_0"])
    ids = tokenizer(TEXTS, truncation=True)["input_ids"]
    assert ids == [list(run.tokenizer.encode([text])[0][0]) for text in TEXTS]
    with torch.no_grad():
        single = [
            model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].numpy()
            for text in TEXTS
        ]
        batch = readme_code(out, monkeypatch, texts=TEXTS)["outputs"].logits.numpy()
    np.testing.assert_allclose(np.stack(single), ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(batch, ours, atol=1e-4, rtol=0)
    target = {"classification": torch.zeros(5, dtype=torch.long), "regression": torch.zeros(5)}
    labels = target.get(task, torch.zeros(5, classes))
    loss = model(
        **tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt"), labels=labels
    ).loss
    expected = {
        "classification": -np.log(np.asarray(jax.nn.softmax(ours))[:, 0]),
        "regression": ours[:, 0] ** 2,
    }
    expected["multilabel"] = np.log1p(np.exp(ours))
    assert math.isclose(
        loss.item(), expected[task].mean(), rel_tol=1e-4
    )  # the problem type is understood


@pytest.mark.parametrize(
    ("case", "bias"), [("vit_classifier", True), ("vit_gray_no_qkv_bias", False)]
)
def test_transformers_gives_the_same_logits_on_images(
    tmp_path, torch, transformers, monkeypatch, case, bias
):
    run, out = finished(tmp_path, case, "cls", bias=bias), tmp_path / "out"
    images = inputs(run)
    ours = logits_of(run, images)
    export(run, out)
    model = loaded(transformers, out, "AutoModelForImageClassification")
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
    with torch.no_grad():
        single = [
            model(**processor(image, return_tensors="pt")).logits[0].numpy() for image in images
        ]
        batch = readme_code(out, monkeypatch, images=images)["outputs"].logits.numpy()
    np.testing.assert_allclose(np.stack(single), ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(batch, ours, atol=1e-4, rtol=0)
    assert model.config.id2label[2] == "ja 好"


@pytest.mark.parametrize(("case", "pooling", "format"), SENTENCE_TRANSFORMERS)
@pytest.mark.parametrize("bias", [True, False])
def test_sentence_transformers_encodes_to_the_logits(
    tmp_path, sentence_transformers, transformers, monkeypatch, caplog, case, pooling, format, bias
):
    run, out = finished(tmp_path, case, pooling, bias=bias), tmp_path / "out"
    ours = logits_of(run, TEXTS)
    export(run, out, format)
    transformers.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        given = readme_code(out, monkeypatch, texts=TEXTS)
    assert not caplog.records, caplog.text  # of weights that are missing, not used, or made anew
    assert (
        given["model"].max_seq_length == run.tokenizer.max_length
        and given["logits"].dtype == np.float32
    )
    np.testing.assert_allclose(given["logits"], ours, atol=1e-4, rtol=0)
    single = np.stack([given["model"].encode(text) for text in TEXTS])
    np.testing.assert_allclose(single, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("case", "architecture"), LANGUAGE_MODELS)
def test_transformers_gives_the_recorded_logits_of_language_models(
    tmp_path, torch, transformers, case, architecture
):
    recorded = np.load(REFERENCES / case / "outputs.npz")
    export(hub.load(pretrained(tmp_path, case)), tmp_path / "out")
    model = loaded(transformers, tmp_path / "out", architecture)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: torch.tensor(recorded[name]).long() for name in names if name in recorded}
    with torch.no_grad():
        outputs = model(**batch)
    logits = outputs.prediction_logits if architecture == "BertForPreTraining" else outputs.logits
    real = recorded["attention_mask"].astype(bool)
    np.testing.assert_allclose(logits.numpy()[real], recorded["logits"][real], atol=1e-4, rtol=0)
