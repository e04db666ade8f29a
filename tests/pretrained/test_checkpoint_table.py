"""The table of docs/checkpoints.md: what is done with every entry of a checkpoint's files.

Every row has cases in tests/references/folders.py, made-up folders in which that entry decides. What
transformers and sentence-transformers do with them is recorded in folders.npz.
"""

import itertools
import json
import logging
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from adapt import features
from adapt.errors import CheckpointError, StrategyError
from adapt.models import Model
from adapt.pretrained import hub
from adapt.pretrained.images import to_pixels
from tests.helpers import tiny
from tests.helpers.folders import FOLDERS

PAGE = tiny.ROOT / "docs" / "checkpoints.md"


CASES = FOLDERS.CASES
RECORDED = dict(np.load(tiny.REFERENCES / "folders.npz"))


def rows() -> set[tuple[str, str]]:
    """(file, entry) of every row of the page's tables."""
    found = set()
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            found.add((cells[0], cells[1]))
    return found


def covered() -> set[tuple[str, str]]:
    pairs = set()
    for case in CASES.values():
        pairs.update(case.covers)
    return pairs


def looking(what: str) -> list[str]:
    return [name for name, case in CASES.items() if case.looks == what and not case.refuses]


def made(name: str, tmp_path: Path) -> Path:
    CASES[name].make(tmp_path / "model")
    return tmp_path / "model"


def test_every_row_has_a_case_and_every_case_a_row():
    assert rows() - covered() == set()
    assert covered() - rows() == set()


@pytest.mark.parametrize("name", looking("tokens"))
def test_texts_become_the_tokens_of_the_original_library(name, tmp_path):
    tokenizer = hub.load(made(name, tmp_path)).tokenizer
    texts, pairs = json.loads(str(RECORDED[f"{name}|tokens"]))
    assert [tokens.ids.tolist() for tokens in tokenizer.tokenize(FOLDERS.TEXTS)] == texts
    assert [tokens.ids.tolist() for tokens in tokenizer.tokenize(FOLDERS.PAIRS)] == pairs


@pytest.mark.parametrize("name", looking("vectors"))
def test_texts_become_the_vectors_of_the_original_library(name, tmp_path):
    asked = CASES[name].asked
    prompt = asked.get("prompt", asked.get("prompt_name"))
    vectors = features.encode(made(name, tmp_path), FOLDERS.TEXTS, prompt=prompt)
    np.testing.assert_allclose(vectors, RECORDED[f"{name}|vectors"], atol=1e-4)


@pytest.mark.parametrize("name", looking("states"))
def test_settings_of_the_encoder_give_the_states_of_the_original_library(name, tmp_path):
    loaded = hub.load(made(name, tmp_path))
    count = 10
    batch = {
        "tokens": np.arange(1, count + 1, dtype=np.int32)[None],
        "positions": np.arange(count, dtype=np.int32)[None],
        "segments": np.zeros((1, count), np.int32),
        "first": np.zeros(1, np.int32),
        "length": np.full(1, count, np.int32),
    }
    states = Model.hidden_states(loaded.model, loaded.params, batch)[-1]
    np.testing.assert_allclose(states[0], RECORDED[f"{name}|states"], atol=1e-4)


def pictures() -> list[Image.Image]:
    """Those of the recording script."""
    images = []
    for height, width in ((40, 56), (37, 23)):
        row, column = np.mgrid[:height, :width]
        bands = [row * 255 // (height - 1), column * 255 // (width - 1), (row * column) % 256]
        images.append(Image.fromarray(np.stack(bands, -1).astype(np.uint8)))
    return images


@pytest.mark.parametrize("name", looking("pixels"))
def test_pictures_become_the_pixels_of_the_original_library(name, tmp_path):
    settings = hub.load(made(name, tmp_path)).image_settings
    pixels = to_pixels(pictures(), settings).transpose(0, 3, 1, 2)
    recorded = RECORDED[f"{name}|pixels"]
    np.testing.assert_allclose(pixels[:, :, ::3, ::5], recorded, atol=1e-5)


@pytest.mark.parametrize("name", looking("similarity"))
def test_the_similarity_is_that_of_the_original_library(name, tmp_path):
    loaded = hub.load(made(name, tmp_path))
    assert loaded.embedding.similarity == str(RECORDED[f"{name}|similarity"])


@pytest.mark.parametrize("name", looking(""))
def test_what_the_original_library_can_not_show_loads(name, tmp_path):
    assert hub.load(made(name, tmp_path)).tokenizer is not None


def test_the_other_entries_of_config_json_are_obeyed(tmp_path):
    """Each case has its line here."""

    def load(name: str) -> hub.Pretrained:
        return hub.load(made(name, tmp_path / name.replace(" ", "-")))

    checks = {
        "one type": lambda p: p.config.types == 1,
        "padding without a row": lambda p: p.config.pad_token == 0,
        "dropout of the encoder": lambda p: (
            (p.config.dropout, p.config.attention_dropout, p.config.init_range) == (0.3, 0.2, 0.5)
        ),
        "dropout of a head": lambda p: p.head.dropout == 0,
        "tied": lambda p: p.head.tied,
        "a tagger": lambda p: (type(p.head).__name__, p.task) == ("Tagger", "tags"),
        "labels": lambda p: (p.task, len(p.labels)) == ("multilabel", 3),
        "gray pictures": lambda p: (p.config.channels, p.config.qkv_bias) == (1, False),
    }
    assert checks.keys() == {name for name, case in CASES.items() if case.looks == name}
    for name, check in checks.items():
        assert check(load(name)), name


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refuses])
def test_what_is_refused_is_refused_by_name(name, tmp_path):
    """At once; or where the files ask for vectors that adapt does not make, when vectors are."""
    folder = made(name, tmp_path)
    with pytest.raises((CheckpointError, StrategyError), match=re.escape(CASES[name].refuses)):
        features.encode(folder, FOLDERS.TEXTS)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.says])
def test_files_that_contradict_each_other_are_said(name, tmp_path, caplog):
    folder = made(name, tmp_path)
    with caplog.at_level(logging.WARNING, "adapt"):
        hub.load(folder)
    assert CASES[name].says in caplog.text


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.says])
def test_nothing_is_said_of_files_that_agree(name, tmp_path, caplog):
    if CASES[name].refuses or CASES[name].looks == name:
        return
    folder = made(name, tmp_path)
    with caplog.at_level(logging.WARNING, "adapt"):
        hub.load(folder)
    assert not caplog.records


JUNK = [None, [], {}, "x", "", -1, 0, 1.5, True, [1], ["a"], {"a": 1}, 10**18, "[CLS]", [[]]]


def places(content, place=()):
    """The way to every value of a JSON file, of large ones to the first few."""
    yield place
    items = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        items = enumerate(content)
    for key, value in itertools.islice(items, 12):
        yield from places(value, (*place, key))


def damage(file: Path, random) -> None:
    """Put something else in the place of one value, or leave it out."""
    content = json.loads(file.read_text("utf-8"))
    *way, last = random.choice([place for place in places(content) if place])
    inner = content
    for key in way:
        inner = inner[key]
    if random.random() < 0.2:
        del inner[last]
    else:
        inner[last] = random.choice(JUNK)
    file.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_setting_is_one_line_or_harmless(seed, tmp_path):
    random = Random(seed)
    names = [name for name, case in CASES.items() if not case.refuses]
    num_refused = 0
    for number in range(25):
        folder = tmp_path / str(number)
        CASES[random.choice(names)].make(folder)
        files = [file for file in sorted(folder.rglob("*.json")) if file.read_text() not in "{}"]
        damage(random.choice(files), random)
        try:
            loaded = hub.load_silently(folder)
            features.vector_settings(loaded)
            if loaded.tokenizer is not None:
                loaded.tokenizer.encode(FOLDERS.TEXTS)
                loaded.tokenizer.encode(FOLDERS.PAIRS)
            elif loaded.image_settings is not None:
                to_pixels(pictures(), loaded.image_settings)
        except (CheckpointError, StrategyError) as error:
            num_refused += 1
            is_diff = "do not fit its config.json" in str(error)
            assert is_diff or len(str(error).splitlines()) == 1
    assert 3 < num_refused < 25
