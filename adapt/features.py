"""The encoder as a fixed feature extractor: any number of examples through it in constant memory."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.data import packing
from adapt.errors import DataError, StrategyError
from adapt.models import POOLINGS, Classifier, Encoder, Model, flatten_groups
from adapt.parallel import sharding
from adapt.parallel.sharding import Layout
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.training.loop import evaluate

WINDOW = 4096  # examples that are sorted and packed together

Forward = Callable[[tree.Tree, Mapping[str, Any]], jax.Array]


def extractor(
    pretrained: Pretrained,
    pooling: str = "mean",
    layer: int | None = None,
    dtype: Any = np.float32,
    layout: Layout | None = None,
) -> tuple[Forward, tree.Tree]:
    """(jitted ``(params, batch) -> features [slots, D]`` float32, the parameters that it takes, on the device or mesh).

    ``layer`` counts 0 (embedding) to L (last block, with the final norm; the default); the head is discarded, except
    the weights of a pooling, ``"pooler"`` or a run's ``"attention"``. Raises :class:`StrategyError` for what is not there.
    """
    config = pretrained.config
    layer = config.layers if layer is None else layer
    if not 0 <= layer <= config.layers:
        raise StrategyError(
            f"layer {layer} is not there: the encoder has layers 0 (embedding) to {config.layers}"
        )
    if pooling not in (*POOLINGS, "attention"):
        raise StrategyError(
            f"unknown pooling {pooling!r}: give one of {', '.join(POOLINGS)} or attention"
        )
    own = pooling_weights(pretrained, pooling) if pooling in ("pooler", "attention") else {}
    params = tree.graft(tree.drop(pretrained.params, "head"), "head", own)
    model = Model(Encoder(config, dtype), Classifier(0, pooling, dtype=dtype), layout)
    return features_at(model, layer), sharding.shard_tree(params, layout)


@functools.cache
def features_at(model: Model, layer: int) -> Forward:
    """One compiled function a model and layer, however often it is asked for."""

    layout = model.layout

    def forward(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        cut = model.stages if layer == model.stages - 1 else layer + 1
        pool = functools.partial(model.apply_head, params["head"])
        hidden = model.prefix(params, batch, cut)
        return (
            flatten_groups(layout.over_groups(pool)(hidden, dict(batch)))
            if layout
            else pool(hidden, batch)
        )

    return sharding.shard_inputs(
        jax.jit(
            model.allow_fused_attention(forward),
            out_shardings=layout.replicated if layout else None,
        ),
        layout,
    )


def pooling_weights(pretrained: Pretrained, kind: str = "pooler") -> tree.Tree:
    """The weights of a pooling as a head of its own. Raises :class:`StrategyError` if the checkpoint has none."""
    head = pretrained.params["head"]
    if kind not in head:
        there = ", ".join(head) or "nothing"
        raise StrategyError(
            f"{pretrained.source} has no {kind} to graft (its head holds: {there}): give another --pooling, "
            "mean, cls, max or last"
        )
    return {kind: head[kind]}


def text_batches(
    pretrained: Pretrained, chunks: Iterable[list[str]], layout: Layout | None = None
) -> Iterator[tuple[Any, packing.Arrays, int]]:
    """Chunks of texts -> (index over all texts, batch, number truncated); each chunk is tokenized and packed by itself.

    With a ``layout`` a batch has its groups, and ``index`` is a list of theirs.
    """
    tokenizer = tokenizer_of(pretrained)
    start = 0
    for texts in chunks:
        tokens, truncated = tokenizer.encode(texts)
        for index, batch in packing.eval_batches(
            tokens, tokenizer.max_length, pad=pretrained.config.pad_token, layout=layout
        ):
            yield packing.map_index(index, functools.partial(np.add, start)), batch, truncated
            truncated = 0
        start += len(texts)


def encode(
    pretrained: Pretrained,
    texts: list[str],
    pooling: str = "mean",
    normalize: bool = False,
    layer: int | None = None,
) -> np.ndarray:
    """Texts -> features float32 [N, D]; ``normalize`` scales each to length 1, as sentence encoders are compared.

    Texts longer than the tokenizer's ``max_length`` are truncated. Raises :class:`DataError` for a bare string.
    """
    if isinstance(texts, str):
        raise DataError("encode takes a list of texts: put the one text in [brackets]")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{row}] is of type {type(text).__name__}, not text")
    forward, params = extractor(pretrained, pooling, layer)
    chunks = (texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW))
    pairs = ((index, batch) for index, batch, _ in text_batches(pretrained, chunks))
    features = evaluate(forward, params, pairs, len(texts))
    if not len(texts):
        return np.zeros((0, pretrained.config.width), np.float32)
    return (
        features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        if normalize
        else features
    )
