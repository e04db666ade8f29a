"""The cache of the frozen prefix: the same results with it and without; reused, refused, resumed, of reduced precision."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt import files, tree
from adapt.cli import finetune, predict
from adapt.cost import clock
from adapt.data import examples, packing
from adapt.data.examples import Examples
from adapt.data.sources import ImageSource, TokenSource
from adapt.errors import CheckpointError, OutputError, StrategyError
from adapt.models import heads
from adapt.prefix_cache import states as cache
from adapt.prefix_cache import store
from adapt.pretrained import hub
from adapt.ragged import ragged
from adapt.training import checkpoint, frozen_prefix
from tests.helpers import runs, small, tiny

BERT, GPT2, VIT = "bert_mlm_tied", "gpt2_lm_tied", "vit_classifier"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An ADAPT_CACHE that no other test has filled."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(inputs, tmp_path):
    """`run(BERT, "on", cache="on")` is the result of a run in `tmp_path / "on"`."""

    def finetuned(case: str, name: str = "run", **flags) -> dict:
        data = inputs.images if case.startswith("vit") else inputs.texts
        fast = {
            "epochs": 1,
            "batch_size": 4,
            "log_every": 1,
            "strategy": "top:1",
        }  # BERT's steps are of one shape
        flags = fast | data | {"checkpoint": inputs.checkpoint(case)} | flags
        return finetune.main(
            finetune.Config(**{"overwrite": "resume" not in flags} | flags, out=tmp_path / name)
        )

    return finetuned


@pytest.fixture
def prefixes(monkeypatch) -> list[int]:
    """The cuts of the prefixes that ran, one a batch."""
    ran, make = [], frozen_prefix.make_prefix

    def counted(model, at):
        compiled = make(model, at)
        return lambda params, batch: ran.append(at) or compiled(params, batch)

    monkeypatch.setattr(frozen_prefix, "make_prefix", counted)
    return ran


def losses(folder: Path) -> list[float]:
    records = tiny.lines(folder / "metrics.jsonl")
    return [
        record[name] for record in records for name in ("loss", "validation_loss") if name in record
    ]


def predictions(folder: Path, data: dict) -> tuple[list[str], np.ndarray]:
    flags = {"image_column": data["image_column"]} if "image_column" in data else {}
    predict.main(
        predict.Config(
            run=(folder,), data=data["test"], out=folder / "out.csv", overwrite=True, **flags
        )
    )
    with (folder / "out.csv").open() as file:
        _, *rows = csv.reader(file)
    return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float64)


# The same results.


@pytest.mark.parametrize("strategy", ["frozen", "top:1", "top:2"])
@pytest.mark.parametrize("case", [BERT, GPT2, VIT])
def test_the_same_run_with_the_cache_and_without(run, inputs, tmp_path, case, strategy):
    """Bit for bit, where batches have the shape in which the cache was computed: 32 pictures."""
    data = inputs.images if case == VIT else inputs.texts
    flags = {"strategy": strategy} | (
        {"batch_size": 32, "epochs": 3, "patience": 0} if case == VIT else {}
    )
    off, on = run(case, "off", cache="off", **flags), run(case, "on", cache="on", **flags)
    assert len(losses(tmp_path / "on")) == off["steps"] + flags.get("epochs", 1)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-5)
    if case == VIT:
        assert losses(tmp_path / "on") == losses(tmp_path / "off")
        assert runs.stored_digest(tmp_path / "on") == runs.stored_digest(tmp_path / "off")
    names, shares = predictions(tmp_path / "on", data)
    others, expected = predictions(tmp_path / "off", data)
    assert names == others
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-5)
    for name in (
        "accuracy",
        "macro_f1",
        "steps",
        "best_step",
        "validation_score",
        "frozen_digest_after",
    ):
        assert on[name] == off[name]
    assert off["cache"] is None
    assert on["cache"]["dtype"] == "float32" and on["cache"]["relative_error"] == 0
    assert (
        len(on["cache"]["folders"]) == 2
    )  # the training file, of which the validation is a part, and the test file
    assert on["cache"]["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "cache/prefix").glob("*/values.bin")
    )


@pytest.mark.parametrize(("case", "strategy"), [(BERT, "top:1"), (BERT, "frozen"), (VIT, "top:1")])
def test_accumulated_micro_batches_agree(run, tmp_path, case, strategy):
    """The last step has one that is not full, or empty."""
    for name in ("off", "on"):
        run(case, name, cache=name, strategy=strategy, batch_size=8, accumulate=2)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-5)


def test_images_count_as_much_padding_with_the_cache_as_without(run):
    on, off = (
        run(VIT, cache=cache, strategy="top:1", batch_size=32)["padding"] for cache in ("on", "off")
    )
    assert on == off


def test_computing_in_bfloat16_keeps_bfloat16_without_loss(run, tmp_path):
    run(BERT, "off", cache="off", dtype="bfloat16")
    on = run(BERT, "on", cache="on", dtype="bfloat16")
    assert (on["cache"]["dtype"], on["cache"]["relative_error"]) == ("bfloat16", 0)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-2)


# Reuse.


def test_a_second_run_with_another_head_seed_and_rates_computes_no_prefix(
    run, inputs, tmp_path, prefixes
):
    first = run(BERT, "first", cache="on")
    assert set(prefixes) == {2}
    prefixes.clear()
    three = [(text, "abc"[number % 3]) for number, (text, _) in enumerate(tiny.sentences(32))]
    other = {
        "seed": 7,
        "pooling": "cls",
        "learning_rate": 1e-3,
        "head_learning_rate": 2e-3,
        "epochs": 2,
        "batch_size": 16,
        "dropout": 0.3,
        "train": str(tiny.write_table(tmp_path / "three.csv", three)),
        "test": str(
            tiny.write_table(
                tmp_path / "new.csv", [(row[0], "a") for row in tiny.sentences(14, seed=1)]
            )
        ),
    }
    second = run(BERT, "second", cache="on", **other)
    assert prefixes == [] and second["cache"] == first["cache"]
    # Without it, the prefix runs: the count counts.
    run(BERT, "third", cache="off")
    assert prefixes


def test_pooled_vectors_are_of_one_pooling_and_any_head(run, tmp_path, prefixes):
    kept = {}
    for pooling in ("mean", "cls"):
        kept[pooling] = run(BERT, pooling, cache="on", strategy="frozen", pooling=pooling)["cache"]
        assert set(prefixes) == {3}
        prefixes.clear()
    assert not set(kept["mean"]["folders"]) & set(kept["cls"]["folders"])
    three = [(text, "abc"[number % 3]) for number, (text, _) in enumerate(tiny.sentences(32))]
    table = str(tiny.write_table(tmp_path / "three.csv", three))
    again = run(
        BERT, "again", cache="on", strategy="frozen", pooling="cls", train=table, test=table, seed=3
    )
    assert prefixes == [] and set(again["cache"]["folders"]) < set(kept["cls"]["folders"])


def some(count: int = 6, seed: int = 0) -> Examples:
    tokens = small.texts(count, seed)
    return Examples(TokenSource(tokens, 24), np.arange(count), np.zeros(count, np.int32))


def changed(params: tree.Tree, *paths: str) -> tree.Tree:
    assert set(paths) <= set(tree.paths(params))
    return tree.map_paths(lambda path, leaf: leaf + (path in paths), params)


def test_what_makes_another_entry_and_what_does_not():
    model = small.classifier()
    params, at, texts, dtype = small.params(model), 2, some(), "float32"
    folder = cache.cached_array(params, model, at, texts, dtype).folder
    config = model.encoder.config
    with_config = lambda **new: dataclasses.replace(
        model, encoder=model.encoder.clone(config=dataclasses.replace(config, **new))
    )
    tokens = texts.file_sequences.tokens
    other_ids = tokens.values.copy()
    other_ids[3] += 1
    with_tokens = lambda **new: dataclasses.replace(
        texts, file_sequences=TokenSource(dataclasses.replace(tokens, **new), 24)
    )
    others = {
        "token ids": (
            params,
            model,
            at,
            with_tokens(values=other_ids),
            dtype,
        ),
        "lengths": (params, model, at, with_tokens(lengths=tokens.lengths[::-1].copy()), dtype),
        "more texts": (params, model, at, some(7), dtype),
        "embedding": (changed(params, "encoder/embedding/position"), model, at, texts, dtype),
        "block": (changed(params, "encoder/block_00/mlp/up/bias"), model, at, texts, dtype),
        "cut": (params, model, 1, texts, dtype),
        "pooled": (params, model, 3, texts, dtype),
        "cache dtype": (params, model, at, texts, "bfloat16"),
        "another cache dtype": (params, model, at, texts, "float16"),
        "dtype": (params, model.cast(jnp.bfloat16), at, texts, dtype),
        "epsilon": (params, with_config(norm_epsilon=1e-5), at, texts, dtype),
        "activation": (params, with_config(activation="relu"), at, texts, dtype),
    }
    folders = {name: cache.cached_array(*found).folder for name, found in others.items()}
    assert len(set(folders.values()) | {folder}) == len(others) + 1

    above = changed(params, "encoder/block_01/mlp/up/bias", "head/classifier/bias")
    five = small.classifier(pooling="max", classes=5, dropout=0.2)
    same = {
        "dropout": (
            params,
            with_config(dropout=0.5, attention_dropout=0.3, init_range=1.0),
            at,
            texts,
            dtype,
        ),
        "what is above the cut": (above, model, at, texts, dtype),
        "head and pooling": (tree.drop(params, "head"), five, at, texts, dtype),
        "labels": (params, model, at, dataclasses.replace(texts, labels=np.arange(6)), dtype),
        "split": (params, model, at, texts.take(np.array([4, 1])), dtype),
    }
    assert {
        name: cache.cached_array(*found).folder for name, found in same.items()
    } == dict.fromkeys(same, folder)


def test_a_pooling_that_computes_something_else_under_its_name_makes_another_entry(monkeypatch):
    model = small.classifier(pooling="ends")
    texts = Examples(TokenSource(small.texts(6), 20), np.arange(6), np.zeros(6))
    folders = []
    for pool in (
        lambda x, batch: heads.last(x, batch),
        lambda x, batch: 3 * heads.last(x, batch),
    ) * 2:
        monkeypatch.setitem(heads.POOLINGS, "ends", pool)
        folders.append(
            cache.cached_array(small.params(small.classifier()), model, 3, texts, "float32").folder
        )
    assert folders[:2] == folders[2:] and folders[0] != folders[1]


def test_other_pictures_or_other_pixels_of_them_make_another_entry(inputs):
    source = hub.load(inputs.checkpoint(VIT))
    params, sums = source.params, np.arange(64, dtype=np.uint8).reshape(2, 32)
    make = lambda sums, source: examples.from_images(source, lambda rows: [], sums, np.zeros(2))
    larger = dataclasses.replace(
        source,
        image_settings=dataclasses.replace(
            source.image_settings, size=source.image_settings.size + 1
        ),
    )
    images, others = make(sums, source), [make(sums[::-1], source), make(sums, larger)]
    entries = [
        cache.cached_array(params, source.model, 2, each, "float32") for each in (images, *others)
    ]
    assert len({entry.folder for entry in entries}) == 3
    assert entries[0].shape == (2 * source.config.positions, source.config.width)


# When it is on.


def test_nothing_stands_still_under_full(run, tmp_path):
    with pytest.raises(
        StrategyError,
        match="`strategy` full the embedding trains, so nothing before it is frozen",
    ):
        run(BERT, cache="on", strategy="full")
    assert not (tmp_path / "run").exists()


def test_auto_is_on_where_it_pays(run, home, prefixes, monkeypatch):
    monkeypatch.setattr(
        clock, "matmul_rate", lambda: 1e6
    )  # a machine on which the prefix takes seconds
    kept = lambda **flags: run(BERT, strategy="top:1", batch_size=32, **flags)["cache"]
    assert kept(epochs=1) is None
    assert not (home / "prefix").exists()
    many = kept(epochs=3)
    assert many and many["bytes"] > 0 and (home / "prefix").exists()
    # What is there serves one epoch too.
    prefixes.clear()
    assert kept(epochs=1) == many and not prefixes


def test_auto_is_off_under_full(run):
    assert run(BERT, cache="auto", strategy="full")["cache"] is None


def test_auto_goes_without_where_the_disk_is_too_small_and_on_refuses(
    run, home, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(clock, "matmul_rate", lambda: 1e6)
    usage = shutil.disk_usage
    too_small = lambda path: (
        usage(path)._replace(free=files.MARGIN + 1)
        if str(path).startswith(str(home))
        else usage(path)
    )
    home.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", too_small)
    with pytest.raises(
        OutputError, match=r"the cache needs 0 MB: make room, .* `cache_dtype` bfloat16"
    ):
        run(BERT, cache="on", epochs=3)
    assert not (tmp_path / "run").exists() and not (home / "prefix").exists()
    assert run(BERT, cache="auto", epochs=3, batch_size=32)["cache"] is None
    assert "no cache: the disk of" in caplog.text


def two_files_of(monkeypatch, home: Path) -> None:
    """A disk that has room for the larger of the two files of the runs, not for both."""
    usage = shutil.disk_usage

    def free(path):
        if not str(path).startswith(str(home)):
            return usage(path)
        used = sum(file.stat().st_size for file in home.glob("prefix/*/values.*"))
        return usage(path)._replace(free=files.MARGIN + 30_000 - used)

    monkeypatch.setattr(shutil, "disk_usage", free)


def test_room_for_one_of_two_files_is_told_before_the_run_starts(run, home, tmp_path, monkeypatch):
    home.mkdir()
    two_files_of(monkeypatch, home)
    with pytest.raises(OutputError, match="make room"):
        run(BERT, cache="on")
    assert not (tmp_path / "run").exists()


def test_auto_goes_on_without_a_cache_that_cannot_be_written_in_the_end(
    run, tmp_path, monkeypatch, caplog
):
    def full(*_, **__):
        raise OutputError("no room now")

    monkeypatch.setattr(cache, "compute_states", full)
    monkeypatch.setattr("adapt.prefix_cache.policy.seconds_saved", lambda *_: 1.0)
    assert run(BERT, cache="auto")["cache"] is None
    assert "no cache: no room now" in caplog.text
    (began,) = checkpoint.read_last(tmp_path / "run" / "checkpoints")["progress"]["phases"]
    assert not began["cached"]  # so a resumed run does not insist on it


def test_gradual_reports_the_cache_of_its_earlier_phases(run):
    assert run(BERT, cache="on", strategy="gradual", epochs=3)["cache"]["bytes"] > 0


def test_the_whole_bundled_set_is_no_validation_of_its_own_training(tmp_path):
    with pytest.raises(
        StrategyError,
        match="--validation reviews is the whole set, with what is trained and tested on",
    ):
        finetune.main(finetune.Config(validation="reviews", out=tmp_path / "run"))


def test_a_cache_that_cannot_be_written_names_the_variable(run, home):
    home.mkdir()
    (home / "prefix").write_text("a file where the folder should be")
    with pytest.raises(
        OutputError, match=r"the cache can't be written .* point ADAPT_CACHE to another folder"
    ):
        run(BERT, cache="on")


def test_auto_goes_without_a_cache_that_cannot_be_written(run, home, monkeypatch):
    monkeypatch.setattr(clock, "matmul_rate", lambda: 1e6)
    home.mkdir()
    (home / "prefix").write_text("a file where the folder should be")
    assert run(BERT, cache="auto", epochs=3, batch_size=32)["cache"] is None


def test_a_half_filled_cache_needs_no_second_room(run, home, monkeypatch):
    run(BERT, cache="on")
    for values in home.glob("prefix/*/values.bin"):
        values.rename(values.with_name("values.part"))
        values.with_name("done.json").unlink()
        values.with_name("progress.json").write_text('{"pieces": 1, "error": 0.0, "total": 0.0}')
    asked = []
    need_space = files.need_space

    def watched(folder, size, what, *hint):
        if what == "the cache":
            asked.append(size)
        need_space(folder, size, what, *hint)

    monkeypatch.setattr(files, "need_space", watched)
    assert run(BERT, cache="on")["cache"]
    assert asked and max(asked) <= 100


# Reduced precision.


def test_a_cache_of_bfloat16_says_its_relative_error(run, tmp_path, capsys):
    off = run(BERT, "off", cache="off")
    on = run(BERT, "on", cache="on", cache_dtype="bfloat16")
    noted = [
        json.loads((Path(folder) / "done.json").read_text())["relative_error"]
        for folder in on["cache"]["folders"]
    ]
    assert on["cache"]["dtype"] == "bfloat16" and on["cache"]["relative_error"] == max(noted)
    assert all(1e-4 < error < 1e-2 for error in noted)
    assert (
        f"bfloat16 keeps the states to a relative error of {max(noted):.1e}"
        in capsys.readouterr().out
    )
    assert on["accuracy"] == pytest.approx(off["accuracy"], abs=0.15)
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=0.02)
    assert losses(tmp_path / "on") != losses(tmp_path / "off")
    full = run(BERT, "full", cache="on")["cache"]
    assert 2 * on["cache"]["bytes"] == full["bytes"] and full["relative_error"] == 0


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_states_too_large_for_float16():
    model = small.classifier("gpt2")
    huge = tree.map_paths(
        lambda path, leaf: leaf * (1e6 if path.endswith("embedding/position") else 1),
        small.params(model),
    )
    cut, texts = frozen_prefix.cut_at(model, 1), some()
    with pytest.raises(
        OutputError, match="float16 can't hold the values to cache: give `cache_dtype` bfloat16"
    ):
        cache.compute_states(cut, huge, texts, cache.cached_array(huge, model, 1, texts, "float16"))
    entry = cache.cached_array(huge, model, 1, texts, "bfloat16")
    cache.compute_states(cut, huge, texts, entry)
    assert 1e-4 < entry.relative_error < 1e-2


# Resumed.


@pytest.mark.parametrize(
    ("strategy", "lost"), [("frozen", True), ("top:1", False), ("top:1", True)]
)
def test_stopped_and_resumed_with_the_cache_is_the_same_run(run, home, tmp_path, strategy, lost):
    flags = {
        "cache": "on",
        "strategy": strategy,
        "epochs": 2,
        "save_every": 2,
        "patience": 0,
        "seed": 1,
    }
    run(BERT, "whole", **flags)
    assert run(BERT, "parts", **flags, stop_after=2) == {}
    if lost:
        shutil.rmtree(home / "prefix")
    run(BERT, "parts", **flags, resume=True)
    runs.assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_resumed_run_does_as_it_did_before_whatever_pays_now(run, tmp_path, monkeypatch):
    flags = {"cache": "auto", "epochs": 3, "batch_size": 32, "patience": 0}
    monkeypatch.setattr(clock, "matmul_rate", lambda: 1e6)
    run(BERT, "on", **flags, stop_after=1)
    monkeypatch.setattr(
        clock, "matmul_rate", lambda: 1e18
    )  # one that computes faster than it reads
    run(BERT, "off", **flags, stop_after=1)
    assert run(BERT, "on", **flags, resume=True)["cache"]
    monkeypatch.setattr(clock, "matmul_rate", lambda: 1e6)
    assert run(BERT, "off", **flags, resume=True)["cache"] is None


def test_a_run_to_resume_without_its_lineage(run, tmp_path):
    run(BERT, stop_after=1, save_every=1)
    (tmp_path / "run/lineage.json").unlink()
    with pytest.raises((CheckpointError, OutputError)):
        run(BERT, save_every=1, resume=True)


# The states themselves.


def test_a_filling_that_was_stopped_skips_what_is_done(monkeypatch, home, prefixes):
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)
    monkeypatch.setattr(cache, "PIECE", 1500)  # some two windows
    model = small.classifier()
    params, cut, texts = small.params(model), frozen_prefix.cut_at(model, 2), some(500)
    entry = cache.cached_array(params, model, 2, texts, "float32")

    def stop(done, total):
        if len(prefixes) >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.compute_states(cut, params, texts, entry, on_progress=stop)
    assert (entry.folder / "progress.json").exists() and not entry.is_complete
    prefixes.clear()
    told = []
    found = cache.compute_states(
        cut, params, texts, entry, on_progress=lambda *done: told.append(done)
    )
    resumed = len(prefixes)
    assert told[0][0] > 0 and told[-1] == (500, 500) and len(told) == resumed
    stored = (entry.folder / "values.bin").read_bytes()
    shutil.rmtree(home)
    prefixes.clear()
    again = cache.compute_states(cut, params, texts, entry)
    assert 0 < resumed < len(prefixes) and stored == (entry.folder / "values.bin").read_bytes()
    assert np.array_equal(found.values, again.values) and len(again) == 500


@pytest.mark.parametrize("depth", [2, 3])
def test_states_are_the_same_in_pieces_of_any_size(monkeypatch, home, depth):
    model = small.classifier()
    params, cut, texts = small.params(model), frozen_prefix.cut_at(model, depth), some(300)
    array = cache.cached_array(params, model, depth, texts, "float32")
    values = []
    for size in (10**9, 3000, 1000):
        monkeypatch.setattr(cache, "PIECE", size)
        shutil.rmtree(home, ignore_errors=True)
        states = cache.compute_states(cut, params, texts, array)
        values.append(np.array(states if depth == 3 else states.values))
    for some_values in values[1:]:
        np.testing.assert_allclose(some_values, values[0], rtol=1e-5, atol=1e-5)


def test_pieces_of_pictures_are_whole_batches(monkeypatch):
    monkeypatch.setattr(cache, "PIECE", 1000)
    pictures = Examples(ImageSource(lambda rows: rows, 200, 17), np.arange(200), np.zeros(200))
    offsets = np.arange(201) * 17
    assert cache.piece_ends(pictures, offsets).tolist() == [32, 96, 160, 200]
    tokens = TokenSource(ragged([np.arange(17)] * 200), 17)
    texts = Examples(tokens, np.arange(200), np.zeros(200))
    assert cache.piece_ends(texts, offsets).tolist() == [59, 118, 177, 200]


def alone(params: tree.Tree, cut: frozen_prefix.Cut, texts: Examples) -> np.ndarray:
    """What the prefix makes of at most 16 texts, one a row: [16, 24, D]."""
    row = np.arange(len(texts.file_sequences))
    batch = packing.assemble(
        texts.file_sequences.tokens, row, row, np.zeros_like(row), (16, 24, 16)
    )
    return np.asarray(cut.run(cut.split(params)[0], batch))


@pytest.fixture(scope="module")
def cuts() -> dict[str, tuple[tree.Tree, frozen_prefix.Cut]]:
    """Compiled once: two blocks of BERT, one of which is cut off, and GPT-2 pooled by its last token."""
    models = {"bert": (small.classifier("bert"), 2), "gpt2": (small.classifier("gpt2", "last"), 3)}
    return {
        name: (small.params(model), frozen_prefix.cut_at(model, at))
        for name, (model, at) in models.items()
    }


LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=16)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def of_lengths(lengths: list[int]) -> Examples:
    rng = np.random.default_rng(lengths)
    whole = ragged([rng.integers(1, 40, length) for length in lengths])
    rows = rng.permutation(len(lengths))
    return Examples(TokenSource(whole, 24), rows, rng.integers(0, 3, len(lengths)))


@FEW
@given(lengths=LENGTHS)
def test_every_example_has_the_states_that_it_has_alone(cuts, lengths):
    params, cut = cuts["bert"]
    texts = of_lengths(lengths)
    found = cache.compute_states(
        cut, params, texts, cache.cached_array(params, cut.model, 2, texts, "float32")
    )
    expected = alone(params, cut, texts)
    assert len(found) == len(lengths)
    for number, length in enumerate(lengths):
        np.testing.assert_allclose(found[number], expected[number, :length], rtol=1e-5, atol=1e-5)


@FEW
@given(lengths=LENGTHS, seed=st.integers(0, 9))
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_batches_bring_as_hidden_what_the_prefix_would_put_out(cuts, family, lengths, seed):
    params, cut = cuts[family]
    texts, shapes = of_lengths(lengths), packing.BatchShapes(48, (4,), 4)
    states = cache.compute_states(
        cut, params, texts, cache.cached_array(params, cut.model, cut.depth, texts, "float32")
    )
    kept = dataclasses.replace(texts, states=states)
    pairs = list(zip(texts.batches(shapes, seed, 1), kept.batches(shapes, seed, 1), strict=True))
    assert len(pairs) == -(-len(lengths) // 4)
    for plain, brought in pairs:
        _, computed = cut(params, plain)
        _, taken = cut(params, brought)
        assert set(computed) == set(taken) and "tokens" not in taken
        for name in set(taken) - {"hidden"}:
            assert np.array_equal(computed[name], taken[name]), name
        owned = plain["weight"] > 0 if cut.model.prefix_pools(cut.depth) else plain["segments"] < 4
        assert computed["hidden"].shape == taken["hidden"].shape
        np.testing.assert_allclose(
            taken["hidden"][owned], computed["hidden"][owned], rtol=1e-5, atol=1e-5
        )
        assert not taken["hidden"][~owned].any()
    # Evaluation goes through every example once, and finds it by its place.
    for (index,), batch in kept.eval_batches():
        assert batch["hidden"].dtype == np.float32 and set(index) <= set(range(len(texts)))
    assert sorted(np.concatenate([index for (index,), _ in kept.eval_batches()])) == list(
        range(len(texts))
    )


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_texts_in_rows_of_one_shape_agree_bit_for_bit_only_at_one_place_of_the_row(family):
    """Sums over a row's tokens are in another order where an example begins elsewhere: the last bit differs."""
    model = small.classifier(family)
    params, cut = small.params(model), frozen_prefix.cut_at(model, 2)
    rng = np.random.default_rng(0)
    for least, apart in (
        (13, 0),
        (2, 1e-6),
    ):  # from half a row on, one example a row, at its beginning; any
        whole = ragged([rng.integers(1, 40, length) for length in rng.integers(least, 25, 100)])
        texts = Examples(TokenSource(whole, 24), np.arange(100), np.zeros(100, np.int32))
        kept = cache.compute_states(
            cut, params, texts, cache.cached_array(params, model, 2, texts, "float32")
        )
        assert {batch["tokens"].shape for _, batch in texts.file_batches()} == {(42, 24)}
        shapes, some = packing.BatchShapes(24, (42,), 40), texts.take(rng.permutation(100)[:80])
        other = dataclasses.replace(some, states=kept)
        for plain, brought in zip(
            some.batches(shapes, 0, 0), other.batches(shapes, 0, 0), strict=True
        ):
            owned, hidden = plain["segments"] < 40, np.asarray(cut(params, plain)[1]["hidden"])
            assert (
                np.abs(hidden - brought["hidden"])[owned].max()
                <= apart * np.abs(hidden[owned]).max()
            )
