"""Features of long texts: those of their head, of both ends, or the mean of their windows."""

import numpy as np
import pytest

import adapt
from adapt import features
from adapt.cli import extract, probe
from adapt.data import examples
from adapt.data.packing import batches_of_one
from adapt.errors import DataError, StrategyError
from adapt.pretrained import hub
from adapt.probing.pipeline import read_data
from adapt.probing.report import ProbeOptions
from tests.helpers import tiny
from tests.helpers.long_texts import LABELS, SHORT, TEXTS

POOLED = ["mean", "cls", "max", "last", "pooler"]


@pytest.fixture(scope="module")
def bert(inputs) -> hub.Pretrained:
    return adapt.load(inputs.checkpoint("bert_bare_pooler", blocks=1))


@pytest.mark.parametrize("pooling", POOLED)
def test_the_vector_of_windows_is_the_mean_of_what_each_window_encodes_to(bert, pooling):
    encoded = bert.tokenizer.with_long("windows").encode_long(TEXTS)
    assert encoded.windows.max() == 6 and encoded.windows.min() == 1
    got = adapt.encode(bert, TEXTS, pooling, long="windows")
    # Each window as a text of its own, by its words.
    words = [bert.tokenizer.decode(encoded.tokens[row]) for row in range(len(encoded.tokens))]
    vectors = adapt.encode(bert, words, pooling)
    ends = np.cumsum(encoded.windows)
    by_hand = [part.mean(0) for part in np.split(vectors, ends[:-1])]
    np.testing.assert_allclose(got, by_hand, rtol=1e-5, atol=1e-6)


def test_the_mean_is_scaled_to_length_1_and_not_the_windows(bert):
    plain = adapt.encode(bert, TEXTS, long="windows")
    unit = adapt.encode(bert, TEXTS, normalize=True, long="windows")
    np.testing.assert_allclose(
        unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize("long", ["head+tail", "windows"])
def test_short_texts_have_the_bits_of_head(bert, long):
    np.testing.assert_array_equal(
        adapt.encode(bert, SHORT[:9], long=long), adapt.encode(bert, SHORT[:9])
    )
    np.testing.assert_array_equal(adapt.encode(bert, SHORT, long=long), adapt.encode(bert, SHORT))


def test_both_ends_are_read_and_the_middle_is_not(bert):
    words = TEXTS[4].split()
    room = bert.tokenizer.max_length - 2
    ends = [*words[: -(-room // 4)], *words[-(-room // 4) - room :]]
    got = adapt.encode(bert, [TEXTS[4]], long="head+tail")
    np.testing.assert_allclose(got, adapt.encode(bert, [" ".join(ends)]), rtol=1e-5, atol=1e-6)


def test_windows_of_many_chunks_come_in_the_order_of_the_texts(bert, monkeypatch):
    expected = adapt.encode(bert, TEXTS, long="windows")
    monkeypatch.setattr(features, "WINDOW", 7)
    np.testing.assert_allclose(
        adapt.encode(bert, TEXTS, long="windows"), expected, rtol=1e-5, atol=1e-6
    )


def test_extract_writes_what_encode_gives_and_counts(inputs, bert, tmp_path, capsys):
    table = tiny.write_table(tmp_path / "texts.csv", zip(TEXTS, LABELS, strict=True))
    checkpoint = inputs.checkpoint("bert_bare_pooler", blocks=1)
    flags = {"checkpoint": checkpoint, "data": str(table), "long": "windows"}
    result = extract.main(extract.Config(**flags, out=tmp_path / "out"))
    np.testing.assert_allclose(
        np.load(tmp_path / "out/features.npy"),
        adapt.encode(bert, TEXTS, long="windows"),
        rtol=1e-5,
        atol=1e-6,
    )
    counts = bert.tokenizer.with_long("windows").encode_long(TEXTS).windows
    made = int(counts[counts > 1].sum())
    assert result["long"] == {"rule": "windows", "texts": 4, "windows": made, "tokens_left_out": 0}
    assert result["truncated"] == 0
    assert (
        f"4 texts are longer than 12 tokens and cut into {made} windows" in capsys.readouterr().err
    )


@pytest.mark.parametrize("long", ["head+tail", "windows"])
def test_a_probe_sees_the_features_of_encode(bert, long, inputs, tmp_path):
    options = ProbeOptions(folds=2, seeds=1, strengths=(1.0,))
    data = read_data(hub.with_long(bert, long), TEXTS, LABELS, options)
    by_layer = data.features(("mean",))
    np.testing.assert_allclose(
        by_layer[-1, 0], adapt.encode(bert, TEXTS, long=long), rtol=1e-5, atol=1e-6
    )
    report = adapt.probe(bert, TEXTS, LABELS, folds=2, seeds=1, strengths=(1.0,), long=long)
    table = tiny.write_table(tmp_path / "texts.csv", zip(TEXTS, LABELS, strict=True))
    checkpoint = inputs.checkpoint("bert_bare_pooler", blocks=1)
    flags = {"checkpoint": checkpoint, "data": str(table), "long": long}
    flags |= {"folds": 2, "seeds": 1, "strengths": (1.0,)}
    said = probe.main(probe.Config(**flags, out=tmp_path / "out"))
    assert said["cells"] == report.cells
    assert said["long"]["train"]["texts"] == 4


def test_what_has_one_sequence_a_text_refuses_windows(bert):
    windows = hub.with_long(bert, "windows")
    with pytest.raises(StrategyError, match="`long` windows"):
        adapt.hidden_states(windows, TEXTS)
    part = examples.from_texts(windows, [TEXTS], np.zeros(30, np.int32))
    batch = next(part.batches(part.batch_shapes(8, 0, 1), 0, 0))
    with pytest.raises(DataError, match="several windows"):
        batches_of_one(batch)
