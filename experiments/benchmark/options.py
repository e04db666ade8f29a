"""The flags of the measurements, in groups. A function takes the groups that it reads."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What all sides work on."""

    title: ClassVar[str] = "data"

    # a BERT folder in the Hugging Face layout, or a bundled name
    checkpoint: str = "minilm"
    # a file, or a bundled set: its train part to train on, all of it to extract
    data: str = "reviews"
    # the column of the texts
    text_column: str = "text"
    # the column of the labels
    label_column: str = "label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchOptions:
    """Python interpreters with what adapt is compared with."""

    title: ClassVar[str] = "peers"

    # one with torch, transformers and sentence-transformers; default: this one
    peers: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerOptions(TorchOptions):
    """Python interpreters with what adapt is compared with."""

    title: ClassVar[str] = "peers"

    # one with keras-hub and jax; default: this one
    keras: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Python interpreters with what adapt is compared with."""

    title: ClassVar[str] = "peers"

    # one with sentence-transformers[onnx]; default: this one
    onnx: Path | None = None
    # one with sentence-transformers[openvino]; default: this one
    openvino: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How much is measured. The sides take turns in each round."""

    title: ClassVar[str] = "rounds"

    # that count; one more before them warms up
    rounds: int = 5
    # of training, in each round
    steps: int = 10
    # of the processor, that a side may use
    cores: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The seed, and where results go."""

    title: ClassVar[str] = "run"

    # of the order of the examples and of dropout
    seed: int = 0
    # the folder to write
    out: Path = Path("runs/benchmark")
    # replace a measurement that is there
    overwrite: bool = False
    # also write the tables that the pages include into this folder: docs/tables
    tables: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedOptions(SourceOptions, PeerOptions, RoundOptions, OutputOptions):
    """What the two measurements on the CPU, of steps and of whole runs, have in common."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostOptions:
    """The host's side of an accelerator, in place of everything else."""

    title: ClassVar[str] = "host"

    # measure what this machine's cores deliver to a device that takes no time
    host: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The runs of `adapt finetune`."""

    title: ClassVar[str] = "training"

    # what trains; runs each
    strategies: tuple[str, ...] = ("full", "top:2", "top:1", "frozen")
    # of a run
    epochs: int = 5
    # examples a step
    batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Where results go."""

    title: ClassVar[str] = "run"

    # keep the runs that are done
    resume: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """What a peer encodes."""

    title: ClassVar[str] = "rounds"

    # that sentence-transformers encodes, in each round
    sentences: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeRunOptions(FinetuneOptions, EncodingOptions, ResumeOptions, SpeedOptions):
    """What the measurements of whole runs read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """How cost and memory grow."""

    title: ClassVar[str] = "growth"

    # measure that, and nothing else
    growth: bool = False
    # of the training sets, in examples; the epochs are measured with the second
    sizes: tuple[int, ...] = (1000, 2000, 4000, 8000)


def interpreter(path: Path | None) -> str:
    """The Python of a peer."""
    return sys.executable if path is None else str(path)
