"""The tokenizers beside the recorded weights of ModernBERT, ESM, NomicBERT and GTE."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from adapt.pretrained.tokenizer_files import read_tokenizer

REFERENCES = Path(__file__).parents[1] / "references"
ROTARY = ("modernbert", "esm", "nomic", "gte")
NAMES = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def write_tokenizer(folder: Path, case: str, words: Sequence[str]) -> None:
    """ESM's vocab.txt of residues, NomicBERT's of words, or a tokenizer.json of words."""
    if case.startswith("esm"):
        for name in ("vocab.txt", "tokenizer_config.json"):
            shutil.copy(REFERENCES / "esm_classifier" / name, folder)
        return
    special = list(NAMES.values())
    if case.startswith("gte"):  # its padding is 1
        special[:2] = reversed(special[:2])
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*special, *words]))
    if case.startswith("nomic"):
        return
    files = read_tokenizer(folder, "BertTokenizer", {})
    assert files is not None
    files.backend.no_truncation()
    files.backend.save(str(folder / "tokenizer.json"))
    vocabulary.unlink()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
