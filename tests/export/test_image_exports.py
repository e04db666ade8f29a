"""Image encoders that are exported are read back with the same outputs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adapt.export import layout
from adapt.export.exporting import export
from adapt.models import Classifier, Model
from adapt.pretrained import hub
from adapt.pretrained.images import ImageSettings, read_image_settings, to_pixels
from tests.helpers import small, tiny

apply = jax.jit(Model.apply, static_argnums=0)


def outputs(run: hub.Pretrained) -> np.ndarray:
    size = run.config.image_size
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, size, size, run.config.channels)).astype(np.float32)
    batch = {
        "pixels": pixels,
        "segments": np.tile(np.arange(2, dtype=np.int32)[:, None], run.config.positions),
        "first": np.arange(2, dtype=np.int32) * run.config.positions,
        "length": np.full(2, run.config.positions, np.int32),
    }
    return np.asarray(apply(run.model, run.params, batch))


def trained(case: str, pooling: str) -> hub.Pretrained:
    """A recorded encoder under a random classifier of three kinds."""
    loaded = hub.load(tiny.REFERENCES / case)
    head = Classifier(3, pooling, **hub.pooling_fields(loaded, pooling))
    model = dataclasses.replace(loaded, head=head).model
    params = loaded.params | {"head": small.params(model)["head"]}
    labels = ("a", "b", "c")
    return dataclasses.replace(
        loaded, head=head, params=params, task="classification", labels=labels
    )


@pytest.mark.parametrize(
    ("case", "pooling", "architecture"),
    [
        ("dinov2_bare", "cls", "Dinov2ForImageClassification"),
        ("dinov2_registers", "patches", "Dinov2WithRegistersForImageClassification"),
        ("beit_classifier", "patch_norm", "BeitForImageClassification"),
        ("clip_classifier", "patches", "CLIPForImageClassification"),
        ("siglip_towers", "mean", "SiglipForImageClassification"),
    ],
)
def test_a_classifier_is_read_back(case, pooling, architecture, tmp_path):
    run = trained(case, pooling)
    assert export(run, tmp_path / "out") == "transformers"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    again = hub.load(tmp_path / "out")
    assert again.labels == run.labels
    np.testing.assert_allclose(outputs(again), outputs(run), atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "crop", "processor"),
    [
        (None, False, "ViTImageProcessor"),
        ((36, 40), True, "DeiTImageProcessor"),
        ((36,), True, "BitImageProcessor"),
        ((), True, "BitImageProcessor"),
    ],
)
def test_an_exported_processor_is_read_back_with_the_same_pixels(resize, crop, processor, tmp_path):
    settings = ImageSettings(32, resample=3, mean=(0.4, 0.5, 0.6), std=(0.2,), resize=resize)
    settings = dataclasses.replace(settings, crop=crop)
    content = layout.preprocessor(settings)
    assert content["image_processor_type"] == processor
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    pictures = [tiny.picture(1).resize((50, 41)), tiny.picture(2).resize((37, 60))]
    expected = to_pixels(pictures, settings)
    again = read_image_settings(tmp_path, 32, 3)
    np.testing.assert_allclose(to_pixels(pictures, again), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "architecture"),
    [
        ("dinov3", "DINOv3ViTModel"),
        ("clip_towers", "CLIPVisionModelWithProjection"),
        ("siglip_vision", "SiglipVisionModel"),
    ],
)
def test_an_encoder_alone_is_read_back_with_its_pooling(case, architecture, tmp_path):
    run = hub.load(tiny.REFERENCES / case)
    export(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    again = hub.load(tmp_path / "out")
    assert again.head == run.head
    ours, theirs = run.image_settings, again.image_settings
    assert (ours.rounds, ours.resize, ours.crop) == (theirs.rounds, theirs.resize, theirs.crop)
    np.testing.assert_allclose(theirs.mean, np.broadcast_to(ours.mean, 3))
    np.testing.assert_array_equal(outputs(again), outputs(run))
