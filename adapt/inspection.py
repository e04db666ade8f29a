"""What an encoder computes inside, by example and without padding.

Both give a list, an array a text.

    hidden_states("tiny-bert", ["a good film"])[0]      # float32 [layers + 1, tokens, D]
    attention_maps("tiny-bert", ["a good film"])[0]     # float32 [layers, heads, tokens, tokens]
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import features
from adapt.models import Model
from adapt.parallel import sharding
from adapt.pretrained.hub import Pretrained, loaded, tokenizer_of
from adapt.pretrained.tokenizer import LongTexts, Text, as_texts, warn_long
from adapt.training.loop import pipelined

# (what a forward pass gave for a batch, the batch, a slot of it) -> the part of that example
Cut = Callable[[np.ndarray, Mapping[str, Any], int], np.ndarray]


def hidden_states(pretrained: Pretrained | str | Path, texts: Sequence[Text]) -> list[np.ndarray]:
    """The states of every token of every layer, by text: a list of float32 [layers + 1, tokens, D].

        states = adapt.hidden_states("tiny-bert", ["a good film", "a dull one"])
        states[0][-1]                 # what the last block makes of the first text, [tokens, D]

    Layer 0 is the embedding, k the k-th block; the last one is after the final norm, where the
    family has one. ``texts`` are texts or pairs of texts. The tokens are those of
    ``pretrained.tokenizer.tokenize(texts)``, special tokens among them. All states are in memory at
    once: for many texts :func:`adapt.encode` has one vector each. Raises :class:`DataError` for
    what is no list of texts, :class:`StrategyError` for a checkpoint without tokenizer, and one
    that cuts long texts into windows.
    """
    return by_example(pretrained, texts, states_of, cut_states)


def attention_maps(pretrained: Pretrained | str | Path, texts: Sequence[Text]) -> list[np.ndarray]:
    """How every head attends, by text: a list of float32 [layers, heads, tokens, tokens].

        maps = adapt.attention_maps("tiny-bert", ["a good film"])
        maps[0][-1].mean(0)           # of the last block, the mean over heads; its rows sum to 1

    ``maps[text][block, head, i, j]`` is how much of token j goes into token i, the softmax of that
    head without dropout. Texts, tokens and errors are those of :func:`hidden_states`. With prefix
    tuning of P tokens a map is [layers, heads, tokens, P + tokens].
    """
    return by_example(pretrained, texts, maps_of, cut_maps)


def by_example(
    pretrained: Pretrained | str | Path,
    texts: Sequence[Text],
    make_forward: Callable[[Model], features.Forward],
    cut: Cut,
) -> list[np.ndarray]:
    """What a forward pass gives for packed batches of the texts, cut into its examples."""
    texts = as_texts(texts)
    pretrained = loaded(pretrained)
    tokenizer = tokenizer_of(pretrained)
    tokenizer.check_one_sequence("a list of states or maps")
    forward = make_forward(pretrained.model)
    params = sharding.shard_tree({"encoder": pretrained.params["encoder"]})
    chunks = [
        texts[start : start + features.WINDOW] for start in range(0, len(texts), features.WINDOW)
    ]
    long = LongTexts(tokenizer.long, tokenizer.max_length)

    def outputs() -> Any:
        nonlocal long
        for streamed in features.text_batches(pretrained, chunks):
            long += streamed.long
            yield streamed.index, streamed.batch, forward(params, streamed.batch)

    found: dict[int, np.ndarray] = {}
    for (examples,), batch, values in pipelined(outputs()):
        values = np.asarray(values)
        for slot, example in enumerate(examples):
            found[int(example)] = cut(values, batch, slot).copy()
    warn_long(long, "texts")
    return [found[row] for row in range(len(texts))]


@functools.cache
def states_of(model: Model) -> features.Forward:
    """A compiled ``(params, batch) -> [layers + 1, R, C, D]``: the same one for the same model."""
    return jax.jit(lambda params, batch: jnp.stack(model.hidden_states(params, batch)))


@functools.cache
def maps_of(model: Model) -> features.Forward:
    """A compiled ``(params, batch) -> [layers, R, H, C, C]``: the same one for the same model."""
    return jax.jit(lambda params, batch: jnp.stack(model.attention_maps(params, batch)))


def cut_states(states: np.ndarray, batch: Mapping[str, Any], slot: int) -> np.ndarray:
    """The states [layers + 1, n, D] of the example in a slot."""
    flat = states.reshape(len(states), -1, states.shape[-1])
    first = batch["first"][slot]
    return flat[:, first : first + batch["length"][slot]]


def cut_maps(maps: np.ndarray, batch: Mapping[str, Any], slot: int) -> np.ndarray:
    """The maps [layers, H, n, n] of the example in a slot; trained keys, [.., n, P + n], stay."""
    width = batch["segments"].shape[1]
    row, start = divmod(int(batch["first"][slot]), width)
    own = slice(start, start + int(batch["length"][slot]))
    of_row = maps[:, row, :, own]
    prefix = maps.shape[-1] - width
    return np.concatenate([of_row[..., :prefix], of_row[..., prefix:][..., own]], -1)
