"""The settings of a run, in typed groups. A command's flags are these; a library function takes the
groups it needs.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ModelOptions, DataOptions, RunOptions): ...

The comment above a field is what the help of a command shows for it. A class with several groups
has all their fields side by side, so that it can be given wherever one of its groups is asked for.
"""

import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adapt.errors import StrategyError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DType = Literal["auto", "float32", "bfloat16"]
CacheDType = Literal["float32", "bfloat16", "float16"]
FrozenDType = Literal["float32", "bfloat16", "int8"]
Remat = Literal["none", "block", "dots"]
Decay = Literal["linear", "cosine", "constant"]
Tracker = Literal["tensorboard", "wandb"]
Long = Literal["head", "head+tail", "windows"]
Offsets = Literal["characters", "utf16", "bytes"]
Quoting = Literal["csv", "none"]
KeptHead = Literal["transform", "logits"]

HELD_OUT = 0.1  # of the training rows, for validation, where no validation data are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Which checkpoint."""

    title: ClassVar[str] = "model"

    # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    checkpoint: str = "tiny-bert"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions(CheckpointOptions):
    """Which checkpoint, and how it is computed."""

    title: ClassVar[str] = "model"

    # of the computation; auto: bfloat16 where the device has it (NVIDIA from Ampere on, TPU), else
    # float32; parameters that train stay float32
    dtype: DType = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongOptions:
    """What is read of long texts."""

    title: ClassVar[str] = "model"

    # what is read of a text that is too long; windows: all of it, by the mean of their vectors;
    # default: the checkpoint's own, or head
    long: Long | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSizeOptions:
    """How large pictures are."""

    title: ClassVar[str] = "model"

    # pixels a side of a picture, for which positions are interpolated; default: the checkpoint's own
    image_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderOptions(ImageSizeOptions, LongOptions, EncoderOptions):
    """Which checkpoint, and how it is computed."""

    title: ClassVar[str] = "model"

    # tokens of an example; default: the checkpoint's own
    max_length: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(TextEncoderOptions):
    """Which checkpoint, and how it is computed."""

    title: ClassVar[str] = "model"

    # the encoder's shapes with fresh weights: the control that pre-training has to beat
    random_weights: bool = False
    # of the encoder; default: the checkpoint's own
    dropout: float | None = None
    # of the weights by which tokens attend; default: that of `dropout`, or the checkpoint's own
    attention_dropout: float | None = None
    # compute again in the backward pass: blocks, or all but products by weights
    remat: Remat = "none"
    # compute the blocks as a loop, which compiles once for all of them
    scan: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Examples, and in which columns they are."""

    title: ClassVar[str] = "data"

    # the column of the texts
    text_column: str = "text"
    # images in place of texts
    image_column: str | None = None
    # how quotation marks are read: csv, they hold a field together; none, they are text; default:
    # csv in .csv files, none in .tsv files
    quoting: Quoting | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledColumnOptions(ColumnOptions):
    """Labelled examples, and in which columns they are."""

    title: ClassVar[str] = "data"

    # the column of the labels
    label_column: str = "label"
    # the second text of a pair
    text_pair_column: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunColumnOptions:
    """Examples for a finished run, and in which columns they are."""

    title: ClassVar[str] = "data"

    # the column of the texts; default: as in training, and so for the others
    text_column: str | None = None
    # the second text of a pair, or several: a,b
    text_pair_column: str | None = None
    # images in place of texts
    image_column: str | None = None
    # how quotation marks are read: csv, they hold a field together; none, they are text
    quoting: Quoting | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledRunColumnOptions(RunColumnOptions):
    """Labelled examples for a finished run, and in which columns they are."""

    title: ClassVar[str] = "data"

    # the column of the labels; default: as in training
    label_column: str | None = None
    # what the offsets of spans count; default: as in training
    offsets: Offsets | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetOptions:
    """What is trained, tested and validated on."""

    title: ClassVar[str] = "data"
    parameters: ClassVar[Mapping[str, str]] = {"inputs": "train", "weights": "weight_column"}

    # a file (.csv .tsv .jsonl .parquet .conll), several ('part-*.csv'), an image folder, a bundled
    # set, or a hub data set
    train: str = "reviews"
    # default: the test part of the training set, where that is a bundled one
    test: str | None = None
    # default: a share of the training set, by classes
    validation: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(LabelledColumnOptions, SetOptions):
    """Labelled examples, and in which columns they are."""

    title: ClassVar[str] = "data"

    # tags: a list of words, or words with spaces between them
    text_column: str = "text"
    # of several tasks several: label,fine
    label_column: str = "label"
    # the second text of a pair; of a span its question; of a choice several: a,b,c
    text_pair_column: str | None = None
    # of the training set: how much each example counts in the loss, a number of at least 0
    weight_column: str | None = None
    # what the offsets of spans count: characters, UTF-16 units (as JavaScript does) or UTF-8 bytes
    offsets: Offsets = "characters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which training rows are held out where there are no validation data."""

    title: ClassVar[str] = "data"

    # the share of the training set that is held out for validation
    held_out: float = HELD_OUT
    # decides which rows these are; default: the seed
    split_seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What is learned, and by which head."""

    title: ClassVar[str] = "task"

    # classification, multilabel, regression, multitask, tags, span, choice, contrastive, setfit or
    # cloze, which keeps the head of pre-training
    task: str = "classification"
    # of the tokens' states: mean, cls, max, last, pooler or attention; of pictures also patches,
    # cls+patches, patch_norm, projection or map; default: the checkpoint's own, or its family's
    pooling: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions(HeadOptions):
    """What is learned, and by which head."""

    title: ClassVar[str] = "task"

    # the layers that the head reads, 0 the embedding; default: the last
    layers: tuple[int, ...] = ()
    # of several layers: side by side, or a learned mean
    mix: Literal["concat", "learned"] = "concat"
    # put the new head on that of pre-training, which is kept: on what its transform makes, or on its
    # logits; default: it is discarded
    keep_head: KeptHead | None = None
    # balanced: rare classes count more, in training only
    class_weights: Literal["none", "balanced"] = "none"
    # of cloze: the prompt, with {text}, or {text_a} and {text_b}, and one [MASK] that a word fills
    template: str | None = None
    # of cloze: the words that say each class, positive=great|good,negative=terrible
    verbalizer: str | None = None
    # of spans: tokens from one window of a long text to the next, at most half a window; 0: long
    # texts are cut; default: the checkpoint's own, or 128
    stride: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What pre-training predicts."""

    title: ClassVar[str] = "objective"

    # masked, causal, replaced, next-sentence, sentence-order or masked-image; default: what the
    # checkpoint's own head was trained by
    objective: str | None = None
    # share of the tokens that are predicted; of objectives with masked tokens
    mask_rate: float = 0.15
    # of replaced: a folder with a masked LM; default: a new one of a quarter of the width
    generator: str | None = None
    # share of the squares of a picture that are predicted; of masked-image
    patch_rate: float = 0.6
    # pixels a side of these squares; default: 32 in pictures of 128 or more, else a patch
    mask_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenOptions:
    """How what does not train is stored on the device."""

    title: ClassVar[str] = "strategy"

    # of frozen kernels on the device; int8: with a scale for each output; default: that of the
    # computation
    frozen_dtype: FrozenDType | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategyOptions(FrozenOptions):
    """What trains, and what is kept of the part that does not."""

    title: ClassVar[str] = "strategy"

    # frozen | top:K | lora:8 | lp-ft | full+decay:0.9 | ...; a wrong one lists them all
    strategy: str = "full"
    # keep what the frozen blocks make of the data; auto: where that pays
    cache: Literal["auto", "on", "off"] = "auto"
    # of what is kept; default: that of the computation
    cache_dtype: CacheDType | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Batches, and how often each is seen."""

    title: ClassVar[str] = "optimizer"

    # passes over the training set
    epochs: int = 3
    # examples a step
    batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerOptions(BatchOptions):
    """Batches, learning rates and their schedule."""

    title: ClassVar[str] = "optimizer"

    # micro-batches a step
    accumulate: int = 1
    # of the encoder; default: 1e-4 (tiny encoders) or 5e-5
    learning_rate: float | None = None
    # of the head; default: 1e-3, and 1e-2 where only the head trains; of one that is kept (cloze)
    # the encoder's, and 1e-3 where only it trains
    head_learning_rate: float | None = None
    # of all learning rates
    rate_factor: float = 1.0
    # share of all steps in which the rates rise from 0
    warmup: float = 0.1
    # how the rates fall after the warm-up
    decay: Decay = "linear"
    # AdamW's, of matrices alone
    weight_decay: float = 0.01
    # the largest norm of the gradient of what trains; 0: no clipping
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """When a run logs, saves and stops."""

    title: ClassVar[str] = "training"

    # steps between records in metrics.jsonl; 0: chosen by the length of an epoch
    log_every: int = 0
    # epochs without a better validation score before training stops; 0: never stop early
    patience: int = 3
    # delta: what trained, and the encoder's digest; full: everything; auto: by its share
    save: Literal["auto", "delta", "full"] = "auto"
    # steps between checkpoints within an epoch; 0: at the end of each epoch only
    save_every: int = 0
    # stop at this step as an interruption would (for tests of resuming)
    stop_after: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What decides between validations."""

    title: ClassVar[str] = "training"

    # the metric that decides which checkpoint is the best, or loss; default: the task's first
    score: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go."""

    title: ClassVar[str] = "run"

    # the folder to write
    out: Path
    # replace what is there
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions):
    """The run's seed and folder."""

    title: ClassVar[str] = "run"

    out: Path = Path("runs/finetune")
    # go on with the run in the output folder, bit for bit; its flags are the defaults
    resume: bool = False
    # of the new head, the order of the examples and dropout
    seed: int = 0
    # who gets the numbers that are logged, beside metrics.jsonl
    track: tuple[Tracker, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFileOptions:
    """A run to do once more."""

    title: ClassVar[str] = "run"

    # a run's config.json, or one of your own: what it says holds for all flags that are not given
    config: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Modules of one's own, with strategies, poolings, heads, tasks or families."""

    title: ClassVar[str] = "extensions"

    # imported first, those in the current folder before those installed
    import_: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The devices of a run, on one host or several."""

    title: ClassVar[str] = "devices"

    # sizes of the axes data, fsdp and tensor, as in data=2,fsdp=4; default: all devices on data
    mesh: str = ""
    # of several processes: HOST:PORT of the first one, or auto (SLURM, Kubernetes, Cloud TPU)
    coordinator: str | None = None
    # how many processes there are
    processes: int | None = None
    # which of them this is, from 0
    process_id: int | None = None
    # seconds in which all of them have to be there
    join_timeout: int = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """What is done to pictures in training."""

    title: ClassVar[str] = "training"

    # of pictures, in training alone: crop, flip, mixup or cutmix, also with a number: crop=0.3 is
    # the least share of the area, mixup=0.2 the alpha of shares
    augment: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningOptions(
    ModelOptions,
    TaskOptions,
    StrategyOptions,
    OptimizerOptions,
    ScoreOptions,
    TrainingOptions,
    AugmentationOptions,
):
    """All options of a fine-tuning run but those of its data, its folder and its devices."""

    def check(self) -> None:
        """Raise :class:`StrategyError` for options that contradict each other or are out of range."""
        check_types(self)
        if self.strategy == "frozen" and self.learning_rate is not None:
            raise StrategyError(
                '`learning_rate` is the encoder\'s, and `strategy="frozen"` does not train it: '
                "give `head_learning_rate`"
            )
        is_positive = min(self.epochs, self.batch_size, self.accumulate) >= 1
        if not is_positive or self.batch_size % self.accumulate:
            raise StrategyError(
                f"`epochs` {self.epochs}, `batch_size` {self.batch_size} and "
                f"`accumulate` {self.accumulate} must be at least 1, and `accumulate` a divisor "
                "of `batch_size`"
            )
        check_ranges(self)


def spelled_verbalizer(verbalizer: Any) -> Any:
    """A verbalizer as an option has it: a mapping becomes JSON, anything else stays as it is.

    Raises :class:`StrategyError` for a class whose words are none, or that is there twice.
    """
    if not isinstance(verbalizer, Mapping):
        return verbalizer
    words: dict[str, list[str]] = {}
    for name, of_class in verbalizer.items():
        if not is_of(of_class, str | tuple[str, ...]):
            raise StrategyError(f"`verbalizer`: {name} has {of_class!r}: give a word, or a list")
        if str(name) in words:
            raise StrategyError(f"`verbalizer` names the class '{name}' twice: give it once")
        words[str(name)] = listed(of_class)
    return json.dumps(words, ensure_ascii=False)


def listed(words: str | Sequence[str]) -> list[str]:
    """One word or several as a list."""
    return [words] if isinstance(words, str) else list(words)


UNIONS = (types.UnionType, typing.Union)  # of ``int | None`` and of ``Optional[int]``
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    type(None): "None",
}


def check_types(options: "DataclassInstance") -> None:
    """Raise :class:`StrategyError` for an option that is not of its type, or none of its choices."""
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if not is_of(value, hints[field.name]):
            raise StrategyError(f"`{field.name}` is {value!r}: {wanted(hints[field.name])}")


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a whole number is a float, too, and True is none."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in UNIONS:
        return any(is_of(value, argument) for argument in arguments)
    if origin is tuple:
        is_sequence = isinstance(value, tuple | list)
        return is_sequence and all(is_of(element, arguments[0]) for element in value)
    if origin is Mapping:
        is_mapping = isinstance(value, Mapping)
        return is_mapping and all(is_of(entry, arguments[1]) for entry in value.values())
    if hint is Any:
        return True
    if hint is Path:  # or one of a bucket
        return isinstance(value, str | os.PathLike)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def wanted(hint: Any) -> str:
    """What an option has to be, as a sentence says it."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Literal:
        return f"give one of {', '.join(arguments)}"
    if origin in UNIONS:
        return " or ".join(wanted(argument) for argument in arguments)
    if origin is tuple:
        return f"a list, each {wanted(arguments[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


# Numbers are at least 0 and below their limit.
LIMITS = {
    "seed": 2**32,
    "patience": 2**31,
    "save_every": 2**31,
    "log_every": 2**31,
    "stride": 2**31,
    "dropout": 1,
    "attention_dropout": 1,
    "warmup": 1,
    "learning_rate": math.inf,
    "head_learning_rate": math.inf,
    "rate_factor": math.inf,
    "weight_decay": math.inf,
    "clip_norm": math.inf,
}


def check_ranges(options: object) -> None:
    """Raise :class:`StrategyError` for a rate, a norm, a share or a seed that is negative, no
    number, or too large.

    ``options`` may have any of the groups; what it does not have is not checked.
    """
    for name, limit in LIMITS.items():
        check_range(name, getattr(options, name, None), limit)


def check_range(name: str, value: float | None, limit: float) -> None:
    """Raise :class:`StrategyError` unless the value is None, or at least 0 and below its limit."""
    if value is not None and not 0 <= value < limit:
        bound = "finite" if limit == math.inf else f"below {limit}"
        raise StrategyError(f"`{name}` {value} must be at least 0 and {bound}")


def check_seeds(**seeds: Any) -> None:
    """Raise :class:`StrategyError` for a seed that is neither None nor a whole number in range."""
    for name, seed in seeds.items():
        if seed is not None and not is_of(seed, int):
            raise StrategyError(f"`{name}` is {seed!r}: {wanted(int)}")
        check_range(name, seed, LIMITS["seed"])
