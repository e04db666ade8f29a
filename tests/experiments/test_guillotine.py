"""The finding on cutting deeper: its tasks are what they say, its probes and claims of their rows."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.findings import guillotine
from experiments.study.page import NOT_DECIDABLE, REPRODUCED
from experiments.study.scores import score_of

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
    right, held_out = guillotine.probe_layers(noise, labels, 2, config)
    assert right.shape == (3, 2, 50)
    assert held_out.argmax() == 1 and held_out[1] > 0.95 > 0.8 > held_out[[0, 2]].max()
    assert right[1].mean() > 0.95


def layers(*rights: int, chosen: int) -> guillotine.Layers:
    """Probes of 2 seeds, of whose 400 test rows so many per cent are right, the first."""
    percent = np.arange(400) / 4
    scores = []
    for right in rights:
        scores.append(score_of(np.stack([right > percent] * 2).astype(np.float64)))
    held_out = np.where(np.arange(len(rights)) == chosen, 0.9, 0.5)
    return guillotine.Layers(scores, held_out.tolist())


@pytest.fixture
def probed() -> guillotine.Probed:
    kinds = {guillotine.MEANING: layers(50, 60, 70, chosen=2)}
    kinds[guillotine.FORM] = layers(50, 80, 70, chosen=1)
    of_tasks = {name: kinds[task.kind] for name, task in guillotine.TASKS.items()}
    flat = dict.fromkeys(guillotine.TASKS, layers(50, 60, 70, chosen=2))
    return {"an encoder": of_tasks, "another": flat}


def test_a_cut_pays_where_the_chosen_layer_beats_the_last(probed, tmp_path):
    verdicts = [claim.verdict for claim in guillotine.claims(probed)]
    assert verdicts == [REPRODUCED, REPRODUCED, NOT_DECIDABLE, NOT_DECIDABLE]
    tuned = {"tense": {1: probed["another"]["tense"].scores[0]}}
    page = guillotine.page(guillotine.Config(), probed, tuned)
    text = page.text("figure.png")
    assert "| an encoder | tense | form | 1 of 2 | 0.800 | 0.700 | +0.100 (" in text
    assert "| tense | 1 | 0.500 (" in text and "cut and fine-tuned, 200 labels" in text
    page.figure.drawn.savefig(tmp_path / "plot.png")


def test_of_equal_layers_the_last_is_chosen():
    even = dataclasses.replace(layers(50, 50, chosen=0), held_out=[0.7, 0.7])
    assert even.chosen == 1 and even.gain.value == 0


def test_what_is_short_is_a_part_of_what_is_whole():
    short = SimpleNamespace(**guillotine.SHORT)
    whole = guillotine.Config()
    assert set(short.checkpoints) < set(whole.checkpoints) and set(short.tasks) < set(whole.tasks)
    assert short.seeds < whole.seeds and short.test_rows < whole.test_rows
    kinds = {guillotine.TASKS[name].kind for name in short.tasks}
    assert kinds == {guillotine.MEANING, guillotine.FORM}
    assert set(whole.tuned) <= set(whole.tasks)
