"""encode, extract and probe make vectors as the folder says, or as the run was trained."""

import dataclasses
import json

import numpy as np
import pytest

import adapt
from adapt import features
from adapt.cli import extract, probe
from adapt.errors import StrategyError
from adapt.models import Classifier
from adapt.pretrained import hub
from adapt.pretrained.sentence_files import Embedding
from tests.helpers import tiny
from tests.helpers.folders import FOLDERS

TEXTS = ["the film was good", "a film", "x good b"]
QUERY = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}


@pytest.fixture
def folder(tmp_path):
    """A sentence-transformers folder: the first token, normalised, a default prompt."""
    made = tmp_path / "sentences"
    FOLDERS.sentence(made, {"pooling_mode": "cls"}, (("Normalize", "2_Normalize"),), **QUERY)
    return made


def test_what_is_asked_for_comes_before_what_the_folder_says(folder):
    loaded = hub.load(folder)
    own = features.encode(loaded, TEXTS)
    spelled = features.encode(loaded, ["query: " + text for text in TEXTS], prompt="")
    np.testing.assert_allclose(own, spelled, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=1e-5)
    settings = features.vector_settings(loaded, "mean", False, "a: ")
    assert settings == features.VectorSettings("mean", False, "a: ")
    plain = features.encode(loaded, TEXTS, pooling="mean", normalize=False, prompt="passage")
    expected = features.encode(loaded, ["passage: " + t for t in TEXTS], "mean", False, prompt="")
    np.testing.assert_array_equal(plain, expected)


def test_a_plain_checkpoint_gives_the_mean_as_it_is(tmp_path):
    loaded = hub.load(tiny.checkpoint(tmp_path / "model", "bert_bare_pooler"))
    assert features.vector_settings(loaded) == features.VectorSettings("mean")
    assert loaded.embedding == Embedding()


def test_a_folder_of_a_causal_language_model_alone_is_pooled_by_the_last_token(tmp_path):
    """As sentence-transformers does without files of its own, and as a new head does."""
    folder = tiny.checkpoint(tmp_path / "model", "qwen3_lm_untied")
    assert features.vector_settings(hub.load(folder)) == features.VectorSettings("last")
    assert hub.default_pooling(hub.load(folder)) == "last"


def test_dense_layers_are_left_out_where_a_pooling_is_asked_for_or_a_run_trained(tmp_path):
    FOLDERS.CASES["dense"].make(tmp_path / "model")
    loaded = hub.load(tmp_path / "model")
    vectors = features.encode(loaded, TEXTS)
    pooled = features.encode(loaded, TEXTS, pooling="mean")
    assert (vectors.shape, pooled.shape) == ((3, 20), (3, 36))
    layer = loaded.dense[0]
    np.testing.assert_allclose(vectors, np.tanh(pooled @ layer.kernel + layer.bias), atol=1e-6)
    assert "dense layers of 20" in str(features.vector_settings(loaded))
    with pytest.raises(StrategyError, match="`layer` is 1"):
        features.encode(loaded, TEXTS, layer=1)
    of_run = hub.embedding_of_run(loaded.embedding, Classifier(0, "mean"), embeds=True)
    run = dataclasses.replace(loaded, embedding=of_run)
    np.testing.assert_array_equal(features.encode(run, TEXTS), pooled)
    with pytest.raises(StrategyError, match="a run does not hold"):
        features.vector_settings(dataclasses.replace(loaded, dense=()))


def test_a_run_gives_the_vectors_that_it_was_trained_with(folder, tmp_path):
    pairs = [
        ("the film", "was good"),
        ("a film", "x good"),
        ("b good", "the x"),
        ("a b", "was a"),
    ] * 4
    run = adapt.finetune(
        folder, pairs, task="contrastive", epochs=1, batch_size=4, out=tmp_path / "run", seed=1
    )
    assert run.pretrained.head.pooling == "cls"  # the folder's own is the default of a new head
    again = hub.load(tmp_path / "run")
    settings = features.vector_settings(again)
    assert settings == features.VectorSettings("cls", normalize=True)
    assert settings == features.vector_settings(run.pretrained)
    vectors = features.encode(again, TEXTS)
    np.testing.assert_allclose(vectors, run.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(vectors, run.encode(TEXTS, "cls", True), atol=1e-6)


def test_a_classifier_reads_states_as_they_are():
    class Head:
        pooling = "max"

    base = Embedding("cls", normalize=True, prompts={"q": "q: "}, default_prompt="q")
    assert hub.embedding_of_run(base, Head(), embeds=False) == Embedding("max")
    embeds = hub.embedding_of_run(base, Head(), embeds=True)
    assert (embeds.pooling, embeds.normalize, embeds.default_prompt) == ("max", True, None)
    assert hub.embedding_of_run(base, object(), embeds=False) == base


def test_older_runs_pool_as_their_head_does(folder, tmp_path):
    pairs = [("the film", "was good"), ("a film", "x good")] * 4
    adapt.finetune(
        folder,
        pairs,
        task="contrastive",
        pooling="max",
        epochs=1,
        batch_size=4,
        out=tmp_path / "run",
    )
    file = tmp_path / "run" / "model.json"
    content = json.loads(file.read_text())
    del content["embedding"]
    file.write_text(json.dumps(content))
    assert features.vector_settings(hub.load(tmp_path / "run")).pooling == "max"


def test_extract_says_and_records_what_was_chosen(folder, tmp_path, capsys):
    table = tiny.write_table(tmp_path / "texts.csv", [(text, "a") for text in TEXTS])
    config = extract.Config(checkpoint=str(folder), data=str(table), out=tmp_path / "out")
    result = extract.main(config)
    chosen = {"pooling": "cls", "normalize": True, "prompt": "query: ", "dimensions": None}
    assert {name: result[name] for name in chosen} == chosen
    assert "vectors   pooling cls, normalized, prompt 'query: '" in capsys.readouterr().out
    expected = features.encode(folder, TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "features.npy"), expected, atol=1e-5)


def test_probe_takes_the_folders_own_and_says_it(folder, tmp_path, capsys):
    rows = tiny.sentences(24)
    table = tiny.write_table(tmp_path / "texts.csv", rows)
    shared = {"checkpoint": str(folder), "data": str(table), "folds": 2, "seeds": 1}
    own = probe.main(probe.Config(**shared, out=tmp_path / "own"))
    asked = {"pooling": ("cls",), "normalize": True, "prompt": "query: "}
    spelled = probe.main(probe.Config(**shared, **asked, out=tmp_path / "spelled"))
    assert own["cells"] == spelled["cells"]
    assert "vectors   pooling cls, normalized, prompt 'query: '" in capsys.readouterr().out


def test_a_prompt_for_pictures_is_refused(tmp_path):
    loaded = hub.load(tiny.checkpoint(tmp_path / "model", "vit_classifier"))
    with pytest.raises(StrategyError, match="prompt"):
        features.vector_settings(loaded, prompt="a picture of ")


@pytest.mark.parametrize(
    ("pooling", "more", "reason"),
    [
        ("cls mean", ("Dense",), r"1_Pooling/config\.json says cls and mean"),
        ("mean", ("Normalize", "Dense"), r"modules\.json has Dense in '3_Dense' after Normalize"),
        ("mean", ("LSTM", "Dense"), "has LSTM in '2_LSTM'"),
    ],
)
def test_a_refusal_is_that_of_the_first_step_that_is_not_done(tmp_path, pooling, more, reason):
    steps = tuple((kind, f"{place}_{kind}") for place, kind in enumerate(more, 2))
    FOLDERS.sentence(tmp_path / "model", {"pooling_mode": pooling.split()}, steps)
    loaded = hub.load(tmp_path / "model")
    assert loaded.dense == ()
    with pytest.raises(StrategyError, match=reason):
        features.encode(loaded, TEXTS)


def test_what_is_refused_names_the_way_around_it(tmp_path):
    FOLDERS.sentence(tmp_path / "model", None, (("LSTM", "2_LSTM"),))
    loaded = hub.load(tmp_path / "model")
    with pytest.raises(StrategyError, match="give `pooling` for vectors without it"):
        features.encode(loaded, TEXTS)
    assert features.encode(loaded, TEXTS, pooling="mean").shape == (3, 36)
