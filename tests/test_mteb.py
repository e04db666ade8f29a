"""The encoder for mteb: its protocol without the package, and mteb's own mock tasks with it."""

import enum
import sys
import types

import numpy as np
import pytest

import adapt
from adapt.errors import DataError, StrategyError
from adapt.mteb import Encoder, imported
from tests.helpers import tiny
from tests.helpers.folders import FOLDERS

TEXTS = [text for text, _ in tiny.sentences(5)]
# One of each kind, by their classes in mteb.mocks.
MOCKS = (
    "MockClassificationTask",
    "MockRetrievalTask",
    "MockSTSTask",
    "MockClusteringTask",
    "MockPairClassificationTask",
    "MockRerankingTask",
    "MockSummarizationTask",
)


class Kind(enum.Enum):
    """As mteb's PromptType."""

    query = "query"
    document = "document"


def encode(encoder: Encoder, texts: list[str], kind: Kind | None = None) -> np.ndarray:
    """What mteb calls, with texts in batches of two."""
    task = types.SimpleNamespace(name="NFCorpus", type="Retrieval")
    batches = [{"text": texts[start : start + 2]} for start in range(0, len(texts), 2)]
    return encoder.encode(
        batches,
        task_metadata=task,
        hf_split="test",
        hf_subset="default",
        prompt_type=kind,
        batch_size=2,
    )


def test_vectors_are_those_of_encode_in_the_order_of_texts(inputs):
    checkpoint = inputs.checkpoint("bert_mlm_tied", 1)
    expected = adapt.encode(checkpoint, TEXTS, pooling="cls")
    got = encode(Encoder(checkpoint, pooling="cls", normalize=False), TEXTS)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    unit = encode(Encoder(checkpoint), TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_the_narrowest_prompt_that_fits_is_put_before_texts(inputs):
    loaded = adapt.load(inputs.checkpoint("bert_mlm_tied", 1))
    prompts = {
        "NFCorpus-query": "the film ",
        "Retrieval": "a plot ",
        "document": "never ",
    }
    prompted = Encoder(loaded, prompts=prompts)
    plain = Encoder(loaded)
    for kind, prompt in ((Kind.query, "the film "), (Kind.document, "a plot "), (None, "a plot ")):
        expected = encode(plain, [prompt + text for text in TEXTS])
        np.testing.assert_allclose(encode(prompted, TEXTS, kind), expected, atol=1e-6)
    by_kind = Encoder(loaded, prompts={"query": "very "})
    expected = encode(plain, ["very " + text for text in TEXTS])
    np.testing.assert_allclose(encode(by_kind, TEXTS, Kind.query), expected, atol=1e-6)
    np.testing.assert_array_equal(encode(by_kind, TEXTS), encode(plain, TEXTS))


def test_what_it_can_not_encode_is_refused_at_once(inputs):
    checkpoint = inputs.checkpoint("bert_mlm_tied", 1)
    with pytest.raises(StrategyError, match="image encoder"):
        Encoder(inputs.checkpoint("vit_classifier"))
    with pytest.raises(StrategyError, match="unknown pooling 'meen'"):
        Encoder(checkpoint, pooling="meen")
    task = types.SimpleNamespace(name="Pictures", type="Retrieval")
    with pytest.raises(DataError, match="Pictures has image"):
        Encoder(checkpoint).encode(
            [{"image": []}], task_metadata=task, hf_split="test", hf_subset="default"
        )


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "mteb.models.model_meta", raising=False)
    with pytest.raises(StrategyError, match="pip install mteb"):
        imported("models.model_meta")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of mteb, and of scores on two sentences
@pytest.mark.parametrize("name", MOCKS)
def test_the_mock_tasks_of_mteb(asset, name):
    mteb = pytest.importorskip("mteb", reason="the optional extra mteb is not installed")
    mocks = pytest.importorskip("mteb.mocks")
    encoder = Encoder(asset("tiny-bert"))
    assert isinstance(encoder, mteb.EncoderProtocol)
    task = getattr(mocks, name)()
    (result,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results
    assert result.task_name == name and np.isfinite(result.get_score())


@pytest.mark.filterwarnings("ignore")
def test_results_of_other_weights_or_settings_are_filed_apart(asset, inputs):
    mteb = pytest.importorskip("mteb", reason="the optional extra mteb is not installed")
    tiny_bert = asset("tiny-bert")
    plain, again = Encoder(tiny_bert), Encoder(tiny_bert)
    others = (
        Encoder(tiny_bert, pooling="cls"),
        Encoder(tiny_bert, prompts={"query": "a "}),
        Encoder(inputs.checkpoint("bert_mlm_tied", 1), name="tiny-bert"),
    )
    cache = mteb.ResultCache("results")
    path = lambda encoder: cache.get_task_result_path("STS12", encoder.mteb_model_meta)
    assert path(plain) == path(again)
    assert len({path(encoder) for encoder in (plain, *others)}) == 4


def test_a_folder_that_has_prompts_and_a_pooling_of_its_own_is_read_by_them(tmp_path):
    prompts = {"query": "the ", "passage": "a "}
    FOLDERS.sentence(tmp_path / "model", {"pooling_mode": "cls"}, prompts=prompts)
    encoder = Encoder(tmp_path / "model")
    assert encoder.pooling == "cls"
    assert encoder.prompts == prompts | {"document": "a "}
    spelled = Encoder(tmp_path / "model", "cls", prompts={"query": "the "})
    query = encode(encoder, TEXTS, Kind.query)
    assert np.array_equal(query, encode(spelled, TEXTS, Kind.query))
