"""What transformers 5 does to a text before its tokens are found, by the class of a tokenizer.

Of a tokenizer.json it takes the vocabulary and SentencePiece's map of characters; how letters and
spaces are treated it makes anew, by the class and by tokenizer_config.json. These functions do the
same to a tokenizer that was read from the file. Each gets that tokenizer, tokenizer.json and
tokenizer_config.json.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

Settings = Mapping[str, Any]
Special = Mapping[str, AddedToken | None]

# The words of a text as Qwen splits it (Yang et al. 2024), each number a digit at a time.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def inner_steps(step: Any) -> Iterator[Settings]:
    """The steps of a normalizer or a pre-tokenizer of tokenizer.json, one after the other."""
    if not isinstance(step, Mapping):
        return
    inner = step.get("normalizers") or step.get("pretokenizers")
    if inner is None:
        yield step
        return
    for inner_step in inner:
        yield from inner_steps(inner_step)


def character_map(content: Settings) -> list[Any]:
    """SentencePiece's map of characters as a list of one normalizer; [] where there is none."""
    for step in inner_steps(content.get("normalizer")):
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return [normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))]
    return []


def words_of_spaces(settings: Settings) -> pre_tokenizers.PreTokenizer:
    """Words at white space, each with a ▁ before it unless ``add_prefix_space`` is false."""
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    steps = [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme),
    ]
    return pre_tokenizers.Sequence(steps)


def as_xlm_roberta(backend: Tokenizer, content: Settings, settings: Settings) -> None:
    """XLM-RoBERTa's, CamemBERT's: letters as SentencePiece maps them, words at white space."""
    mapped = character_map(content)
    backend.normalizer = mapped[0] if mapped else None  # pyright: ignore - None takes it off
    backend.pre_tokenizer = words_of_spaces(settings)


def as_t5(backend: Tokenizer, content: Settings, settings: Settings) -> None:
    """T5's: XLM-RoBERTa's, with a ▁ before every word."""
    as_xlm_roberta(backend, content, {})


def as_albert(backend: Tokenizer, content: Settings, settings: Settings) -> None:
    """ALBERT's: plain quotation marks, no accents and lower case unless they are to be kept."""
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence([*steps, *character_map(content)])
    backend.pre_tokenizer = words_of_spaces(settings)


def as_deberta(backend: Tokenizer, content: Settings, settings: Settings) -> None:
    """DeBERTa-v2's and v3's: composed letters, one space for several, none at the end."""
    steps: list[Any] = [normalizers.Lowercase()] if settings.get("do_lower_case", False) else []
    steps += [
        normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
        normalizers.NFC(),
        normalizers.Strip(left=False, right=True),
    ]
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if settings.get("add_prefix_space", True) else "first"
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    marks = [pre_tokenizers.Punctuation("isolated")] if settings.get("split_by_punct") else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*marks, spaces])


def as_qwen(backend: Tokenizer, content: Settings, settings: Settings) -> None:
    """Qwen2's and Qwen3's: composed letters, bytes within words."""
    backend.normalizer = normalizers.NFC()
    space = bool(settings.get("add_prefix_space", False))
    steps = [
        pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


# What is put around texts


def ends_of(
    backend: Tokenizer, special: Special, names: Sequence[str]
) -> tuple[list[str], list[tuple[str, int]]]:
    """(the tokens of these names, {each of them once, with its id}, as pairs).

    Raises ValueError for a name without a token, and for a token that the vocabulary does not have.
    """
    ends = [token_and_id(backend, special, name) for name in names]
    return [token for token, _ in ends], list(dict(ends).items())


def token_and_id(backend: Tokenizer, special: Special, name: str) -> tuple[str, int]:
    """A special token and its id. Raises ValueError for one that the vocabulary does not have."""
    token = special.get(name)
    number = None if token is None else backend.token_to_id(token.content)
    if token is None or number is None:
        raise ValueError(f"there is no {token.content if token else name} in it")
    return token.content, number


def as_bos_and_eos(backend: Tokenizer, settings: Settings, special: Special) -> Any:
    """<s> text </s>, and <s> text </s></s> text </s> of pairs, all of type 0."""
    (begin, end), numbered = ends_of(backend, special, ("bos_token", "eos_token"))
    pair = [begin, "$A", end, end, "$B", end]
    return processors.TemplateProcessing(
        single=[begin, "$A", end], pair=pair, special_tokens=numbered
    )


def as_eos(backend: Tokenizer, settings: Settings, special: Special) -> Any:
    """text </s>, and text </s> text </s> of pairs."""
    (end,), numbered = ends_of(backend, special, ("eos_token",))
    pair = ["$A", end, "$B", end]
    return processors.TemplateProcessing(single=["$A", end], pair=pair, special_tokens=numbered)


# Entries of tokenizer_config.json, by what tokenizer.json does


def said_of_letters(content: Settings) -> dict[str, Any]:
    """``do_lower_case`` and ``split_by_punct`` of a tokenizer.json, by what it does."""
    letters = {step.get("type") for step in inner_steps(content.get("normalizer"))}
    words = {step.get("type") for step in inner_steps(content.get("pre_tokenizer"))}
    return {"do_lower_case": "Lowercase" in letters, "split_by_punct": "Punctuation" in words}


def said_of_case(content: Settings) -> dict[str, Any]:
    """``do_lower_case`` and ``keep_accents`` of a tokenizer.json, by what it does."""
    letters = {step.get("type") for step in inner_steps(content.get("normalizer"))}
    return {"do_lower_case": "Lowercase" in letters, "keep_accents": "StripAccents" not in letters}


def said_of_spaces(content: Settings) -> dict[str, Any]:
    """``add_prefix_space`` of a tokenizer.json; {} where it has no such step."""
    for step in inner_steps(content.get("pre_tokenizer")):
        if step.get("type") == "ByteLevel":
            return {"add_prefix_space": step.get("add_prefix_space")}
        if step.get("type") == "Metaspace" and "prepend_scheme" in step:
            return {"add_prefix_space": step["prepend_scheme"] == "always"}
    return {}
