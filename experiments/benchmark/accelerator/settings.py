"""What the parts of the measurement are told, and how much each of them does."""

import dataclasses
import json
from pathlib import Path
from typing import Any

LEARNING = {"rate": 5e-5, "decay": 0.01, "clip": 1.0}
PROGRAM = "experiments.benchmark.accelerator"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    model: str  # of whole runs and of extraction, by its name in SHAPES
    small: str  # of the checks that train
    changes: dict[str, int]  # of both: fields that are not those of their shapes
    epochs: int
    batch_sizes: tuple[int, ...]
    strategies: tuple[str, ...]
    sentences: int  # that are extracted
    few_sentences: int  # by which the best batch of a peer is chosen
    encoding_batches: tuple[int, ...]
    compiles_torch: bool  # also with torch.compile, which takes minutes on a CPU
    peer_seconds: float  # of a peer's steps, of one kind
    check_steps: int  # of the runs that are compared with each other
    check_batch: int
    check_blocks: int  # of the encoders whose attention is checked
    check_width: int
    check_tokens: int  # of a packed row
    cases: tuple[tuple[str, str], ...]  # steps: (model, what trains)
    steps: int  # that are timed
    tokens: int | None  # of an example of the steps; None: as many as the encoder has positions
    batch_size: int | None  # examples of a step; None: what one chip takes of the model


FULL = Sizes(
    model="minilm",
    small="bert-tiny",
    changes={},
    epochs=3,
    batch_sizes=(32, 256),
    strategies=("full", "top:1", "frozen"),
    sentences=50_000,
    few_sentences=8192,
    encoding_batches=(32, 256, 1024),
    compiles_torch=True,
    peer_seconds=2.5,
    check_steps=50,
    check_batch=32,
    check_blocks=2,
    check_width=768,
    check_tokens=512,
    cases=(
        ("bert-base", "full"),
        ("bert-large", "full"),
        ("vit-l16", "full"),
        ("gpt2-xl", "full"),
        ("bert-base", "top:25%"),
        ("bert-base", "frozen"),
    ),
    steps=20,
    tokens=None,
    batch_size=None,
)
TINY = Sizes(
    model="bert-tiny",
    small="bert-tiny",
    changes={"vocabulary": 512, "layers": 1},
    epochs=1,
    batch_sizes=(8,),
    strategies=("full",),
    sentences=64,
    few_sentences=16,
    encoding_batches=(8, 16),
    compiles_torch=False,
    peer_seconds=0.5,
    check_steps=4,
    check_batch=8,
    check_blocks=1,
    check_width=32,
    check_tokens=32,
    cases=(("bert-tiny", "full"),),
    steps=3,
    tokens=16,
    batch_size=2,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a part is told."""

    out: Path  # where rows and logs go
    scratch: Path  # what is made on the way, and not kept
    peers: str | None  # the Python of the peers; None where it can't be used
    peers_lack: str  # why it can't
    tiny: bool
    cache: Path  # of compiled programs

    @property
    def sizes(self) -> Sizes:
        return TINY if self.tiny else FULL

    @property
    def rows(self) -> Path:
        """What was measured, a line of JSON each."""
        return self.out / "rows.jsonl"

    @property
    def file(self) -> Path:
        """Where these settings are, for the processes of the parts."""
        return self.scratch / "settings.json"

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    @property
    def checkpoint(self) -> Path:
        """Random weights in the shape of ``sizes.model``."""
        return self.scratch / "checkpoint"

    @property
    def small_checkpoint(self) -> Path:
        return self.scratch / "small_checkpoint"

    @property
    def train(self) -> Path:
        return self.scratch / "train.csv"

    @property
    def test(self) -> Path:
        return self.scratch / "test.csv"

    @property
    def sentences(self) -> Path:
        """The texts that are extracted, without labels."""
        return self.scratch / "sentences.csv"

    @property
    def tokenizer(self) -> Path:
        return self.scratch / "tokenizer.json"

    def write(self) -> None:
        values: dict[str, Any] = dataclasses.asdict(self)
        self.file.write_text(json.dumps(values, default=str), "utf-8")


def read(path: Path) -> Settings:
    """The settings of a file that :meth:`Settings.write` wrote."""
    values = json.loads(path.read_text("utf-8"))
    folders = {name: Path(values[name]) for name in ("out", "scratch", "cache")}
    return Settings(**values | folders)
