"""The tokenizer that a checkpoint's files describe, and what other libraries' files say of one."""

import tokenizers
from tokenizers import processors


def with_one_type(backend: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    """The post-processor of a tokenizer, with type 0 for both texts of a pair.

    An encoder with one type of segment has no row for a type 1: other libraries look one up.
    """
    special: dict[str, int] = {}
    templates = []
    for encoding in (backend.encode("a"), backend.encode("a", "a")):
        pieces = []
        for token, number, text in zip(
            encoding.tokens, encoding.ids, encoding.sequence_ids, strict=True
        ):
            piece = token if text is None else ("$A", "$B")[text]
            if text is None:
                special[token] = number
            if not pieces or text is None or pieces[-1] != f"{piece}:0":
                pieces.append(f"{piece}:0")
        templates.append(" ".join(pieces))
    single, pair = templates
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=list(special.items())
    )
