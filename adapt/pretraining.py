"""Pre-training by an objective of :mod:`adapt.objectives`, and the loop of fine-tuning.

    run = pretrain("tiny-bert", "text.txt", steps=1000, out="runs/pretrain")
    run.scores                              # {"before": {...}, "validation": {...}}
    adapt.finetune(run.pretrained, texts, labels)

:func:`pretrain` is :func:`prepare` and :meth:`~adapt.prepared.PreparedRun.train`; the command is
the same two calls. What :func:`adapt.fitting.fit` calls an epoch are the steps between two
validations here; the corrupted stream of batches goes through the examples as often as it takes.
The last validation counts as the best.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from adapt import run_folder, tree
from adapt.data import masking, packing, tables
from adapt.data.formats import format_of
from adapt.data.inputs import Columns, make_table
from adapt.data.tables import Table
from adapt.errors import DataError, StrategyError
from adapt.export.exporting import export
from adapt.fitting import Evaluate, Fitted, Plan, Scores
from adapt.models import Model
from adapt.objectives import Corpus, Objective, choose, masked_image
from adapt.options import (
    Decay,
    DType,
    ObjectiveOptions,
    Remat,
    TrainingOptions,
    check_ranges,
    check_seeds,
    check_types,
)
from adapt.other_names import suggests
from adapt.parallel import multihost, sharding
from adapt.prefix_cache.policy import CacheDecision
from adapt.prepared import PreparedRun, folder_of_run
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.run import Run
from adapt.training import checkpoint, optim
from adapt.training.context import make_context
from adapt.training.events import Callback, Event, Stepped, Validated, as_callbacks
from adapt.training.loop import pipelined
from adapt.training.metrics_log import Record, validation_record
from adapt.training.phases import CompiledPhase, Group, computing_model, make_phase_step

logger = logging.getLogger(__name__)

GROUP = "all"  # everything trains at one rate
LOG_EVERY = 20  # steps
# What a config.json without these settings means: it is of an earlier version.
UNNAMED_SETTINGS = {"pictures": "", "patch_rate": 0.6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingOptions(ObjectiveOptions):
    """What is trained on which text, and how long."""

    title: ClassVar[str] = "pretraining"

    # plain UTF-8 text, one example a line; of pairs a sentence a line, a blank line after a document
    text: str = ""
    # of masked-image: a folder of pictures, or a table with a column image
    pictures: str = ""
    # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    checkpoint: str = "tiny-bert"
    # start from fresh weights in the checkpoint's shapes
    random_weights: bool = False
    steps: int = 1000
    # examples a step
    batch_size: int = 32
    # tokens of an example
    max_length: int = 128
    learning_rate: float = 1e-4
    # share of all steps
    warmup: float = 0.1
    decay: Decay = "linear"
    weight_decay: float = 0.01
    # 0: no clipping
    clip_norm: float = 1.0
    # of the weights by which tokens attend; default: the checkpoint's own
    attention_dropout: float | None = None
    # of the computation; auto: bfloat16 where the device has it (NVIDIA from Ampere on, TPU), else
    # float32; parameters that train stay float32
    dtype: DType = "auto"
    # compute again in the backward pass: blocks, or all but products by weights
    remat: Remat = "none"
    # compute the blocks as a loop, which compiles once for all of them
    scan: bool = False
    # steps between validations, each with a checkpoint
    validate_every: int = 200
    # stop at this step as an interruption would (for tests of resuming)
    stop_after: int | None = None

    def check(self) -> None:
        """Raise :class:`StrategyError` for a number that is too small, or no share."""
        check_types(self)
        least = {"steps": 1, "batch_size": 1, "validate_every": 1, "max_length": 3}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise StrategyError(f"`{name}` {getattr(self, name)} must be at least {bound}")
        for name in ("mask_rate", "patch_rate"):
            if not 0 < getattr(self, name) < 1:
                raise StrategyError(f"`{name}` {getattr(self, name)} must be between 0 and 1")
        if self.random_weights and self.generator is not None:
            raise StrategyError(
                f"`generator` {self.generator} brings weights, and `random_weights` draws all of "
                "them: leave out one"
            )
        check_ranges(self)

    @property
    def training(self) -> TrainingOptions:
        """When the loop logs and stops."""
        return TrainingOptions(log_every=LOG_EVERY, patience=0, stop_after=self.stop_after)


@suggests
def pretrain(
    pretrained: Pretrained | str | Path,
    texts: Any,
    *,
    objective: str | None = None,
    steps: int = 1000,
    batch_size: int = 32,
    max_length: int = 128,
    mask_rate: float = 0.15,
    generator: str | None = None,
    patch_rate: float = 0.6,
    mask_size: int | None = None,
    learning_rate: float = 1e-4,
    warmup: float = 0.1,
    decay: Decay = "linear",
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    attention_dropout: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Iterable[Callback] = (),
    random_weights: bool = False,
    dtype: DType = "auto",
    remat: Remat = "none",
    scan: bool = False,
    validate_every: int = 200,
    stop_after: int | None = None,
    mesh: str = "",
) -> Run:
    """Continue or start pre-training on plain text; returns the run, encoder and head.

        run = adapt.pretrain("tiny-bert", ["some text", ...], steps=500)
        adapt.finetune(run.pretrained, texts, labels)       # the head is discarded again

    ``objective`` is a name of :data:`adapt.objectives.OBJECTIVES`, by default that of the
    checkpoint's own head: masked-LM for BERT, causal-LM for GPT-2. A checkpoint without such a
    head gets a fresh one. ``texts`` are a list, an array, a Series, or a file with an
    example a line; long ones become several examples, and 5% are held out. For objectives of pairs
    a text is a sentence, and a blank one ends a document; for one of pictures ``texts`` are
    pictures, a folder of them, or a table with a column ``image``. The other arguments are
    the flags of ``adapt pretrain``; ``out``, ``resume`` and ``callbacks`` are as in
    :func:`adapt.finetune`. Raises :class:`AdaptError` in one sentence for what can't be done.
    """
    options = PretrainingOptions(
        text="",
        pictures="",
        checkpoint=hub.source_of(pretrained),
        objective=objective,
        random_weights=random_weights,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        mask_rate=mask_rate,
        generator=generator,
        patch_rate=patch_rate,
        mask_size=mask_size,
        learning_rate=learning_rate,
        warmup=warmup,
        decay=decay,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        attention_dropout=attention_dropout,
        dtype=dtype,
        remat=remat,
        scan=scan,
        validate_every=validate_every,
        stop_after=stop_after,
    )
    callbacks = as_callbacks(callbacks)
    folder = folder_of_run(
        out,
        options.checkpoint,
        resume=resume,
        overwrite=overwrite,
        stop_after=stop_after,
    )
    layout = sharding.make_layout(mesh)
    prepared = prepare(pretrained, texts, options, seed=seed, layout=layout)
    return prepared.train(
        folder,
        defaults=UNNAMED_SETTINGS,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared(PreparedRun):
    """A run of pre-training before its first step."""

    validates_first = True

    data: "PretrainingData"
    options: PretrainingOptions
    new_parts: Sequence[str] = ()  # of the model, a line for each

    def announce(self) -> None:
        for line in self.new_parts:
            logger.warning(line)

    @property
    def training(self) -> TrainingOptions:
        return self.options.training

    def origin(self) -> dict[str, Any]:
        return run_folder.lineage(
            self.plan.pretrained,
            self.options.random_weights,
            **self.trained_on(),
            data_digest=self.data.training.digest,
        )

    def trained_on(self) -> dict[str, str]:
        """The file that was named, by its option."""
        name = option_of(self.data.objective)
        return {name: getattr(self.options, name)}

    def digests(self) -> dict[str, str]:
        return {f"the {option_of(self.data.objective)}": self.data.digest}

    @property
    def may_grow(self) -> Sequence[str]:
        return ("steps",)

    def record_of(self, event: Event) -> Record | None:
        """The line of an event: without epochs, and with one ``rate``."""
        if isinstance(event, Stepped):
            return {**event.record, "rate": event.rates[GROUP]}
        if isinstance(event, Validated):
            return validation_record(event)
        return None

    def used(self) -> dict[str, Any]:
        """The dtype of the computation."""
        return {"dtype": self.plan.dtype}

    def finish(self, fitted: Fitted) -> tuple[tree.Tree, dict[str, Any]]:
        params = self.params_of_model(fitted.best_params())
        return params, result_of(self.plan, self.data.objective, fitted)

    def params_of_model(self, params: tree.Tree) -> tree.Tree:
        return {name: part for name, part in params.items() if name != checkpoint.COMPANION}

    def write_companions(self, folder: Path) -> None:
        """The checkpoints of what trained beside the model, as exports."""
        if checkpoint.COMPANION not in self.plan.params:
            return
        model = self.plan.model
        params = checkpoint.load_params(folder / "checkpoints", model.shapes())
        trained = self.data.objective.companions(self.plan.pretrained, model, params)
        if multihost.is_lead_process():
            for name, pretrained in trained.items():
                export(pretrained, folder / name, "transformers", overwrite=True)


def prepare(
    pretrained: Pretrained | str | Path,
    texts: Any,
    options: PretrainingOptions,
    *,
    seed: int = 0,
    layout: sharding.Layout | None = None,
) -> Prepared:
    """The plan and the data of a run; see :func:`pretrain` for the arguments and the errors."""
    options.check()
    check_seeds(seed=seed)
    sharding.check_batch(layout, options.batch_size)
    pretrained = hub.loaded(pretrained)
    objective = choose(pretrained, options)
    check_kind(pretrained, objective, options, texts)
    if isinstance(texts, str | Path):
        options = dataclasses.replace(options, **{option_of(objective): str(texts)})
    pretrained = with_max_length(pretrained, options.max_length)
    pretrained = hub.with_attention_dropout(pretrained, options.attention_dropout)
    plan = build_plan(pretrained, objective, options, seed, layout)
    data = PretrainingData.read(
        pretrained, objective, table_of(texts, objective), options, seed, layout
    )
    settings = {"experiment": "pretrain", **dataclasses.asdict(options), "seed": seed}
    return Prepared(
        plan=plan,
        data=data,
        settings=run_folder.as_json(settings),
        options=options,
        new_parts=objective.new_parts(pretrained, options),
    )


def is_empty_file(name: str | Path) -> bool:
    """Whether a name is that of a local file without content."""
    path = Path(name).expanduser()
    return path.is_file() and not path.stat().st_size


def option_of(objective: Objective) -> str:
    """The option that names what the objective is trained on."""
    return "pictures" if objective.takes_pictures else "text"


def check_kind(
    pretrained: Pretrained, objective: Objective, options: PretrainingOptions, texts: Any
) -> None:
    """Raise :class:`StrategyError` where there is nothing to be trained on, or where an option names
    texts for an objective of pictures, or the other way round.
    """
    wanted = option_of(objective)
    if objective.takes_pictures and options.text:
        raise StrategyError(
            f"{pretrained.source} is no text encoder: `objective` {objective.name} takes `pictures`, "
            "not `text`"
        )
    if not objective.takes_pictures and options.pictures:
        raise StrategyError(f"`objective` {objective.name} takes `text`, not `pictures`")
    if isinstance(texts, str) and not texts:
        raise StrategyError(f"`{wanted}` is missing: name what is to be trained on")


def table_of(texts: Any, objective: Objective) -> Table:
    """What the objective reads as a table."""
    if objective.takes_pictures:
        columns = Columns(image=masked_image.COLUMN)
        return make_table(texts, None, columns, are_images=True, name="the pictures")[0]
    return text_table(texts, objective.reads_documents)


def text_table(texts: Any, may_be_blank: bool = False) -> Table:
    """Texts as a table with the column ``text``: lines of a file, or what is in memory."""
    if isinstance(texts, str | Path):
        if format_of(Path(texts)) is not None and not is_empty_file(texts):
            raise DataError(
                f"{texts} is a table, whose lines are no texts: write its texts into a .txt file, a "
                "line each, or in Python give a list of them"
            )
        return tables.read_lines(texts)
    table, columns = make_table(texts, None, Columns(), name="the text", parameter="texts")
    if columns.text_pair:
        raise DataError("`texts` holds tuples of texts: pre-training takes one text an example")
    tables.check_texts(table, "text", may_be_blank)
    return table


def result_of(plan: Plan, objective: Objective, fitted: Fitted) -> dict[str, Any]:
    """What result.json says: of the last validation, and of the one before the first step."""
    progress = fitted.progress
    labels = plan.phases[0].labels
    # A run that ended before all scores were kept has the first alone.
    scores = dict(progress.best_scores)
    if not scores and objective.primary_metric != "loss":
        scores[objective.primary_metric] = progress.best_score
    result: dict[str, Any] = {**scores, "loss": progress.best_loss}
    if objective.perplexity_of:
        loss = result[objective.perplexity_of]
        result["perplexity"] = float(np.exp(min(loss, 700.0)))
    return result | {
        "loss_before": progress.first_loss,
        "targets_per_second": progress.examples_per_second,
        "steps": plan.steps,
        "task": plan.pretrained.task,
        "parameters_trained": tree.count(optim.trainable(plan.params, labels)),
        "parameters_frozen": tree.count(optim.frozen(plan.params, labels)),
        "scores": {
            "before": {"loss": progress.first_loss},
            "validation": {**scores, "loss": progress.best_loss},
        },
    }


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """Training and held-out examples, in corrupted batches."""

    training: Corpus
    held_out: Corpus
    objective: Objective
    corruption: masking.Corruption
    options: PretrainingOptions
    seed: int = 0

    @property
    def primary_metric(self) -> str:
        return self.objective.primary_metric

    @property
    def latest_is_best(self) -> bool:
        return True

    @classmethod
    def read(
        cls,
        pretrained: Pretrained,
        objective: Objective,
        table: Table,
        options: PretrainingOptions,
        seed: int = 0,
        layout: sharding.Layout | None = None,
    ) -> "PretrainingData":
        """The examples of a table for a checkpoint, as the objective reads them."""
        training, held_out = objective.read(pretrained, table, options, seed)
        corruption = objective.corruption(pretrained, options)
        return cls(training.on(layout), held_out.on(layout), objective, corruption, options, seed)

    @property
    def digest(self) -> str:
        """The digest of all examples, and of where each of them ends: what processes compare."""
        content = {}
        for name, corpus in (("training", self.training), ("held_out", self.held_out)):
            lengths = corpus.examples.file_sequences.lengths
            content[name] = {"inputs": corpus.digest, "lengths": lengths}
        return tree.digest(content)

    @property
    def passes(self) -> int:
        """How often the run goes through the examples, the last time perhaps not to their end."""
        return -(-self.options.steps // self.steps_per_pass)

    @property
    def steps_per_pass(self) -> int:
        return -(-len(self.training) // self.options.batch_size)

    @functools.cached_property
    def shapes(self) -> packing.BatchShapes:
        return self.batch_shapes(self.training, self.passes)

    @functools.cached_property
    def held_out_shapes(self) -> packing.BatchShapes:
        return self.batch_shapes(self.held_out, 1)

    def batch_shapes(self, corpus: Corpus, passes: int) -> packing.BatchShapes:
        return corpus.of_pass(0).batch_shapes(self.options.batch_size, self.seed, passes)

    def batches(self, epoch: int, skip: int) -> Iterator[packing.Arrays]:
        """The batches from one validation to the next, from batch ``skip`` on."""
        every = self.options.validate_every
        start = epoch * every + skip
        end = min((epoch + 1) * every, self.options.steps)
        stream = corrupted_batches(
            self.training,
            self.shapes,
            self.corruption,
            self.seed,
            *divmod(start, self.steps_per_pass),
        )
        return itertools.islice(stream, end - start)

    def held_out_batches(self) -> Iterator[packing.Arrays]:
        """All held-out examples once, always corrupted in the same way."""
        return corrupted_batches(
            self.held_out, self.held_out_shapes, self.corruption, self.seed, once=True
        )

    def make_evaluate(self, phase: CompiledPhase) -> Evaluate:
        score = make_score(phase.model, self.objective)

        def evaluate(
            params: tree.Tree, name: str, decisions: Mapping[str, float | None] | None = None
        ) -> tuple[Scores, float]:
            means = mean_score(score, params, self.held_out_batches())
            return self.objective.scores(means), self.objective.total(means)

        return evaluate

    def evaluation_programs(self, phase: CompiledPhase, params: tree.Tree) -> tuple[()]:
        """None: the first evaluation comes before the first step."""
        return ()

    def choose_cache(self, phase: CompiledPhase, frozen: tree.Tree, earlier: bool | None) -> None:
        """No cache: the embedding trains, and corrupted inputs are new in every pass."""

    def with_states(
        self, phase: CompiledPhase, frozen: tree.Tree, decision: CacheDecision, emit: Callback
    ) -> tuple["PretrainingData", CacheDecision]:
        return self, decision


def with_max_length(pretrained: Pretrained, max_length: int) -> Pretrained:
    """The checkpoint with its tokenizer cut to ``max_length``, or to the encoder's positions; one
    of pictures as it is.
    """
    if pretrained.tokenizer is None:
        return pretrained
    max_length = min(max_length, pretrained.config.positions)
    # Every line is read to its end, in pieces: no rule for long texts applies.
    tokenizer = pretrained.tokenizer.with_long("head").cut_to(max_length)
    return dataclasses.replace(pretrained, tokenizer=tokenizer)


def build_plan(
    pretrained: Pretrained,
    objective: Objective,
    options: PretrainingOptions,
    seed: int = 0,
    layout: sharding.Layout | None = None,
) -> Plan:
    """The encoder under the objective's head, and one phase in which all of it trains."""
    key = jax.random.key(seed)
    model, params = objective.build(pretrained, options, jax.random.fold_in(key, 2))
    if options.random_weights:
        params = jax.device_get(model.init(jax.random.fold_in(key, 3)))
    computed = computing_model(model, options.dtype, options.remat, options.scan, layout)

    rules = [(".*", GROUP)]
    untrained_pattern = objective.untrained_pattern(model.head)
    if untrained_pattern:
        rules.insert(0, (untrained_pattern, optim.FROZEN))
    labels = tree.label(params, rules)
    schedule = optim.schedule(options.learning_rate, options.steps, options.warmup, options.decay)
    optimizers = {GROUP: optim.adamw(schedule, options.weight_decay)}
    tx = optim.by_label(optimizers, labels, options.clip_norm or None)
    phase = CompiledPhase(
        number=0,
        epochs=range(-(-options.steps // options.validate_every)),
        model=computed,
        labels=labels,
        groups={GROUP: Group(options.learning_rate, schedule, 0)},
        tx=tx,
        step=make_phase_step(
            computed, objective.loss, labels, options.decay, options.clip_norm > 0
        ),
    )
    return Plan(
        pretrained=dataclasses.replace(
            pretrained,
            head=model.head,
            labels=(),
            task=objective.task,
            unread={},
            stripped=(),
            notes=(),
        ),
        discarded=hub.unread_record(pretrained),
        model=model,
        params=params,
        phases=[phase],
        steps_per_epoch=options.validate_every,
        steps=options.steps,
        key=key,
        layout=layout,
    )


def corrupted_batches(
    corpus: Corpus,
    shapes: packing.BatchShapes,
    corruption: masking.Corruption,
    seed: int,
    epoch: int = 0,
    skip: int = 0,
    once: bool = False,
) -> Iterator[packing.Arrays]:
    """Packed and corrupted batches from batch ``skip`` of ``epoch`` on, without end or ``once``.

    Pure in its arguments: the random numbers of a batch come from the seed, the epoch and the
    batch's number. On a mesh each of its groups is corrupted by itself.
    """
    while True:
        examples = corpus.of_pass(epoch)
        layout = examples.layout
        stream = examples.batches(shapes, seed, epoch, skip)
        for number, batch in enumerate(stream, skip):
            entropy = [seed, epoch, number]
            if layout is None:
                yield corruption(batch, np.random.default_rng(entropy))
            else:
                yield corrupt_groups(batch, corruption, entropy, layout)
        if once:
            return
        epoch += 1
        skip = 0


def corrupt_groups(
    batch: packing.Arrays,
    corruption: masking.Corruption,
    entropy: list[int],
    layout: sharding.Layout,
) -> packing.Arrays:
    """The groups [G, ...] of a batch, each corrupted with random numbers of its own."""
    groups = []
    for index, group in enumerate(layout.local_groups):
        arrays = {name: array[index] for name, array in batch.items()}
        groups.append(corruption(arrays, np.random.default_rng([*entropy, group])))
    return packing.stack(groups)


# A sum of values and the sum of their weights, by the name of their mean.
Sums = dict[str, tuple[Any, Any]]


@functools.lru_cache(maxsize=32)
def make_score(
    model: Model, objective: Objective
) -> Callable[[tree.Tree, Mapping[str, Any]], Sums]:
    """``(params, batch) -> sums`` of the objective's measures of a batch, jitted."""

    def of_group(params: tree.Tree, _: None, batch: Mapping[str, Any], key: jax.Array) -> Any:
        context = make_context(model, params, batch, 0, key, dropout=False)
        return objective.measures(context)

    def score(params: tree.Tree, batch: Mapping[str, Any]) -> Sums:
        measured = model.by_group(of_group, params, None, batch, jax.random.key(0))
        sums = {}
        for name, (values, weights) in measured.items():
            sums[name] = ((values * weights).sum(), weights.sum())
        return sums

    return sharding.shard_inputs(jax.jit(model.allow_fused_attention(score)), model.layout)


def mean_score(
    score: Callable[[tree.Tree, Mapping[str, Any]], Sums],
    params: tree.Tree,
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
    """The weighted mean of every measure over all batches; nan where no value of it counts."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for of_batch in pipelined(score(params, batch) for batch in batches):
        for name, (value, weight) in of_batch.items():
            sums[name] = sums.get(name, 0.0) + float(value)
            weights[name] = weights.get(name, 0.0) + float(weight)
    means = {}
    for name, value in sums.items():
        means[name] = value / weights[name] if weights[name] else math.nan
    return means
