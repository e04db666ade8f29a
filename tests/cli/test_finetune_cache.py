"""Whole runs with the cache of the frozen prefix: the same results as without it, when it is on,
what it is reused for, how a stopped run goes on.
"""

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapt import files
from adapt.cli import finetune, predict
from adapt.cost import clock
from adapt.errors import CheckpointError, OutputError, StrategyError
from adapt.prefix_cache import states as cache
from adapt.training import checkpoint
from tests.helpers import runs, tiny

BERT = "bert_mlm_tied"
GPT2 = "gpt2_lm_tied"
VIT = "vit_classifier"
SLOW = 1e6  # FLOP/s of a machine on which the prefix takes seconds
FAST = 1e18  # of one that computes faster than it reads


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An ADAPT_CACHE that no other test has filled."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(inputs, tmp_path):
    """`run(BERT, "on", cache="on")` is the result of a run in `tmp_path / "on"`."""

    def finetuned(case: str, name: str = "run", **flags) -> dict:
        data = inputs.images if case == VIT else inputs.texts
        defaults = {
            "epochs": 1,
            "batch_size": 4,  # BERT's steps are then of one shape
            "log_every": 1,
            "strategy": "top:1",
            "overwrite": "resume" not in flags,
            "checkpoint": inputs.checkpoint(case, blocks=1),
        }
        return finetune.main(finetune.Config(**(defaults | data | flags), out=tmp_path / name))

    return finetuned


@pytest.fixture
def run_two(run, inputs):
    """The same with two blocks, of which one is frozen: without it nothing is saved."""
    two_blocks = inputs.checkpoint(BERT)
    return lambda name="run", **flags: run(BERT, name, checkpoint=two_blocks, **flags)


@pytest.fixture
def prefixes(monkeypatch) -> list[int]:
    """The cuts of the prefixes that ran, one a batch."""
    return runs.count_prefixes(monkeypatch)


@pytest.fixture
def set_speed(monkeypatch):
    """`set_speed(SLOW)` is the machine's FLOP/s from then on."""
    return lambda rate: monkeypatch.setattr(clock, "matmul_rate", lambda: rate)


@pytest.fixture
def limit_disk(home, monkeypatch):
    """`limit_disk(1000)` leaves so many bytes for files of the cache, and enough elsewhere."""
    home.mkdir()
    disk_usage = shutil.disk_usage

    def limit(size: int) -> None:
        def limited_usage(path):
            usage = disk_usage(path)
            if not str(path).startswith(str(home)):
                return usage
            used = sum(file.stat().st_size for file in home.glob("prefix/*/values.*"))
            return usage._replace(free=files.MARGIN + size - used)

        monkeypatch.setattr(shutil, "disk_usage", limited_usage)

    return limit


@pytest.fixture
def three_classes(tmp_path) -> str:
    """A table with the training texts of all runs, in three classes."""
    texts = [text for text, _ in tiny.sentences(32)]
    rows = [(text, "abc"[number % 3]) for number, text in enumerate(texts)]
    return str(tiny.write_table(tmp_path / "three.csv", rows))


def losses(folder: Path) -> list[float]:
    """All losses in a run's metrics.jsonl, those of training and those of validation."""
    values = []
    for record in tiny.lines(folder / "metrics.jsonl"):
        values += [record[name] for name in ("loss", "validation_loss") if name in record]
    return values


def predictions(folder: Path, data: dict[str, str]) -> tuple[list[str], np.ndarray]:
    """(the predicted classes, the probabilities) of the test set."""
    config = predict.Config(
        run=(folder,),
        data=data["test"],
        image_column=data.get("image_column"),
        out=folder / "out.csv",
        overwrite=True,
    )
    predict.main(config)
    with config.out.open() as file:
        header, *rows = csv.reader(file)
    first = header.index("prediction")  # after the number of a row and the name of a picture
    probabilities = np.array([row[first + 1 :] for row in rows], np.float64)
    return [row[first] for row in rows], probabilities


# The same results


@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        *itertools.product([BERT, GPT2, VIT], ["frozen", "top:1"]),
        (BERT, "top:2"),  # a cut below the last block is the same cut in every family
    ],
)
def test_the_same_run_with_the_cache_and_without(run, inputs, tmp_path, case, strategy):
    flags = {"strategy": strategy, "epochs": 1}
    if strategy == "top:2":
        flags["checkpoint"] = inputs.checkpoint(case)
    if case == VIT:
        # Batches of the shape in which the cache was computed: 32 pictures.
        flags |= {"batch_size": 32, "epochs": 3, "patience": 0}
    off = run(case, "off", cache="off", **flags)
    on = run(case, "on", cache="on", **flags)
    off_losses = losses(tmp_path / "off")
    on_losses = losses(tmp_path / "on")
    assert len(on_losses) == off["steps"] + flags["epochs"]
    np.testing.assert_allclose(on_losses, off_losses, rtol=1e-5)
    if (
        case == VIT
    ):  # of one shape: steps bit for bit; an evaluation is one program without the cache
        assert on_losses[::2] == off_losses[::2]
        assert runs.stored_digest(tmp_path / "on") == runs.stored_digest(tmp_path / "off")

    data = inputs.images if case == VIT else inputs.texts
    classes, probabilities = predictions(tmp_path / "on", data)
    expected_classes, expected_probabilities = predictions(tmp_path / "off", data)
    assert classes == expected_classes
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-5)
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-5)
    for name in ("accuracy", "macro_f1", "steps", "best_step"):
        assert on[name] == off[name]
    for name in ("validation_score", "frozen_digest_after"):
        assert on[name] == off[name]

    assert off["cache"] is None
    assert on["cache"]["dtype"] == "float32"
    assert on["cache"]["relative_error"] == 0
    # The training file, of which the validation is a part, and the test file.
    assert len(on["cache"]["folders"]) == 2
    stored = (tmp_path / "cache/prefix").glob("*/values.bin")
    assert on["cache"]["bytes"] == sum(file.stat().st_size for file in stored)


@pytest.mark.parametrize(("case", "strategy"), [(BERT, "top:1"), (BERT, "frozen"), (VIT, "top:1")])
def test_accumulated_micro_batches_agree(run, inputs, tmp_path, case, strategy):
    """The last step has one that is not full, or empty."""
    for name in ("off", "on"):
        run(case, name, cache=name, batch_size=8, accumulate=2, strategy=strategy)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-5)


def test_images_count_as_much_padding_with_the_cache_as_without(run, inputs):
    flags = {"strategy": "top:1", "batch_size": 32}
    flags["checkpoint"] = inputs.checkpoint(VIT, blocks=1)
    assert run(VIT, cache="on", **flags)["padding"] == run(VIT, cache="off", **flags)["padding"]


def test_computing_in_bfloat16_keeps_bfloat16_without_loss(run, inputs, tmp_path):
    flags = {"checkpoint": inputs.checkpoint(BERT, blocks=1), "dtype": "bfloat16"}
    run(BERT, "off", cache="off", **flags)
    on = run(BERT, "on", cache="on", **flags)
    assert on["cache"]["dtype"] == "bfloat16"
    assert on["cache"]["relative_error"] == 0
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-2)


def test_a_cache_of_bfloat16_says_its_relative_error(run, tmp_path, capsys):
    off = run(BERT, "off", cache="off")
    on = run(BERT, "on", cache="on", cache_dtype="bfloat16")
    errors = []
    for folder in on["cache"]["folders"]:
        content = json.loads((Path(folder) / "done.json").read_text())
        errors.append(content["relative_error"])
    assert all(1e-4 < error < 1e-2 for error in errors)
    assert on["cache"]["dtype"] == "bfloat16"
    assert on["cache"]["relative_error"] == max(errors)
    sentence = f"bfloat16 keeps the states to a relative error of {max(errors):.1e}"
    assert sentence in capsys.readouterr().out

    assert on["accuracy"] == pytest.approx(off["accuracy"], abs=0.15)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=0.02)
    assert losses(tmp_path / "on") != losses(tmp_path / "off")
    full = run(BERT, "full", cache="on")["cache"]
    assert full["relative_error"] == 0
    assert full["bytes"] == 2 * on["cache"]["bytes"]


# Reuse


def test_a_second_run_with_another_head_seed_and_rates_computes_no_prefix(
    run, tmp_path, prefixes, three_classes
):
    first = run(BERT, "first", cache="on")
    assert set(prefixes) == {1}
    prefixes.clear()
    test = [(text, "a") for text, _ in tiny.sentences(14, seed=1)]
    second = run(
        BERT,
        "second",
        cache="on",
        seed=7,
        pooling="cls",
        learning_rate=1e-3,
        head_learning_rate=2e-3,
        epochs=2,
        batch_size=16,
        dropout=0.3,
        train=three_classes,
        test=str(tiny.write_table(tmp_path / "new.csv", test)),
    )
    assert prefixes == []
    assert second["cache"] == first["cache"]


def test_off_computes_the_prefix_though_its_states_are_there(run, prefixes):
    run(BERT, "on", cache="on")
    prefixes.clear()
    run(BERT, "off", cache="off")
    assert set(prefixes) == {1}


def test_pooled_vectors_serve_one_pooling_and_any_head(run, prefixes, three_classes):
    folders = {}
    for pooling in ("mean", "cls"):
        result = run(BERT, pooling, cache="on", strategy="frozen", pooling=pooling)
        folders[pooling] = set(result["cache"]["folders"])
        assert set(prefixes) == {2}
        prefixes.clear()
    assert folders["mean"].isdisjoint(folders["cls"])
    data = {"train": three_classes, "test": three_classes}
    again = run(BERT, "again", cache="on", strategy="frozen", pooling="cls", seed=3, **data)
    assert prefixes == []
    assert set(again["cache"]["folders"]) < folders["cls"]


# When it is on


def test_on_is_refused_where_nothing_is_frozen(run, tmp_path):
    with pytest.raises(StrategyError, match="`strategy` full the embedding trains"):
        run(BERT, cache="on", strategy="full")
    assert not (tmp_path / "run").exists()


def test_auto_is_off_where_nothing_is_frozen(run):
    assert run(BERT, cache="auto", strategy="full")["cache"] is None


def test_auto_is_on_where_it_pays(run_two, home, prefixes, set_speed):
    set_speed(SLOW)
    assert run_two(batch_size=32, epochs=1)["cache"] is None
    assert not (home / "prefix").exists()
    three_epochs = run_two(batch_size=32, epochs=3)["cache"]
    assert three_epochs["bytes"] > 0
    assert (home / "prefix").exists()
    # What is there serves one epoch too.
    prefixes.clear()
    assert run_two(batch_size=32, epochs=1)["cache"] == three_epochs
    assert prefixes == []


def test_on_is_refused_where_the_disk_is_too_small(run, home, tmp_path, limit_disk):
    limit_disk(1)
    with pytest.raises(OutputError, match=r"the cache needs 0 MB: make room, .* `cache_dtype`"):
        run(BERT, cache="on", epochs=3)
    assert not (tmp_path / "run").exists()
    assert not (home / "prefix").exists()


def test_room_for_one_of_two_files_is_refused_before_the_run_starts(run, tmp_path, limit_disk):
    limit_disk(30_000)
    with pytest.raises(OutputError, match="make room"):
        run(BERT, cache="on")
    assert not (tmp_path / "run").exists()


def test_auto_goes_without_where_the_disk_is_too_small(run_two, limit_disk, set_speed, caplog):
    set_speed(SLOW)
    limit_disk(1)
    assert run_two(cache="auto", epochs=3, batch_size=32)["cache"] is None
    assert "no cache: the disk of" in caplog.text


def test_on_is_refused_where_the_cache_can_not_be_written(run, home):
    home.mkdir()
    (home / "prefix").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"the cache can't be written .* ADAPT_CACHE"):
        run(BERT, cache="on")


def test_auto_goes_without_where_the_cache_can_not_be_written(run_two, home, set_speed):
    set_speed(SLOW)
    home.mkdir()
    (home / "prefix").write_text("a file where the folder should be")
    assert run_two(cache="auto", epochs=3, batch_size=32)["cache"] is None


def test_auto_goes_on_without_a_cache_that_can_not_be_written_in_the_end(
    run, tmp_path, monkeypatch, caplog
):
    def fail(*_, **__):
        raise OutputError("no room now")

    monkeypatch.setattr(cache, "compute_states", fail)
    monkeypatch.setattr("adapt.prefix_cache.policy.seconds_saved", lambda *_: 1.0)
    assert run(BERT, cache="auto")["cache"] is None
    assert "no cache: no room now" in caplog.text
    (phase,) = checkpoint.read_last(tmp_path / "run/checkpoints")["progress"]["phases"]
    assert not phase["cached"]  # so a resumed run does not insist on it


def test_a_half_filled_cache_needs_no_second_room(run, home, monkeypatch):
    run(BERT, cache="on")
    for values in home.glob("prefix/*/values.bin"):
        values.rename(values.with_name("values.part"))
        values.with_name("done.json").unlink()
        values.with_name("progress.json").write_text('{"pieces": 1, "error": 0.0, "total": 0.0}')
    sizes = []
    need_space = files.need_space

    def watched(folder, size, what, *hint):
        if what == "the cache":
            sizes.append(size)
        need_space(folder, size, what, *hint)

    monkeypatch.setattr(files, "need_space", watched)
    assert run(BERT, cache="on")["cache"]
    assert sizes
    assert max(sizes) <= 100


def test_gradual_reports_the_cache_of_its_earlier_phases(run_two):
    assert run_two(cache="on", strategy="gradual", epochs=3)["cache"]["bytes"] > 0


# Stopped and resumed


@pytest.mark.parametrize(
    ("strategy", "is_lost"), [("frozen", True), ("top:1", False), ("top:1", True)]
)
def test_stopped_and_resumed_with_the_cache_is_the_same_run(
    run, inputs, home, tmp_path, strategy, is_lost
):
    flags = {"cache": "on", "strategy": strategy, "epochs": 2, "patience": 0, "seed": 1}
    flags |= {"save_every": 2}
    run(BERT, "whole", **flags)
    assert run(BERT, "parts", **flags, stop_after=2) == {}
    if is_lost:
        shutil.rmtree(home / "prefix")
    run(BERT, "parts", **flags, resume=True)
    runs.assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_resumed_run_does_as_it_did_before_whatever_pays_now(run_two, set_speed):
    flags = {"cache": "auto", "epochs": 3, "batch_size": 32, "patience": 0}
    set_speed(SLOW)
    run_two("on", **flags, stop_after=1)
    set_speed(FAST)
    run_two("off", **flags, stop_after=1)
    assert run_two("on", **flags, resume=True)["cache"]
    set_speed(SLOW)
    assert run_two("off", **flags, resume=True)["cache"] is None


def test_a_run_without_its_lineage_is_not_resumed(run, tmp_path):
    run(BERT, stop_after=1, save_every=1)
    (tmp_path / "run/lineage.json").unlink()
    with pytest.raises((CheckpointError, OutputError)):
        run(BERT, save_every=1, resume=True)
