"""Exports: what is in the folder, what is refused, and, where torch is installed, the logits of the other libraries."""

import dataclasses
import errno
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from adapt import families, hub, train
from adapt import tree as t
from adapt.errors import ExportError, OutputError
from adapt.export import EXPORTS, PAD, choose, export
from adapt.features import image_windows, text_windows
from adapt.images import image_settings, preprocessor
from adapt.models import Classifier
from adapt.tokenizer import Tokenizer

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
]


@pytest.fixture
def finished(pretrained):
    """`finished("bert_bare_pooler", "cls")`: a run with a random head, no weight of it 0 or 1."""

    folders = {}

    def make(case, pooling, classes=3, task="classification", bias: bool | None = None, gap=True) -> hub.Pretrained:
        folder = folders[case] = folders.get(case) or pretrained(case)
        if not gap:
            vocabulary = read(folder / "vocab.json")
            free = sorted(set(range(100)) - set(vocabulary.values()))
            (folder / "vocab.json").write_text(json.dumps(vocabulary | {f"unused {id}": id for id in free}))
        run = hub.load(folder)
        biased = bias if bias is not None else not case.startswith("gpt2") or pooling != "last"
        run = dataclasses.replace(run, head=Classifier(classes, pooling, biased, dropout=0.1), task=task)
        rng = np.random.default_rng(5)
        head = t.map_paths(lambda _, leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), run.model.shapes()["head"])
        labels = () if task == "regression" else ("no", "maybe; so", "ja 好")[:classes]
        return dataclasses.replace(run, params=run.params | {"head": head}, labels=labels)

    return make


def inputs(run: hub.Pretrained) -> list:
    if not run.config.is_image:
        return TEXTS
    rng = np.random.default_rng(7)
    shapes, bands = [(40, 56), (20, 30), (32, 32)], run.config.channels
    arrays = [rng.integers(0, 256, (*shape, bands) if bands == 3 else shape, np.uint8) for shape in shapes]
    return [Image.fromarray(array) for array in arrays]


def logits_of(run: hub.Pretrained, raw: list) -> np.ndarray:
    """What `predict` computes: packed rows."""
    windows = (image_windows if run.config.is_image else text_windows)(run, [raw])
    batches = ((index, batch) for index, batch, _ in windows)
    return train.evaluate(train.make_eval(run.model), run.params, batches, len(raw))


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path: Path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(("case", "pooling", "format"), [*TRANSFORMERS, *SENTENCE_TRANSFORMERS])
def test_a_whole_folder_is_written_and_nothing_beside_it(finished, tmp_path, case, pooling, format):
    run, out = finished(case, pooling), tmp_path / "new" / "out"
    before = t.digest(run.params)
    assert export(run, out, format) == format
    wanted = {"config.json", "model.safetensors", "README.md"}
    if run.config.is_image:
        wanted |= {"preprocessor_config.json"}
    else:
        wanted |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    if format == "sentence-transformers":
        wanted |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
        wanted |= {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert files_of(out) == wanted and [path.name for path in out.parent.iterdir()] == ["out"]
    assert t.digest(run.params) == before
    config = read(out / "config.json")
    assert config["id2label"] == {"0": "no", "1": "maybe; so", "2": "ja 好"} and config["num_labels"] == 3
    assert config["label2id"] == {name: index for index, name in enumerate(run.labels)}
    assert config["problem_type"] == "single_label_classification"
    assert all(name in (out / "README.md").read_text("utf-8") for name in run.labels)
    assert all(tensor.dtype == np.float32 for tensor in hub.read_tensors(out).values())


def test_auto_takes_transformers_where_it_can(finished):
    for case, pooling, format in [*TRANSFORMERS, *SENTENCE_TRANSFORMERS]:
        if (case, pooling, format) != ("bert_bare_pooler", "cls", "sentence-transformers"):
            assert choose(finished(case, pooling), "auto") == format


@pytest.mark.parametrize(
    ("task", "classes", "problem"),
    [("multilabel", 3, "multi_label_classification"), ("regression", 1, "regression")],
)
def test_the_problem_type_is_in_the_config(finished, tmp_path, task, classes, problem):
    export(finished("bert_bare_pooler", "pooler", classes, task), tmp_path / "out")
    config = read(tmp_path / "out" / "config.json")
    assert config["problem_type"] == problem and len(config["id2label"]) == config["num_labels"] == classes


def test_the_tokenizer_file_neither_truncates_nor_pads_by_itself(finished, tmp_path):
    run = finished("bert_bare_pooler", "mean")
    export(run, tmp_path / "out")
    content, settings = read(tmp_path / "out" / "tokenizer.json"), read(tmp_path / "out" / "tokenizer_config.json")
    assert content["truncation"] is None and content["padding"] is None
    assert settings["model_max_length"] == run.tokenizer.max_length == 12
    assert (settings["padding_side"], settings["pad_token"]) == ("right", "[PAD]")
    assert run.tokenizer.encode(TEXTS)[1] == 1  # the run's own tokenizer still truncates


@pytest.mark.parametrize("gap", [True, False])
def test_a_tokenizer_without_padding_gets_a_token_and_the_embedding_a_row(finished, tmp_path, gap):
    run = finished("gpt2_bare", "last", gap=gap)
    size, digest = run.tokenizer.size, t.digest(run.params)
    assert size == run.config.vocabulary == 100
    export(run, tmp_path / "out")
    config, settings = read(tmp_path / "out" / "config.json"), read(tmp_path / "out" / "tokenizer_config.json")
    again = hub.load(tmp_path / "out")
    vocabulary = again.tokenizer.backend.get_vocab()
    assert settings["pad_token"] == PAD and vocabulary[PAD] == config["pad_token_id"]
    assert list(vocabulary.values()).count(config["pad_token_id"]) == 1
    assert config["vocab_size"] == len(again.params["encoder"]["embedding"]["token"]) == (100 if gap else 101)
    assert "token_type_ids" not in settings["model_input_names"]
    assert run.tokenizer.backend.token_to_id(PAD) is None and t.digest(run.params) == digest
    export(dataclasses.replace(again, task=run.task, labels=run.labels), tmp_path / "second")  # nothing is added now
    assert read(tmp_path / "second" / "config.json") == config


def test_a_padding_token_never_takes_the_id_of_another(finished, tmp_path):
    run = finished("gpt2_bare", "last")
    content = json.loads(run.tokenizer.backend.to_str())
    content["model"]["vocab"] |= {"\u0120": len(content["model"]["vocab"]) + 1, "x": len(content["model"]["vocab"])}
    content["added_tokens"] = []
    backend = type(run.tokenizer.backend).from_str(json.dumps(content))
    run = dataclasses.replace(run, tokenizer=Tokenizer(backend, 12))
    with pytest.raises(ExportError, match="gap"):
        export(run, tmp_path / "out")


def test_the_first_token_goes_through_a_straight_pooler(finished, tmp_path):
    run = finished("bert_bare_pooler", "cls")
    export(run, tmp_path / "out")
    tensors = hub.read_tensors(tmp_path / "out")
    np.testing.assert_array_equal(tensors["bert.pooler.dense.weight"], 2.0**-16 * np.eye(36, dtype=np.float32))
    assert not tensors["bert.pooler.dense.bias"].any()
    kernel = run.params["head"]["classifier"]["kernel"]
    np.testing.assert_array_equal(tensors["classifier.weight"], 2.0**16 * kernel.T)
    assert "2^-16" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("case", "pooling", "format"), TRANSFORMERS)
def test_adapt_loads_back_what_it_exported(finished, tmp_path, case, pooling, format):
    run = finished(case, pooling)
    export(run, tmp_path / "out")
    again = hub.load(tmp_path / "out")
    assert again.images == run.images or run.images.mean == again.images.mean[:1]
    np.testing.assert_allclose(logits_of(again, inputs(run)), logits_of(run, inputs(run)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("case", "architecture"), LANGUAGE_MODELS)
def test_a_language_model_comes_back_bit_for_bit(pretrained, tmp_path, case, architecture):
    run = hub.load(pretrained(case))
    assert export(run, tmp_path / "out") == "transformers"
    again = hub.load(tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["architectures"] == [architecture]
    assert (again.head, again.config) == (run.head, run.config)
    assert t.digest(again.params) == t.digest(run.params)


def test_every_name_has_the_prefix_of_the_original_library(pretrained, tmp_path):
    for case in ("bert_pretraining", "bert_mlm_untied_sharded", "gpt2_lm_untied", "vit_classifier"):
        folder = pretrained(case)
        run = hub.load(folder)
        module = families.family(run.config.family)
        names = set(families.with_prefix(module, families.to_tensors(module, run.config, run.head, run.params)))
        stored = {
            re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name)) for name in hub.read_tensors(folder)
        }
        assert names <= stored, (case, names - stored)


def test_image_settings_come_back(tmp_path):
    settings = image_settings(tmp_path, 32, 3)
    settings = dataclasses.replace(settings, resample=3, rescale=1 / 127.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor(settings)))
    assert image_settings(tmp_path, 32, 3) == settings


REFUSED = [
    ("bert_bare_pooler", "mean", "transformers"),
    ("bert_bare_pooler", "last", "auto"),
    ("bert_bare_pooler", "pooler", "sentence-transformers"),
    ("gpt2_bare", "last", "sentence-transformers"),
    ("gpt2_bare", "mean", "transformers"),
    ("vit_classifier", "mean", "auto"),
    ("vit_classifier", "cls", "sentence-transformers"),
    ("bert_bare_pooler", "cls", "onnx"),
]


def refuse(run: hub.Pretrained, out: Path, format: str) -> str:
    """The one line that says no; nothing is written."""
    with pytest.raises(ExportError) as fault:
        export(run, out, format)
    assert "\n" not in str(fault.value) and not out.exists() and not list(out.parent.glob(".*"))
    return str(fault.value)


@pytest.mark.parametrize(("case", "pooling", "format"), REFUSED)
def test_what_does_not_export_is_one_line_that_names_what_does(finished, tmp_path, case, pooling, format):
    assert EXPORTS in refuse(finished(case, pooling), tmp_path / "out", format)


def test_a_bias_on_the_last_token_of_gpt2_is_refused(finished, tmp_path):
    assert "a bias" in refuse(finished("gpt2_bare", "last", bias=True), tmp_path / "out", "auto")


def test_an_encoder_without_a_head_is_refused(pretrained, tmp_path):
    for case in ("bert_bare_pooler", "gpt2_bare", "vit_bare_pooler"):
        assert "no task head" in refuse(hub.load(pretrained(case)), tmp_path / "out", "auto")


def test_a_text_model_without_a_tokenizer_is_refused(finished, tmp_path):
    run = dataclasses.replace(finished("bert_bare_pooler", "cls"), tokenizer=None)
    assert "no tokenizer" in refuse(run, tmp_path / "out", "auto")


def test_an_output_that_exists_is_kept_unless_overwrite(finished, tmp_path):
    run, out = finished("bert_bare_pooler", "cls"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export(run, out)
    with pytest.raises(ExportError):
        export(run, out, "onnx", overwrite=True)
    assert files_of(out) == {"mine.txt"}
    export(run, out, overwrite=True)
    assert "mine.txt" not in files_of(out) and "config.json" in files_of(out)
    with pytest.raises(OutputError, match="exists"):
        export(run, out / "config.json", overwrite=True)


def test_an_output_that_holds_the_run_is_refused(finished, tmp_path):
    run = finished("bert_bare_pooler", "cls")
    for out in (Path(run.source), Path(run.source).parent):
        with pytest.raises(OutputError, match="holds the run"):
            export(run, out, overwrite=True)
    assert (Path(run.source) / "model.safetensors").exists()


def test_a_disk_that_fills_up_leaves_what_was_there(finished, tmp_path, monkeypatch):
    run, out, write = finished("bert_bare_pooler", "mean"), tmp_path / "there" / "out", hub.write_folder
    export(run, out)
    before = (out / "config.json").read_bytes()

    def full(folder, *content):
        if folder.name == "2_Dense":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, *content)

    monkeypatch.setattr(hub, "write_folder", full)
    with pytest.raises(OutputError, match="No space left"):
        export(run, out, overwrite=True)
    assert (out / "config.json").read_bytes() == before and [p.name for p in out.parent.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="No space left"):
        export(run, tmp_path / "there" / "other")
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_the_command_says_what_it_wrote_and_fails_in_one_line(pretrained, tmp_path, command):
    run, out = pretrained("bert_classifier"), tmp_path / "out"
    done = command("export", "--run", run, "--out", out)
    assert done.returncode == 0 and "transformers" in done.stdout and (out / "config.json").exists(), done.stderr
    for flags in (("--out", out), ("--out", tmp_path / "x", "--format", "onnx"), ("--out", run, "--overwrite")):
        failed = command("export", "--run", run, *flags)
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and failed.stderr.startswith("error: ")
        assert not (tmp_path / "x").exists()


# The rest needs the other libraries. Their own warnings are theirs.
peers = pytest.mark.filterwarnings("default")


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed: pip install adapt[peers]")
    module.set_num_threads(1)
    return module


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install adapt[peers]")


@pytest.fixture
def sentence_transformers(torch):
    reason = "sentence-transformers is not installed: pip install adapt[peers]"
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


@peers
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
        ("gpt2_hub_layout", "last", "classification", 2),
    ],
)
def test_transformers_gives_the_same_logits_on_text(
    finished, tmp_path, torch, transformers, monkeypatch, case, pooling, task, classes
):
    run, out = finished(case, pooling, classes, task), tmp_path / "out"
    ours = logits_of(run, TEXTS)
    export(run, out)
    model = loaded(transformers, out, "AutoModelForSequenceClassification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == run.tokenizer.max_length and tokenizer.padding_side == "right"
    assert [model.config.id2label[i] for i in range(classes)] == list(run.labels or ["LABEL_0"])
    ids = tokenizer(TEXTS, truncation=True)["input_ids"]
    assert ids == [list(run.tokenizer.encode([text])[0][0]) for text in TEXTS]
    with torch.no_grad():
        single = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
        batch = readme_code(out, monkeypatch, texts=TEXTS)["outputs"].logits.numpy()
    np.testing.assert_allclose(np.stack(single), ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(batch, ours, atol=1e-4, rtol=0)
    target = {"classification": torch.zeros(5, dtype=torch.long), "regression": torch.zeros(5)}
    labels = target.get(task, torch.zeros(5, classes))
    loss = model(**tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt"), labels=labels).loss
    expected = {"classification": -np.log(np.asarray(jax.nn.softmax(ours))[:, 0]), "regression": ours[:, 0] ** 2}
    expected["multilabel"] = np.log1p(np.exp(ours))
    assert math.isclose(loss.item(), expected[task].mean(), rel_tol=1e-4)  # the problem type is understood


@peers
@pytest.mark.parametrize(("case", "bias"), [("vit_classifier", True), ("vit_gray_no_qkv_bias", False)])
def test_transformers_gives_the_same_logits_on_images(finished, tmp_path, torch, transformers, monkeypatch, case, bias):
    run, out = finished(case, "cls", bias=bias), tmp_path / "out"
    images = inputs(run)
    ours = logits_of(run, images)
    export(run, out)
    model = loaded(transformers, out, "AutoModelForImageClassification")
    processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
    with torch.no_grad():
        single = [model(**processor(image, return_tensors="pt")).logits[0].numpy() for image in images]
        batch = readme_code(out, monkeypatch, images=images)["outputs"].logits.numpy()
    np.testing.assert_allclose(np.stack(single), ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(batch, ours, atol=1e-4, rtol=0)
    assert model.config.id2label[2] == "ja 好"


@peers
@pytest.mark.parametrize(("case", "pooling", "format"), SENTENCE_TRANSFORMERS)
@pytest.mark.parametrize("bias", [True, False])
def test_sentence_transformers_encodes_to_the_logits(
    finished, tmp_path, sentence_transformers, transformers, monkeypatch, caplog, case, pooling, format, bias
):
    run, out = finished(case, pooling, bias=bias), tmp_path / "out"
    ours = logits_of(run, TEXTS)
    export(run, out, format)
    transformers.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        given = readme_code(out, monkeypatch, texts=TEXTS)
    assert not caplog.records, caplog.text  # of weights that are missing, not used, or made anew
    assert given["model"].max_seq_length == run.tokenizer.max_length and given["logits"].dtype == np.float32
    np.testing.assert_allclose(given["logits"], ours, atol=1e-4, rtol=0)
    single = np.stack([given["model"].encode(text) for text in TEXTS])
    np.testing.assert_allclose(single, ours, atol=1e-4, rtol=0)


@peers
@pytest.mark.parametrize(("case", "architecture"), LANGUAGE_MODELS)
def test_transformers_gives_the_recorded_logits_of_language_models(
    pretrained, tmp_path, torch, transformers, case, architecture
):
    recorded = np.load(Path(__file__).parent / "references" / case / "outputs.npz")
    export(hub.load(pretrained(case)), tmp_path / "out")
    model = loaded(transformers, tmp_path / "out", architecture)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: torch.tensor(recorded[name]).long() for name in names if name in recorded}
    with torch.no_grad():
        outputs = model(**batch)
    logits = outputs.prediction_logits if architecture == "BertForPreTraining" else outputs.logits
    real = recorded["attention_mask"].astype(bool)
    np.testing.assert_allclose(logits.numpy()[real], recorded["logits"][real], atol=1e-4, rtol=0)
