"""Tasks near an objective of pre-training, made from bundled text: where its head should help.

* of masked LM: which of ten frequent words was at the mask;
* of causal LM: which of them comes next;
* of replaced tokens: whether a word of the text was put in from another text.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adapt
from adapt.data.masking import find_mask_id
from adapt.models import AVERAGES, POOLINGS
from adapt.models.heads import zeros_where_empty
from adapt.pretrained.hub import tokenizer_of

WORDS = ("the", "of", "and", "to", "in", "is", "it", "that", "with", "for")
LEAST_WORDS = 8  # of a text
MOST_WORDS = 30  # of its beginning
FIRST_PLACE = 3  # of a word that is asked for, so that something is before it
Pooling = Callable[[jax.Array, Any], jax.Array]
AT_MASK = "at-mask"
LAST_WORD = "last-word"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Texts or pictures with their labels, and the poolings that suit them."""

    inputs: list[Any]
    labels: list[str]
    poolings: tuple[str, ...]


def words_of(text: str) -> list[str]:
    return text.lower().split()[:MOST_WORDS]


def places(words: Sequence[str]) -> list[int]:
    """Where one of :data:`WORDS` stands that can be asked for."""
    found = []
    for place, word in enumerate(words):
        if place >= FIRST_PLACE and word in WORDS:
            found.append(place)
    return found


def asked(
    texts: Sequence[str], count: int, form: Callable[[list[str], int], str]
) -> tuple[list[str], list[str]]:
    """(``count`` texts as ``form`` makes them, the words that are asked for), as many of each word
    as there are, by turns.
    """
    rng = np.random.default_rng(0)
    by_word: dict[str, list[str]] = {word: [] for word in WORDS}
    for text in texts:
        words = words_of(text)
        found = places(words)
        if len(words) >= LEAST_WORDS and found:
            place = int(rng.choice(found))
            by_word[words[place]].append(form(words, place))
    made: list[tuple[str, str]] = []
    most = max(map(len, by_word.values()))
    for turn in range(most):
        for word, of_word in by_word.items():
            if turn < len(of_word):
                made.append((of_word[turn], word))
    chosen = [made[number] for number in rng.permutation(min(count, len(made)))]
    return [text for text, _ in chosen], [word for _, word in chosen]


def with_mask(words: list[str], place: int) -> str:
    return " ".join([*words[:place], "[MASK]", *words[place + 1 :]])


def before(words: list[str], place: int) -> str:
    return " ".join(words[:place])


def masked(texts: Sequence[str], count: int) -> Labelled:
    """Which word was at the mask; pooled there."""
    return Labelled(*asked(texts, count, with_mask), (AT_MASK,))


def causal(texts: Sequence[str], count: int) -> Labelled:
    """Which word comes next; pooled at the last one that is there."""
    return Labelled(*asked(texts, count, before), (LAST_WORD,))


def replaced(texts: Sequence[str], count: int) -> Labelled:
    """Whether a word was put in from another text, which is so for half of them."""
    rng = np.random.default_rng(0)
    long = [words for words in map(words_of, texts) if len(words) >= LEAST_WORDS][:count]
    vocabulary = [word for words in long for word in words]
    made = []
    labels = []
    for words in long:
        is_changed = bool(rng.integers(2))
        if is_changed:
            place = int(rng.integers(len(words)))
            put_in = words[place]
            while put_in == words[place]:  # "the" is often drawn for "the"
                put_in = vocabulary[int(rng.integers(len(vocabulary)))]
            words[place] = put_in
        made.append(" ".join(words))
        labels.append("replaced" if is_changed else "original")
    return Labelled(made, labels, ("mean", "max"))


TASKS = {"masked": masked, "causal": causal, "replaced": replaced}


def with_own_poolings(pretrained: adapt.Pretrained, data: Labelled) -> Labelled:
    """The data with poolings by the checkpoint's own tokens in place of :data:`AT_MASK` and
    :data:`LAST_WORD`. That of the mask is registered under a name with the number of its token.

    Raises:
        ValueError: a text has no mask among the tokens that are read, or the tokenizer has none.
    """
    poolings = []
    for pooling in data.poolings:
        if pooling == AT_MASK:
            pooling = pooling_at_mask(pretrained, data.inputs)
        elif pooling == LAST_WORD:
            pooling = pooling_at_last_word(pretrained)
        poolings.append(pooling)
    return dataclasses.replace(data, poolings=tuple(poolings))


def pooling_at_mask(pretrained: adapt.Pretrained, texts: Sequence[str]) -> str:
    """The name of the pooling that takes the state of the mask."""
    tokenizer = tokenizer_of(pretrained)
    mask = find_mask_id(tokenizer)
    if mask is None:
        raise ValueError("the tokenizer has no mask token to pool at")
    tokens = tokenizer.encode(texts)[0]
    for number, count in enumerate(tokens.lengths):
        if mask not in tokens[number]:
            raise ValueError(f"text {number} has no mask among its first {count} tokens")
    return registered(f"{AT_MASK}-{mask}", pooling_at(lambda tokens: tokens == mask))


def pooling_at_last_word(pretrained: adapt.Pretrained) -> str:
    """The name of the pooling that takes the last token of a text, but for one that ends every text:
    after that a language model has never had to say anything.
    """
    encoding = tokenizer_of(pretrained).uncut.encode("a")
    if not encoding.special_tokens_mask[-1]:
        return "last"
    return registered(LAST_WORD, before_the_last)


def before_the_last(x_TD: jax.Array, batch: Any) -> jax.Array:
    """The pooling that takes the state of the last token but one of each text. It looks at no token:
    a batch whose first layers were kept has none.
    """
    place_N = batch["first"] + jnp.maximum(batch["length"] - 2, 0)
    return zeros_where_empty(x_TD[place_N], batch)


def registered(name: str, pooling: Pooling) -> str:
    """The name, under which a pooling is registered that takes one token of a text."""
    POOLINGS[name] = pooling
    AVERAGES.add(pooling)
    return name


def pooling_at(is_asked: Callable[[jax.Array], jax.Array]) -> Pooling:
    """The pooling that takes the state of a text's last token that is asked for, 0 where it has none."""

    def at_token(x_TD: jax.Array, batch: Any) -> jax.Array:
        is_asked_T = is_asked(batch["tokens"].reshape(-1))
        segments_T = batch["segments"].reshape(-1)
        places_T = jnp.arange(len(x_TD))
        place_N = jax.ops.segment_max(
            jnp.where(is_asked_T, places_T, -1), segments_T, batch["length"].shape[0]
        )
        x_ND = jnp.where(place_N[:, None] < 0, 0, x_TD[jnp.clip(place_N, 0)])
        return zeros_where_empty(x_ND, batch)

    return at_token
