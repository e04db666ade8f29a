"""A checkpoint without its last layers (Sajjad et al. 2023; Bordes et al. 2023)."""

import dataclasses

from adapt.errors import StrategyError
from adapt.models import POOLINGS, Classifier
from adapt.options import is_of
from adapt.pretrained.hub import Pretrained, default_pooling


def drop_layers(pretrained: Pretrained, count: int) -> Pretrained:
    """The checkpoint without its last ``count`` layers, and without its head, which read the last.

        shorter = drop_layers(load("minilm"), 2)   # 4 of 6 layers
        run = adapt.finetune(shorter, texts, labels)

    The layers that are left are those of ``pretrained``, not copied, and give the same states; 0
    drops the head alone. A norm after the last layer stays, and so do the tokenizer and how texts
    are pooled, without dense layers after the pooling. Raises :class:`StrategyError` for another
    number than 0 to that of the layers.
    """
    layers = pretrained.config.layers
    if not is_of(count, int) or not 0 <= count <= layers:
        raise StrategyError(
            f"`count` is {count!r}, and {pretrained.source} has {layers} layers: give 0 to {layers}"
        )
    left = layers - count
    local = pretrained.config.local_layers
    unrotated = pretrained.config.unrotated_layers
    config = dataclasses.replace(
        pretrained.config,
        layers=left,
        local_layers=tuple(layer for layer in local if layer < left),
        unrotated_layers=tuple(layer for layer in unrotated if layer < left),
    )
    dropped = set(pretrained.config.block_names) - set(config.block_names)
    encoder = dict(pretrained.params["encoder"])
    for name in dropped:
        del encoder[name]
    pooling = default_pooling(pretrained)
    embedding = dataclasses.replace(pretrained.embedding, dense=0)
    if pooling not in POOLINGS:  # it has weights, which read the last layer
        pooling = "mean"
    if embedding.pooling and embedding.pooling not in POOLINGS:
        embedding = dataclasses.replace(embedding, pooling=pooling)
    return dataclasses.replace(
        pretrained,
        source=f"{pretrained.source} ({left} of {layers} layers)",
        config=config,
        head=Classifier(0, pooling),
        params={"encoder": encoder, "head": {}},
        task="",
        labels=(),
        embedding=embedding,
        dense=(),
    )
