"""Pictures of another size than an encoder was trained on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adapt.errors import StrategyError
from adapt.models import Model
from adapt.options import ModelOptions
from adapt.pretrained import hub
from adapt.pretrained.image_sizes import with_image_size
from tests.helpers import tiny

RECORDED = dict(np.load(tiny.REFERENCES / "image_sizes.npz"))
CASES = [name.split("|") for name in RECORDED if "|" in name]
last_states = jax.jit(
    lambda model, params, batch: Model.hidden_states(model, params, batch)[-1], static_argnums=0
)


@pytest.mark.parametrize(("case", "size"), CASES)
def test_states_are_those_of_the_original_library(case, size):
    loaded = hub.load(tiny.REFERENCES / case)
    smooth = case == "dinov2_registers"
    config, params = with_image_size(loaded.config, loaded.params, int(size), smooth)
    pixels = RECORDED["pixel_values"][:, :, : int(size), : int(size)].transpose(0, 2, 3, 1)
    batch = {"pixels": pixels, "segments": np.zeros((1, config.positions), np.int32)}
    model = dataclasses.replace(loaded, config=config).model
    found = np.asarray(last_states(model, params, batch))[0]
    np.testing.assert_allclose(found, RECORDED[f"{case}|{size}"], atol=1e-4, rtol=0)


def test_its_own_size_leaves_an_encoder_as_it_is():
    loaded = hub.load(tiny.REFERENCES / "vit_classifier")
    options = ModelOptions(image_size=loaded.config.image_size)
    assert hub.with_options(loaded, options) is loaded


def test_another_size_is_said_and_scales_the_crop(caplog):
    loaded = hub.load(tiny.REFERENCES / "vit_classifier")
    settings = dataclasses.replace(loaded.image_settings, resize=(40,), crop=True)
    loaded = dataclasses.replace(loaded, image_settings=settings)
    changed = hub.with_options(loaded, ModelOptions(image_size=48))
    assert changed.image_settings.size == changed.config.image_size == 48
    assert changed.image_settings.resize == (60,)
    assert changed.config.positions == 37
    assert "4 x 4 patches are interpolated to 6 x 6" in caplog.text
    assert changed.params["encoder"]["embedding"]["position"].shape == (37, 24)


@pytest.mark.parametrize(
    ("case", "size", "named"),
    [("vit_classifier", 50, "48"), ("vit_classifier", 0, "8"), ("bert_bare_pooler", 32, "text")],
)
def test_a_size_that_does_not_fit_is_refused(case, size, named):
    loaded = hub.load(tiny.REFERENCES / case)
    with pytest.raises(StrategyError, match=f"`image_size` {size}.*{named}"):
        hub.with_options(loaded, ModelOptions(image_size=size))


def test_the_size_of_the_processor_holds_where_the_original_library_fits_the_encoder(tmp_path):
    """As of DINOv2, which was trained on 518 pixels and is used on 224."""
    folder = tiny.checkpoint(tmp_path / "dinov2", "dinov2_bare")
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}
    named = {"image_processor_type": "BitImageProcessor"} | size
    (folder / "preprocessor_config.json").write_text(json.dumps(named))
    loaded = hub.load(folder)
    assert loaded.config.image_size == loaded.image_settings.size == 20
    assert loaded.config.positions == 26
    assert "3 x 3 patches are interpolated to 5 x 5" in hub.notes_on(loaded)[0]
