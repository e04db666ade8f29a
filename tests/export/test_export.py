"""Exports: what is in the folder, what is refused, and that nothing is half-written. Parity: test_export_peers.py."""

import dataclasses
import errno
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.errors import ExportError, OutputError
from adapt.export import layout
from adapt.export.exporting import choose_format, export, what_exports
from adapt.export.inputs import PAD
from adapt.features import encode
from adapt.models import Classifier
from adapt.pretrained import hub
from adapt.pretrained.images import read_image_settings
from adapt.pretrained.sentence_files import Embedding
from adapt.pretrained.tokenizer import Tokenizer
from adapt.pretrained.tokenizer_files import NAMED
from adapt.training.checkpoint import save_params
from tests.helpers.exports import (
    LANGUAGE_MODELS,
    SENTENCE_TRANSFORMERS,
    TEXTS,
    TRANSFORMERS,
    answerer,
    finished,
    inputs,
    logits_of,
    predicted,
    pretrained,
    tagger,
)
from tests.helpers.folders import FOLDERS


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path: Path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(("case", "pooling", "format"), [*TRANSFORMERS, *SENTENCE_TRANSFORMERS])
def test_a_whole_folder_is_written_and_nothing_beside_it(tmp_path, case, pooling, format):
    run, out = finished(tmp_path, case, pooling), tmp_path / "new" / "out"
    before = tree.digest(run.params)
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
    assert tree.digest(run.params) == before
    config = read(out / "config.json")
    assert (
        config["id2label"] == {"0": "no", "1": "maybe; so", "2": "ja 好"}
        and config["num_labels"] == 3
    )
    assert config["label2id"] == {name: index for index, name in enumerate(run.labels)}
    assert config["problem_type"] == "single_label_classification"
    assert all(name in (out / "README.md").read_text("utf-8") for name in run.labels)
    assert all(tensor.dtype == np.float32 for tensor in hub.read_tensors(out).values())
    assert (
        len({path.stat().st_mode for path in out.rglob("*") if path.is_file()}) == 1
    )  # all as readable as each other


def test_an_exported_classifier_with_a_dense_layer_encodes_to_its_logits(tmp_path):
    run = finished(tmp_path, "bert_bare_pooler", "mean")
    export(run, tmp_path / "out", "sentence-transformers")
    found = encode(hub.load(tmp_path / "out"), TEXTS)
    np.testing.assert_allclose(found, logits_of(run, TEXTS), atol=1e-5, rtol=0)


def test_dense_layers_of_a_checkpoint_are_exported_as_they_were(tmp_path):
    FOLDERS.CASES["two dense layers"].make(tmp_path / "model")
    run = hub.load(tmp_path / "model")
    run = dataclasses.replace(run, embedding=dataclasses.replace(run.embedding, dimensions=None))
    export(run, tmp_path / "out")
    assert read(tmp_path / "out/modules.json")[3]["path"] == "3_Dense"
    np.testing.assert_array_equal(encode(hub.load(tmp_path / "out"), TEXTS), encode(run, TEXTS))


def test_auto_takes_transformers_where_it_can(tmp_path):
    for case, pooling, format in [*TRANSFORMERS, *SENTENCE_TRANSFORMERS]:
        if (case, pooling, format) != ("bert_bare_pooler", "cls", "sentence-transformers"):
            assert choose_format(finished(tmp_path, case, pooling), "auto") == format


@pytest.mark.parametrize(
    ("task", "classes", "problem"),
    [("multilabel", 3, "multi_label_classification"), ("regression", 1, "regression")],
)
def test_the_problem_type_is_in_the_config(tmp_path, task, classes, problem):
    export(finished(tmp_path, "bert_bare_pooler", "pooler", classes, task), tmp_path / "out")
    config = read(tmp_path / "out" / "config.json")
    assert (
        config["problem_type"] == problem
        and len(config["id2label"]) == config["num_labels"] == classes
    )


def test_the_tokenizer_file_neither_truncates_nor_pads_by_itself(tmp_path):
    run = finished(tmp_path, "bert_bare_pooler", "mean")
    export(run, tmp_path / "out")
    content, settings = (
        read(tmp_path / "out" / "tokenizer.json"),
        read(tmp_path / "out" / "tokenizer_config.json"),
    )
    assert content["truncation"] is None and content["padding"] is None
    assert settings["model_max_length"] == run.tokenizer.max_length == 12
    assert (settings["padding_side"], settings["pad_token"]) == ("right", "[PAD]")
    assert run.tokenizer.encode(TEXTS)[1] == 1  # the run's own tokenizer still truncates


@pytest.mark.parametrize("gap", [True, False])
def test_a_tokenizer_without_padding_gets_a_token_and_the_embedding_a_row(tmp_path, gap):
    run = finished(tmp_path, "gpt2_bare", "last", gap=gap)
    size, digest = run.tokenizer.size, tree.digest(run.params)
    assert size == run.config.vocabulary == 100
    export(run, tmp_path / "out")
    config, settings = (
        read(tmp_path / "out" / "config.json"),
        read(tmp_path / "out" / "tokenizer_config.json"),
    )
    again = hub.load(tmp_path / "out")
    vocabulary = again.tokenizer.backend.get_vocab()
    assert settings["pad_token"] == PAD and vocabulary[PAD] == config["pad_token_id"]
    assert list(vocabulary.values()).count(config["pad_token_id"]) == 1
    assert (
        config["vocab_size"]
        == len(again.params["encoder"]["embedding"]["token"])
        == (100 if gap else 101)
    )
    assert "token_type_ids" not in settings["model_input_names"]
    assert run.tokenizer.backend.token_to_id(PAD) is None and tree.digest(run.params) == digest
    export(
        dataclasses.replace(again, task=run.task, labels=run.labels), tmp_path / "second"
    )  # nothing is added now
    assert read(tmp_path / "second" / "config.json") == config


def named_folder(tmp_path: Path, case: str, **named: str | None) -> Path:
    """A checkpoint whose tokenizer_config.json names these tokens."""
    folder = pretrained(tmp_path, case)
    settings = read(folder / "tokenizer_config.json") | named
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def with_classes(model: hub.Pretrained) -> hub.Pretrained:
    """The checkpoint with a classifier of the last token, of zeros."""
    model = dataclasses.replace(model, head=Classifier(2, "last", bias=False), labels=("a", "b"))
    head = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.model.shapes()["head"])
    return dataclasses.replace(
        model, task="classification", params={"encoder": model.params["encoder"], "head": head}
    )


def saved_and_loaded(folder: Path, run: hub.Pretrained) -> hub.Pretrained:
    """A run as its folder keeps it."""
    folder.mkdir()
    hub.save_model(folder, run)
    save_params(folder / "checkpoints", run.params)
    return hub.load(folder)


def exported_names(run: hub.Pretrained, out: Path) -> tuple[dict, dict]:
    """(the named tokens of an export's tokenizer_config.json, those of special_tokens_map.json)."""
    export(run, out)
    settings = read(out / "tokenizer_config.json")
    named = {name: settings[name] for name in NAMED if name in settings}
    return named, read(out / "special_tokens_map.json")


def test_the_special_tokens_that_a_folder_names_go_along_to_exports(tmp_path):
    """As Qwen3's: <|endoftext|> is for padding, another token ends a text, and none begins one."""
    named = {"pad_token": "<|endoftext|>", "eos_token": "</s>", "bos_token": None}
    checkpoint = hub.load(named_folder(tmp_path, "qwen3_bare", **named))
    run = saved_and_loaded(tmp_path / "run", with_classes(checkpoint))
    told, present = exported_names(run, tmp_path / "of-run")
    assert told.items() >= named.items()
    assert present == {name: token for name, token in told.items() if token}
    vocabulary = hub.load(tmp_path / "of-run").tokenizer.backend.get_vocab()
    config = read(tmp_path / "of-run" / "config.json")
    assert PAD not in vocabulary and config["pad_token_id"] == vocabulary["<|endoftext|>"]
    assert exported_names(checkpoint, tmp_path / "plain") == (told, present)
    again = hub.load(tmp_path / "plain")
    assert exported_names(again, tmp_path / "second") == (told, present)


@pytest.mark.parametrize("shared", [{"eos_token": "</s>"}, {}])
def test_a_padding_token_that_texts_may_end_in_is_replaced_for_a_classifier(tmp_path, shared):
    padding = "</s>" if shared else "<s>"  # <s> is before each text
    folder = named_folder(tmp_path, "qwen3_bare", pad_token=padding, **shared)
    told, _ = exported_names(with_classes(hub.load(folder)), tmp_path / "out")
    assert told["pad_token"] == PAD and told.items() >= shared.items()


def test_a_run_whose_folder_names_no_tokens_has_those_that_are_spelled_as_usual(tmp_path):
    run = saved_and_loaded(tmp_path / "run", finished(tmp_path, "bert_bare_pooler", "cls"))
    content = read(tmp_path / "run" / "model.json")
    expected = exported_names(run, tmp_path / "new")
    assert content.pop("special_tokens") == expected[0]
    (tmp_path / "run" / "model.json").write_text(json.dumps(content))
    assert exported_names(hub.load(tmp_path / "run"), tmp_path / "old") == expected
    assert expected[1]["pad_token"] == "[PAD]" and expected[1]["mask_token"] == "[MASK]"


def test_a_padding_token_never_takes_the_id_of_another(tmp_path):
    run = finished(tmp_path, "gpt2_bare", "last")
    content = json.loads(run.tokenizer.backend.to_str())
    content["model"]["vocab"] |= {
        "\u0120": len(content["model"]["vocab"]) + 1,
        "x": len(content["model"]["vocab"]),
    }
    content["added_tokens"] = []
    backend = type(run.tokenizer.backend).from_str(json.dumps(content))
    run = dataclasses.replace(run, tokenizer=Tokenizer(backend, 12))
    with pytest.raises(ExportError, match="gap"):
        export(run, tmp_path / "out")


def test_with_one_type_of_segment_both_texts_of_a_pair_are_of_it(tmp_path):
    """Other libraries look up the type that the tokenizer says, and there is no row for a second."""
    run = finished(tmp_path, "bert_mlm_relu", "cls")
    assert run.config.types == 1
    export(run, tmp_path / "out")
    files = (tmp_path / "out" / "tokenizer.json").read_text("utf-8")
    backend = type(run.tokenizer.backend).from_str(files)
    for texts in (["the film was good"], ["the film was good", "so dull"]):
        ours = run.tokenizer.backend.encode(*texts)
        theirs = backend.encode(*texts)
        assert theirs.ids == ours.ids
        assert set(theirs.type_ids) == {0}


def test_the_first_token_goes_through_a_straight_pooler(tmp_path):
    run = finished(tmp_path, "bert_bare_pooler", "cls")
    export(run, tmp_path / "out")
    tensors = hub.read_tensors(tmp_path / "out")
    np.testing.assert_array_equal(
        tensors["bert.pooler.dense.weight"], 2.0**-16 * np.eye(36, dtype=np.float32)
    )
    assert not tensors["bert.pooler.dense.bias"].any()
    kernel = run.params["head"]["classifier"]["kernel"]
    np.testing.assert_array_equal(tensors["classifier.weight"], 2.0**16 * kernel.T)
    assert "2^-16" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("case", "pooling", "format"), TRANSFORMERS)
def test_adapt_loads_back_what_it_exported(tmp_path, case, pooling, format):
    run = finished(tmp_path, case, pooling)
    export(run, tmp_path / "out")
    again = hub.load(tmp_path / "out")
    assert (
        again.image_settings == run.image_settings
        or run.image_settings.mean == again.image_settings.mean[:1]
    )
    np.testing.assert_allclose(
        logits_of(again, inputs(run)), logits_of(run, inputs(run)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("case", "architecture"), LANGUAGE_MODELS)
def test_a_language_model_comes_back_bit_for_bit(tmp_path, case, architecture):
    run = hub.load(pretrained(tmp_path, case))
    assert export(run, tmp_path / "out") == "transformers"
    again = hub.load(tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["architectures"] == [architecture]
    assert (again.head, again.config) == (run.head, run.config)
    assert tree.digest(again.params) == tree.digest(run.params)


def test_every_name_has_the_prefix_of_the_original_library(tmp_path):
    for case in ("bert_pretraining", "bert_mlm_untied_sharded", "gpt2_lm_untied", "vit_classifier"):
        folder = pretrained(tmp_path, case)
        run = hub.load(folder)
        names = set(
            layout.with_prefix(run.config, layout.to_tensors(run.config, run.params, run.head))
        )
        stored = {
            re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
            for name in hub.read_tensors(folder)
        }
        assert names <= stored, (case, names - stored)


def test_image_settings_come_back(tmp_path):
    settings = read_image_settings(tmp_path, 32, 3)
    settings = dataclasses.replace(
        settings, resample=3, rescale=1 / 127.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(layout.preprocessor(settings)))
    assert read_image_settings(tmp_path, 32, 3) == settings


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
def test_what_does_not_export_is_one_line_that_names_what_does(tmp_path, case, pooling, format):
    run = finished(tmp_path, case, pooling)
    assert what_exports(run) in refuse(run, tmp_path / "out", format)


def test_a_bias_on_the_last_token_of_gpt2_is_refused(tmp_path):
    assert "a bias" in refuse(
        finished(tmp_path, "gpt2_bare", "last", bias=True), tmp_path / "out", "auto"
    )


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare"])
def test_an_encoder_without_a_head_makes_vectors(tmp_path, case):
    """What it makes of a text is the same after the export, which says how."""
    run = hub.load(pretrained(tmp_path, case))
    assert export(run, tmp_path / "out") == "sentence-transformers"
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert ("pooler_output" in card) == (case == "bert_bare_pooler")
    again = hub.load(tmp_path / "out")
    assert again.embedding.pooling == "mean" and not again.embedding.normalize
    np.testing.assert_array_equal(encode(again, TEXTS), encode(run, TEXTS))


def test_how_vectors_are_made_is_exported(tmp_path):
    run = hub.load(pretrained(tmp_path, "bert_bare_pooler"))
    embedding = Embedding("cls", True, {"query": "so ", "other": "the "}, "query", similarity="dot")
    export(dataclasses.replace(run, embedding=embedding), tmp_path / "out")
    assert hub.load(tmp_path / "out").embedding == embedding
    for refused in ({"dimensions": 3}, {"refused": "modules.json has LSTM"}):
        changed = dataclasses.replace(run, embedding=dataclasses.replace(embedding, **refused))
        assert str(next(iter(refused.values()))) in refuse(changed, tmp_path / "other", "auto")


def test_an_image_encoder_without_a_head_is_refused(tmp_path):
    run = hub.load(pretrained(tmp_path, "vit_bare_pooler"))
    assert "vit with embeddings by mean does not export" in refuse(run, tmp_path / "out", "auto")


@pytest.mark.parametrize("case", ["bert_bare_pooler", "gpt2_bare"])
def test_tags_and_spans_are_read_back_as_they_were(tmp_path, case):
    words = [["the", "film", "was", "good"]]
    for name, run, raw in (
        ("tags", tagger(tmp_path, case), words),
        ("spans", answerer(tmp_path, case), [("the film was good", "so")]),
    ):
        assert export(run, tmp_path / name) == "transformers"
        again = hub.load(tmp_path / name)
        assert again.task == run.task and again.labels == run.labels
        np.testing.assert_allclose(predicted(again, raw), predicted(run, raw), atol=1e-6)


@pytest.mark.parametrize(
    ("case", "architecture", "prefix"),
    [
        ("qwen3_bare", "Qwen3ForQuestionAnswering", "transformer."),
        ("mistral_lm_window", "MistralForQuestionAnswering", "model."),
    ],
)
def test_spans_of_a_decoder_have_the_names_of_its_class(tmp_path, case, architecture, prefix):
    run = answerer(tmp_path, case)
    assert export(run, tmp_path / "out") == "transformers"
    assert read(tmp_path / "out/config.json")["architectures"] == [architecture]
    names = set(hub.read_tensors(tmp_path / "out"))
    assert {name for name in names if not name.startswith(prefix)} == {
        "qa_outputs.weight",
        "qa_outputs.bias",
    }
    again = hub.load(tmp_path / "out")
    assert again.head == run.head and tree.digest(again.params) == tree.digest(run.params)


def test_spans_are_refused_where_transformers_has_no_class_for_them(tmp_path):
    run = answerer(tmp_path, "gemma3_text_both_ways")
    assert "spans" in refuse(run, tmp_path / "out", "auto")


def test_a_text_model_without_a_tokenizer_is_refused(tmp_path):
    run = dataclasses.replace(finished(tmp_path, "bert_bare_pooler", "cls"), tokenizer=None)
    assert "no tokenizer" in refuse(run, tmp_path / "out", "auto")


def test_an_output_that_exists_is_kept_unless_overwrite(tmp_path):
    run, out = finished(tmp_path, "bert_bare_pooler", "cls"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export(run, out)
    with pytest.raises(ExportError):
        export(run, out, "onnx", overwrite=True)
    assert files_of(out) == {"mine.txt"}
    with pytest.raises(OutputError, match="is no folder that export wrote"):
        export(run, out, overwrite=True)
    assert files_of(out) == {"mine.txt"}
    export(run, tmp_path / "again")
    (tmp_path / "again/mine.txt").write_text("mine")
    export(run, tmp_path / "again", overwrite=True)
    assert "mine.txt" not in files_of(tmp_path / "again") and "config.json" in files_of(
        tmp_path / "again"
    )
    with pytest.raises(OutputError, match="exists"):
        export(run, tmp_path / "again/config.json", overwrite=True)


def test_an_output_that_holds_the_run_is_refused(tmp_path):
    run = finished(tmp_path, "bert_bare_pooler", "cls")
    for out in (Path(run.source), Path(run.source).parent):
        with pytest.raises(OutputError, match="holds the run"):
            export(run, out, overwrite=True)
    assert (Path(run.source) / "model.safetensors").exists()


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch):
    run, out, write = (
        finished(tmp_path, "bert_bare_pooler", "mean"),
        tmp_path / "there" / "out",
        layout.write_folder,
    )
    export(run, out)
    before = (out / "config.json").read_bytes()

    def full(folder, *content):
        if folder.name == "2_Dense":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, *content)

    monkeypatch.setattr(layout, "write_folder", full)
    with pytest.raises(OutputError, match="No space left"):
        export(run, out, overwrite=True)
    assert (out / "config.json").read_bytes() == before and [
        p.name for p in out.parent.iterdir()
    ] == ["out"]
    with pytest.raises(OutputError, match="No space left"):
        export(run, tmp_path / "there" / "other")
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_fails_in_one_line(here, tmp_path):
    run, out = pretrained(tmp_path, "bert_classifier"), tmp_path / "out"
    done = here("export", "--run", run, "--out", out)
    assert (
        done.returncode == 0 and "transformers" in done.stdout and (out / "config.json").exists()
    ), done.stderr
    for flags in (
        ("--out", out),
        ("--out", tmp_path / "x", "--format", "onnx"),
        ("--out", run, "--overwrite"),
    ):
        failed = here("export", "--run", run, *flags)
        assert (
            failed.returncode == 2
            and failed.stderr.count("\n") == 1
            and failed.stderr.startswith("error: ")
        )
        assert not (tmp_path / "x").exists()


def test_texts_are_cut_on_the_side_on_which_the_checkpoint_cuts_them(tmp_path):
    folder = pretrained(tmp_path, "bert_bare_pooler")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"truncation_side": "left"}))
    run = hub.load(folder)
    text = TEXTS[2]
    cut, _ = run.tokenizer.encode([text])
    whole, _ = run.tokenizer.cut_to(100).encode([text])
    assert cut[0].tolist() == [whole[0][0], *whole[0][-11:]]
    head = Classifier(2, "cls", dropout=0.1)
    run = dataclasses.replace(run, head=head, task="classification", labels=("a", "b"))
    run = dataclasses.replace(
        run, params=run.params | {"head": run.model.init_head(jax.random.key(0))}
    )
    export(run, tmp_path / "out")
    assert read(tmp_path / "out" / "tokenizer_config.json")["truncation_side"] == "left"
    again = hub.load(tmp_path / "out").tokenizer.encode([text])[0]
    assert again[0].tolist() == cut[0].tolist()
