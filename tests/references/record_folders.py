"""Record what the original libraries make of the folders of ``folders.py``: folders.npz.

Run as `python tests/references/record_folders.py` with torch, transformers, sentence-transformers and
pillow; the tests need none of them. Token ids are stored as text of JSON, vectors, states and pixels as
float32.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parent))
from folders import CASES, HERE, PAIRS, TEXTS, Case


def pictures() -> list[Image.Image]:
    """Two pictures of smooth colours, one of them partly transparent in its corner."""
    made = []
    for height, width in ((40, 56), (37, 23)):
        row, column = np.mgrid[:height, :width]
        bands = [row * 255 // (height - 1), column * 255 // (width - 1), (row * column) % 256]
        made.append(Image.fromarray(np.stack(bands, -1).astype(np.uint8)))
    return made


def tokens(folder: Path) -> dict[str, Any]:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    length = min(tokenizer.model_max_length, 12)
    texts = tokenizer(TEXTS, truncation=True, max_length=length)["input_ids"]
    first, second = zip(*PAIRS, strict=True)
    pairs = tokenizer(list(first), list(second), truncation=True, max_length=length)["input_ids"]
    return {"tokens": np.array(json.dumps([texts, pairs]))}


@torch.no_grad()
def states(folder: Path) -> dict[str, Any]:
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(1, 11)[None]
    return {"states": model(input_ids=ids).last_hidden_state[0].numpy()}


def dinov3_pixels() -> np.ndarray:
    """What DINOv3's processor makes of the pictures in 32 x 32: it is torchvision's alone, whose resize of floats
    is this function of torch."""
    resized = []
    for picture in pictures():
        x = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]
        x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
        resized.append(x[0].permute(1, 2, 0).numpy())
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    return ((np.stack(resized) - mean) / std).transpose(0, 3, 1, 2)


def record(name: str, case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        case.make(folder)
        if case.refuses or case.looks not in (
            "tokens",
            "states",
            "pixels",
            "vectors",
            "similarity",
        ):
            return {}
        if case.looks == "tokens":
            return tokens(folder)
        if case.looks == "states":
            return states(folder)
        if name.startswith("DINOv3"):
            return {"pixels": dinov3_pixels()[:, :, ::3, ::5]}
        if case.looks == "pixels":
            processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
            found = processor(pictures(), return_tensors="np", input_data_format="channels_last")
            return {"pixels": found["pixel_values"][:, :, ::3, ::5].astype(np.float32)}
        model = SentenceTransformer(str(folder), device="cpu")
        if case.looks == "similarity":
            return {"similarity": np.array(model.similarity_fn_name)}
        return {"vectors": model.encode(TEXTS, show_progress_bar=False, **case.asked)}


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    arrays = {}
    for name, case in CASES.items():
        try:
            found = record(name, case)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}")
            raise
        arrays |= {f"{name}|{what}": array for what, array in found.items()}
        print(name, {what: array.shape for what, array in found.items()})
    np.savez_compressed(HERE / "folders.npz", **arrays)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
