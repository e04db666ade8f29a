"""The files by which another library makes texts or pictures into the arrays that a run was
trained on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import ExportError
from adapt.export import card, layout
from adapt.export.folder import json_text
from adapt.models import CausalLM, Classifier, MaskedLM
from adapt.pretrained import hub
from adapt.pretrained.families import get_family
from adapt.pretrained.tokenizer import Tokenizer
from adapt.pretrained.tokenizer_files import with_one_type

PAD = "<|pad|>"
# What transformers calls a special token -> how the tokenizers of these families spell it.
SPECIAL = {
    "pad_token": ("[PAD]", "<pad>", PAD),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<|endoftext|>",),
    "eos_token": ("<|endoftext|>",),
}


def input_files(run: hub.Pretrained) -> tuple[hub.Pretrained, dict[str, str], list[str]]:
    """(the run, the files, notes on them for the card).

    All but language models and a projection, which reads the first end token, need padding by a
    token of its own: where the tokenizer has none it gets one, and the embedding a row of zeros for
    it. (transformers takes for GPT-2's last token the last that is not padding: with the end token
    as padding, a text that ends in it would be read wrong.)
    """
    if run.image_settings:
        notes = [card.RESIZING]
        if run.image_settings.channels == 1:
            notes.append(card.GRAY)
        return (
            run,
            {"preprocessor_config.json": json_text(layout.preprocessor(run.image_settings))},
            notes,
        )
    tokenizer = run.tokenizer
    assert tokenizer is not None
    backend = copy_backend(tokenizer.backend)
    backend.no_truncation()
    backend.no_padding()
    if run.config.types == 1 and any(backend.encode("a", "a").type_ids):
        backend.post_processor = with_one_type(backend)
    notes = []
    special = named_tokens(tokenizer, backend)
    if needs_padding(run.head):
        token = padding_token(backend, special)
        if token is None:
            token = PAD
            backend.add_special_tokens([token])
            # Read as it will be read: where ids have a gap, that gives the token another id than
            # adding it did.
            backend = copy_backend(backend)
            notes = [card.ADDED_PADDING.format(pad=PAD)]
        special["pad_token"] = token
        pad = padding_id(backend, token)
        offset = run.config.position_offset
        if get_family(run.config.family).counts_after_padding and offset not in (0, pad + 1):
            raise ExportError(
                f"the padding token of {run.source} has the id {pad}, and the first row of its table "
                f"of positions is that of {offset - 1}: other libraries count positions by it"
            )
        run = with_padding(run, pad)
    settings = tokenizer_settings(run, tokenizer)
    present = {name: token for name, token in special.items() if token is not None}
    files = {
        "tokenizer_config.json": json_text(settings | special),
        "special_tokens_map.json": json_text(present),
        "tokenizer.json": backend.to_str(pretty=True),
    }
    return run, files, notes


def needs_padding(head: Any) -> bool:
    """Whether what transformers computes may depend on which tokens are padding."""
    is_projection = isinstance(head, Classifier) and head.pooling == "projection"
    return not is_projection and not isinstance(head, MaskedLM | CausalLM)


def tokenizer_settings(run: hub.Pretrained, tokenizer: Tokenizer) -> dict[str, Any]:
    if run.config.types:
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:  # GPT-2 would embed types as tokens
        inputs = ["input_ids", "attention_mask"]
    return {
        # It takes tokenizer.json as it is; BertTokenizer rebuilds it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.max_length,
        "model_input_names": inputs,
        "padding_side": "right",
        "truncation_side": tokenizer.side,
        "clean_up_tokenization_spaces": False,
    }


def copy_backend(backend: Any) -> Any:
    """A tokenizer of the tokenizers library, written and read back."""
    return type(backend).from_str(backend.to_str())


def padding_token(backend: Any, special: Mapping[str, str | None]) -> str | None:
    """The padding token, which is no other named token and not put around texts; None for none."""
    others = set(backend.encode("").tokens)
    others |= {token for name, token in special.items() if name != "pad_token" and token}
    for token in (special.get("pad_token"), special_tokens(backend).get("pad_token")):
        if token and token not in others:
            return token
    return None


def padding_id(backend: Any, token: str) -> int:
    """The id of the padding token. Raises :class:`ExportError` where another token has it, too."""
    pad = backend.token_to_id(token)
    ids = list(backend.get_vocab().values())
    if pad is None or ids.count(pad) > 1:
        raise ExportError(
            f"{PAD} can't be added to the tokenizer, whose ids have a gap: "
            "add a padding token to it"
        )
    return pad


def named_tokens(tokenizer: Tokenizer, backend: Any) -> dict[str, str | None]:
    """The special tokens by transformers' names: as the checkpoint names them, and by their
    spelling those of which it says nothing. None where it says that there is none.
    """
    padding = tokenizer.named.get("pad_token")
    special: dict[str, str | None] = {}
    for name, token in special_tokens(backend).items():
        if token != padding:
            special[name] = token
    return special | tokenizer.named


def special_tokens(backend: Any) -> dict[str, str]:
    """The special tokens by how these families spell them. No others: naming one would change how
    texts are split.
    """
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    names = {}
    for name, spellings in SPECIAL.items():
        for spelling in spellings:
            if spelling in special:
                names[name] = spelling
                break
    return names


def with_padding(run: hub.Pretrained, pad: int) -> hub.Pretrained:
    """The run with ``pad`` as its padding token, and an embedding that reaches it."""
    encoder = run.params["encoder"]
    table = np.asarray(encoder["embedding"]["token"])
    missing_rows = max(pad + 1 - len(table), 0)
    table = np.pad(table, ((0, missing_rows), (0, 0)))
    embedding = encoder["embedding"] | {"token": table}
    params = run.params | {"encoder": encoder | {"embedding": embedding}}
    config = dataclasses.replace(run.config, vocabulary=len(table), pad_token=pad)
    return dataclasses.replace(run, params=params, config=config)
