"""The kinds of files that are damaged: what is read of them, and what else may stand in them."""

import contextlib
import dataclasses
import io
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt import tree
from adapt.cli import finetune
from adapt.cli.flags import read_flags
from adapt.data import pictures, tables
from adapt.features import extractor, fill, image_batches
from adapt.pretrained import hub
from adapt.pretrained.images import to_pixels
from adapt.training import checkpoint
from tests.helpers import tiny
from tests.helpers.robustness import by_hand
from tests.helpers.robustness.inputs import QUICK, TEXTS

Reading = dict[str, Any]
Words = list[str]


class Kind(ABC):
    """A row of the table. ``base`` has the intact inputs; ``folder`` is the damaged copy of one."""

    name: ClassVar[str]
    share: ClassVar[int]  # of a thousand
    folders: ClassVar[Sequence[str]]  # of the base
    patterns: ClassVar[Sequence[str]]  # of files that are damaged
    is_damaged: ClassVar[bool] = True

    def __init__(self, base: Path):
        self.base = base

    def files(self, folder: Path) -> list[Path]:
        """The files that may be damaged, each once."""
        found = {path for pattern in self.patterns for path in folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    @abstractmethod
    def read(self, folder: Path, file: Path) -> Reading:
        """What the library reads, as values that can be compared. Raises AdaptError."""

    @abstractmethod
    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        """Whether a reading that differs from the intact one is what now stands in the file."""

    @abstractmethod
    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        """Commands that read the file, one of which is run."""

    def train_flags(self, checkpoint: str | Path, train: str | Path) -> Words:
        """A quick run of finetune."""
        flags = ["--checkpoint", str(checkpoint), "--train", str(train)]
        return ["finetune", *flags, *QUICK, "--strategy", "frozen", "--cache", "off"]


def embed(pretrained: hub.Pretrained, base: Path) -> np.ndarray:
    """The features of a few texts, or of a few pictures."""
    if not pretrained.config.is_image:
        return adapt.encode(pretrained, TEXTS)
    pictures = [tiny.picture(number) for number in range(3)]
    forward, params = extractor(pretrained)
    features = np.zeros((3, pretrained.config.width), np.float32)
    fill(features, forward, params, image_batches(pretrained, [pictures]))
    return features


class Checkpoint(Kind):
    """A checkpoint's folder."""

    folders = ("bert", "gpt2", "vit", "sharded", "embedder")

    def read(self, folder: Path, file: Path) -> Reading:
        pretrained = adapt.load(folder)
        leaves = tree.paths(pretrained.params)
        said: Reading = {f"params {path}": np.asarray(leaf) for path, leaf in leaves.items()}
        said["config"] = dataclasses.asdict(pretrained.config)
        said["head"] = repr(pretrained.head)
        said["labels"] = (pretrained.task, pretrained.labels)
        said["unread"] = {what: dict(names) for what, names in pretrained.unread.items()}
        said["images"] = repr(pretrained.image_settings)
        said["embedding"] = repr(pretrained.embedding)
        if pretrained.tokenizer is not None:
            encoded = pretrained.tokenizer.encode_long(TEXTS)
            said["tokens"] = repr(encoded.tokens)
        said["features"] = embed(pretrained, self.base)
        return said

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        if file.suffix == ".safetensors":
            return tensors_explain(folder, reading)
        return by_hand.document(file) != by_hand.document(intact)

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        is_image = (folder / "preprocessor_config.json").exists()
        data = self.base / ("pictures" if is_image else "tables/train.csv")
        images = ["--image-column", "image"] if is_image else []
        extract = ["extract", "--checkpoint", str(folder), "--data", str(data), *images]
        return [
            [*extract, "--out", str(out)],
            [*self.train_flags(folder, data), *images, "--out", str(out)],
        ]


def tensors_explain(folder: Path, reading: Reading) -> bool:
    """Whether the tensors that are loaded are those of the files: names, shapes, dtypes, bytes; and
    whether what was made of them is made of their values.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        one = by_hand.tensors(path)
        if one is None:
            return False
        found |= one
    loaded = hub.read_tensors(folder)
    if loaded.keys() != found.keys():
        return False
    for name, tensor in loaded.items():
        _, shape, content = found[name]
        if tensor.shape != shape or tensor.tobytes() != content:
            return False
    values = np.concatenate([tensor.astype(np.float32).ravel() for tensor in loaded.values()])
    leaves = [leaf for name, leaf in reading.items() if name.startswith("params ")]
    return all(bool(np.isin(leaf, values).all()) for leaf in leaves)


class Weights(Checkpoint):
    name = "safetensors"
    share = 130
    folders = ("bert", "gpt2", "vit", "sharded")
    patterns = ("*.safetensors",)


class Configs(Checkpoint):
    name = "config.json and other settings"
    share = 150
    patterns = (
        "config.json",
        "preprocessor_config.json",
        "*.index.json",
        "modules.json",
        "*_Pooling/*.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    )


class Tokenizers(Checkpoint):
    name = "tokenizer files"
    share = 130
    folders = ("bert", "gpt2", "embedder")
    patterns = (
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    )


class Tables(Kind):
    """Files of rows."""

    folders = ("tables",)

    def read(self, folder: Path, file: Path) -> Reading:
        table = tables.read(file)
        names = [name for name in table.columns if name not in table.faults]
        rows = []
        for chunk in tables.chunks(table, names):
            for values in zip(*chunk.values(), strict=True):
                rows.append(dict(zip(names, values, strict=True)))
        return {"columns": table.columns, "rows": rows, "faults": sorted(table.faults)}

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        bert = str(self.base / "bert")
        predict = ["predict", "--run", str(self.base / "delta"), "--data", str(file)]
        return [
            [*self.train_flags(bert, file), "--out", str(out)],
            [*predict, "--keep-columns", "label", "--out", str(out / "predictions.csv")],
            ["extract", "--checkpoint", bert, "--data", str(file), "--out", str(out)],
            ["evaluate", "--run", str(self.base / "delta"), "--data", str(file)],
        ]


class TextTables(Tables):
    name = "CSV and TSV"
    share = 110
    patterns = ("*.csv", "*.tsv", "*.csv.gz")

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        return by_hand.csv_rows(file) == reading["rows"]


class JsonTables(Tables):
    name = "JSON"
    share = 100
    patterns = ("*.json", "*.jsonl", "*.jsonl.xz")

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        rows = by_hand.json_rows(file)
        if rows is None or len(rows) != len(reading["rows"]):
            return False
        for row, found in zip(rows, reading["rows"], strict=True):
            if not row.keys() <= found.keys() | set(reading["faults"]):
                return False
            if not all(means_the_same(value, row.get(name)) for name, value in found.items()):
                return False
        return True


def means_the_same(value: Any, expected: Any) -> bool:
    """Whether a value of a table is that of a JSON file: an absent entry of an object is None, and a
    whole number may have become one with a fraction.
    """
    if isinstance(expected, dict) and isinstance(value, dict):
        names = value.keys() | expected.keys()
        return all(means_the_same(value.get(name), expected.get(name)) for name in names)
    if isinstance(expected, list) and isinstance(value, list):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(means_the_same(*pair) for pair in pairs)
    if isinstance(value, float) and isinstance(expected, float) and value != value:
        return expected != expected
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


class ParquetTables(Tables):
    name = "Parquet"
    share = 80
    patterns = ("*.parquet",)

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        import pyarrow.parquet as pq

        return pq.read_table(file).to_pylist() == reading["rows"]


class Pictures(Kind):
    name = "PNG and other pictures"
    share = 90
    folders = ("pictures",)
    patterns = ("*/*.*",)

    def read(self, folder: Path, file: Path) -> Reading:
        table = tables.read(folder)
        pictures.check_images(table, "image")
        settings = hub.load_silently(self.base / "vit").image_settings
        assert settings is not None
        load = pictures.image_loader(table, "image")
        rows = table.rows.select_columns([tables.FILE, "label"])
        pixels = to_pixels(load(np.arange(len(table))), settings)
        return {"rows": [dict(row) for row in rows], "pixels": pixels}

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        content = file.read_bytes()
        return file.suffix != ".png" or by_hand.png_is_whole(content)

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        vit = str(self.base / "vit")
        images = ["--image-column", "image"]
        predict = ["predict", "--run", str(self.base / "images"), "--data", str(folder)]
        return [
            [*self.train_flags(vit, folder), *images, "--out", str(out)],
            [*predict, "--out", str(out / "predictions.csv")],
            ["extract", "--checkpoint", vit, "--data", str(folder), *images, "--out", str(out)],
        ]


class Runs(Kind):
    name = "a run's folder"
    share = 110
    folders = ("whole", "delta")
    patterns = ("*.json", "*.jsonl", "checkpoints/**/*")

    def read(self, folder: Path, file: Path) -> Reading:
        run = adapt.load_run(folder)
        predictions = run.predict(TEXTS)
        words = [repr(run), repr(run.scores), repr(run.columns), repr(list(run.history))]
        return {
            "outputs": np.asarray(predictions.probabilities),
            "labels": [str(label) for label in predictions.labels],
            "said": [text.replace(str(folder), "") for text in words],
        }

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        is_array = file.parent.name != "checkpoints" and "checkpoints" in file.parts
        return not is_array and by_hand.document(file) != by_hand.document(intact)

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        data = str(self.base / "tables/train.csv")
        return [
            ["predict", "--run", str(folder), "--data", data, "--out", str(out / "p.csv")],
            ["extract", "--checkpoint", str(folder), "--data", data, "--out", str(out)],
            ["evaluate", "--run", str(folder), "--data", data],
            ["runs", str(folder)],
            ["export", "--run", str(folder), "--out", str(out)],
            ["finetune", "--resume", "--out", str(folder)],
        ]


class Resumed(Kind):
    """A run that was stopped, damaged and resumed: it ends as the undisturbed one, or is refused."""

    name = "a stopped run, resumed"
    share = 40
    folders = ("stopped",)
    patterns = ("*.json", "*.jsonl", "checkpoints/**/*")

    def read(self, folder: Path, file: Path) -> Reading:
        words = ["--resume", "--out", str(folder)]
        with contextlib.redirect_stdout(io.StringIO()):
            finetune.main(read_flags(finetune.Config, "adapt finetune", None, words))
        return run_reading(folder)

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        # The run has written the file anew: what it was is not looked at.
        return file.suffix in (".json", ".jsonl")

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        data = str(self.base / "tables/train.csv")
        return [["predict", "--run", str(folder), "--data", data, "--out", str(out / "p.csv")]]


def run_reading(folder: Path) -> Reading:
    """What is to be the same of a run that was resumed: every leaf, the metrics, the scores."""
    checkpoints = folder / "checkpoints"
    index = checkpoint.read_index(checkpoints)
    digests = {}
    for which in ("last", "best"):
        leaves = checkpoint.read_tree(checkpoints / index[which]["folder"], None)
        digests[which] = tree.digest(leaves)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    metrics = tiny.untimed(tiny.lines(folder / "metrics.jsonl"))
    return {"digests": digests, "metrics": metrics, "scores": result.get("scores")}


class Memory(Kind):
    """Lists in memory that hypothesis made: nothing is damaged, they are strange as they are."""

    name = "lists in memory (hypothesis)"
    share = 100
    folders = ("memory",)
    patterns = ("*.pickle",)
    is_damaged = False

    def read(self, folder: Path, file: Path) -> Reading:
        task, texts, labels = pickle.loads(file.read_bytes())
        options = {"strategy": "frozen", "epochs": 1, "batch_size": 8, "cache": "off"}
        run = adapt.finetune(self.base / "bert", texts, labels, task=task, **options)
        predictions = run.predict(TEXTS)
        classes = [str(name) for name in run.pretrained.labels]
        return {"classes": classes, "task": task, "outputs": np.asarray(predictions.outputs)}

    def explains(self, folder: Path, file: Path, intact: Path, reading: Reading) -> bool:
        """Whether the classes are the labels as they were given."""
        task, _, labels = pickle.loads(file.read_bytes())
        if task != "classification":
            return True
        given = {label.item() if isinstance(label, np.generic) else label for label in labels}
        return len(given) == len(reading["classes"])

    def commands(self, folder: Path, file: Path, out: Path) -> list[Words]:
        return []


KINDS: tuple[type[Kind], ...] = (
    Weights,
    Configs,
    Tokenizers,
    TextTables,
    JsonTables,
    ParquetTables,
    Pictures,
    Runs,
    Resumed,
    Memory,
)
