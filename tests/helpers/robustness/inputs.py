"""The intact inputs that are damaged: tiny checkpoints, tables, pictures, runs, made once a session."""

import gzip
import json
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import adapt
from tests.helpers import tiny
from tests.helpers.robustness.doors import command

TEXTS = [text for text, _ in tiny.sentences(6, seed=3)]
CASES = {"bert": "bert_classifier", "gpt2": "gpt2_lm_tied", "vit": "vit_classifier"}
SHARDED = "bert_mlm_untied_sharded"
WORDS = [*tiny.SPECIAL, *tiny.PLAIN, *tiny.GOOD, *tiny.BAD]
QUICK = ("--epochs", "1", "--batch-size", "8")


def make_all(base: Path) -> None:
    """Everything under ``base``; needs ADAPT_CACHE in the environment."""
    for name, case in {**CASES, "sharded": SHARDED}.items():
        tiny.checkpoint(base / name, case, None if name == "sharded" else 1)
    tiny.checkpoint(base / "mlm", "bert_mlm_tied", 1)
    write_tokenizer_files(base / "bert")
    write_embedder(base / "embedder")
    make_tables(base / "tables")
    make_pictures(base / "pictures")
    make_runs(base)


def write_tokenizer_files(folder: Path) -> None:
    """The files beside vocab.txt that say how it is used; every row of the embedding has a token."""
    words = [*WORDS, *(f"w{number}" for number in range(100 - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    named |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 12,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "truncation_side": "right",
        **named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    (folder / "added_tokens.json").write_text("{}")


def write_embedder(folder: Path) -> None:
    """A folder as sentence-transformers writes it, with a tokenizer.json."""
    tiny.checkpoint(folder, "bert_bare_pooler", 1)
    write_tokenizer_files(folder)
    pretrained = adapt.load(folder)
    assert pretrained.tokenizer is not None
    pretrained.tokenizer.save(folder)
    width = pretrained.config.width
    types = ("Transformer", "Pooling", "Normalize")
    modules: list[dict[str, Any]] = []
    for number, kind in enumerate(types):
        path = f"{number}_{kind}" if number else ""
        name = f"sentence_transformers.models.{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": name})
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    prompts = {"prompts": {"query": "the ", "passage": "a "}, "default_prompt_name": "query"}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"pooling_mode_cls_token": False},
        "sentence_bert_config.json": {"max_seq_length": 10, "do_lower_case": False},
        "config_sentence_transformers.json": prompts | {"similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
    (folder / "2_Normalize").mkdir()


def make_tables(folder: Path) -> None:
    """The same rows in every format; the JSON files have numbers, lists and absent values, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = tiny.sentences(24)
    tiny.write_table(folder / "train.csv", rows)
    quoted = [(f'{text}, "so"\nand', label) for text, label in rows]
    tiny.write_table(folder / "quoted.csv", quoted)
    tiny.write_table(folder / "train.tsv", rows)
    objects = []
    for number, (text, label) in enumerate(rows):
        extra = {"number": number / 4, "tags": ["a", str(number)], "note": None}
        objects.append({"text": text, "label": label, **extra})
    lines = [json.dumps(entry) for entry in objects]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train.json").write_text(json.dumps(objects, indent=1))
    (folder / "train.csv.gz").write_bytes(gzip.compress((folder / "train.csv").read_bytes()))
    (folder / "train.jsonl.xz").write_bytes(lzma.compress((folder / "train.jsonl").read_bytes()))
    table = pa.Table.from_pylist(objects)
    pq.write_table(table, folder / "train.parquet", row_group_size=10)
    pq.write_table(table, folder / "plain.parquet", compression="none", use_dictionary=False)


def make_pictures(folder: Path) -> None:
    """Twelve pictures in two classes, in the formats that people have."""
    tiny.image_folder(folder, 8)
    for number, ending in enumerate(("jpg", "bmp", "gif", "webp", "tif", "jpg")):
        path = folder / ("bright", "dark")[number % 2] / f"{number + 20}.{ending}"
        tiny.picture(number).save(path)
    noise = np.random.default_rng(9).integers(0, 2**16, (20, 20), np.uint16)
    Image.fromarray(noise).save(folder / "dark/deep.png")


def make_runs(base: Path) -> None:
    """A finished run, one that refers to its encoder, one that was stopped, one of pictures; and
    ``whole``, which the stopped one becomes when it goes on.
    """
    texts = ["--checkpoint", str(base / "bert"), "--train", str(base / "tables/train.csv")]
    texts += ["--test", str(base / "tables/train.tsv"), "--cache", "off"]
    full = ["--strategy", "full", "--epochs", "2", "--batch-size", "8", "--save-every", "2"]
    for name in ("whole", "stopped"):
        stop = ("--stop-after", "4") if name == "stopped" else ()
        finetune(*texts, *full, *stop, "--out", str(base / name))
    finetune(*texts, *QUICK, "--strategy", "frozen", "--out", str(base / "delta"))
    pictures = ["--checkpoint", str(base / "vit"), "--train", str(base / "pictures")]
    pictures += ["--image-column", "image", "--strategy", "frozen", "--cache", "off"]
    finetune(*pictures, *QUICK, "--out", str(base / "images"))
    lines = [text for text, _ in tiny.sentences(20, seed=4)]
    (base / "lines.txt").write_text("\n".join(lines) + "\n")


def finetune(*flags: str) -> None:
    """`adapt finetune FLAGS`, which has to succeed."""
    answer = command(["finetune", *flags])
    assert answer.kind == "taken", answer.said


def fresh_copy(source: Path, target: Path) -> Path:
    """A copy of a folder in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def scratch_folder() -> Path:
    """A new folder of the system's temporary ones."""
    return Path(tempfile.mkdtemp(prefix="robustness-"))
