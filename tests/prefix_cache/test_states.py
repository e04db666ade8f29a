"""The states of a frozen prefix: their key in the cache, their pieces, and batches of them."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt import tree
from adapt.data import examples, packing
from adapt.data.examples import Examples, States
from adapt.data.sources import ImageSource, TokenSource
from adapt.errors import OutputError
from adapt.models import Model, heads
from adapt.prefix_cache import states as cache
from adapt.prefix_cache import store
from adapt.pretrained import hub
from adapt.ragged import Ragged, ragged
from adapt.training import frozen_prefix
from adapt.training.frozen_prefix import Cut
from tests.helpers import runs, small

MAX_LENGTH = 24  # tokens of a text


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An ADAPT_CACHE that no other test has filled."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def prefixes(monkeypatch) -> list[int]:
    """The cuts of the prefixes that ran, one a batch."""
    return runs.count_prefixes(monkeypatch)


def unlabelled(tokens: Ragged) -> Examples:
    """Examples of token ids, each with the label 0."""
    count = len(tokens)
    return Examples(TokenSource(tokens, MAX_LENGTH), np.arange(count), np.zeros(count, np.int32))


def random_texts(lengths: np.ndarray | list[int], rng: np.random.Generator) -> Ragged:
    """Random token ids of texts of these lengths."""
    return ragged([rng.integers(1, 40, length) for length in lengths])


def compute(cut: Cut, params: tree.Tree, texts: Examples, dtype: str = "float32") -> States:
    """The states of all examples, by way of the cache."""
    array = cache.cached_array(params, cut.model, cut.depth, texts, dtype)
    return cache.compute_states(cut, params, texts, array)


# The key


@dataclasses.dataclass(frozen=True)
class Entry:
    """What decides where states are kept."""

    params: tree.Tree
    model: Model
    depth: int
    texts: Examples
    dtype: str = "float32"

    @property
    def folder(self) -> Path:
        array = cache.cached_array(self.params, self.model, self.depth, self.texts, self.dtype)
        return array.folder

    def replace(self, **changes) -> "Entry":
        return dataclasses.replace(self, **changes)

    def add_one(self, *paths: str) -> "Entry":
        """With other values of these parameters."""
        assert set(paths) <= set(tree.paths(self.params))
        changed = tree.map_paths(lambda path, leaf: leaf + (path in paths), self.params)
        return self.replace(params=changed)

    def configure(self, **changes) -> "Entry":
        """With other fields of the encoder's config."""
        encoder = self.model.encoder
        config = dataclasses.replace(encoder.config, **changes)
        model = dataclasses.replace(self.model, encoder=encoder.clone(config=config))
        return self.replace(model=model)

    def with_tokens(self, **changes) -> "Entry":
        """With other fields of the token ids."""
        tokens = dataclasses.replace(self.texts.file_sequences.tokens, **changes)
        source = TokenSource(tokens, MAX_LENGTH)
        return self.replace(texts=dataclasses.replace(self.texts, file_sequences=source))


@pytest.fixture
def entry() -> Entry:
    """The first block of two under a classifier, on six texts."""
    model = small.classifier()
    return Entry(small.params(model), model, 2, unlabelled(small.texts(6)))


def test_whatever_changes_states_makes_an_entry_of_its_own(entry):
    tokens = entry.texts.file_sequences.tokens
    other_ids = tokens.values.copy()
    other_ids[3] += 1
    others = {
        "token ids": entry.with_tokens(values=other_ids),
        "lengths": entry.with_tokens(lengths=tokens.lengths[::-1].copy()),
        "more texts": entry.replace(texts=unlabelled(small.texts(7))),
        "embedding": entry.add_one("encoder/embedding/position"),
        "block": entry.add_one("encoder/block_00/mlp/up/bias"),
        "cut": entry.replace(depth=1),
        "pooled": entry.replace(depth=3),
        "cache dtype": entry.replace(dtype="bfloat16"),
        "another cache dtype": entry.replace(dtype="float16"),
        "dtype": entry.replace(model=entry.model.cast(jnp.bfloat16)),
        "epsilon": entry.configure(norm_epsilon=1e-5),
        "activation": entry.configure(activation="relu"),
    }
    folders = {name: other.folder for name, other in others.items()}
    folders["unchanged"] = entry.folder
    assert len(set(folders.values())) == len(folders), folders


def test_whatever_leaves_states_as_they_are_shares_the_entry(entry):
    another_head = small.classifier(pooling="max", classes=5, dropout=0.2)
    without_head = entry.replace(params=tree.drop(entry.params, "head"))
    texts = entry.texts
    others = {
        "dropout": entry.configure(dropout=0.5, attention_dropout=0.3, init_range=1.0),
        "above the cut": entry.add_one("encoder/block_01/mlp/up/bias", "head/classifier/bias"),
        "head and pooling": without_head.replace(model=another_head),
        "labels": entry.replace(texts=dataclasses.replace(texts, labels=np.arange(6))),
        "split": entry.replace(texts=texts.take(np.array([4, 1]))),
    }
    folders = {name: other.folder for name, other in others.items()}
    assert folders == dict.fromkeys(others, entry.folder)


def test_a_pooling_that_computes_something_else_under_its_name_makes_another_entry(
    entry, monkeypatch
):
    pooled = entry.replace(model=small.classifier(pooling="ends"), depth=3)

    def folder(factor: int) -> Path:
        pool = lambda x, batch: factor * heads.last(x, batch)
        monkeypatch.setitem(heads.POOLINGS, "ends", pool)
        return pooled.folder

    assert folder(1) != folder(3)
    assert folder(1) == folder(1)
    assert folder(3) == folder(3)


def test_other_pictures_or_other_pixels_of_them_make_another_entry(inputs):
    source = hub.load(inputs.checkpoint("vit_classifier"))
    settings = source.image_settings
    larger_settings = dataclasses.replace(settings, size=settings.size + 1)
    larger = dataclasses.replace(source, image_settings=larger_settings)
    digests = np.arange(64, dtype=np.uint8).reshape(2, 32)

    def array_of(digests: np.ndarray, source: hub.Pretrained):
        pictures = examples.from_images(source, lambda rows: [], digests, np.zeros(2))
        return cache.cached_array(source.params, source.model, 2, pictures, "float32")

    array = array_of(digests, source)
    others = [array_of(digests[::-1], source), array_of(digests, larger)]
    assert len({array.folder, *(other.folder for other in others)}) == 3
    assert array.shape == (2 * source.config.positions, source.config.width)


# Reduced precision


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_states_too_large_for_float16_are_refused_and_bfloat16_holds_them():
    model = small.classifier("gpt2")

    def enlarge(path: str, leaf: np.ndarray) -> np.ndarray:
        return leaf * 1e6 if path.endswith("embedding/position") else leaf

    params = tree.map_paths(enlarge, small.params(model))
    cut = frozen_prefix.cut_at(model, 1)
    texts = unlabelled(small.texts(6))
    with pytest.raises(OutputError, match=r"float16 can't hold .* `cache_dtype` bfloat16"):
        compute(cut, params, texts, "float16")
    compute(cut, params, texts, "bfloat16")
    array = cache.cached_array(params, model, 1, texts, "bfloat16")
    assert 1e-4 < array.relative_error < 1e-2


# Pieces


def test_a_filling_that_was_stopped_skips_what_is_done(monkeypatch, home, prefixes):
    monkeypatch.setattr(store, "NOTE_SECONDS", -1.0)
    monkeypatch.setattr(cache, "PIECE", 1500)  # some two windows
    model = small.classifier()
    params = small.params(model)
    cut = frozen_prefix.cut_at(model, 2)
    texts = unlabelled(small.texts(500))
    array = cache.cached_array(params, model, 2, texts, "float32")

    def stop(done: int, total: int) -> None:
        if len(prefixes) >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.compute_states(cut, params, texts, array, on_progress=stop)
    assert (array.folder / "progress.json").exists()
    assert not array.is_complete

    prefixes.clear()
    progress = []
    resumed = cache.compute_states(
        cut, params, texts, array, on_progress=lambda *done: progress.append(done)
    )
    num_resumed = len(prefixes)
    assert len(progress) == num_resumed
    assert progress[0][0] > 0
    assert progress[-1] == (500, 500)
    stored = (array.folder / "values.bin").read_bytes()

    shutil.rmtree(home)
    prefixes.clear()
    whole = cache.compute_states(cut, params, texts, array)
    assert 0 < num_resumed < len(prefixes)
    assert stored == (array.folder / "values.bin").read_bytes()
    assert len(whole) == 500
    assert np.array_equal(resumed.values, whole.values)


@pytest.mark.parametrize("depth", [2, 3])
def test_states_are_the_same_in_pieces_of_any_size(monkeypatch, home, depth):
    model = small.classifier()
    params = small.params(model)
    cut = frozen_prefix.cut_at(model, depth)
    texts = unlabelled(small.texts(300))
    values = []
    for size in (10**9, 3000, 1000):
        monkeypatch.setattr(cache, "PIECE", size)
        shutil.rmtree(home, ignore_errors=True)
        states = compute(cut, params, texts)
        values.append(np.array(states.values if isinstance(states, Ragged) else states))
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-5, atol=1e-5)


def test_pieces_of_pictures_are_whole_batches(monkeypatch):
    monkeypatch.setattr(cache, "PIECE", 1000)
    offsets = np.arange(201) * 17
    pictures = Examples(ImageSource(lambda rows: rows, 200, 17), np.arange(200), np.zeros(200))
    assert cache.piece_ends(pictures, offsets).tolist() == [32, 96, 160, 200]
    texts = unlabelled(ragged([np.arange(17)] * 200))
    assert cache.piece_ends(texts, offsets).tolist() == [59, 118, 177, 200]


# The states themselves


LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=16)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def cuts() -> dict[str, Cut]:
    """Compiled once: two stages of BERT, and GPT-2 pooled by its last token."""
    return {
        "bert": frozen_prefix.cut_at(small.classifier("bert"), 2),
        "gpt2": frozen_prefix.cut_at(small.classifier("gpt2", "last"), 3),
    }


def shuffled(lengths: list[int]) -> Examples:
    """Examples of texts of these lengths, in another order than that of the file."""
    rng = np.random.default_rng(lengths)
    tokens = random_texts(lengths, rng)
    rows = rng.permutation(len(lengths))
    labels = rng.integers(0, 3, len(lengths))
    return Examples(TokenSource(tokens, MAX_LENGTH), rows, labels)


@FEW
@given(lengths=LENGTHS)
def test_every_example_has_the_states_that_it_has_alone(cuts, lengths):
    cut = cuts["bert"]
    params = small.params(cut.model)
    texts = shuffled(lengths)
    states = compute(cut, params, texts)

    # One text a row: [16, 24, D].
    row = np.arange(len(lengths))
    tokens = texts.file_sequences.tokens
    batch = packing.assemble(tokens, row, row, np.zeros_like(row), (16, MAX_LENGTH, 16))
    prefix, _ = cut.split(params)
    expected = np.asarray(cut.run(prefix, batch))
    assert len(states) == len(lengths)
    for number, length in enumerate(lengths):
        alone = expected[number, :length]
        np.testing.assert_allclose(states[number], alone, rtol=1e-5, atol=1e-5)


@FEW
@given(lengths=LENGTHS, seed=st.integers(0, 9))
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_batches_bring_as_hidden_what_the_prefix_would_put_out(cuts, family, lengths, seed):
    cut = cuts[family]
    params = small.params(cut.model)
    texts = shuffled(lengths)
    with_states = dataclasses.replace(texts, states=compute(cut, params, texts))
    shapes = packing.BatchShapes(2 * MAX_LENGTH, (4,), 4)
    batches = list(texts.batches(shapes, seed, 1))
    batches_with_states = list(with_states.batches(shapes, seed, 1))
    assert len(batches) == -(-len(lengths) // 4)
    for batch, batch_with_states in zip(batches, batches_with_states, strict=True):
        _, computed = cut(params, batch)
        _, cached = cut(params, batch_with_states)
        computed, cached = jax.device_get((computed, cached))
        assert "tokens" not in cached
        assert computed.keys() == cached.keys()
        for name in cached.keys() - {"hidden"}:
            assert np.array_equal(computed[name], cached[name]), name
        if cut.model.prefix_pools(cut.depth):
            is_used = batch["weight"] > 0
        else:
            is_used = batch["segments"] < 4
        hidden = cached["hidden"]
        assert computed["hidden"].shape == hidden.shape
        np.testing.assert_allclose(
            hidden[is_used], computed["hidden"][is_used], rtol=1e-5, atol=1e-5
        )
        assert not hidden[~is_used].any()


@FEW
@given(lengths=LENGTHS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_evaluation_goes_through_the_states_of_every_example_once(cuts, family, lengths):
    cut = cuts[family]
    texts = shuffled(lengths)
    states = compute(cut, small.params(cut.model), texts)
    rows = []
    for (index,), batch in dataclasses.replace(texts, states=states).eval_batches():
        assert batch["hidden"].dtype == np.float32
        rows += index.tolist()
    assert sorted(rows) == list(range(len(texts)))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(("shortest", "tolerance"), [(13, 0), (2, 1e-6)])
def test_states_agree_bit_for_bit_where_every_text_begins_a_row(family, shortest, tolerance):
    """Texts of 13 tokens and more fill more than half a row, so that each begins one. Elsewhere the
    last bit differs: sums over a row's tokens are in another order.
    """
    model = small.classifier(family)
    params = small.params(model)
    cut = frozen_prefix.cut_at(model, 2)
    rng = np.random.default_rng(shortest)
    texts = unlabelled(random_texts(rng.integers(shortest, MAX_LENGTH + 1, 100), rng))
    states = compute(cut, params, texts)
    # The cache was computed in the shape of the training batches below.
    assert {batch["tokens"].shape for _, batch in texts.file_batches()} == {(42, MAX_LENGTH)}
    shapes = packing.BatchShapes(MAX_LENGTH, (42,), 40)
    training = texts.take(rng.permutation(100)[:80])
    with_states = dataclasses.replace(training, states=states)
    pairs = zip(training.batches(shapes, 0, 0), with_states.batches(shapes, 0, 0), strict=True)
    for batch, batch_with_states in pairs:
        is_used = batch["segments"] < 40
        computed = np.asarray(cut(params, batch)[1]["hidden"])[is_used]
        cached = batch_with_states["hidden"][is_used]
        assert np.abs(computed - cached).max() <= tolerance * np.abs(computed).max()
