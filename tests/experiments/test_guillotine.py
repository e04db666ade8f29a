"""The finding on cutting deeper: its tasks are what they say, its probes and claims of their rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.findings import guillotine
from experiments.study.page import NOT_DECIDABLE, REPRODUCED, verdicts

BROWN = {
    "words": [
        ["he", "went", "home", "and", "slept", number] for number in ("one", "two", "three", "four")
    ]
    + [["it", "is", "very", "cold", "here", "today", "again", "now", "then"]],
    "tags": [["PPS", "VBD", "NR", "CC", "VBD", "CD"]] * 4
    + [["PPS", "BEZ", "QL", "JJ", "RN", "NR", "RB", "RB", "RB"]],
}


@pytest.fixture
def brown(monkeypatch):
    monkeypatch.setattr(guillotine.bundled, "read", lambda name, part: BROWN)


def test_sentences_are_labelled_by_their_length_and_tense(brown):
    texts, lengths = guillotine.length("train")
    assert set(zip(map(len, map(str.split, texts)), lengths, strict=True)) == {
        (6, "class 0"),
        (9, "class 1"),
    }
    texts, tenses = guillotine.tense("train")
    assert {(text.split()[1], tense) for text, tense in zip(texts, tenses, strict=True)} == {
        ("went", "past"),
        ("is", "present"),
    }


def test_every_second_sentence_has_two_neighbours_swapped(brown):
    texts, labels = guillotine.word_order("train")
    printed = {" ".join(words) for words in BROWN["words"]}
    for text, label in zip(texts, labels, strict=True):
        assert (text in printed) == (label == "as printed")
        assert any(sorted(text.split()) == sorted(one.split()) for one in printed)
    assert labels == ["as printed", "swapped"] * 2 + ["as printed"]


def test_probes_find_the_layer_that_has_the_labels():
    config = guillotine.Config(labels=40, pool=60, choosing=30, test_rows=50, seeds=2)
    random = np.random.default_rng(0)
    labels = random.integers(2, size=140)
    noise = random.normal(size=(3, 140, 4)).astype(np.float32)
    noise[1, :, 0] += 6 * labels
    right, held_out_right = guillotine.probe_layers(noise, labels, 2, config)
    assert right.shape == (3, 2, 50) and held_out_right.shape == (3, 2, 30)
    held_out = held_out_right.mean((1, 2))
    assert held_out.argmax() == 1 and held_out[1] > 0.95 > 0.8 > held_out[[0, 2]].max()
    assert right[1].mean() > 0.95


def layers(*rights: int, chosen: int) -> guillotine.Layers:
    """Probes of 2 seeds, of whose 400 test rows so many per cent are right, the first."""
    percent = np.arange(400) / 4
    test = []
    held_out = []
    for layer, right in enumerate(rights):
        test.append(np.stack([right > percent] * 2).astype(np.float64))
        held_out.append(np.full((2, 20), float(layer == chosen)))
    return guillotine.Layers(np.stack(test), np.stack(held_out))


@pytest.fixture
def probed() -> guillotine.Probed:
    kinds = {guillotine.MEANING: layers(50, 60, 70, chosen=2)}
    kinds[guillotine.FORM] = layers(50, 80, 70, chosen=1)
    of_tasks = {name: kinds[task.kind] for name, task in guillotine.TASKS.items()}
    flat = dict.fromkeys(guillotine.TASKS, layers(50, 60, 70, chosen=2))
    return {"an encoder": of_tasks, "another": flat}


def test_a_cut_pays_where_the_chosen_layer_beats_the_last(probed, tmp_path):
    found = guillotine.claims(probed)
    assert verdicts(found) == [REPRODUCED] * 4 + [NOT_DECIDABLE] * 4
    assert [" without length" in claim.measured for claim in found] == [False, True] * 4
    tuned = {"tense": {1: probed["another"]["tense"].scores[0]}}
    page = guillotine.page(guillotine.Config(), probed, tuned)
    text = page.text("figure.png")
    assert "| an encoder | tense | form | 1 of 2 | 0.800 | 0.700 | +0.100 (" in text
    assert "| an encoder | tense | 0.500 | 0.800 | 0.700 |" in text
    assert "| tense | 1 | 0.500 (" in text and "cut and fine-tuned, 200 labels" in text
    assert guillotine.WHY[0] in text
    other = guillotine.page(guillotine.Config(labels=100), probed, {}).text("figure.png")
    assert guillotine.WHY[0] not in other
    page.figure.drawn.savefig(tmp_path / "plot.png")


def test_what_length_alone_brings_is_gone_without_it(probed):
    flat = layers(50, 60, 70, chosen=2)
    of_tasks = {**probed["another"], guillotine.LENGTH: layers(90, 60, 50, chosen=0)}
    far, far_without, near, near_without = guillotine.claims({"an encoder": of_tasks})
    assert far.margin.value == pytest.approx(0.4 / 3) and near.margin.value == far.margin.value
    assert far_without.margin.value == near_without.margin.value == flat.gain.value == 0
    two = {name: flat for name in ("sentiment", "tense")}
    assert len(guillotine.claims({"an encoder": two})) == 2


def test_the_interval_of_a_gain_has_the_uncertainty_of_the_choice():
    sure = layers(50, 60, 70, chosen=2)
    assert sure.gain.value == 0 and sure.gain.interval == (0, 0)
    held_out_right = sure.held_out_right.copy()
    held_out_right[:2] = 0
    held_out_right[1, :, :10] = 1
    held_out_right[2] = 0
    held_out_right[2, :, 9:] = 1  # one row more: other rows would often choose layer 1
    unsure = guillotine.Layers(sure.right, held_out_right)
    low, high = unsure.gain.interval
    assert unsure.chosen == 2 and unsure.gain.value == 0 and low < -0.02 < 0.02 < high


def test_of_equal_layers_the_last_is_chosen():
    even = layers(50, 50, chosen=1)
    even = guillotine.Layers(even.right, np.ones_like(even.held_out_right))
    assert even.chosen == 1 and even.gain.value == 0


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**guillotine.SHORT)
    whole = guillotine.Config()
    assert set(short.checkpoints) < set(whole.checkpoints) and set(short.tasks) < set(whole.tasks)
    assert short.seeds < whole.seeds and short.test_rows < whole.test_rows
    kinds = {guillotine.TASKS[name].kind for name in short.tasks}
    assert kinds == {guillotine.MEANING, guillotine.FORM}
    assert set(whole.tuned) <= set(whole.tasks)
