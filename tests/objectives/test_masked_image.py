"""Masked images: the reference, what is masked, and a run."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.errors import StrategyError
from adapt.export.exporting import export
from adapt.models import MaskedPixels
from adapt.objectives import OBJECTIVES, masked_image
from adapt.options import ObjectiveOptions
from adapt.pretrained import hub
from adapt.training.context import LossContext
from tests.helpers.recorded import unpacked

REFERENCES = Path(__file__).parents[1] / "references"
RECORDED = np.load(REFERENCES / "objectives.npz")
OBJECTIVE = OBJECTIVES["masked-image"]
OPTIONS = {"steps": 2, "batch_size": 4, "validate_every": 1, "objective": "masked-image"}


def corrupted(loaded: hub.Pretrained, count: int, seed: int = 0, **options) -> dict:
    """The batch of the recorded pictures of a checkpoint, or of as many empty ones."""
    config = loaded.config
    tokens = config.positions
    batch = {
        "pixels": np.zeros((count, config.image_size, config.image_size, config.channels)),
        "first": np.arange(count, dtype=np.int32) * tokens,
        "length": np.full(count, tokens, np.int32),
        "segments": np.tile(np.arange(count, dtype=np.int32)[:, None], (1, tokens)),
        "label": np.zeros(count, np.int32),
        "weight": np.ones(count, np.float32),
    }
    corrupt = OBJECTIVE.corruption(loaded, ObjectiveOptions(**options))
    return corrupt(batch, np.random.default_rng(seed))


@pytest.mark.parametrize("case", ["vit_masked_image", "deit_masked_image"])
def test_the_loss_and_the_pixels_are_those_of_the_original_class(case):
    loaded = hub.load(REFERENCES / case)
    assert isinstance(loaded.head, MaskedPixels)
    masked = RECORDED[f"{case}/masked"]
    batch = unpacked(dict(np.load(REFERENCES / case / "outputs.npz")))
    picture, patch = np.nonzero(masked)
    batch |= {
        "masked_patches": masked,
        "targets": batch["first"][picture] + loaded.config.leading_tokens + patch,
        "patches": picture * masked.shape[1] + patch,
        "weight": np.ones(len(patch), np.float32),
    }

    @jax.jit
    def measured(params):
        return OBJECTIVE.measures(LossContext(loaded.model, params, batch, jax.random.key(0)))

    values, _ = measured(loaded.params)["loss"]
    assert float(values.mean()) == pytest.approx(float(RECORDED[f"{case}/loss"]), abs=1e-5)
    # By patch, too: where a pixel lies is no matter to a mean over all of them.
    shape = (-1, loaded.config.channels, loaded.config.patch_size**2)
    theirs = RECORDED[f"{case}/reconstruction"].transpose(0, 2, 3, 1)
    theirs = np.asarray(masked_image.pixels_of_patches(theirs, loaded.config.patch_size))
    ours = np.asarray(masked_image.pixels_of_patches(batch["pixels"], loaded.config.patch_size))
    expected = np.abs(theirs - ours).reshape(shape)[batch["patches"]].mean((1, 2))
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_squares_are_masked_whole_and_as_many_of_each_picture():
    loaded = hub.load(REFERENCES / "vit_masked_image")  # 4 x 4 patches of 8 pixels
    batch = corrupted(loaded, 6, patch_rate=0.5, mask_size=16)
    squares = (
        batch["masked_patches"].reshape(6, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(6, 4, 4)
    )
    assert (squares.all(-1) == squares.any(-1)).all()
    assert (squares.any(-1).sum(1) == 2).all() and len(np.unique(squares, axis=0)) > 1
    assert len(batch["targets"]) == len(batch["weight"]) == 6 * 8
    assert batch["targets"][0] > 0  # no class token predicts
    assert masked_image.side_of_masks(loaded.config, None) == 8
    wide = dataclasses.replace(loaded.config, image_size=224)
    assert masked_image.side_of_masks(wide, None) == 32
    with pytest.raises(StrategyError, match="mask whole pictures"):
        corrupted(loaded, 1, mask_size=32)
    with pytest.raises(StrategyError, match="`mask_size` 12 must be a multiple of 8"):
        corrupted(loaded, 1, mask_size=12)


@pytest.mark.parametrize(("rate", "count"), [(0.07, 7), (0.55, 55), (0.071, 8), (1e-9, 1)])
def test_no_square_is_masked_by_round_off(rate, count):
    """0.07 * 100 is 7.000000000000001."""
    loaded = hub.load(REFERENCES / "vit_masked_image")
    side = loaded.config.patch_size
    wide = dataclasses.replace(
        loaded, config=dataclasses.replace(loaded.config, image_size=10 * side)
    )
    batch = corrupted(wide, 2, patch_rate=rate, mask_size=side)
    np.testing.assert_array_equal(batch["masked_patches"].sum(1), [count, count])


def test_a_run_goes_on_bit_for_bit_and_exports(inputs, tmp_path, caplog):
    loaded = hub.load(inputs.checkpoint("vit_classifier", 1))
    pictures = inputs.folder / "pictures"
    options = OPTIONS | {"mask_size": 8, "learning_rate": 0.01}
    whole = adapt.pretrain(loaded, pictures, **options)
    assert "has no masked-image head: a fresh one" in caplog.text
    adapt.pretrain(loaded, pictures, out=tmp_path / "run", stop_after=1, **options)
    again = adapt.pretrain(loaded, pictures, out=tmp_path / "run", resume=True, **options)
    assert tree.digest(again.pretrained.params) == tree.digest(whole.pretrained.params)
    assert again.result["loss"] == whole.result["loss"] != whole.result["loss_before"]
    assert np.any(again.pretrained.params["head"]["mask_token"])

    assert export(hub.load(tmp_path / "run"), tmp_path / "out") == "transformers"
    said = hub.read_json(tmp_path / "out", "config.json")
    assert said["architectures"] == ["ViTForMaskedImageModeling"] and said["encoder_stride"] == 8
    exported = hub.load(tmp_path / "out")
    assert tree.digest(exported.params) == tree.digest(again.pretrained.params)


def test_pictures_and_texts_are_not_taken_for_each_other(inputs):
    vit = inputs.checkpoint("vit_classifier", 1)
    bert = inputs.checkpoint("bert_mlm_tied", 1)
    for checkpoint, objective, named in (
        (vit, "masked", "no text encoder.*masked-image"),
        (bert, "masked-image", "no image encoder"),
        (str(REFERENCES / "beit_classifier"), None, "no masked-image head.*no objective"),
    ):
        with pytest.raises(StrategyError, match=named):
            adapt.pretrain(checkpoint, ["a film"], objective=objective)
