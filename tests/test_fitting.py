"""The loop of every run: its events, its checkpoints in a folder or in memory, early stops and resumption."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from adapt import finetuning, fitting, tree
from adapt.data import tables
from adapt.options import FinetuningOptions
from adapt.pretrained import hub
from adapt.task_data import TaskData
from adapt.tasks import get_task
from adapt.training import events, metrics_log, phases, run_state
from tests.helpers import tiny
from tests.helpers.runs import stored_digest

pytestmark = pytest.mark.usefixtures("own_cache")

OPTIONS = FinetuningOptions(epochs=2, batch_size=8, learning_rate=0.003, patience=0)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A plan and its data, as the command makes them."""

    plan: fitting.Plan
    data: TaskData
    options: FinetuningOptions

    def fit(self, **arguments) -> fitting.Fitted:
        return fitting.fit(self.plan, self.data, self.options, **arguments)

    def fit_in(self, folder: Path, resumes: bool = False, **changes) -> fitting.Fitted:
        """A run with its checkpoints and its log in ``folder``."""
        folder.mkdir(exist_ok=True)
        log = metrics_log.MetricsLog(folder / "metrics.jsonl")
        checkpoints = run_state.FolderCheckpoints(folder / "checkpoints", resumes, log=log)
        options = dataclasses.replace(self.options, **changes)
        return fitting.fit(self.plan, self.data, options, checkpoints=checkpoints, callbacks=[log])


@pytest.fixture
def setup(inputs):
    """`setup(strategy="top:1")` has 32 sentences, 4 steps an epoch, and 14 others to validate and test with."""
    pretrained = hub.load(inputs.checkpoint("bert_mlm_tied", blocks=1))
    task = get_task("classification")
    train = tables.read(inputs.train)
    names = task.label_names(train, "label", ["text"])

    def examples(table):
        labels = task.encode_labels(table, "label", names)
        return task.examples(pretrained, table, ["text"], labels)

    held_out = examples(tables.read(inputs.test))
    sets = {"train": examples(train), "test": held_out, "validation": held_out}

    def build(**changes) -> Setup:
        options = dataclasses.replace(OPTIONS, **changes)
        data = TaskData.build(task, names, sets, options)
        return Setup(finetuning.build_plan(pretrained, data, options), data, options)

    return build


def seen_by(run: Setup, **arguments) -> tuple[fitting.Fitted, list[events.Event]]:
    seen: list[events.Event] = []
    return run.fit(callbacks=[seen.append], **arguments), seen


def of_kind(seen: list[events.Event], kind: type) -> list:
    return [event for event in seen if isinstance(event, kind)]


def test_events_come_in_the_order_of_the_run(setup):
    fitted, seen = seen_by(setup(strategy="lp-ft"))
    assert isinstance(seen[0], events.Started) and isinstance(seen[-1], events.Finished)
    assert (seen[0].step, seen[0].steps) == (0, 8)
    assert [event.phase.number for event in of_kind(seen, events.PhaseStarted)] == [0, 1]
    assert [event.phase.epochs for event in of_kind(seen, events.PhaseStarted)] == [
        range(0, 1),
        range(1, 2),
    ]
    steps = [event.step for event in of_kind(seen, events.Stepped)]
    assert steps == sorted(steps) and steps[-1] == fitted.steps == 8
    assert [event.step for event in of_kind(seen, events.Validated)] == [4, 8]
    assert seen[-1] == events.Finished(8, fitted.progress.best_step, "complete")


def test_every_phase_is_saved_before_it_trains_and_after_every_validation(setup):
    _, seen = seen_by(setup(strategy="lp-ft"))
    kept = [event for event in seen if isinstance(event, events.Validated | events.Saved)]
    kinds = [(type(event).__name__, event.step) for event in kept]
    assert kinds == [
        ("Saved", 0),
        ("Validated", 4),
        ("Saved", 4),
        ("Saved", 4),
        ("Validated", 8),
        ("Saved", 8),
    ]
    for validated, saved in itertools.pairwise(kept):
        if isinstance(validated, events.Validated):
            assert saved.is_best == validated.is_best


def test_the_summary_of_a_phase_counts_every_parameter_once(setup):
    run = setup(strategy="top:1")
    _, seen = seen_by(run)
    (phase,) = seen[0].phases
    rates = {group.name: group.learning_rate for group in phase.groups}
    assert rates == {"head": 1e-3, "encoder": 0.003, "frozen": None}
    assert sum(group.parameters for group in phase.groups) == tree.count(run.plan.params)


def test_compiling_is_announced_once_a_shape(setup):
    phases.shared_suffix.cache_clear()  # no run before this one has compiled a shape
    run = setup()
    _, seen = seen_by(run)
    compiling = of_kind(seen, events.Compiling)
    assert [event.what for event in compiling].count("evaluation") == 1
    shapes = [event.shape for event in compiling if event.what == "step"]
    assert len(shapes) == run.plan.phases[0].step.suffix._cache_size() <= 3
    assert len(set(shapes)) == len(shapes)


def test_the_cache_says_what_it_does(setup, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    _, seen = seen_by(setup(strategy="top:1", cache="on"))
    (chosen,) = of_kind(seen, events.CacheChosen)
    assert chosen.is_used and "stages are frozen" in chosen.reason
    progress = of_kind(seen, events.CacheProgress)
    assert progress[-1].done == progress[-1].total
    (ready,) = of_kind(seen, events.CacheReady)
    assert (ready.dtype, ready.relative_error) == ("float32", 0.0)


def test_the_loop_prints_nothing(setup, capfd):
    setup(strategy="lp-ft").fit()
    assert capfd.readouterr() == ("", "")


def test_an_error_in_a_callback_ends_the_run(setup):
    def stop(event: events.Event) -> None:
        if isinstance(event, events.Validated):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        setup().fit(callbacks=[stop])


@pytest.mark.parametrize("strategy", ["full", "top:1", "lp-ft"])
def test_a_run_in_memory_is_the_run_in_a_folder(setup, tmp_path, strategy):
    run = setup(strategy=strategy)
    in_memory = run.fit()
    in_folder = run.fit_in(tmp_path / "run")
    assert tree.digest(in_memory.best_params()) == tree.digest(in_folder.best_params())
    tested = [finetuning.test_best(run.plan, run.data, fitted) for fitted in (in_memory, in_folder)]
    assert tested[0].scores == tested[1].scores
    assert tested[0].facts["best_step"] == tested[1].facts["best_step"]


def test_a_run_in_memory_keeps_the_best_and_not_the_last_parameters(setup):
    run = setup(epochs=4, learning_rate=0.05, head_learning_rate=0.1)
    by_step = {}

    def keep(event: events.Event) -> None:
        if isinstance(event, events.Validated):
            by_step[event.step] = (event.scores["accuracy"], -event.loss)

    fitted = run.fit(callbacks=[keep])
    best = max(by_step, key=lambda step: by_step[step])
    assert fitted.progress.best_step == best
    evaluate = run.data.make_evaluate(run.plan.phases[0])
    scores, loss = evaluate(fitted.best_params(), "validation")
    assert (scores["accuracy"], -loss) == pytest.approx(by_step[best], rel=1e-6)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_stopped_and_resumed_is_the_same_run(setup, tmp_path, stop):
    run = setup(strategy="lp-ft", save_every=1)
    whole = run.fit_in(tmp_path / "whole")
    stopped = run.fit_in(tmp_path / "parts", stop_after=stop)
    assert (stopped.outcome, stopped.steps) == ("stopped", stop)
    resumed = run.fit_in(tmp_path / "parts", resumes=True)
    assert (resumed.outcome, resumed.steps) == ("complete", 8)
    logs = [tiny.lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert tiny.untimed(logs[0]) == tiny.untimed(logs[1])
    assert stored_digest(tmp_path / "whole") == stored_digest(tmp_path / "parts")
    assert tree.digest(whole.best_params()) == tree.digest(resumed.best_params())


def test_a_finished_run_that_is_resumed_takes_no_step(setup, tmp_path):
    run = setup()
    run.fit_in(tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    again = run.fit_in(tmp_path / "run", resumes=True)
    assert (again.outcome, again.steps) == ("complete", 8)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_run_stops_early_without_a_better_validation(setup):
    unchanged = {"learning_rate": 0.0, "head_learning_rate": 0.0, "weight_decay": 0.0}
    fitted, seen = seen_by(setup(**unchanged, epochs=6, patience=2))
    assert (fitted.outcome, fitted.steps, fitted.progress.best_step) == ("early", 12, 4)
    assert [event.is_best for event in of_kind(seen, events.Validated)] == [True, False, False]


def test_a_score_that_is_not_defined_loses_to_any_other():
    progress = run_state.Progress()
    assert progress.compare(float("nan"), 1.0)
    assert progress.compare(-0.5, 2.0)
    assert not progress.compare(float("nan"), 0.0)


def test_a_tie_goes_to_the_lower_loss():
    progress = run_state.Progress()
    assert progress.compare(0.5, 1.0)
    assert not progress.compare(0.5, 1.0)
    assert progress.compare(0.5, 0.9)
    assert (progress.best_score, progress.best_loss, progress.stale) == (0.5, 0.9, 0)


def test_the_log_has_no_nan(tmp_path):
    log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl")
    log(events.Validated(0, 4, 0.5, {"pearson": np.nan}, True))
    assert tiny.lines(tmp_path / "metrics.jsonl") == [
        {"epoch": 0, "step": 4, "validation_loss": 0.5, "validation_pearson": None}
    ]
