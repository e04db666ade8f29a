"""Encoders that nobody has trained yet, of shapes of one's own: what pre-training starts from.

    entries = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 128, ...}
    pretrained = fresh(entries, "tiny-bert")
    adapt.pretrain(pretrained, "text.txt", objective="masked", out="runs/small")

The table of 30,000 tokens is most of a small encoder, and most of what a step computes:
:func:`cut_vocabulary` keeps those tokens that a text has.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt.errors import CheckpointError, StrategyError
from adapt.models import Classifier, Encoder, EncoderConfig, Model
from adapt.pretrained import hub
from adapt.pretrained.config_file import read_config
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.images import ImageSettings
from adapt.pretrained.tokenizer import Tokenizer, backend_of

CHUNK = 4096  # texts that are tokenized together
ANY_SIZE = 1 << 20  # of a vocabulary that is asked for where there is none


def fresh(
    entries: Mapping[str, Any],
    tokenizer: Tokenizer | Pretrained | str | Path | None = None,
    seed: int = 0,
) -> Pretrained:
    """An encoder with random weights and no head, in the shapes that ``entries`` say.

    ``entries`` are those of a config.json in transformers' words, with ``model_type``; the
    ``vocab_size`` is that of the tokenizer where they have none. ``tokenizer`` is one, or the
    checkpoint that it is taken from, or its name; an encoder of pictures has none, and reads
    their pixels between -1 and 1. Raises :class:`CheckpointError` for entries that are missing or
    wrong, and for more tokens than ``vocab_size``; :class:`StrategyError` for a checkpoint without
    a tokenizer, and for a tokenizer that is missing or one too many.
    """
    if "model_type" not in entries:
        raise CheckpointError("`entries` have no model_type: add one, such as 'bert'")
    source = f"a fresh {entries['model_type']}"
    if tokenizer is None:
        return fresh_of_pictures(entries, source, seed)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = tokenizer_of(hub.loaded(tokenizer))
    config = read_config({"vocab_size": tokenizer.size, **entries}, source)
    if config.is_image:
        raise StrategyError(f"{source} is an encoder of pictures: leave `tokenizer` out")
    length = min(tokenizer.max_length, config.positions)
    model = random_weights(source, config, seed)
    return hub.with_tokenizer(model, tokenizer.cut_to(length), Path(source))


def fresh_of_pictures(entries: Mapping[str, Any], source: str, seed: int) -> Pretrained:
    """:func:`fresh` of an encoder of pictures. Raises :class:`StrategyError` for one of texts."""
    config = read_config({"vocab_size": ANY_SIZE, **entries}, source)
    if not config.is_image:
        raise StrategyError(f"{source} is an encoder of texts: give `tokenizer`")
    settings = ImageSettings(config.image_size, config.channels)
    return dataclasses.replace(random_weights(source, config, seed), image_settings=settings)


def random_weights(source: str, config: EncoderConfig, seed: int) -> Pretrained:
    """An encoder of this config with random weights, and no head."""
    head = Classifier(0, get_family(config.family).pooling)
    params = Model(Encoder(config), head).init(jax.random.key(seed))
    return Pretrained(source, config, head, jax.device_get(params))


def cut_vocabulary(
    tokenizer: Tokenizer, texts: Sequence[str], size: int, words: Iterable[str] = ()
) -> Tokenizer:
    """A WordPiece tokenizer with ``size`` of its tokens, those most frequent in ``texts``.

    Its special tokens stay, ASCII characters, so that any word in them can still be spelled, and
    ``words``. A word whose token is left out becomes several; ids are new ones. Raises
    :class:`StrategyError` for a tokenizer of another kind, for a word that is not one of its
    tokens, and where ``size`` is too small for what stays.
    """
    content = json.loads(tokenizer.backend.to_str())
    model = content["model"]
    processor = content["post_processor"] or {}
    if model["type"] != "WordPiece":
        raise StrategyError(
            f"`tokenizer` is of the kind {model['type']}: the tokens of WordPiece alone can be left "
            "out one by one"
        )
    if processor.get("type") != "TemplateProcessing":
        raise StrategyError(
            f"`tokenizer` has the post_processor {processor.get('type')}: give one with "
            "TemplateProcessing, whose ids can be changed with those of the tokens"
        )
    vocabulary = model["vocab"]
    added = [token["content"] for token in content["added_tokens"]]
    beside = sorted(set(added) - vocabulary.keys())
    if beside:
        raise StrategyError(
            f"`tokenizer` has added tokens beside its vocabulary ({', '.join(beside)}), which can't "
            "be numbered anew: give one without them"
        )
    asked = set(words)
    kept = {model["unk_token"], *added, *asked}
    unknown = sorted(asked - vocabulary.keys())
    if unknown:
        raise StrategyError(f"`words` {', '.join(unknown)}: the tokenizer has no such tokens")
    for token in vocabulary:
        character = token.removeprefix(model["continuing_subword_prefix"])
        if len(character) == 1 and character.isascii():
            kept.add(token)
    if size < len(kept):
        raise StrategyError(f"`size` {size} must be at least {len(kept)}, those that stay")
    counts = count_tokens(tokenizer, texts)
    names = sorted(vocabulary, key=lambda token: (-counts[vocabulary[token]], vocabulary[token]))
    for token in names:
        if len(kept) == size:
            break
        kept.add(token)
    in_order = sorted(kept, key=lambda token: vocabulary[token])
    ids = {token: number for number, token in enumerate(in_order)}
    model["vocab"] = ids
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    for token in processor["special_tokens"].values():
        token["ids"] = [ids[name] for name in token["tokens"]]
    return tokenizer.replaced(backend=backend_of(content))


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """How often each token is in texts, int64 [vocabulary]."""
    counts = np.zeros(tokenizer.size, np.int64)
    for start in range(0, len(texts), CHUNK):
        encodings = tokenizer.uncut.encode_batch_fast(list(texts[start : start + CHUNK]))
        ids = [number for encoding in encodings for number in encoding.ids]
        counts += np.bincount(ids, minlength=len(counts))
    return counts
