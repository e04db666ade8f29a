"""Pictures of clothing, from Debian's package dataset-fashion-mnist."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from adapt.data.bundled.columns import Columns
from adapt.data.bundled.packages import from_debian
from adapt.pretrained.assets import Asset, fetch_asset

NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ASSET = Asset(
    "dataset-fashion-mnist",
    "362ba1f5424f406d0db9c78b0e83db011b09c121c5c5f94ee5c077628f9adb5c",
    "usr/share/datasets/fashion-mnist",
    tuple(
        f"{part}-{what}-ubyte.gz"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ),
    31,
)


def fashion() -> tuple[Columns, Columns]:
    """70,000 grey pictures of 28 x 28 pixels of 10 kinds of clothing, as many of each, in the split
    they were published with (Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT).
    """
    folder = fetch_asset("fashion-mnist", ASSET, from_debian)
    return _part(folder, "train"), _part(folder, "t10k")


def _part(folder: Path, part: str) -> Columns:
    """IDX files: a header of 16 bytes before uint8 [N, 28, 28], one of 8 before uint8 [N]."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return {
        "image": [Image.fromarray(each) for each in pixels],
        "label": [NAMES[label] for label in labels[8:]],
    }
