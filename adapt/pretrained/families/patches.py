"""What the families of images have in common: sizes, patches, and a classifier of images."""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedPixels
from adapt.pretrained.families import Row, dense, under
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

# Rows of a configuration.
SIZES = [
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 16),
    ("channels", "num_channels", 3),
]
# Rows of a table.
FIRST_TOKEN = Row("embeddings.cls_token", ("encoder/embedding/class_token",), "token")
POSITIONS = Row("embeddings.position_embeddings", ("encoder/embedding/position",), "token")
REGISTERS = Row("embeddings.register_tokens", ("encoder/embedding/registers",), "tokens")
MASK_TOKEN = {"embeddings.mask_token": "token of masked patches"}
# Of a block that scales what each branch adds.
SCALES = {"layer_scale1.lambda1": "attention_scale", "layer_scale2.lambda1": "mlp_scale"}


# A head that predicts the pixels of masked patches.
MASKED_IMAGE = [
    Row("embeddings.mask_token", ("head/mask_token",), "token", kinds=("masked image",)),
    *under(["masked image"], dense("decoder.0", "head/decoder", layout="pointwise")),
]


def patch_rows(name: str) -> list[Row]:
    """The rows of the convolution that makes tokens of patches."""
    return dense(name, "encoder/embedding/patch", layout="patches")


def classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of the class token."""
    classes = len(tensors.get("classifier.weight", ()))
    return (Classifier(classes, "cls"), tensors) if classes else None


def masked_image(config: EncoderConfig) -> MaskedPixels:
    """The head that predicts the pixels of masked patches."""
    return MaskedPixels(config.channels * config.patch_size**2)


def masked_pixels(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """The head that predicts the pixels of masked patches."""
    head = masked_image(config)
    decoder = tensors.get("decoder.0.weight")
    if decoder is None or len(decoder) != head.pixels:
        return None
    return head, tensors


def entries(config: EncoderConfig, head: Any) -> Fields:
    """``entries`` of a family with this head, whose pixels are those of a patch."""
    if isinstance(head, MaskedPixels):
        return {"encoder_stride": config.patch_size}
    return {}


def complete(hf: Entries, fields: Fields) -> Fields:
    """The fields with sizes of one number and the positions of all tokens: those before the
    patches, the registers among them, and the patches.

    Raises :class:`CheckpointError` for other than square whole patches.
    """
    size = side(fields["image_size"])
    patch = side(fields["patch_size"])
    if size is None or patch is None or size % patch:
        raise CheckpointError(
            f"image_size {fields['image_size']} and patch_size {fields['patch_size']} in "
            "config.json: only square whole patches are read"
        )
    registers = fields.get("registers", 0)
    if type(registers) is not int or registers < 0:
        raise CheckpointError(f"config.json says {registers!r} for registers: give their number")
    first_tokens = fields.get("class_token", True) + fields.get("distillation_token", False)
    positions = first_tokens + registers + (size // patch) ** 2
    return fields | {"image_size": size, "patch_size": patch, "positions": positions}


def side(value: Any) -> int | None:
    """The side of a square that config.json names by one number or two; None for anything else."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if type(value) is int and value > 0 else None
