"""What is worked on: texts with labels, a tokenizer, and checkpoints of random weights.

Texts and tokenizer are files of a folder that is carried along, or bundled ones where there is a
package registry. Without a tokenizer a small one is trained on the texts.
"""

import csv
import dataclasses
import itertools
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from adapt import tree
from adapt.data import bundled
from adapt.errors import AssetError, DataError
from adapt.export import layout
from adapt.models import Encoder, EncoderConfig, Model
from adapt.pretrained import hub
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings, Sizes
from experiments.benchmark.aot.shapes import SHAPES

PARTS = ("train", "test")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a film plot cast score was is and very so quite never end scene it"
TELLING = {"positive": "good fine great warm", "negative": "bad dull poor cold"}

Examples = list[tuple[str, str]]  # (text, label)


def check(folder: Path | None, tiny: bool) -> None:
    """Raise :class:`DataError` where there are no texts to be had: before anything is started."""
    if folder is not None:
        for part in PARTS:
            if not (folder / f"{part}.csv").is_file():
                raise DataError(f"`inputs` {folder} has no {part}.csv (columns text and label)")
    elif not tiny:
        try:
            bundled.read("reviews", "train")
        except AssetError as error:
            raise DataError(
                f"the bundled reviews can't be had here ({error}): carry a folder along that "
                "`write_inputs` has written, and name it with `inputs`"
            ) from None


def write_inputs(folder: Path) -> None:
    """Write train.csv and test.csv of the bundled reviews and MiniLM's tokenizer.json into a
    folder, to be carried along.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        columns = bundled.read("reviews", part)
        write_examples(folder / f"{part}.csv", zip(columns["text"], columns["label"], strict=True))
    shutil.copyfile(hub.resolve("minilm") / "tokenizer.json", folder / "tokenizer.json")


def gather(folder: Path | None, told: Settings) -> None:
    """Write the texts and the tokenizer to where the parts look for them."""
    for part in PARTS:
        path = told.scratch / f"{part}.csv"
        if folder is not None:
            shutil.copyfile(folder / f"{part}.csv", path)
        elif told.tiny:
            write_examples(path, tiny_examples(64, seed=PARTS.index(part)))
        else:
            columns = bundled.read("reviews", part)
            write_examples(path, zip(columns["text"], columns["label"], strict=True))
    if folder is not None and (folder / "tokenizer.json").is_file():
        shutil.copyfile(folder / "tokenizer.json", told.tokenizer)


def write_examples(path: Path, examples: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *examples])


def read_examples(path: Path) -> Examples:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def tiny_examples(count: int, seed: int) -> Examples:
    """Sentences of a few words, of which one tells the class."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        label = list(TELLING)[number % 2]
        words = [*rng.choice(WORDS.split(), rng.integers(2, 9))]
        words.append(rng.choice(TELLING[label].split()))
        examples.append((" ".join(rng.permutation(words)), label))
    return examples


def measure(told: Settings) -> Iterator[Row]:
    """Make the tokenizer where none was given, the checkpoints, and the sentences to extract."""
    sizes = told.sizes
    train = read_examples(told.train)
    texts = [text for text, _ in [*train, *read_examples(told.test)]]
    tokenizer = "given"
    if not told.tokenizer.exists():
        tokenizer = "trained on the texts"
        vocabulary = config_of(sizes.model, sizes).vocabulary
        train_tokenizer(texts, vocabulary).save(str(told.tokenizer))
    write_checkpoint(told.checkpoint, config_of(sizes.model, sizes), told.tokenizer)
    write_checkpoint(told.small_checkpoint, config_of(sizes.small, sizes), told.tokenizer)
    repeated = itertools.islice(itertools.cycle(texts), sizes.sentences)
    with told.sentences.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in repeated)])
    yield {"status": "measured", "examples": len(train), "texts": len(texts), "tokens": tokenizer}


def config_of(model: str, sizes: Sizes) -> EncoderConfig:
    """The shape of an encoder by its name in SHAPES."""
    return dataclasses.replace(SHAPES[model].config, **sizes.changes)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer that splits and lowers as BERT's, of at most so many tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def write_checkpoint(folder: Path, config: EncoderConfig, tokenizer: Path) -> None:
    """A folder in the Hugging Face layout: random weights of a shape, and a tokenizer."""
    head = SHAPES["bert-tiny"].head  # of no account: only the encoder is written
    shapes = Model(Encoder(config), head).shapes()
    params = tree.map_paths(random_leaf, {"encoder": shapes["encoder"]})
    entries = layout.write_config(config) | {"architectures": ["BertModel"]}
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {f"{kind}_token": token for kind, token in names.items()}
    settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    settings |= {"model_max_length": config.positions}
    files = {
        "tokenizer.json": tokenizer.read_text("utf-8"),
        "tokenizer_config.json": json.dumps(settings),
    }
    layout.write_folder(folder, entries, layout.to_tensors(config, params), files)


def random_leaf(path: str, leaf: Any) -> np.ndarray:
    """Fresh weights without a device: matrices from N(0, 0.02), norms the identity, biases 0."""
    if leaf.ndim > 1:
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
    return np.full(leaf.shape, 1.0 if path.endswith("scale") else 0.0, np.float32)
