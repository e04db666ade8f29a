"""Checks on a checkpoint: are its weights trained, and does its tokenizer belong to them?"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from adapt import tree
from adapt.doctor.cases import CheckpointCase
from adapt.doctor.findings import Finding
from adapt.pretrained.tokenizer import Tokenizer

# Pairs of a word and its other form whose rows are compared; fewer say nothing.
FEWEST_PAIRS = 200
FEWEST_WORDS = 200  # of a vocabulary, from which a share of them says something
# The mean cosine of such pairs, less that of pairs by chance, both without the mean row: 0.59 and
# 0.47 in MiniLM and a tiny BERT, 0.00 with the tokens in another order.
LEAST_SIMILARITY = 0.05
MOST_PAIRS = 4000
CASED_SHARE = 0.05  # of the words of a vocabulary; a lower-cased one has hardly any with a capital
MARKS = "Ġ▁#"  # what tokens of words have at their beginning; the first is a capital letter
SENTENCE = "The Quick Brown Fox Jumps Over The Lazy Dog"


def newly_initialised(case: CheckpointCase) -> Iterator[Finding]:
    """Blocks whose norms are all ones and biases all zeros: they were never trained."""
    if case.has_random_weights:
        return
    fresh = fresh_blocks(case.pretrained.params["encoder"])
    names = sorted(name for name, is_fresh in fresh.items() if is_fresh)
    if not names:
        return
    is_partly = len(names) < len(fresh)
    what = "all blocks"
    cause = "the checkpoint was saved before it was trained"
    if is_partly:
        what = f"{len(names)} of {len(fresh)} blocks"
        cause = "a part of the weights was newly initialised when the checkpoint was saved"
    yield Finding(
        severity="error",
        seen=f"{case.pretrained.source}: in {what} every norm is 1 and every bias 0",
        cause=cause,
        fix="get the pre-trained weights, or convert them again and look at what was not found",
        certainty="likely",
        evidence={"fresh": names, "blocks": len(fresh)},
    )


def fresh_blocks(encoder: tree.Tree) -> dict[str, bool]:
    """For each block with vectors, whether all scales are 1 and all biases 0."""
    fresh: dict[str, bool] = {}
    for path, leaf in tree.paths(encoder).items():
        block, _, rest = path.partition("/")
        if not block.startswith("block_") or np.ndim(leaf) != 1:
            continue
        name = rest.rpartition("/")[2]
        if name not in ("scale", "bias"):
            continue
        start = 1.0 if name == "scale" else 0.0
        is_fresh = bool((np.asarray(leaf) == start).all())
        fresh[block] = fresh.get(block, True) and is_fresh
    return fresh


def tokenizer_of_another_model(case: CheckpointCase) -> Iterator[Finding]:
    """A tokenizer whose words are not those of the embedding's rows, whatever its size."""
    tokenizer = case.pretrained.tokenizer
    table = token_table(case)
    if tokenizer is None or table is None or case.has_random_weights:
        return
    pairs = related_pairs(tokenizer.backend.get_vocab())
    if len(pairs) < FEWEST_PAIRS:
        return
    rows = np.asarray(table[np.unique(pairs)], np.float32)
    centre = rows.mean(0)
    words = np.asarray(table[pairs[:, 0]], np.float32) - centre
    related = np.asarray(table[pairs[:, 1]], np.float32) - centre
    alike = mean_cosine(words, related)
    by_chance = mean_cosine(words, np.roll(related, len(related) // 2, axis=0))
    if alike - by_chance >= LEAST_SIMILARITY:
        return
    yield Finding(
        severity="error",
        seen=f"{case.pretrained.source}: the embeddings of words and their other forms (word, "
        f"words) are no more alike than any two, cosine {alike:.2f} against {by_chance:.2f}",
        cause="the tokenizer is of another model, or the embedding was never trained",
        fix="get the tokenizer's files from where the weights are from",
        certainty="likely",
        evidence={"pairs": len(pairs), "cosine": alike, "cosine_by_chance": by_chance},
    )


def token_table(case: CheckpointCase) -> Any:
    """The embedding of tokens, [vocabulary, D]; None of an encoder of pictures."""
    return tree.paths(case.pretrained.params["encoder"]).get("embedding/token")


def related_pairs(vocabulary: dict[str, int]) -> np.ndarray:
    """Ids of tokens that are spelled alike, int64 [P, 2]: a word with its plural, with a capital, or
    as it stands inside a word and at its beginning.
    """
    pairs = []
    for token, number in vocabulary.items():
        if len(token) < 4 or not token.isalpha():
            continue
        for other in (f"{token}s", f"##{token}", f"Ġ{token}", f"▁{token}", token.capitalize()):
            if other != token and other in vocabulary:
                pairs.append((number, vocabulary[other]))
    # Evenly from all ids, as common words have small ones in many vocabularies.
    pairs.sort()
    step = max(len(pairs) // MOST_PAIRS, 1)
    return np.array(pairs[::step], np.int64).reshape(-1, 2)


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine of the rows of two matrices [P, D]."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / np.maximum(norms, 1e-12)).mean())


def special_tokens_missing(case: CheckpointCase) -> Iterator[Finding]:
    """A vocabulary with the tokens that begin and end a text, which the tokenizer does not add."""
    tokenizer = case.pretrained.tokenizer
    if tokenizer is None or case.pretrained.config.causal or tokenizer.unknown.num_special:
        return
    vocabulary = tokenizer.backend.get_vocab()
    known = [token for token in ("[CLS]", "[SEP]", "<s>", "</s>") if token in vocabulary]
    if not known:
        return
    yield Finding(
        severity="warning",
        seen=f"{case.pretrained.source}: the tokenizer adds no special token, and its vocabulary has "
        f"{' and '.join(known)}",
        cause="tokenizer.json has lost its post_processor",
        fix="get tokenizer.json from where the weights are from, or remove it where vocab.txt is "
        "beside it",
        certainty="likely",
        evidence={"special_tokens": known},
    )


def case_mismatch(case: CheckpointCase) -> Iterator[Finding]:
    """A tokenizer that lowers case before a vocabulary with capitals, or keeps it before one
    without.
    """
    tokenizer = case.pretrained.tokenizer
    if tokenizer is None:
        return
    vocabulary = tokenizer.backend.get_vocab()
    words = [token.lstrip(MARKS) for token in vocabulary]
    words = [word for word in words if len(word) > 1 and word.isalpha() and word.isascii()]
    if len(words) < FEWEST_WORDS:
        return
    cased = sum(word != word.lower() for word in words) / len(words)
    read, unknown = read_sentence(tokenizer)
    evidence = {"cased_share": cased, "read": read, "unknown": unknown}
    if read == read.lower() and cased > CASED_SHARE and not unknown:
        yield Finding(
            severity="warning",
            seen=f"{case.pretrained.source}: the tokenizer lowers every letter, and {cased:.0%} of "
            "the words in its vocabulary have capitals",
            cause="a cased model with the setting of an uncased one",
            fix="set do_lower_case to false in tokenizer_config.json, or lowercase in "
            "tokenizer.json",
            certainty="likely",
            evidence=evidence,
        )
    if unknown >= 4 and cased < CASED_SHARE / 10:
        yield Finding(
            severity="error",
            seen=f"{case.pretrained.source}: words with a capital become "
            f"{unknown_spelling(tokenizer)}, and the vocabulary has none",
            cause="an uncased model whose tokenizer keeps the case",
            fix="set do_lower_case to true in tokenizer_config.json",
            certainty="likely",
            evidence=evidence,
        )


def read_sentence(tokenizer: Tokenizer) -> tuple[str, int]:
    """(the letters that the tokenizer makes of SENTENCE, how many of its tokens are unknown)."""
    (tokens,) = tokenizer.tokenize([SENTENCE])
    own = [token for token, text in zip(tokens.strings, tokens.texts, strict=True) if text >= 0]
    known = [token.lstrip(MARKS) for token in own if token != unknown_spelling(tokenizer)]
    return "".join(known), len(own) - len(known)


def unknown_spelling(tokenizer: Tokenizer) -> str:
    """How the tokenizer spells what its vocabulary does not have; "" where it has no such token."""
    unknown = tokenizer.unknown.unknown
    return unknown[1] if unknown else ""
