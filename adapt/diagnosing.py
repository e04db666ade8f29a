"""What is wrong with a checkpoint, with data, with a plan or with a run: findings, each with its
evidence and a fix.

    adapt.diagnose("minilm")                                    # the checkpoint
    adapt.diagnose("minilm", texts, labels, strategy="frozen")  # and the data, and the plan
    adapt.diagnose("runs/mine").findings                        # a run
    adapt.diagnose("runs/mine", texts, labels)                  # and how it does on other rows
    adapt.diagnose([run, other, third])                         # runs, and what seeds make of them
    adapt.diagnose(records)                                     # the log of a loop of one's own
    adapt.diagnose(features)                                    # float [N, D], for a head on them
"""

import dataclasses
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from adapt import files
from adapt.data.inputs import Columns, Part, make_parts
from adapt.doctor.automatic import DATA_SETTINGS
from adapt.doctor.cases import (
    FEW,
    CheckpointCase,
    DeepCase,
    FeaturesCase,
    ResultCase,
    RunsCase,
    ScoredRun,
    ScoredSet,
    TrainingCase,
)
from adapt.doctor.checks import CHECKS, check_names, run_checks
from adapt.doctor.deep import features_of_sample, sample
from adapt.doctor.findings import Command, Finding
from adapt.errors import StrategyError
from adapt.finetuning import Prepared, prepare, share_or_data, spelled_schedule
from adapt.options import (
    HELD_OUT,
    CacheDType,
    Decay,
    DType,
    FinetuningOptions,
    FrozenDType,
    KeptHead,
    LabelledColumnOptions,
    Long,
    Offsets,
    Quoting,
    Remat,
    spelled_verbalizer,
)
from adapt.other_names import takes_keywords_of
from adapt.parallel import sharding
from adapt.predicting import predict_table, score_table
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.run import Run, load_run
from adapt.tasks.base import task_of
from adapt.tasks.metrics import is_share, more_is_better

ORDER = {"error": 0, "warning": 1, "note": 2}
# Every run is looked at by these.
WITH_A_RUN = ("checkpoint", "data", "settings", "training", "result")
# The settings on which the score of a run may depend, without its seeds.
COMPARED = [
    *(field.name for field in dataclasses.fields(FinetuningOptions)),
    *(name for name in DATA_SETTINGS if name not in ("seed", "split_seed")),
    "train",
    "loss",
    "metrics",
    "weights",
    "extras",
]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found, the worst first, and the names of the checks that were made.

    ``for finding in diagnosis`` goes through the findings; ``len(diagnosis)`` is 0 where all is
    well.
    """

    what: str
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __repr__(self) -> str:
        count = "1 finding" if len(self) == 1 else f"{len(self)} findings"
        lines = [f"Diagnosis of {self.what}: {count} by {len(self.checks)} checks"]
        lines += [f"  {finding.severity}: {finding.line}" for finding in self]
        return "\n".join(lines)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a finding."""
        import pandas

        columns = {}
        for field in dataclasses.fields(Finding):
            columns[field.name] = [getattr(finding, field.name) for finding in self]
        return pandas.DataFrame(columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keywords(FinetuningOptions, LabelledColumnOptions):
    """The keywords of :func:`adapt.finetune` that say what is trained on what, and how."""

    strategy: Any = FinetuningOptions.strategy
    layers: Any = FinetuningOptions.layers
    augment: Any = FinetuningOptions.augment
    verbalizer: Any = None
    validation: Any = HELD_OUT
    test: Any = None
    seed: int = 0
    split_seed: int | None = None
    weights: Any = None
    loss: Any = None
    extras: Any = None
    metrics: Any = None
    offsets: Offsets = "characters"
    mesh: str = ""

    @property
    def columns(self) -> Columns:
        return Columns(
            text=self.text_column,
            text_pair=self.text_pair_column,
            label=self.label_column,
            image=self.image_column,
            weight=self.weights if isinstance(self.weights, str) else None,
            offsets=self.offsets,
            quoting=self.quoting,
        )

    def options_for(self, pretrained: Any) -> FinetuningOptions:
        """The options of a run on a checkpoint."""
        strategy, epochs = spelled_schedule(self.strategy, self.epochs)
        names = [field.name for field in dataclasses.fields(FinetuningOptions)]
        values = {name: getattr(self, name) for name in names}
        values["checkpoint"] = hub.source_of(pretrained)
        values["strategy"] = strategy
        values["epochs"] = epochs
        values["verbalizer"] = spelled_verbalizer(self.verbalizer)
        return FinetuningOptions(**values)

    @property
    def of_prepare(self) -> dict[str, Any]:
        """Further arguments of :func:`adapt.finetuning.prepare`."""
        return {
            "validation": self.validation,
            "test": self.test,
            "columns": self.columns,
            "seed": self.seed,
            "split_seed": self.split_seed,
            "layout": sharding.make_layout(self.mesh),
            "metrics": self.metrics,
            "weights": None if isinstance(self.weights, str) else self.weights,
            "loss": self.loss,
            "extras": self.extras,
        }


class PlanKeywords(TypedDict, total=False):
    """The keywords of :class:`Keywords` for type checkers, which read no signature that is made."""

    accumulate: int
    attention_dropout: float | None
    augment: Sequence[str]
    batch_size: int
    cache: Literal["auto", "on", "off"]
    cache_dtype: CacheDType | None
    class_weights: Literal["none", "balanced"]
    clip_norm: float
    decay: Decay
    dropout: float | None
    dtype: DType
    epochs: int
    extras: Any
    frozen_dtype: FrozenDType | None
    head_learning_rate: float | None
    image_column: str | None
    image_size: int | None
    keep_head: KeptHead | None
    label_column: str
    layers: Sequence[int]
    learning_rate: float | None
    log_every: int
    long: Long | None
    loss: Any
    max_length: int | None
    mesh: str
    metrics: Any
    mix: Literal["concat", "learned"]
    offsets: Offsets
    patience: int
    pooling: str | None
    quoting: Quoting | None
    random_weights: bool
    rate_factor: float
    remat: Remat
    save: Literal["auto", "delta", "full"]
    save_every: int
    scan: bool
    score: str | None
    seed: int
    split_seed: int | None
    stop_after: int | None
    strategy: Any
    stride: int | None
    task: str
    template: str | None
    test: Any
    text_column: str
    text_pair_column: str | None
    validation: Any
    verbalizer: Any
    warmup: float
    weight_decay: float
    weights: Any


@takes_keywords_of(Keywords, but=("checkpoint",))
def diagnose(
    pretrained: Any,
    inputs: Any = None,
    labels: Any = None,
    *,
    checks: Sequence[str] = (),
    deep: bool = False,
    **plan: Unpack[PlanKeywords],
) -> Diagnosis:
    """What is wrong with a checkpoint, data, a plan, a run or features. Nothing trains.

        adapt.diagnose("minilm", texts, labels, strategy="frozen", head_learning_rate=2e-5)
        adapt.diagnose(run)                       # what fine-tuning found, or its log tells
        adapt.diagnose(run, more_texts, labels)   # are these labels those of the run?

    ``pretrained`` is a checkpoint, a run of :func:`adapt.finetune` or its folder, a list of such
    runs, the records of a loop of one's own (:func:`adapt.training.loop.run_steps`), or features, an
    array [N, D] of NumPy or JAX on which a head is to be trained, of 20 rows or more. With ``inputs``, as in
    :func:`adapt.finetune`, a checkpoint is looked at with these data and the ``plan``: the keywords
    of :func:`adapt.finetune`, as the run that is planned has them. A run predicts the ``inputs``
    and is judged by their labels, in the columns of its training or those that are named.

    ``checks`` names checks, default: all of what is given. ``deep`` adds those that compute for
    seconds to minutes, on texts with one class each: a control with random weights, a bag of words,
    near copies, two runs from one seed.

    Raises :class:`StrategyError` for a check that there is not, for ``labels`` without ``inputs``
    and ``deep`` without a checkpoint and ``inputs``, for an empty list, for features that are no
    real numbers [N, D], for runs whose scores can't be compared, and what :func:`adapt.finetune`
    raises for data and arguments that it refuses.
    """
    wanted = check_names(checks)
    keywords = Keywords(**plan)
    if labels is not None and inputs is None:
        raise StrategyError("`labels` are those of `inputs`: give both, or leave them out")
    run = as_run(pretrained)
    if deep and (inputs is None or run is not None):
        raise StrategyError(
            "`deep` checks look at a checkpoint with `inputs`: give both, or leave `deep` out"
        )
    is_array = isinstance(pretrained, np.ndarray | jax.Array)
    is_alone = isinstance(pretrained, np.ndarray | jax.Array | list | tuple)
    if is_alone and inputs is not None:
        raise StrategyError(
            "records of a loop, several runs and features go without `inputs`: give a run or a "
            "checkpoint"
        )
    if is_array:
        return diagnose_features(as_numpy(pretrained), "the features", wanted)
    check_subject(pretrained)
    if is_log(pretrained):
        return diagnose_log(pretrained, wanted)
    if is_alone:
        return diagnose_runs([loaded_run(one) for one in pretrained], wanted)
    if run is not None:
        return diagnose_run(run, inputs, labels, keywords.columns, wanted)
    if inputs is None:
        return diagnose_checkpoint(hub.loaded(pretrained), wanted)
    options = keywords.options_for(pretrained)
    return diagnose_plan(
        pretrained, inputs, labels, options, checks=wanted, is_deep=deep, **keywords.of_prepare
    )


def check_subject(value: Any) -> None:
    """Raise :class:`StrategyError` for what is no checkpoint, run or list, or an empty list."""
    if isinstance(value, list | tuple):
        if not value:
            raise StrategyError(
                "an empty list has nothing to look at: give the records of a loop, or several runs"
            )
    elif not isinstance(value, Run | Pretrained | str | os.PathLike):
        raise StrategyError(
            f"what is of type {type(value).__name__} is no checkpoint, run or log: give one of "
            "these, or features as an array [N, D] of NumPy or JAX"
        )


def loaded_run(value: Any) -> Run:
    """A run, or that in a folder. Raises :class:`StrategyError` for anything else in a list."""
    run = as_run(value)
    if run is None:
        raise StrategyError(
            f"{reprlib.repr(value)} is no run of finetune: a list has runs or their folders, and "
            "features are an array [N, D] of NumPy or JAX"
        )
    return run


def as_numpy(array: np.ndarray | jax.Array) -> np.ndarray:
    """The array on the host, bfloat16 and smaller floats as float32: NumPy has no such type."""
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    return np.asarray(array)


def is_log(value: Any) -> bool:
    """Whether a value is the records of a loop."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(record, Mapping) for record in value)


def as_run(value: Any) -> Run | None:
    """A run, or that in a folder of one; None for any other checkpoint."""
    if isinstance(value, Run):
        return value
    if not isinstance(value, str | os.PathLike):
        return None
    folder = files.to_path(value)
    if not (folder / "model.json").exists() or not (folder / "config.json").exists():
        return None
    settings = hub.read_json(folder, "config.json")
    return load_run(folder) if settings.get("experiment") == "finetune" else None


def chosen(subjects: Sequence[str], wanted: frozenset[str]) -> list[str]:
    """The names of the checks of some subjects, of which some may be wanted.

    Raises :class:`StrategyError` where none of those that are wanted is of a subject.
    """
    names = [check.__name__ for subject in subjects for check in CHECKS[subject]]
    kept = [name for name in names if not wanted or name in wanted]
    if not kept:
        raise StrategyError(
            f"`checks` {', '.join(sorted(wanted))} look at something else than what is given: "
            f"give some of {', '.join(names)}"
        )
    return kept


def diagnosis(what: str, findings: Sequence[Finding], names: Sequence[str]) -> Diagnosis:
    """The findings of the named checks, the worst first."""
    kept = [finding for finding in findings if finding.check in names]
    kept.sort(key=lambda finding: ORDER[finding.severity])
    return Diagnosis(what, tuple(kept), tuple(names))


def diagnose_log(records: Any, wanted: frozenset[str]) -> Diagnosis:
    """What the records of a loop tell."""
    names = chosen(["training"], wanted)
    case = TrainingCase(history=list(records))
    return diagnosis("a log", run_checks(CHECKS["training"], case), names)


def diagnose_features(
    features: np.ndarray, name: str, wanted: frozenset[str], shown_by: Command | None = None
) -> Diagnosis:
    """What is wrong with features on which a head is to be trained.

    Raises :class:`StrategyError` for anything but real numbers [N, D], and for fewer rows than tell
    a scale.
    """
    names = chosen(["features"], wanted)
    is_real = any(np.issubdtype(features.dtype, kind) for kind in (np.integer, np.floating))
    if features.ndim != 2 or not is_real or not features.size:
        raise StrategyError(
            f"{name} are {features.dtype} {list(features.shape)}: give numbers [N, D], a row an input"
        )
    if len(features) < FEW:
        raise StrategyError(
            f"{name} have {len(features)} rows, which tell no scale: give {FEW} rows or more"
        )
    case = FeaturesCase(features=features, name=name)
    return diagnosis(name, run_checks(CHECKS["features"], case, shown_by), names)


def diagnose_runs(runs: Sequence[Run], wanted: frozenset[str]) -> Diagnosis:
    """What is wrong with a comparison of runs by their test scores, or where one of them has none
    by those of validation.

    Raises :class:`StrategyError` for runs without scores, or with scores by several metrics.
    """
    names = chosen(["runs"], wanted)
    metrics = {str(run.result.get("primary_metric")) for run in runs}
    if len(metrics) != 1:
        raise StrategyError(
            f"the runs were decided by {', '.join(sorted(metrics))}: give runs with one metric"
        )
    (metric,) = metrics
    split = "test" if all("test" in run.scores for run in runs) else "validation"
    scored = []
    for number, run in enumerate(runs, 1):
        name = str(run.folder or f"run {number}")
        score = run.scores.get(split, {}).get(metric)
        if score is None:
            raise StrategyError(f"{name} has no {metric} of {split}: leave it out")
        settings = {one: run.settings.get(one) for one in COMPARED}
        scored.append(
            ScoredRun(
                name=name,
                settings=settings,
                seeds=(run.settings.get("seed", 0), run.settings.get("split_seed")),
                data_digest=run.lineage.get("data_digest"),
                score=score,
                data=data_of(run),
            )
        )
    own = {name for run in runs for name in run.settings.get("metrics") or ()}
    is_more_better = metric in own or (metric != "loss" and more_is_better(metric))
    case = RunsCase(
        runs=scored,
        metric=f"{split} {metric}",
        sign=1 if is_more_better else -1,
        is_share=metric not in own and is_share(metric),
    )
    command = ("doctor", {"run": [one.name for one in scored]})
    shown_by = command if all(run.folder for run in runs) else None
    found = run_checks(CHECKS["runs"], case, shown_by)
    return diagnosis(f"{len(runs)} runs ({split} {metric})", found, names)


def data_of(run: Run) -> dict[str, str | None]:
    """The digests of a run's data before a seed held rows out; None where its folder has none."""
    digests = run.lineage.get("file_digests", {})
    return {
        "training data": digests.get("train"),
        "validation data": digests.get("validation"),
        "test data": digests.get("test"),
    }


def diagnose_checkpoint(pretrained: Pretrained, wanted: frozenset[str]) -> Diagnosis:
    """What is wrong with a checkpoint."""
    names = chosen(["checkpoint"], wanted)
    command = ("doctor", {"checkpoint": pretrained.source})
    case = CheckpointCase(pretrained=pretrained)
    found = run_checks(CHECKS["checkpoint"], case, command)
    return diagnosis(pretrained.source, found, names)


def diagnose_plan(
    pretrained: Any,
    inputs: Any,
    labels: Any,
    options: FinetuningOptions,
    *,
    columns: Columns,
    checks: frozenset[str],
    is_deep: bool = False,
    validation: Any = HELD_OUT,
    test: Any = None,
    **more: Any,
) -> Diagnosis:
    """What is wrong with a checkpoint, the data and the options of a run that is planned.

    ``more`` are further arguments of :func:`adapt.finetuning.prepare`.
    """
    subjects = ["checkpoint", "data", "settings"]
    deep_names = {check.__name__ for check in [*CHECKS["deep"], *CHECKS["features"]]}
    is_deep = is_deep or bool(checks & deep_names)
    if is_deep:
        subjects.append("deep")
    prepared = prepare(
        pretrained,
        inputs,
        labels,
        options,
        validation=validation,
        test=test,
        columns=columns,
        **more,
    )
    if is_deep and trains_head_alone(prepared):
        subjects.append("features")
    names = chosen(subjects, checks)
    found = [*prepared.findings]
    if is_deep:
        _, validation = share_or_data(validation)
        case = deep_case(prepared, pretrained, inputs, labels, columns, validation, test)
        wanted = [check for check in CHECKS["deep"] if check.__name__ in names]
        found += run_checks(wanted, case, prepared.planned.command)
        wanted = [check for check in CHECKS["features"] if check.__name__ in names]
        if wanted:
            of_sample = features_of_sample(case, case.pretrained)
            features_case = FeaturesCase(features=of_sample, name=f"{len(of_sample):,} train rows")
            found += run_checks(wanted, features_case, prepared.planned.command)
    what = f"{options.checkpoint} on {prepared.settings['train']}"
    return diagnosis(what, found, names)


def trains_head_alone(prepared: Prepared) -> bool:
    """Whether a run trains a head on the features of a frozen encoder."""
    plan = prepared.plan
    depths = [phase.step.prefix.depth if phase.step.prefix else 0 for phase in plan.phases]
    return min(depths) > plan.pretrained.config.layers


def deep_case(
    prepared: Prepared,
    pretrained: Any,
    inputs: Any,
    labels: Any,
    columns: Columns,
    validation: Any,
    test: Any,
) -> DeepCase:
    """A sample of the rows of a run that is planned.

    Raises :class:`StrategyError` for what is no text with one class.
    """
    data = prepared.data
    if prepared.plan.pretrained.config.is_image:
        raise deep_refused("the encoder reads pictures")
    if data.task.label_kind != "classes":
        raise deep_refused(f"`task` {data.task.name} has others")
    parts = make_parts(inputs, labels, columns, validation=validation, test=test)
    train = parts["train"]
    if len(train.columns.texts) > 1:
        raise deep_refused("an example has several texts")
    rows = sample(len(train.table))
    texts = texts_of(train, rows)
    classes = data.task.encode_labels(train.table, train.columns.label, data.names)
    others = {}
    other_rows = {}
    for name, part in parts.items():
        if part is not train:
            other_rows[name] = sample(len(part.table))
            others[name] = texts_of(part, other_rows[name])
    return DeepCase(
        pretrained=hub.loaded(pretrained),
        texts=texts,
        labels=np.asarray(classes)[rows],
        others=others,
        other_rows=other_rows,
        plan=prepared.plan,
        data=data,
        has_random_weights=prepared.options.random_weights,
    )


def deep_refused(why: str) -> StrategyError:
    """The error for data of which a logistic regression on texts can't say anything."""
    return StrategyError(
        f"deep checks look at single texts with one class each, and {why}: leave them out"
    )


def texts_of(part: Part, rows: np.ndarray) -> list[str]:
    """The texts in some rows of a part."""
    return list(part.table.select(rows).rows[part.columns.texts[0]])


def diagnose_run(
    run: Run, inputs: Any, labels: Any, columns: Columns, wanted: frozenset[str]
) -> Diagnosis:
    """What is wrong with a run: what was found when it trained, or what its log tells; and with its
    predictions of other rows, where there are such.
    """
    what = str(run.folder or "the run")
    command = ("doctor", {"run": what})
    subjects = WITH_A_RUN if "findings" in run.result else ["training"]
    if inputs is not None:
        subjects = ["result"]
    names = chosen(subjects, wanted)
    if inputs is not None:
        found = run_checks(CHECKS["result"], scored_case(run, inputs, labels, columns), command)
    elif "findings" in run.result:
        found = [Finding.from_json(entry) for entry in run.result["findings"]]
    else:
        case = TrainingCase(history=[*map(dict, run.history)], outcome=run.outcome, taken=run.steps)
        found = run_checks(CHECKS["training"], case, command)
    found = [dataclasses.replace(one, shown_by=one.shown_by or command) for one in found]
    return diagnosis(what, found, names)


def scored_case(run: Run, inputs: Any, labels: Any, columns: Columns) -> ResultCase:
    """How a run does on labelled rows. Each column is that of training, unless ``columns`` has
    another than its default.
    """
    task = task_of(run.pretrained)
    changed = {}
    for field in dataclasses.fields(Columns):
        value = getattr(columns, field.name)
        if value != field.default:
            changed[field.name] = value
    columns = dataclasses.replace(run.columns, **changed)
    table, columns = run.make_labelled_table(inputs, labels, columns)
    names = run.pretrained.labels
    outputs = None
    truth: Any = []
    if task.label_kind == "classes":
        truth = np.asarray(task.encode_labels(table, columns.label, names))
        (predictions,) = predict_table([run.pretrained], table, columns.texts, columns.image)
        outputs = predictions.outputs
        scores = dict(task.metrics(outputs, truth, names))
        baselines = {table.name: task.baseline(truth, truth)}
    else:
        scores = score_table(run.pretrained, table, columns)
        baselines = {}
    scored = ScoredSet(name=table.name, scores=scores, labels=truth, outputs=outputs)
    return ResultCase(task=task, names=names, sets=[scored], baselines=baselines, result={})
