"""What is wrong with a checkpoint, with data, with a plan or with a run: findings, each with its
evidence and a fix.

    adapt.diagnose("minilm")                                    # the checkpoint
    adapt.diagnose("minilm", texts, labels, strategy="frozen")  # and the data, and the plan
    adapt.diagnose("runs/mine").findings                        # a run
    adapt.diagnose("runs/mine", texts, labels)                  # and how it does on other rows
    adapt.diagnose(records)                                     # the log of a loop of one's own
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adapt import files
from adapt.data.inputs import Columns, Part, make_parts
from adapt.doctor.cases import CheckpointCase, DeepCase, ResultCase, ScoredSet, TrainingCase
from adapt.doctor.checks import CHECKS, check_names, run_checks
from adapt.doctor.deep import sample
from adapt.doctor.findings import Finding
from adapt.errors import StrategyError
from adapt.finetuning import Prepared, prepare, share_or_data, spelled_schedule
from adapt.options import (
    HELD_OUT,
    FinetuningOptions,
    LabelledColumnOptions,
    Offsets,
    spelled_verbalizer,
)
from adapt.other_names import takes_keywords_of
from adapt.parallel import sharding
from adapt.predicting import predict_table, score_table
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.run import Run, load_run
from adapt.tasks.base import task_of

ORDER = {"error": 0, "warning": 1, "note": 2}
WITH_A_RUN = [subject for subject in CHECKS if subject != "deep"]  # every run is looked at by these


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


@takes_keywords_of(Keywords, but=("checkpoint",))
def diagnose(
    pretrained: Any,
    inputs: Any = None,
    labels: Any = None,
    *,
    checks: Sequence[str] = (),
    deep: bool = False,
    **plan: Any,
) -> Diagnosis:
    """What is wrong with a checkpoint, data, a plan, a run or features. Nothing trains.

        adapt.diagnose("minilm", texts, labels, strategy="frozen", head_learning_rate=2e-5)
        adapt.diagnose(run)                       # what fine-tuning found, or its log tells
        adapt.diagnose(run, more_texts, labels)   # are these labels those of the run?

    ``pretrained`` is a checkpoint, a run of :func:`adapt.finetune` or its folder, or the records of
    a loop of one's own (:func:`adapt.training.loop.run_steps`). With ``inputs``, as in
    :func:`adapt.finetune`, a checkpoint is looked at with these data and the ``plan``: the keywords
    of :func:`adapt.finetune`, as the run that is planned has them. A run predicts the ``inputs``
    and is judged by their labels, in the columns of its training or those that are named.

    ``checks`` names checks, default: all of what is given. ``deep`` adds those that compute for
    seconds to minutes, on texts with one class each: a control with random weights, a bag of words,
    near copies, two runs from one seed.

    Raises :class:`StrategyError` for a check that there is not, for ``labels`` without ``inputs``
    and ``deep`` without a checkpoint and ``inputs``, and what :func:`adapt.finetune` raises for
    data and arguments that it refuses.
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
    if is_log(pretrained):
        if inputs is not None:
            raise StrategyError("records of a loop go without `inputs`: give a run or a checkpoint")
        return diagnose_log(pretrained, wanted)
    if run is not None:
        return diagnose_run(run, inputs, labels, keywords.columns, wanted)
    if inputs is None:
        return diagnose_checkpoint(hub.loaded(pretrained), wanted)
    options = keywords.options_for(pretrained)
    return diagnose_plan(
        pretrained, inputs, labels, options, checks=wanted, is_deep=deep, **keywords.of_prepare
    )


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
    deep_names = {check.__name__ for check in CHECKS["deep"]}
    is_deep = is_deep or bool(checks & deep_names)
    if is_deep:
        subjects.append("deep")
    names = chosen(subjects, checks)
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
    found = [*prepared.findings]
    if is_deep:
        _, validation = share_or_data(validation)
        case = deep_case(prepared, pretrained, inputs, labels, columns, validation, test)
        wanted = [check for check in CHECKS["deep"] if check.__name__ in names]
        found += run_checks(wanted, case, prepared.planned.command)
    what = f"{options.checkpoint} on {prepared.settings['train']}"
    return diagnosis(what, found, names)


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
