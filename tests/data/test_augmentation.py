"""Pictures in training: cut out, mirrored and mixed, by the seed, the epoch and the example alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from adapt.data import examples
from adapt.data.augmentation import Augmentation, crop_box, parse
from adapt.errors import StrategyError
from adapt.finetuning import prepare
from adapt.options import FinetuningOptions
from adapt.pretrained import hub
from adapt.training.losses import cross_entropy
from adapt.training.step import of_both_labels
from tests.helpers import tiny

NAMES = ("crop=0.3", "flip", "mixup=0.4", "cutmix")
COUNT = 10


@functools.cache
def training(names: tuple[str, ...] = NAMES) -> examples.Examples:
    """Pictures of noise with labels 0 to 9, in training batches of 4."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(COUNT)
    ]
    loaded = hub.load(tiny.REFERENCES / "vit_classifier")
    take = lambda rows: [pictures[row] for row in rows]
    made = examples.from_images(
        loaded, take, np.zeros((COUNT, 32), np.uint8), np.arange(COUNT, dtype=np.int32)
    )
    return dataclasses.replace(made, augmentation=parse(names))


def batches(names=NAMES, size: int = 4, epoch: int = 0, skip: int = 0, seed: int = 0) -> list:
    part = training(names)
    shapes = part.batch_shapes(size, seed, epochs=2)
    return list(part.batches(shapes, seed, epoch, skip))


def by_example(made: list) -> dict[int, bytes]:
    found = {}
    for batch in made:
        for slot in np.flatnonzero(batch["weight"]):
            found[int(batch["label"][slot])] = batch["pixels"][slot].tobytes()
    return found


def test_a_run_that_goes_on_has_the_same_batches_bit_for_bit():
    for whole, resumed in zip(batches()[1:], batches(skip=1), strict=True):
        assert whole.keys() == resumed.keys()
        for name in whole:
            assert whole[name].tobytes() == resumed[name].tobytes()


def test_views_are_of_the_seed_the_epoch_and_the_example_in_whatever_batch():
    views = ("crop", "flip")
    first = by_example(batches(views))
    assert len(first) == len(set(first.values())) == COUNT
    assert first == by_example(batches(views, size=5))
    for other in (batches(views, epoch=1), batches(views, seed=1), batches(())):
        again = by_example(other)
        assert all(first[example] != again[example] for example in range(COUNT))


def test_evaluation_and_cached_states_see_the_pictures_as_they_are():
    augmented = training()
    plain = training(())
    for ours, theirs in (
        (augmented.eval_batches(), plain.eval_batches()),
        (augmented.file_batches(), plain.file_batches()),
    ):
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one["pixels"], other["pixels"])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_mixed_picture_has_its_share_of_its_own_pixels_and_the_label_of_the_other(name):
    plain = {}
    for batch in batches(()):
        for slot in np.flatnonzero(batch["weight"]):
            plain[batch["label"][slot]] = batch["pixels"][slot]
    shares = []
    for batch in batches((f"{name}=1",)):
        for slot in np.flatnonzero(batch["weight"]):
            share = batch["own_share"][slot]
            own = plain[batch["label"][slot]]
            other = plain[batch["other_label"][slot]]
            mixed = batch["pixels"][slot]
            if name == "mixup":
                np.testing.assert_allclose(mixed, share * own + (1 - share) * other, atol=1e-5)
            else:
                is_own = (mixed == own).all(-1)
                assert (is_own | (mixed == other).all(-1)).all()
                assert abs(is_own.mean() - share) < 0.01
            shares.append(float(share))
    assert len(set(shares)) == COUNT and min(shares) < 0.5 < max(shares)


def test_the_loss_of_a_mixed_example_is_that_of_soft_labels():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)
    own, other = jnp.array([0, 1, 2]), jnp.array([4, 1, 0])
    share = jnp.array([0.25, 0.5, 1.0])
    batch = {"other_label": other, "own_share": share}
    found = of_both_labels(cross_entropy(logits, own), cross_entropy, logits, batch, False)
    soft = share[:, None] * jax.nn.one_hot(own, 5) + (1 - share)[:, None] * jax.nn.one_hot(other, 5)
    expected = -(soft * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(40, 30), (7, 200), (1, 1)])
def test_a_crop_lies_in_the_picture_and_has_the_least_area(size):
    width, height = size
    for seed in range(200):
        box = crop_box(width, height, 0.3, np.random.default_rng(seed))
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if size == (40, 30):
            area = (right - left) * (bottom - top) / (width * height)
            assert 0.25 < area <= 1
            assert 0.65 < (right - left) / (bottom - top) < 1.55


def test_names_have_numbers_of_their_own():
    assert parse(()) is None
    assert parse(["crop", "flip"]) == Augmentation(crop=0.08, flip=0.5)
    assert parse(["mixup", "cutmix=0.5"]) == Augmentation(mixup=0.2, cutmix=0.5)


@pytest.mark.parametrize(
    "spelled", ["blur", "crop=2", "flip=0", "mixup=", "mixup=nan", "mixup=1e9"]
)
def test_what_is_no_augmentation_is_refused(spelled):
    with pytest.raises(StrategyError, match=f"`augment` '{spelled}'"):
        parse([spelled])
    with pytest.raises(StrategyError, match="names flip twice"):
        parse(["flip", "flip=0.1"])


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("vit_classifier", {"cache": "on", "strategy": "frozen"}, "`cache`"),
        ("bert_bare_pooler", {}, "text encoder"),
    ],
)
def test_it_does_not_go_with_a_cache_or_texts(case, options, named, tmp_path):
    folder = tiny.checkpoint(tmp_path / case, case)
    chosen = FinetuningOptions(augment=("crop", "flip"), epochs=1, **options)
    with pytest.raises(StrategyError, match=f"`augment` crop flip.*{named}"):
        prepare(folder, ["a", "b", "c", "d"] * 4, ["x", "y"] * 8, chosen)
