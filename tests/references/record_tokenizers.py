"""Record the token ids of transformers' tokenizers that `adapt` is tested against: tokenizers.json.

Run as `python -m tests.references.record_tokenizers` with transformers. The folders are those of
tests/helpers/tokenizer_folders.py, beside a config.json of a family that has such a class.
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.helpers.tokenizer_folders import CASES, PAIR, TEXTS, write


def main() -> None:
    recorded = []
    for name, settings in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = AutoTokenizer.from_pretrained(write(Path(scratch) / "x", name, settings))
            assert type(tokenizer).__name__ == name.removesuffix("Fast"), type(tokenizer)
            recorded.append([tokenizer(text)["input_ids"] for text in TEXTS])
            recorded[-1].append(tokenizer(*PAIR)["input_ids"])
    lines = ",\n".join(json.dumps(ids) for ids in recorded)
    (Path(__file__).parent / "tokenizers.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
