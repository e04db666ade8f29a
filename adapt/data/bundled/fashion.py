"""Pictures of clothing, from Debian's package dataset-fashion-mnist."""

import gzip
from pathlib import Path

import numpy as np

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
# Bytes before the values of an IDX file, and the shape of one picture.
IMAGES_HEADER = 16
LABELS_HEADER = 8
SHAPE = (28, 28)

ASSET = Asset(
    package="dataset-fashion-mnist",
    sha256="362ba1f5424f406d0db9c78b0e83db011b09c121c5c5f94ee5c077628f9adb5c",
    prefix="usr/share/datasets/fashion-mnist",
    files=(
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ),
    megabytes=31,
)


def fashion() -> tuple[Columns, Columns]:
    """70,000 grey pictures of 28 x 28 pixels of 10 kinds of clothing, as many of each, in the split
    they were published with (Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT).
    """
    folder = fetch_asset("fashion-mnist", ASSET, from_debian)
    return read_part(folder, "train"), read_part(folder, "t10k")


def read_part(folder: Path, part: str) -> Columns:
    """The pictures and the names of their kinds in two IDX files, of uint8 [N, 28, 28] and [N]."""
    from PIL import Image  # only here: it takes a tenth of a second

    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=IMAGES_HEADER).reshape(-1, *SHAPE)
    return {
        "image": [Image.fromarray(picture) for picture in pixels],
        "label": [NAMES[label] for label in labels[LABELS_HEADER:]],
    }
