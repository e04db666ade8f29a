"""Pictures become the very pixels that the original library makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.errors import CheckpointError, DataError
from adapt.export.layout import preprocessor
from adapt.pretrained.images import ImageSettings, read_image_settings, to_pixels

REFERENCES = Path(__file__).parents[1] / "references"


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_agree_with_the_original_preprocessor(index):
    recorded = np.load(REFERENCES / "vit_preprocess.npz")
    settings = read_image_settings(REFERENCES / "vit_classifier", 32, 3)
    ours = to_pixels([Image.fromarray(recorded[f"image_{index}"])], settings)
    np.testing.assert_allclose(
        ours[0].transpose(2, 0, 1), recorded[f"pixel_values_{index}"], atol=1e-6
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_mode_have_the_channels_of_the_encoder(mode, channels):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert(mode)
    assert to_pixels([image, image], ImageSettings(4, channels)).shape == (2, 4, 4, channels)


def test_gray_of_16_bits_is_that_of_8():
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    for mode in (None, "I"):
        image = Image.fromarray(gray) if mode is None else Image.fromarray(gray).convert(mode)
        settings = ImageSettings(8, 1, mean=(0.0,), std=(1.0,), rescale=1.0)
        np.testing.assert_array_equal(to_pixels([image], settings)[0, :, :, 0], gray // 256)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), 0.5, np.float32),
        np.full((4, 4), -1, np.int32),
        np.full((4, 4), 99, np.int32),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused(values):
    with pytest.raises(DataError, match="row 2: its numbers"):
        to_pixels([Image.new("L", (4, 4)), Image.fromarray(values)], ImageSettings(4, 3))


def test_settings_are_read_back_as_they_are_written(tmp_path):
    settings = ImageSettings(8, 3, 3, 1 / 127, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor(settings)))
    assert read_image_settings(tmp_path, 8, 3) == settings


def test_no_rescaling_and_no_normalisation_leave_the_bytes(tmp_path):
    off = {"do_rescale": False, "do_normalize": False, "image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(off))
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    found = to_pixels([Image.fromarray(image)], read_image_settings(tmp_path, 4, 1))
    np.testing.assert_array_equal(found[0, :, :, 0], image)


def test_what_is_no_picture_is_named_by_its_row():
    with pytest.raises(DataError, match="row 12 holds no image"):
        to_pixels([Image.new("L", (2, 2)), "a text"], ImageSettings(2, 1), first_row=11)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"image_mean": [0, 0]}', "2 values of image_mean"),
        ('{"image_mean": [0, 0, NaN]}', "for image_mean: give numbers"),
        ('{"image_std": [1, Infinity, 1]}', "for image_std: give numbers"),
        ('{"image_std": [1, 0, 1]}', "0 for image_std"),
        ('{"rescale_factor": 1e999}', "for rescale_factor: give a number"),
        ('{"rescale_factor": 1' + 400 * "0" + "}", "for rescale_factor: give a number"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tmp_path, content, why):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=why) as caught:
        read_image_settings(tmp_path, 8, 3)
    assert "\n" not in str(caught.value)
