"""Record what transformers' language models say at the mask of prompts, or after them: prompts.npz.

Run as `python -m tests.references.record_prompts` with torch and transformers. The checkpoints are
those of tests/helpers/prompts.py. Of each case there are the token ids of every prompt, one after
the other, their lengths, and the logits [N, 2] of the words of two classes, each prompt by itself.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from tests.helpers.prompts import CASES, RECORDED, TEXTS, PromptCase, checkpoint


def record(case: PromptCase) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(Path(scratch) / case.name, case.name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        masked = tokenizer.mask_token is not None
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model = auto.from_pretrained(folder).eval()
    words = tokenizer.convert_tokens_to_ids(list(case.tokens))
    template = case.template.replace("[MASK]", tokenizer.mask_token if masked else "").rstrip(" ")
    sequences = []
    logits = []
    for text in TEXTS:
        ids = tokenizer(template.format(text=text))["input_ids"]
        place = ids.index(tokenizer.mask_token_id) if masked else -1
        with torch.no_grad():
            outputs = model(torch.tensor([ids])).logits[0, place]
        sequences.append(ids)
        logits.append(outputs[words].numpy())
    return {
        f"{case.name}/ids": np.concatenate(sequences).astype(np.int32),
        f"{case.name}/lengths": np.array(list(map(len, sequences)), np.int32),
        f"{case.name}/words": np.array(words, np.int32),
        f"{case.name}/logits": np.stack(logits),
    }


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for case in CASES:
        arrays |= record(case)
    np.savez(RECORDED, **arrays)


if __name__ == "__main__":
    main()
