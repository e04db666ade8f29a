"""The tokenizers beside the recorded weights of RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and ELECTRA."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

BERT_LIKE = ("roberta", "xlm_roberta", "camembert", "distilbert", "electra")
ENDS = ["<s>", "<pad>", "</s>", "<unk>"]


def write_tokenizer(folder: Path, case: str, words: Sequence[str]) -> None:
    """RoBERTa's byte-level vocab.json with merges.txt, a unigram's tokenizer.json, or a vocab.txt."""
    if case.startswith("roberta"):
        letters = sorted(set("".join(words)))
        tokens = [*ENDS, *letters, "Ġ", "<mask>"]
        ids = {token: number for number, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    elif case.startswith(("xlm_roberta", "camembert")):
        write_unigram(folder, words)
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "vocab.txt").write_text("\n".join([*special, *words]))


def write_unigram(folder: Path, words: Sequence[str]) -> None:
    """A tokenizer.json as XLM-RoBERTa's: texts between <s> and </s>, two of these between a pair."""
    pieces = [(token, 0.0) for token in ENDS]
    pieces += [(f"▁{word}", -float(len(words))) for word in words]
    pieces += [("▁", -50.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(ENDS)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
