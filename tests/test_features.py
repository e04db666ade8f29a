"""The encoder as it is: features of a text are its own, whatever its neighbours, its place or the number of texts."""

import dataclasses
import io
from typing import Any

import jax
import numpy as np
import pandas
import PIL.Image
import pytest

import adapt
from adapt import features, tree
from adapt.cost.clock import Compiling
from adapt.data import packing, tables
from adapt.data.shapes import ShapeRule
from adapt.errors import CheckpointError, DataError, StrategyError
from adapt.features import image_batches
from adapt.parallel.sharding import AXES, Layout
from adapt.pretrained import hub
from adapt.pretrained.images import to_pixels
from adapt.training.loop import evaluate
from adapt.training.step import is_kernel
from tests.helpers import tiny

POOLED = ["mean", "cls", "max", "last", "pooler"]
TEXTS = [text for text, _ in tiny.sentences(23, seed=3)]


@pytest.fixture(scope="module")
def bert(inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint("bert_bare_pooler"))


@pytest.fixture(scope="module")
def gpt2(inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint("gpt2_bare"))


@pytest.fixture(scope="module")
def vit(inputs) -> hub.Pretrained:
    return hub.load(inputs.checkpoint("vit_classifier"))


@pytest.fixture(scope="module")
def states(bert) -> list[list[np.ndarray]]:
    """Hidden states [layer][text] with one text a row: the slow and certain way."""
    tokens, _ = bert.tokenizer.encode(TEXTS)
    width = tokens.lengths.max()
    rows = np.arange(len(tokens))
    batch = packing.assemble(tokens, rows, rows, np.zeros_like(rows), (len(rows), width, len(rows)))
    found = jax.jit(bert.model.hidden_states)(bert.params, batch)
    return [
        [layer[row, :n] for row, n in enumerate(tokens.lengths)] for layer in map(np.asarray, found)
    ]


@pytest.mark.parametrize("pooling", POOLED)
def test_packed_features_are_those_of_one_text_a_row(bert, states, pooling):
    head = bert.params["head"]["pooler"]
    by_hand = {
        "mean": lambda x: x.mean(0),
        "cls": lambda x: x[0],
        "max": lambda x: x.max(0),
        "last": lambda x: x[-1],
        "pooler": lambda x: np.tanh(x[0] @ head["kernel"] + head["bias"]),
    }
    got = features.encode(bert, TEXTS, pooling)
    assert got.shape == (len(TEXTS), bert.config.width) and got.dtype == np.float32
    np.testing.assert_allclose(got, [by_hand[pooling](x) for x in states[-1]], atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_layers_count_from_the_embedding_to_the_last_block(bert, states, layer):
    expected = [x.mean(0) for x in states[-1 if layer is None else layer]]
    np.testing.assert_allclose(
        features.encode(bert, TEXTS, "mean", layer=layer), expected, atol=1e-5
    )


@pytest.mark.parametrize("pooling", POOLED)
def test_a_text_has_the_same_features_alone_and_in_any_company(bert, pooling):
    every = features.encode(bert, TEXTS, pooling)
    for row in (0, 11):
        np.testing.assert_allclose(
            features.encode(bert, [TEXTS[row]], pooling)[0], every[row], atol=1e-5
        )
    shuffled = np.random.default_rng(0).permutation(len(TEXTS))
    again = features.encode(bert, [TEXTS[i] for i in shuffled], pooling)
    np.testing.assert_allclose(again, every[shuffled], atol=1e-5)


def test_chunks_are_invisible(bert, monkeypatch):
    every = features.encode(bert, TEXTS)
    monkeypatch.setattr(features, "WINDOW", 5)
    np.testing.assert_allclose(features.encode(bert, TEXTS), every, atol=1e-5)


FRAME = pandas.DataFrame({"text": TEXTS, "label": TEXTS})
FORMS = {
    "an array": np.array(TEXTS),
    "a column of a filtered frame": pandas.concat([FRAME, FRAME])[len(TEXTS) :]["text"],
    "a generator": (text for text in TEXTS),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_in_any_container_have_the_same_features(bert, form):
    np.testing.assert_array_equal(features.encode(bert, FORMS[form]), features.encode(bert, TEXTS))


@pytest.mark.parametrize(
    "texts", [FRAME, {"text": TEXTS}, set(TEXTS)], ids=["a frame", "a dict", "a set"]
)
def test_what_is_no_list_of_texts_is_refused(bert, texts):
    """The texts in a frame are not what iterating over it gives: that is the names of its columns."""
    with pytest.raises(DataError, match="texts"):
        features.encode(bert, texts)


def test_normalised_features_have_length_1_and_the_same_direction(bert):
    plain, unit = features.encode(bert, TEXTS), features.encode(bert, TEXTS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5, atol=1e-6
    )


def test_texts_beyond_the_positions_are_cut_and_counted(bert):
    long, cut = " ".join(["film"] * 60), " ".join(["film"] * (bert.tokenizer.max_length - 2))
    one, other = features.encode(bert, [long, cut])
    np.testing.assert_allclose(one, other, atol=1e-6)
    stream = features.text_batches(bert, [["film", long], ["film"], [long, long]])
    assert sum(streamed.long.texts for streamed in stream) == 3


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_a_text_without_any_token_has_zeros_and_never_its_neighbour(gpt2, pooling):
    """GPT-2 has no special tokens, so an empty text has no token at all."""
    together = features.encode(gpt2, ["", "the film", ""], pooling)
    assert not together[[0, 2]].any() and together[1].any()
    np.testing.assert_array_equal(
        features.encode(gpt2, [""], pooling), np.zeros((1, gpt2.config.width))
    )
    np.testing.assert_allclose(
        together[1], features.encode(gpt2, ["the film"], pooling)[0], atol=1e-5
    )


def test_no_text_is_no_row(bert):
    assert features.encode(bert, []).shape == (0, bert.config.width)
    assert features.encode(bert, [], normalize=True).shape == (0, bert.config.width)


def test_weights_so_large_that_features_are_none_are_refused(bert):
    """Each is a finite number, as a flipped bit of an exponent leaves it."""

    def damaged(path: str, leaf: np.ndarray) -> np.ndarray:
        return leaf * np.float32(2e38) if path.endswith("mlp_norm/scale") else leaf

    params = tree.map_paths(damaged, bert.params)
    pretrained = dataclasses.replace(bert, params=params)
    with pytest.raises(CheckpointError, match="features are not finite"):
        adapt.encode(pretrained, ["the film"])


def test_encode_is_a_public_name():
    assert adapt.encode is features.encode


def test_encoding_twice_compiles_once(bert):
    forward, _ = features.extractor(bert, "mean")
    features.encode(bert, TEXTS)
    few = features.encode(bert, TEXTS[:7])  # in a small shape of their own
    compiling = Compiling()
    features.encode(bert, TEXTS[:7])
    again = features.encode(bert, TEXTS)
    assert features.extractor(bert, "mean")[0] is forward
    assert compiling.seconds == 0
    np.testing.assert_allclose(few, again[:7], atol=1e-5)


def test_parameters_are_put_on_the_device_once_and_anew_where_they_were_replaced(bert):
    own = dataclasses.replace(bert, params=dict(bert.params))
    first = own.on_device()
    assert own.on_device() is first
    before = features.encode(own, TEXTS[:2])
    own.params["encoder"] = jax.tree.map(lambda leaf: leaf * 0.5, own.params["encoder"])
    assert not np.allclose(before, features.encode(own, TEXTS[:2]))
    np.testing.assert_array_equal(before, features.encode(bert, TEXTS[:2]))


def test_pictures_come_in_order_and_a_picture_is_its_own(vit):
    pictures = [tiny.picture(seed) for seed in range(37)]
    forward, params = features.extractor(vit, "cls")
    windows = list(image_batches(vit, [pictures[:5], pictures[5:]]))
    assert np.concatenate([index for (index,), *_ in windows]).tolist() == list(range(37))
    assert len({batch["pixels"].shape for _, batch, *_ in windows}) == 1
    got = evaluate(forward, params, ((index, batch) for index, batch, *_ in windows), 37)
    alone = packing.image_batch(
        to_pixels([pictures[36]], vit.image_settings),
        vit.config.positions,
        ShapeRule().images(vit.config.positions),
    )
    np.testing.assert_allclose(np.asarray(forward(params, alone))[0], got[36], atol=1e-5)


def test_pictures_are_encoded_as_they_are_extracted(vit, tmp_path):
    folder = tiny.image_folder(tmp_path / "pictures", 6)
    table = tables.read(str(folder))
    options: Any = {"pooling": "patches", "image_size": 56}
    extraction = features.extract(vit, table, tmp_path / "out", image_column="image", **options)
    files = [folder / name for name in table.rows[tables.FILE]]
    arrays = [np.asarray(PIL.Image.open(io.BytesIO(file.read_bytes()))) for file in files]
    for pictures in (files, arrays):
        encoded = features.encode(vit, pictures, **options)
        np.testing.assert_array_equal(encoded, np.load(extraction.path))
    gray = np.zeros((2, 28, 28), np.uint8)
    assert features.encode(vit, gray).shape == (2, vit.config.width)


def test_what_is_no_picture_is_refused(vit, tmp_path):
    with pytest.raises(
        DataError, match=r"`texts`\[0\] is 'a good film', which is no file here, and a pic"
    ):
        features.encode(vit, ["a good film"])
    with pytest.raises(
        DataError, match=r"`texts`\[0\] is '.*', which is a folder, and a picture is"
    ):
        features.encode(vit, [tmp_path])
    page = tmp_path / "page.html"
    page.write_text("no pixels")
    with pytest.raises(DataError, match=r"page\.html is no picture that can be decoded"):
        features.encode(vit, [page])
    with pytest.raises(DataError, match=r"shape \[28, 28, 3\], which is one picture"):
        features.encode(vit, np.zeros((28, 28, 3), np.uint8))
    with pytest.raises(DataError, match=r"`texts`\[0\] is an array of float64"):
        features.encode(vit, np.zeros((2, 28, 28)))


def test_mistakes_are_one_line_with_the_mend(bert, gpt2, vit):
    mistakes = [
        (
            lambda: features.encode(bert, TEXTS, "median"),
            "unknown pooling 'median': give one of mean, cls, max, last",
        ),
        (
            lambda: features.encode(bert, TEXTS, layer=3),
            "layer 3 is not there: the encoder has layers 0 .* to 2",
        ),
        (lambda: features.encode(bert, TEXTS, layer=-1), "layer -1 is not there"),
        (lambda: features.encode(bert, TEXTS, layer="last"), "layer last is not there"),
        (
            lambda: features.encode(bert, TEXTS, frozen_dtype="int4"),  # pyright: ignore
            "`frozen_dtype` is 'int4': give one of float32, bfloat16, int8",
        ),
        (
            lambda: features.encode(gpt2, TEXTS, "pooler"),
            r"gpt2_bare has no pooler to graft \(its head holds: nothing\)",
        ),
        (
            lambda: features.encode(bert, TEXTS, image_size=32),
            "`image_size` 32 is of pictures, and .*bert_bare_pooler is a text encoder",
        ),
        (
            lambda: list(image_batches(bert, [[]])),
            "bert_bare_pooler is not an image encoder",
        ),
    ]
    for function, message in mistakes:
        with pytest.raises(StrategyError, match=message) as caught:
            function()
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="encode takes a list: put"):
        features.encode(bert, "one text")  # pyright: ignore


def test_a_rule_of_long_texts_is_refused_before_a_picture_is_looked_at(vit, tmp_path):
    of_texts = "`long` windows is of texts, and .* is an image encoder"
    with pytest.raises(StrategyError, match=of_texts):
        features.encode(vit, ["nowhere.png"], long="windows")
    table = tables.read(str(tiny.image_folder(tmp_path / "pictures", 2)))
    options: Any = {"image_column": "image", "image_size": 57, "long": "windows"}
    with pytest.raises(StrategyError, match=of_texts):
        features.extract(vit, table, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_kernels_on_a_mesh_are_in_the_dtype_of_the_computation(bert):
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh((1,) * len(AXES), AXES, axis_types=axis_types, devices=jax.devices()[:1])
    _, params = features.extractor(bert, dtype="bfloat16", layout=Layout(mesh))
    leaves = tree.paths(params)
    assert {leaf.dtype.name for path, leaf in leaves.items() if is_kernel(path)} == {"bfloat16"}


# MiniLM, against sentence-transformers


@pytest.fixture(scope="module")
def minilm(asset) -> hub.Pretrained:
    return hub.load(asset("minilm"))


@pytest.fixture(scope="module")
def recorded():
    return np.load(tiny.REFERENCES / "minilm.npz")


def test_minilm_tokens_are_those_of_the_original_library(minilm, recorded):
    tokens, truncated = minilm.tokenizer.encode(recorded["sentences"].tolist())
    for row, (ids, mask) in enumerate(
        zip(recorded["input_ids"], recorded["attention_mask"], strict=True)
    ):
        np.testing.assert_array_equal(tokens[row], ids[mask > 0])
    assert (
        truncated == 1
    )  # one of them is longer than the 256 that sentence_bert_config.json allows


def test_minilm_normalised_embeddings_are_within_1e_5_of_sentence_transformers(minilm, recorded):
    got = features.encode(minilm, recorded["sentences"].tolist(), normalize=True)
    np.testing.assert_allclose(got, recorded["embeddings"], atol=1e-5)


def test_empty_texts_are_said(bert, caplog):
    adapt.encode(bert, ["a film", " ", ""])
    assert "2 of 3 texts are empty (the first is texts[1])" in caplog.text
