"""Fine-tuning as a library: from labelled data to a run that predicts.

    run = finetune("minilm", texts, labels, strategy="top:2", test=(more_texts, more_labels))
    run.scores                              # {"validation": {...}, "test": {...}}
    run.predict(["a new text"]).labels

:func:`finetune` is :func:`prepare`, what trains on which data, and
:meth:`~adapt.prepared.PreparedRun.train`, whose loop is :func:`adapt.fitting.fit`. The command is
the same two calls.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adapt import extensions, run_folder, tree
from adapt.cost.clock import Laps
from adapt.data.augmentation import parse
from adapt.data.inputs import Columns, Part, check_given, check_same_order, make_parts
from adapt.doctor import automatic
from adapt.doctor.checks import log_findings
from adapt.doctor.findings import Finding
from adapt.errors import DivergedError, RuleError, StrategyError, TrainingError
from adapt.features import pooling_weights
from adapt.fitting import Fitted, Plan
from adapt.models import Classifier, Encoder, Model, OnHead, example_batch, is_kept, peft
from adapt.models.heads import POOLINGS_OF_CHECKPOINTS
from adapt.options import (
    HELD_OUT,
    CacheDType,
    Decay,
    DType,
    FinetuningOptions,
    FrozenDType,
    KeptHead,
    Long,
    Offsets,
    Quoting,
    Remat,
    TrainingOptions,
    check_seeds,
    is_of,
    spelled_verbalizer,
)
from adapt.other_names import suggests
from adapt.parallel import sharding
from adapt.prefix_cache import policy
from adapt.prepared import PreparedRun, folder_of_run
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained, check_head
from adapt.pretrained.kept_head import weights_below
from adapt.pretrained.tokenizer import warn_long
from adapt.program_cache import keep_programs
from adapt.run import Run
from adapt.task_data import TaskData, read_data
from adapt.tasks import get_task
from adapt.tasks.metrics import Metric, check_direction, check_own, more_is_better, own_scores
from adapt.training import optim, phases, strategies
from adapt.training.context import ContextLoss, copy_of, name_of
from adapt.training.events import Callback, as_callbacks
from adapt.training.losses import Loss
from adapt.training.metrics_log import Record, finite
from adapt.training.phases import CompiledPhase
from adapt.training.run_state import UNDEFINED, FolderCheckpoints, encoder_reference
from adapt.training.step import check_no_group_gains
from adapt.training.strategies import Phase, Strategy

logger = logging.getLogger(__name__)

# Parts of a language model's head that say no words.
OTHER_OBJECTIVES = ("pooler", "next_sentence")
# What a config.json without these settings means: it is of the command, or of an earlier version.
UNNAMED_SETTINGS = {
    "held_out": HELD_OUT,
    "split_seed": None,
    "rate_factor": 1.0,
    "offsets": "characters",
    "quoting": None,
    "stride": None,
    "template": None,
    "verbalizer": None,
    "image_size": None,
    "augment": [],
    "frozen_dtype": None,
    "keep_head": None,
}


@suggests
def finetune(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any = None,
    *,
    validation: Any = HELD_OUT,
    test: Any = None,
    task: str = "classification",
    strategy: str | Strategy | Sequence[Phase] = "full",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    rate_factor: float = 1.0,
    seed: int = 0,
    split_seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Iterable[Callback] = (),
    weights: Any = None,
    loss: Loss | ContextLoss | None = None,
    extras: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    score: str | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    image_column: str | None = None,
    quoting: Quoting | None = None,
    offsets: Offsets = "characters",
    pooling: str | None = None,
    layers: tuple[int, ...] = (),
    mix: Literal["concat", "learned"] = "concat",
    keep_head: KeptHead | None = None,
    class_weights: Literal["none", "balanced"] = "none",
    stride: int | None = None,
    template: str | None = None,
    verbalizer: str | Mapping[Any, str | Sequence[str]] | None = None,
    cache: Literal["auto", "on", "off"] = "auto",
    cache_dtype: CacheDType | None = None,
    frozen_dtype: FrozenDType | None = None,
    accumulate: int = 1,
    warmup: float = 0.1,
    decay: Decay = "linear",
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    random_weights: bool = False,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    long: Long | None = None,
    dtype: DType = "auto",
    remat: Remat = "none",
    scan: bool = False,
    log_every: int = 0,
    patience: int = 3,
    save: Literal["auto", "delta", "full"] = "auto",
    save_every: int = 0,
    stop_after: int | None = None,
    augment: tuple[str, ...] = (),
    mesh: str = "",
) -> Run:
    """Adapt a pre-trained encoder to labelled data; returns the run with its best parameters.

        run = adapt.finetune("minilm", ["a good film", ...], ["good", ...], strategy="lora:8")
        run = adapt.finetune("minilm", "train.csv", test="test.csv", label_column="stars")
        run = adapt.finetune("minilm", frame["text"], frame["label"], validation=(texts, labels))

    ``pretrained`` is what :func:`adapt.load` gives, or a name for it. Its head is discarded.
    ``inputs`` are texts, tuples of texts, lists of words (tags) or pictures, in a list, an array or
    a Series, with ``labels`` beside them; or a table: a file, a bundled set, a DataFrame, a
    ``datasets.Dataset``, a dict of columns or a list of rows, with ``labels`` the name of a column.

    ``validation`` is a share of the training rows, or data, as ``test`` is: a table, or a tuple
    ``(inputs, labels)``. The best checkpoint by validation is kept, and is tested once at the end.
    ``seed`` decides the new head, the order of the examples and dropout; ``split_seed`` which rows
    are held out (default: ``seed``). With ``out`` the run is written to that folder while it
    trains, and ``resume`` goes on with it, bit for bit. ``callbacks`` get the events of
    :mod:`adapt.training.events`.

    ``strategy`` is spelled as in :mod:`adapt.training.strategies`, or phases of one's own: a list
    of :class:`Phase`, or a :class:`Strategy`. The epochs are then those of the phases.

    ``weights`` say how much each training example counts in the loss: a sequence beside ``inputs``,
    or the name of a column; only their ratios matter. Validation and test are not weighted.

    ``loss`` takes the place of the task's own while training: a function ``(outputs, labels) ->
    [N]`` in JAX, one number an example, or one of :func:`adapt.context_loss`, which sees more. It
    gets ``extras``, arrays [N, ...] beside ``inputs``, in its batch. The loss of validation and
    test stays the task's own.

    ``metrics`` are functions ``(outputs, labels) -> number`` by name, of the whole validation or
    test set in NumPy: outputs of the head [N, ...] and labels as the loss takes them. ``score``
    names the metric by which validation decides, more being better: one of the task's, one of
    ``metrics``, or ``"loss"``, of which less is better.

    ``keep_head`` puts the new head on that of pre-training, which is otherwise discarded: on what
    its ``"transform"`` makes, or on its ``"logits"``. It trains at the encoder's rate where blocks of
    the encoder do, and is frozen where they are.

    ``template`` and ``verbalizer`` are of the task ``cloze``, which keeps the head of pre-training:
    ``"{text} It was [MASK]."``, and the words of each class, ``{"good": "great", "bad": ["poor",
    "bad"]}``, or as the command has them.

    The other arguments are the options of :mod:`adapt.options`, and the flags of ``adapt
    finetune``.

    Raises :class:`DataError` for data that are not exactly understood, :class:`StrategyError` for
    arguments that contradict each other, :class:`OutputError` for the folder,
    :class:`TrainingError` where the loss is not finite; all are :class:`AdaptError`.
    """
    check_given(
        inputs=inputs,
        labels=labels,
        validation=validation,
        test=test,
        epochs=epochs,
        weights=weights,
        loss=loss,
        extras=extras,
        metrics=metrics,
    )
    strategy, epochs = spelled_schedule(strategy, epochs)
    options = FinetuningOptions(
        checkpoint=hub.source_of(pretrained),
        random_weights=random_weights,
        dropout=dropout,
        attention_dropout=attention_dropout,
        max_length=max_length,
        image_size=image_size,
        long=long,
        dtype=dtype,
        remat=remat,
        scan=scan,
        task=task,
        pooling=pooling,
        layers=layers,
        mix=mix,
        keep_head=keep_head,
        class_weights=class_weights,
        stride=stride,
        template=template,
        verbalizer=spelled_verbalizer(verbalizer),
        strategy=strategy,
        cache=cache,
        cache_dtype=cache_dtype,
        frozen_dtype=frozen_dtype,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        rate_factor=rate_factor,
        warmup=warmup,
        decay=decay,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        score=score,
        log_every=log_every,
        patience=patience,
        save=save,
        save_every=save_every,
        stop_after=stop_after,
        augment=augment,
    )
    columns = Columns(
        text=text_column,
        text_pair=text_pair_column,
        label=label_column,
        image=image_column,
        weight=weights if isinstance(weights, str) else None,
        offsets=offsets,
        quoting=quoting,
    )
    callbacks = as_callbacks(callbacks)
    folder = folder_of_run(
        out,
        options.checkpoint,
        resume=resume,
        overwrite=overwrite,
        stop_after=stop_after,
    )
    prepared = prepare(
        pretrained,
        inputs,
        labels,
        options,
        validation=validation,
        test=test,
        columns=columns,
        seed=seed,
        split_seed=split_seed,
        layout=sharding.make_layout(mesh),
        metrics=metrics,
        weights=None if isinstance(weights, str) else weights,
        loss=loss,
        extras=extras,
    )
    warn_of_long(prepared)
    if folder is not None and resume:
        prepared = prepared.resumed(folder)
    return prepared.train(
        folder,
        defaults=UNNAMED_SETTINGS,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared(PreparedRun):
    """A fine-tuning run before its first step."""

    data: TaskData
    options: FinetuningOptions
    can_refer: bool  # whether checkpoints may refer to the pre-trained encoder by its name
    own_pooling: str | None = None  # what the checkpoint says of itself

    @property
    def training(self) -> TrainingOptions:
        return self.options

    def origin(self) -> dict[str, Any]:
        return run_folder.lineage(
            self.plan.pretrained,
            self.options.random_weights,
            train=self.settings["train"],
            test=self.settings["test"],
            data_digest=self.data.sets["train"].digest,
            digests=self.digests(),
            file_digests=dict(self.data.file_digests),
            discarded=self.plan.discarded,
            primary_metric=self.data.primary_metric,
            weighted=self.data.sets["train"].weights is not None,
        )

    def used(self) -> dict[str, Any]:
        """The peak learning rates of each phase by group, the pooling, tokens of an example, what
        is read of longer texts, dropout, the dtype of the computation, and of spans the stride of
        windows.
        """
        rates = []
        for phase in self.plan.phases:
            groups = phase.summary(self.plan.params).groups
            rates.append({group.name: group.learning_rate for group in groups})
        pretrained = self.plan.pretrained
        tokenizer = pretrained.tokenizer
        used = {
            "learning_rates": [without_none(of_phase) for of_phase in rates],
            "pooling": getattr(pretrained.head, "pooling", None),
            "max_length": tokenizer.max_length if tokenizer else None,
            "long": tokenizer.long if tokenizer else None,
            "dropout": pretrained.config.dropout,
            "attention_dropout": pretrained.config.attention_dropout,
            "dtype": self.plan.dtype,
        }
        if tokenizer and tokenizer.stride is not None:
            used["stride"] = tokenizer.stride
        return run_folder.as_json(used)

    def finished_model(self, fitted: Fitted) -> Pretrained:
        """The model, whose head keeps what the best validation decided; see :meth:`Task.decide`."""
        pretrained = self.plan.pretrained
        head = self.data.task.with_decisions(pretrained.head, fitted.progress.best_scores)
        return dataclasses.replace(pretrained, head=head)

    def resumed(self, out: Path) -> "Prepared":
        """The run that goes on in ``out``, with the metric that decided there until now: scores of
        two metrics can't be compared.
        """
        lineage = run_folder.read_lineage(out)
        before = lineage.get("primary_metric", self.data.task.primary_metric)
        if self.data.score is not None or before == self.data.primary_metric:
            return self
        logger.warning(
            f"`resume`: {before} decided in {out} until now, where a new run has "
            f"{self.data.primary_metric}: it goes on with {before}"
        )
        data = dataclasses.replace(self.data, score=before)
        check_scores(self.plan, data)
        return dataclasses.replace(self, data=data)

    @property
    def may_grow(self) -> Sequence[str]:
        """Epochs, where there are no phases that would be other ones in a longer run."""
        return ("epochs",) if len(self.plan.phases) == 1 else ()

    def facts(self) -> dict[str, Any]:
        """With the strategy, and of each set how many of its texts were too long."""
        sets = self.data.sets
        truncated = {name: examples.long.truncated for name, examples in sets.items()}
        counts = {name: examples.long.counts for name, examples in sets.items()}
        strategy = self.options.strategy
        return super().facts() | {
            "strategy": strategy,
            "truncated": truncated,
            "long": counts,
            "in_training_data": dict(self.data.repeated),
        }

    def digests(self) -> dict[str, str]:
        return {name: examples.digest for name, examples in self.data.sets.items()}

    def encoder_reference(self, out: Path, digest: str) -> dict[str, str] | None:
        save = self.options.save
        if not self.can_refer and save == "auto":
            save = "full"
        if self.options.image_size is not None and save == "delta":
            raise StrategyError(
                "`save` delta: with `image_size` there is no encoder to refer to: give `save` full"
            )
        plan = self.plan
        return encoder_reference(
            plan.pretrained.source,
            plan.params,
            plan.phases[-1].labels,
            save,
            out,
            digest,
            self.options.random_weights,
        )

    @functools.cached_property
    def findings(self) -> list[Finding]:
        """What is wrong before the first step."""
        return automatic.before_training(self.planned)

    @property
    def planned(self) -> automatic.Planned:
        """What the checks look at before the first step."""
        return automatic.Planned(
            options=self.options,
            plan=self.plan,
            data=self.data,
            settings=self.settings,
            own_pooling=self.own_pooling,
        )

    def fit(
        self,
        checkpoints: FolderCheckpoints | None,
        callbacks: Iterable[Callback],
        laps: Laps | None,
    ) -> Fitted:
        log_findings(self.findings)
        return super().fit(checkpoints, [*callbacks, self.data.keep_best], laps)

    def make_run(
        self,
        fitted: Fitted,
        settings: Mapping[str, Any],
        origin: Mapping[str, Any],
        history: list[Record],
        command: str | None = None,
        folder: Path | None = None,
    ) -> Run:
        """The run, whose result has ``findings``: what is wrong with it, [] where all is well."""
        run = super().make_run(fitted, settings, origin, history, command, folder)
        if run.outcome == "stopped":
            return run
        trained = automatic.Trained(
            planned=self.planned,
            params=run.pretrained.params,
            history=history,
            result=run.result,
            folder=folder,
            first_step=fitted.session.first_step,
        )
        found = automatic.after_training(trained)
        log_findings(found)
        result = {**run.result, **entries([*self.findings, *found])}
        return dataclasses.replace(run, result=result)

    def diverged_result(
        self, error: DivergedError, history: list[Record], folder: Path
    ) -> dict[str, Any]:
        found = automatic.after_divergence(history, error.steps, folder)
        result = super().diverged_result(error, history, folder)
        return result | entries([*self.findings, *found])

    def finish(self, fitted: Fitted) -> tuple[tree.Tree, dict[str, Any]]:
        """(the best parameters, result.json), tested where there is a test set."""
        tested = test_best(self.plan, self.data, fitted)
        progress = fitted.progress
        session = fitted.session
        seconds = {"compile": fitted.compile_seconds, "total": session.laps.total}
        result: dict[str, Any] = dict(tested.scores)
        result |= {"examples_per_second": progress.examples_per_second}
        result |= {"seconds": session.laps.seconds | seconds}
        result |= tested.facts
        if self.data.primary_metric == "loss":
            result["validation_score"] = progress.best_loss
        elif progress.best_score == UNDEFINED:
            result["validation_score"] = None
            logger.warning(
                f"`score` {self.data.primary_metric} was never a number on the validation examples: "
                "the checkpoint that is kept is the best of nothing"
            )
        if isinstance(session.checkpoints, FolderCheckpoints):
            result["saved"] = "full" if session.checkpoints.encoder is None else "delta"
        scores = {"validation": {**progress.best_scores, "loss": progress.best_loss}}
        if tested.scores:
            scores["test"] = tested.scores
        return tested.params, result | {"scores": scores}


def entries(findings: Iterable[Finding]) -> dict[str, Any]:
    """The ``findings`` of result.json."""
    return run_folder.as_json({"findings": [finding.to_json() for finding in findings]})


def without_none(values: Mapping[str, float | None]) -> dict[str, float]:
    """The entries that have a value: of learning rates, those of what trains."""
    return {name: value for name, value in values.items() if value is not None}


def prepare(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any,
    options: FinetuningOptions,
    *,
    validation: Any = HELD_OUT,
    test: Any = None,
    columns: Columns | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    layout: sharding.Layout | None = None,
    metrics: Mapping[str, Metric] | None = None,
    weights: Any = None,
    loss: Loss | ContextLoss | None = None,
    extras: Mapping[str, Any] | None = None,
) -> Prepared:
    """The plan and the data of a run; see :func:`finetune` for the arguments and the errors."""
    options.check()
    metrics = check_own(metrics)
    check_loss(loss, options)
    check_augment(loss, options)
    check_seeds(seed=seed, split_seed=split_seed)
    keep_programs()
    sharding.check_batch(layout, options.batch_size, options.accumulate)
    held_out, validation = share_or_data(validation)
    # An encoder for another size of pictures is not the one that a name stands for.
    can_refer = not isinstance(pretrained, Pretrained) and options.image_size is None
    pretrained = hub.loaded(pretrained)
    pretrained = hub.with_options(pretrained, options, seed)
    # A wrong strategy is refused before the data are read.
    strategies.strategy_for(pretrained.config, options.strategy, options.epochs)
    task = get_task(options.task)
    check_same_order(inputs=inputs, labels=labels, weights=weights, extras=extras)
    parts = make_parts(
        inputs,
        labels,
        columns or Columns(),
        validation=validation,
        test=test,
        are_images=pretrained.config.is_image,
        are_words=task.takes_words,
    )
    pretrained = task.with_options(pretrained, options, parts["train"].columns.texts)
    data = read_data(
        parts,
        task,
        options,
        pretrained,
        held_out=held_out,
        seed=seed,
        split_seed=split_seed,
        layout=layout,
        metrics=metrics,
        weights=weights,
        extras=extras,
    )
    settings = settings_of(options, parts, held_out=held_out, seed=seed, split_seed=split_seed)
    if metrics:
        settings["metrics"] = list(metrics)
    if weights is not None:
        settings["weights"] = "the weights"
    if extras:
        settings["extras"] = list(extras)
    if loss is not None:
        settings["loss"] = name_of(loss)
        loss = copy_of(loss)
    plan = build_plan(pretrained, data, options, seed, layout, loss)
    spec = strategies.shown(options.strategy)
    phases.check_frozen_dtype(options.frozen_dtype, spec, plan.phases)
    check_scores(plan, data)
    return Prepared(
        plan=plan,
        data=data,
        settings=settings,
        options=options,
        can_refer=can_refer,
        own_pooling=pretrained.embedding.pooling,
    )


def spelled_schedule(strategy: Any, epochs: int) -> tuple[str, int]:
    """(the strategy as text, the epochs of the run): phases of one's own bring theirs."""
    text = strategies.as_text(strategy)
    if text is not strategy and epochs == FinetuningOptions.epochs:
        phases = json.loads(text)["phases"]
        epochs = sum(phase["epochs"] for phase in phases)
    return text, epochs


def check_loss(loss: Any, options: FinetuningOptions) -> None:
    """Raise :class:`StrategyError` for a loss that is no function, or does not go with the rest."""
    if loss is None:
        return
    if not callable(loss):
        raise StrategyError(f"`loss` is {loss!r}: give a function (outputs, labels) -> [N]")
    if isinstance(loss, ContextLoss):
        check_takes(loss.function, 1, "a context")
    else:
        check_takes(loss, 2, "outputs and labels (for one of a context see adapt.context_loss)")
    if options.class_weights != "none":
        raise StrategyError(
            f"`class_weights` {options.class_weights} weighs the task's own loss: with `loss` give "
            "`weights`"
        )


def check_augment(loss: Any, options: FinetuningOptions) -> None:
    """Raise :class:`StrategyError` for an augmentation that there is not, or that does not go with
    the cache or the loss.
    """
    augmentation = parse(options.augment)
    if augmentation is None:
        return
    if options.cache == "on":
        raise StrategyError(
            f"`augment` {' '.join(options.augment)} makes other pictures in every epoch, and `cache` "
            "on keeps what the frozen blocks make of them: leave one of them out"
        )
    if augmentation.mixes and isinstance(loss, ContextLoss):
        raise StrategyError(
            "`augment` mixup and cutmix mix the labels of a loss of outputs and labels, and `loss` "
            "is one of a context: leave one of them out"
        )


def check_takes(loss: Callable[..., Any], count: int, what: str) -> None:
    """Raise :class:`StrategyError` for a loss that can't be called with so many arguments."""
    try:
        signature = inspect.signature(loss)
    except (ValueError, TypeError):  # one that is not written in Python
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise StrategyError(f"`loss` {name_of(loss)} does not take {what}: {error}") from None


def check_scores(plan: Plan, data: TaskData) -> None:
    """Raise :class:`StrategyError` for a ``score`` that is not there, and for metrics of one's own
    that give no number.

    Random outputs are scored, so that a wrong one is found before anything trains.
    """
    if data.score is None and not data.metrics:
        return
    own = data.metrics.keys()
    if data.primary_metric not in own:
        check_direction(data.primary_metric)
    validation = data.sets["validation"]
    outputs = random_outputs(plan, validation.num_outputs)
    names = data.task.scored_names(validation, data.names)
    of_task = data.task.metrics(outputs, data.task.truth(validation), names)
    if own & of_task.keys():
        raise StrategyError(
            f"`metrics` has the name {min(own & of_task.keys())!r}, which is the task's own: "
            "give another"
        )
    of_task = {name: value for name, value in of_task.items() if more_is_better(name)}
    known = [*of_task, *own_scores(data.metrics, outputs, validation.targets), "loss"]
    if data.primary_metric not in known:
        raise StrategyError(
            f"unknown `score` {data.primary_metric!r}: give one of {', '.join(known)}"
        )


def random_outputs(plan: Plan, count: int) -> np.ndarray:
    """Outputs of the head's form, float32 [count, ...]: normal noise, and -inf where it has that."""
    config = plan.model.encoder.config
    batch = example_batch(config) | {"targets": np.zeros(1, np.int32)}
    x = jnp.zeros((*batch["segments"].shape, plan.model.input_width))
    outputs = np.asarray(plan.model.outputs_of(plan.params, x, batch))
    noise = np.random.default_rng(0).standard_normal((count, *outputs.shape[1:]), np.float32)
    return outputs[:1] + noise


def settings_of(
    options: FinetuningOptions, parts: Mapping[str, Part], **more: Any
) -> dict[str, Any]:
    """What config.json says of a run; ``more`` are the seeds and the share that is held out."""
    columns = parts["train"].columns
    tables = {name: part.table.name for name, part in parts.items()}
    settings = {
        "experiment": "finetune",
        **dataclasses.asdict(options),
        "train": tables["train"],
        "test": tables.get("test"),
        "validation": tables.get("validation"),
        "text_column": columns.text,
        "text_pair_column": columns.text_pair,
        "label_column": columns.label,
        "image_column": columns.image,
        "weight_column": columns.weight,
        "offsets": columns.offsets,
        "quoting": columns.quoting,
        **more,
    }
    return run_folder.as_json(settings)


def warn_of_long(prepared: Prepared) -> None:
    """Log for each set how many of its texts are longer than the encoder reads."""
    for name, examples in prepared.data.sets.items():
        warn_long(examples.long, name)


def share_or_data(validation: Any) -> tuple[float, Any]:
    """(the share of the training rows that is held out, the validation data or None)."""
    if validation is None:
        return HELD_OUT, None
    if is_of(validation, float) or isinstance(validation, bool):
        if not 0 < validation < 1:
            raise StrategyError(
                f"`validation` {validation} must be a share of the training rows between 0 and 1, "
                "or data: (inputs, labels) or a file"
            )
        return float(validation), None
    return HELD_OUT, validation


def build_plan(
    pretrained: Pretrained,
    data: TaskData,
    options: FinetuningOptions,
    seed: int = 0,
    layout: sharding.Layout | None = None,
    loss: Loss | ContextLoss | None = None,
) -> Plan:
    """The encoder with a new head, what the strategy adds to it, and the phases in which it trains.

    ``loss`` takes the place of the task's. Raises :class:`StrategyError` for options that
    contradict each other, the encoder or the task.
    """
    strategy = strategies.strategy_for(pretrained.config, options.strategy, options.epochs)
    config = peft.with_peft(pretrained.config, strategy.peft)
    pretrained = dataclasses.replace(pretrained, config=config)
    key = jax.random.key(seed)
    head = data.task.head(pretrained, options, data.names)
    check_head(head)
    check_reads_windows(head, pretrained)
    model, params = with_head(pretrained, head, jax.random.fold_in(key, 2))
    params |= {"head": data.task.init_head(params["head"], data.sets["train"].labels)}
    if params["head"].get("below"):
        strategy = strategies.with_head_below(strategy)
    params = phases.init_params(strategy, model, params, jax.random.fold_in(key, 3))
    strategies.check_rules(strategy, params)

    computed = phases.computing_model(model, options.dtype, options.remat, options.scan, layout)
    if loss is None:
        loss = data.task.training_loss(options, data.sets["train"].targets, data.names)
    spec = strategies.shown(options.strategy)
    compiled = phases.build_phases(
        strategy,
        spec,
        computed,
        params,
        loss,
        options,
        data.steps_per_epoch,
        options.frozen_dtype,
    )
    check_groups(compiled)
    policy.check(options, [phase.step.prefix for phase in compiled])
    adapted = dataclasses.replace(
        pretrained,
        head=model.head,
        labels=tuple(data.task.output_names(data.names)),
        label_type=data.label_type,
        task=options.task,
        unread={},
        stripped=(),
        notes=(),
        embedding=hub.embedding_of_run(
            pretrained.embedding, model.head, data.task.num_outputs == 0
        ),
    )
    imports = extensions.used_by(adapted, options.strategy)
    return Plan(
        pretrained=dataclasses.replace(adapted, imports=imports),
        discarded=discarded_of(pretrained, model, params),
        model=model,
        params=params,
        phases=compiled,
        steps_per_epoch=data.steps_per_epoch,
        steps=compiled[-1].epochs.stop * data.steps_per_epoch,
        key=key,
        layout=layout,
    )


def check_reads_windows(head: Any, pretrained: Pretrained) -> None:
    """Raise :class:`StrategyError` for a head of one's own where texts are cut into windows."""
    long = pretrained.tokenizer.long if pretrained.tokenizer else "head"
    if long == "windows" and type(head) is not Classifier:
        raise StrategyError(
            f"`long` windows takes the mean of windows before Classifier, and the head is "
            f"{type(head).__name__}: give `long` head or head+tail"
        )


def check_groups(compiled: Sequence[CompiledPhase]) -> None:
    """Raise :class:`StrategyError` for phases that can't follow each other, before the first
    trains.
    """
    for previous, following in itertools.pairwise(compiled):
        try:
            check_no_group_gains(previous.labels, following.labels)
        except RuleError as error:
            raise StrategyError(f"`strategy`, phase {following.number + 1}: {error}") from None


def with_head(pretrained: Pretrained, head: Any, key: jax.Array) -> tuple[Model, tree.Tree]:
    """(model, parameters) of the encoder under a new ``head``, a module of :mod:`adapt.models`.

    A head that pools by weights of the checkpoint, such as its pooler, gets the pre-trained ones,
    and so does the checkpoint's own head that is kept, or is below the new one.
    """
    model = Model(Encoder(pretrained.config), head)
    if is_kept(head):
        return model, with_kept_head(pretrained)
    fresh = model.init_head(key)
    if isinstance(head, OnHead) and "below" in fresh:
        fresh |= {"below": weights_below(pretrained, fresh)}
    pooling = getattr(head, "pooling", None)
    if pooling in POOLINGS_OF_CHECKPOINTS:
        own = pooling_weights(pretrained, pooling)[pooling]
        fresh = tree.graft(tree.drop(fresh, pooling), pooling, own)
    encoder = tree.drop(pretrained.params, "head")
    return model, tree.graft(encoder, "head", fresh)


def with_kept_head(pretrained: Pretrained) -> tree.Tree:
    """The parameters of a checkpoint without those of its head that serve other objectives than
    words, as next-sentence prediction.
    """
    head = pretrained.params["head"]
    kept = {name: leaves for name, leaves in head.items() if name not in OTHER_OBJECTIVES}
    return pretrained.params | {"head": kept}


def discarded_of(pretrained: Pretrained, model: Model, params: tree.Tree) -> dict[str, Any]:
    """What of the checkpoint a run discards, as lineage.json has it: its head, or of one that is
    kept what the run has not.
    """
    head = pretrained.params["head"]
    kept = params["head"] if is_kept(model.head) else params["head"].get("below", {})
    head = {name: leaves for name, leaves in head.items() if name not in kept}
    return tree.discarded({"head": head}, "head") | hub.unread_record(pretrained)


@dataclasses.dataclass(frozen=True)
class Tested:
    """The test of the best checkpoint."""

    params: tree.Tree  # of that checkpoint
    # metrics, loss, and the baselines that look at no input; empty where there is no test set
    scores: dict[str, float | None]
    facts: dict[str, Any]  # what else result.json says: steps, parameters, phases, digests


def test_best(plan: Plan, data: TaskData, fitted: Fitted) -> Tested:
    """Score the test set, if there is one, with the best checkpoint, in the phase in which it was
    trained.

    Raises :class:`TrainingError` if what is frozen in that phase has moved.
    """
    session = fitted.session
    params = fitted.best_params()
    phase = plan.phases[fitted.progress.best_phase]
    frozen = optim.frozen(params, phase.labels)
    scores = {}
    if "test" in data.sets:
        active = fitted.active
        if phase is not active.phase:
            active = session.enter(phase, frozen, data, None)
        # On the devices, as the parameters of validations were: else it would compile once more.
        decisions = fitted.progress.best_scores
        metrics, loss = active.evaluate(active.params(params), "test", decisions)
        truth = {name: data.task.truth(data.sets[name]) for name in ("train", "test")}
        baseline = data.task.baseline(truth["train"], truth["test"])
        scores = {name: finite(value) for name, value in [*metrics.items(), ("loss", loss)]}
        scores |= {name: finite(value) for name, value in baseline.items()}
    session.laps.lap("evaluate")
    return Tested(params, scores, facts_of(plan, fitted, phase, params, frozen))


def facts_of(
    plan: Plan, fitted: Fitted, phase: CompiledPhase, params: tree.Tree, frozen: tree.Tree
) -> dict[str, Any]:
    """What result.json says of a run beside its scores and its seconds."""
    progress = fitted.progress
    fitted.active.check_unmoved()
    before = progress.phases[phase.number]["digest"]
    after = tree.digest(frozen)
    if after != before:
        raise TrainingError(
            "the frozen parameters moved: the digests before and after differ; please report this"
        )
    caches = [entry["cache"] for entry in progress.phases if entry.get("cache")]
    stored = [entry["stored"] for entry in progress.phases if entry.get("stored")]
    summaries = []
    for one in plan.phases:
        counts = tree.summary(plan.params, one.labels)
        summaries.append({"epochs": len(one.epochs), "parameters": counts})
    return {
        "padding": 1 - progress.tokens / progress.slots if progress.slots else None,
        "cache": caches[-1] if caches else None,
        "frozen_stored": stored[-1] if stored else None,
        "parameters_trained": tree.count(optim.trainable(params, phase.labels)),
        "parameters_frozen": tree.count(frozen),
        "phases": summaries,
        "steps": fitted.steps,
        "best_step": progress.best_step,
        "best_phase": progress.best_phase,
        "validation_score": progress.best_score,
        "discarded": plan.discarded,
        "frozen_digest_before": before,
        "frozen_digest_after": after,
    }
