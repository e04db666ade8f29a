"""A run: what fine-tuning made, in memory or in a folder.

A run that was loaded and one that has just been trained are used alike.

    run = load_run("runs/mine")
    run.predict(["a new text"]).labels
    run.evaluate(texts, labels)             # {"accuracy": ..., "loss": ...}
    run.export("exported")
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from adapt import buckets, features, files
from adapt.data.inputs import IN_MEMORY, Columns, GivenAgain, by_part, make_table
from adapt.data.tables import Table
from adapt.errors import CheckpointError, StrategyError
from adapt.export import exporting
from adapt.options import (
    HELD_OUT,
    FinetuningOptions,
    Long,
    Offsets,
    Quoting,
    RunColumnOptions,
)
from adapt.predicting import Predictions, check_predicts, predict_table, score_table
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import warn_long
from adapt.run_folder import (
    EXTENDED,
    OF_PYTHON,
    check_out,
    open_run,
    outcome_of,
    with_used_dtype,
    write_json,
)
from adapt.tasks.base import task_of
from adapt.tasks.metrics import Metric, check_own
from adapt.training import checkpoint, strategies
from adapt.training.events import OnProgress
from adapt.training.metrics_log import finite, read_records
from adapt.training.run_state import best_validation

# How the tables of a run are read.
TABLE_OPTIONS = (
    "text_column",
    "text_pair_column",
    "label_column",
    "image_column",
    "offsets",
    "quoting",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A model that was adapted, and how.

    ``pretrained`` has the encoder and the new head with the best parameters; it can be adapted
    again. ``result`` is what result.json says: scores, seconds, what trained, digests of what was
    frozen; empty where the run was stopped, and the error of one that diverged. ``history`` has a
    record of every log and validation, ``settings`` every option, ``lineage`` where the run comes
    from. ``steps`` are those that were taken, ``total_steps`` those of the whole run, where that is
    known, and ``validated`` the scores of the best validation.
    """

    pretrained: Pretrained
    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    lineage: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    steps: int = 0
    outcome: str = "complete"  # or "early", "stopped", or "diverged": the loss was not finite
    folder: Path | None = None
    total_steps: int | None = None
    validated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        said = []
        deciding = self.result.get("primary_metric") or self.lineage.get("primary_metric", "")
        for split, values in self.scores.items():
            metric = deciding
            if metric not in values:
                metric = next(iter(values))
            if values[metric] is not None:
                said.append(f"{split} {metric} {values[metric]:.4g}")
        if self.outcome in ("stopped", "diverged"):
            of_all = f" of {self.total_steps}" if self.total_steps else ""
            said.append(f"{self.outcome} after step {self.steps}{of_all}")
        strategy = strategies.shown(self.settings.get("strategy", "unknown strategy"))
        source = self.settings.get("checkpoint") or self.pretrained.source
        how = ", ".join(said) or self.outcome
        return f"Run({self.pretrained.task} by {strategy} on {source}: {how})"

    @property
    def scores(self) -> Mapping[str, Mapping[str, float]]:
        """``{"validation": {metric: score}, "test": ...}`` of the best checkpoint; of a run that did
        not end, its best validation until then, if there was one.
        """
        if "scores" in self.result or not self.validated:
            return self.result.get("scores", {})
        return {"validation": self.validated}

    @property
    def columns(self) -> Columns:
        """Where the inputs and the labels were in the training table."""
        settings = self.settings
        return Columns(
            text=settings.get("text_column") or "text",
            text_pair=settings.get("text_pair_column"),
            label=settings.get("label_column") or "label",
            image=settings.get("image_column"),
            offsets=settings.get("offsets") or "characters",
            quoting=settings.get("quoting"),
        )

    def columns_by(self, options: RunColumnOptions) -> Columns:
        """The columns of training, or those that the options name in their place."""
        of_training = self.columns
        return Columns(
            text=options.text_column or of_training.text,
            text_pair=options.text_pair_column or of_training.text_pair,
            label=getattr(options, "label_column", None) or of_training.label,
            image=options.image_column or of_training.image,
            offsets=getattr(options, "offsets", None) or of_training.offsets,
            quoting=options.quoting or of_training.quoting,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes the same run again, bit for bit, when :func:`adapt.finetune` is called with
        it.

            again = adapt.finetune(**run.arguments)
            other = adapt.finetune(**run.arguments | {"seed": 1})

        Data and functions that were in memory have to be given again: ``inputs`` with ``labels``,
        and the ``validation``, ``test``, ``weights``, ``extras``, ``loss`` and ``metrics`` that
        there were. A call without them is refused, and so is one without ``epochs`` for a run that
        was extended: its learning rates fell as in a shorter one. Raises :class:`StrategyError` for
        a run of pre-training.
        """
        settings = with_used_dtype(self.settings)
        if settings.get("experiment") != "finetune":
            raise StrategyError(
                f"{self.folder or 'the run'} is not of finetune: it has no arguments"
            )
        names = [field.name for field in dataclasses.fields(FinetuningOptions)]
        names += ["seed", "split_seed", "test", "validation", *TABLE_OPTIONS]
        given = {name: settings[name] for name in names if settings.get(name) is not None}
        given["pretrained"] = given.pop("checkpoint")
        given["inputs"] = settings["train"]
        if settings.get("weight_column"):
            given["weights"] = settings["weight_column"]
        given.setdefault("validation", settings.get("held_out", HELD_OUT))
        given.pop("stop_after", None)
        return given | self.not_kept()

    def not_kept(self) -> dict[str, GivenAgain]:
        """The arguments that the run does not keep, and why."""
        settings = self.settings
        absent = {}
        for name, in_memory in IN_MEMORY.items():
            if settings.get(name) == in_memory:
                parameter = "inputs" if name == "train" else name
                absent[parameter] = GivenAgain(f"{in_memory} of the run were in memory")
        for name in OF_PYTHON:
            if settings.get(name):
                absent[name] = GivenAgain("the run had its own, which it does not keep")
        for name, before in settings.get(EXTENDED, {}).items():
            steps = " to ".join(map(str, [*before, settings[name]]))
            absent[name] = GivenAgain(
                f"the run was extended ({steps}), which one call can't repeat"
            )
        return absent

    def predict(
        self,
        inputs: Any,
        on_progress: OnProgress | None = None,
        *,
        keep_columns: Sequence[str] = (),
        quoting: Quoting | None = None,
    ) -> Predictions:
        """The labels and probabilities of new inputs, in their order.

            run.predict(["a good film"]).labels           # ["good"]
            run.predict("new.csv", keep_columns=["id"]).to_pandas()

        ``inputs`` are as in training. ``on_progress(done, total)`` counts sequences.
        ``keep_columns`` of a table stand beside the predictions in a DataFrame. ``quoting`` is how
        quotation marks of a CSV or TSV file are read; None: as in training. Raises
        :class:`CheckpointError` for a run of embeddings, which :meth:`encode` computes,
        :class:`DataError` and :class:`StrategyError` for inputs that the run does not read.
        """
        check_predicts(self.pretrained)
        columns = dataclasses.replace(self.columns, quoting=quoting or self.columns.quoting)
        table, columns = self.make_table(inputs, None, columns)
        (predictions,) = predict_table(
            [self.pretrained], table, columns.texts, columns.image, on_progress, keep_columns
        )
        warn_long(predictions.long, table.name)
        return predictions

    def evaluate(
        self,
        inputs: Any,
        labels: Any = None,
        on_progress: OnProgress | None = None,
        metrics: Mapping[str, Metric] | None = None,
        *,
        offsets: Offsets | None = None,
        quoting: Quoting | None = None,
    ) -> dict[str, float | None]:
        """The scores of labelled inputs, as ``{metric: score}`` with the mean ``loss``.

        ``inputs`` and ``labels`` are as in training, and so are ``metrics`` of one's own, which a
        run does not keep. A bundled set by its name is its test part. ``on_progress(done, total)``
        counts outputs. ``offsets``, what those of spans count, and ``quoting``, how quotation marks
        of a CSV or TSV file are read, are as in training where they are None. A score that is not
        defined is None. Raises :class:`DataError` for a label that is unseen in training, where it
        is no tag of a word, and for rows of which nothing can be scored.
        """
        metrics = check_own(metrics)
        of_training = self.columns
        columns = dataclasses.replace(
            of_training,
            offsets=offsets or of_training.offsets,
            quoting=quoting or of_training.quoting,
        )
        table, columns = self.make_labelled_table(inputs, labels, columns)
        scores = score_table(self.pretrained, table, columns, on_progress, metrics)
        return {name: finite(value) for name, value in scores.items()}

    def encode(
        self,
        texts: Sequence[str],
        pooling: str | None = None,
        normalize: bool | None = None,
        layer: int | None = None,
        long: Long | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """The features of texts by the adapted encoder, float32 [N, D].

        ``pooling`` and ``long`` are by default those that the head was trained with; for the rest
        see :func:`adapt.encode`.
        """
        return features.encode(self.pretrained, texts, pooling, normalize, layer, long, prompt)

    def save(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the run to a new folder, which :func:`load_run` and every command take.

        The parameters are those of the best checkpoint, the encoder's among them; the run can't go
        on. Raises :class:`OutputError` for a folder that exists.
        """
        files.check_is_path(out, "out")
        out = files.to_path(out)
        check_out(out, None, overwrite, may_be_remote=True)
        with open_run(out, self.settings, overwrite=overwrite) as folder:
            path = folder.path
            hub.save_model(path, self.pretrained)
            checkpoint.save_params(path / "checkpoints", jax.device_get(self.pretrained.params))
            write_json(path / "lineage.json", self.lineage)
            lines = [json.dumps(record) + "\n" for record in self.history]
            files.write_text(path / "metrics.jsonl", "".join(lines))
            write_json(path / "result.json", self.result)
        return out

    def export(
        self,
        out: str | Path,
        format: str = "auto",
        overwrite: bool = False,
        long: Literal["head"] | None = None,
        base: str | Path | None = None,
    ) -> str:
        """Write encoder and head for transformers or sentence-transformers, or what LoRA added for
        PEFT; returns which.

        See :func:`adapt.export.exporting.export`.
        """
        if format == exporting.PEFT and base is None:
            base = self.settings.get("checkpoint")
        return exporting.export(self.pretrained, out, format, overwrite, long, base)

    def make_labelled_table(
        self, inputs: Any, labels: Any = None, columns: Columns | None = None
    ) -> tuple[Table, Columns]:
        """:meth:`make_table` of what is scored: a bundled set by its name is its test part, as it
        is in training.
        """
        return self.make_table(by_part(inputs, "test", "inputs"), labels, columns)

    def make_table(
        self, inputs: Any, labels: Any = None, columns: Columns | None = None
    ) -> tuple[Table, Columns]:
        """Inputs as a table, which has to have as many texts an example as in training, and the
        columns that are read (default: those of training).
        """
        task = task_of(self.pretrained)
        table, columns = make_table(
            inputs,
            labels,
            columns or self.columns,
            are_images=self.pretrained.config.is_image,
            are_words=task.takes_words,
            parameter="inputs",
        )
        check_pairs(self, columns.text_pair)
        return table, columns


def load_run(folder: str | Path) -> Run:
    """The run in a folder that fine-tuning wrote, with the parameters of its best checkpoint.

    Raises :class:`CheckpointError` for any other folder.
    """
    hub.check_is_name(folder)
    path = files.to_path(folder)
    if not buckets.exists(path / "model.json") and buckets.exists(path / hub.ADAPTER):
        raise CheckpointError(
            f"{path} is an adapter of PEFT, not a run's folder (no model.json): export it and "
            "predict with transformers, or fine-tune from it and give that run"
        )
    if not buckets.exists(path / "model.json"):
        raise CheckpointError(
            f"{path} is not a run's folder (no model.json): give what finetune wrote to `out`"
        )
    content = {}
    for name in ("config", "lineage", "result"):
        file = path / f"{name}.json"
        content[name] = hub.read_json(path, file.name) if file.exists() else {}
    pretrained = hub.load(path)
    history = read_records(path / "metrics.jsonl")
    progress = read_progress(path)
    return Run(
        pretrained=pretrained,
        result=content["result"],
        settings=content["config"],
        lineage=content["lineage"],
        history=history,
        steps=content["result"].get("steps", last_step(history, progress)),
        outcome=outcome_of(content["result"]),
        folder=path,
        total_steps=progress.get("total_steps"),
        validated=best_validation(progress),
    )


def read_progress(folder: Path) -> Mapping[str, Any]:
    """The progress that the last checkpoint of a run has; {} in one that was saved afterwards."""
    last = checkpoint.read_index(folder / "checkpoints").get("last", {})
    progress = last.get("progress", {})
    return progress if isinstance(progress, dict) else {}


def last_step(history: Sequence[Mapping[str, Any]], progress: Mapping[str, Any]) -> int:
    """The step until which a run has logged, or saved; 0 where neither is known."""
    steps = [progress.get("saved"), *(record.get("step") for record in history[-1:])]
    return max((step for step in steps if isinstance(step, int)), default=0)


def check_pairs(run: Run, text_pair_column: str | None) -> None:
    """Raise :class:`StrategyError` where a run was trained on pairs of texts and gets single ones,
    or the reverse.
    """
    if not run.settings:
        return
    trained = run.columns.text_pair
    if bool(trained) != bool(text_pair_column):
        was = f"with `text_pair_column` {trained}" if trained else "without `text_pair_column`"
        name = run.folder or "the run"
        raise StrategyError(
            f"{name} was trained {was}: predict takes the texts of a row as training did"
        )
