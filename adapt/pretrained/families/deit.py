"""DeiT (Touvron et al. 2021): ViT with a distillation token after the class token."""

import dataclasses

from adapt.models import Classifier, Distilled, EncoderConfig
from adapt.pretrained.families import Row, dense, vit
from adapt.pretrained.families.types import Entries, Found, Tensors

TABLE = [
    *vit.TABLE,
    Row("embeddings.distillation_token", ("encoder/embedding/distillation_token",), "token"),
    *dense("cls_classifier", "head/cls_classifier"),
    *dense("distillation_classifier", "head/distillation_classifier"),
]


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The mean of two classifiers, each on one token; or as in ViT."""
    if "distillation_classifier.weight" in tensors:
        return Distilled(len(tensors["distillation_classifier.weight"])), tensors
    return vit.FAMILY.recognise(config, hf, tensors)


FAMILY = dataclasses.replace(
    vit.FAMILY,
    table=TABLE,
    recognise=recognise,
    always={"pre_norm": True, "distillation_token": True},
    prefix="deit.",
    classes={
        "classes": "DeiTForImageClassification",
        "masked image": "DeiTForMaskedImageModeling",
        "the head Distilled": "DeiTForImageClassificationWithTeacher",
    },
    sequence_heads=[Classifier(0, "cls")],
    processor="DeiTImageProcessor",
)
