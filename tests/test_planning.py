"""What strategies cost, as data: counts are exact, depths lie on a line, nothing pays that does not."""

import collections
import contextlib
import dataclasses
import inspect
from collections.abc import Iterator

import jax
import numpy as np
import pandas
import pytest

import adapt
from adapt import devices, planning, tree
from adapt.cli import plan as command
from adapt.data.examples import Examples
from adapt.data.inputs import Columns
from adapt.data.sources import TokenSource
from adapt.errors import AdaptError, StrategyError
from adapt.models import accelerated
from adapt.options import FinetuningOptions
from adapt.planning import MeasuredStep, Overhead, Timings, Workload
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, is_kernel, make_step
from tests.helpers import small, tiny

OVERHEAD = Overhead(set_up=1.0, score=0.0, plot=0.0, first_save=0.0, byte_saved=0.0)
TEXTS, LABELS = map(list, zip(*tiny.sentences(32), strict=True))
STEP = MeasuredStep(first_seconds=1.0, seconds=0.1, peak_bytes=1000, flops_per_example=5.0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def workload() -> Workload:
    model = small.classifier()
    texts = Examples(TokenSource(small.texts(50), 24), np.arange(50), np.zeros(50, np.int32))
    sets = {"train": texts.take(np.arange(40)), "validation": texts.take(np.arange(40, 50))}
    return Workload(model, small.params(model), sets, cross_entropy, epochs=3, batch_size=8)


@contextlib.contextmanager
def compiled_programs() -> Iterator[collections.Counter[str]]:
    """Inside, how often each program is compiled is counted by its name."""
    counts: collections.Counter[str] = collections.Counter()

    def count(event: str, _: float, *, fun_name: str = "", **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            counts[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def timings(*names: str) -> Timings:
    return Timings(dict.fromkeys(names, STEP), prefix=(1.0, 0.2), forward=5.0)


def test_a_plan_has_every_depth_once():
    names = planning.planned_strategies(2, ["bitfit", "top:1"])
    assert names == ["full", "top:2", "top:1", "frozen", "bitfit"]


def test_depths_between_those_timed_lie_on_their_line():
    deep = dataclasses.replace(STEP, seconds=0.5, peak_bytes=3000)
    timed = Timings({"top:1": STEP, "top:5": deep}, prefix=(0.0, 0.0), forward=0.0)
    middle = timed.step("top:3", layers=5)
    assert middle.seconds == pytest.approx(0.3) and middle.peak_bytes == 2000
    assert timed.step("top:1", layers=1) == STEP


def test_the_seconds_of_a_run_are_those_of_its_steps_and_evaluations(workload):
    timed = timings("full", "frozen", "top:1", "top:2")
    full = planning.estimate(workload, timed, OVERHEAD, "full")
    frozen = planning.estimate(workload, timed, OVERHEAD, "frozen")
    steps, evaluated = 3 * 5, 3 * 10  # of 0.1 s; of 5 s / 50 each
    assert full.seconds == pytest.approx(1 + steps * 0.1 + evaluated * 0.1)
    assert full.seconds_cached is None and full.cache_bytes == 0 and full.best == full.seconds
    # All blocks of each batch too, 0.2 s; with the cache once over the file's 50 examples.
    assert frozen.seconds == pytest.approx(1 + steps * 0.3 + evaluated * 0.1)
    assert frozen.seconds_cached == pytest.approx(1 + steps * 0.1 + 5, rel=1e-3)
    assert frozen.cache_bytes == 50 * 16 * 4 and frozen.best == frozen.seconds_cached


def test_parameters_and_moments_are_counted(workload):
    frozen = planning.estimate(workload, timings("frozen"), OVERHEAD, "frozen")
    head = tree.count(workload.params["head"])
    assert frozen.parameters_trained == head and frozen.cut == 3
    assert 8 * head <= frozen.optimizer_bytes <= 8 * head + 64


def test_a_step_is_fitted_to_the_memory_of_the_device(workload):
    """By what its compiled program needs, which is that of a step that a run would take."""
    assert planning.fit_to_memory(workload, "full") is None  # a CPU says nothing of its memory

    few = workload.sets["train"].take(np.arange(2))
    workload = dataclasses.replace(workload, batch_size=2, sets=workload.sets | {"train": few})
    prepared = planning.prepare("full", workload.model, workload.params)
    step = make_step(workload.model, workload.loss, prepared.tx)
    frozen, state = init_state(prepared.params, prepared.labels, prepared.tx, jax.random.key(0))
    batch = planning.largest_batch_of(workload, 2, 1)
    whole, _ = planning.compiled_cost(step, frozen, state, batch)

    memory = -(-whole // planning.MEMORY_SHARE)
    with devices.pretend(devices.Device("cpu", memory=int(memory))):
        fit = planning.fit_to_memory(workload, "full")
    assert fit is not None and fit.nbytes == whole <= fit.memory
    assert fit.options == {"batch_size": 2, "accumulate": 1, "remat": "none"}
    assert (fit.tokens, fit.largest) == (batch["segments"].size, 2)
    FinetuningOptions(**fit.options).check()
    assert 0 < planning.step_bytes(workload, "full", "block", 1, 2) < np.inf


def test_int8_kernels_are_counted_and_are_refused_where_none_is_frozen(workload):
    stored = dataclasses.replace(workload, frozen_dtype="int8")
    exact, narrow = (
        planning.step_bytes(each, "frozen", "none", 8, 1) for each in (workload, stored)
    )
    params = tree.paths(workload.params)
    numbers = sum(leaf.size for path, leaf in params.items() if is_kernel(path))
    assert exact - narrow > numbers  # three bytes each, and a CPU widens some at once
    with pytest.raises(StrategyError, match="`frozen_dtype` int8: `fit` full freezes no kernel"):
        planning.fit_to_memory(stored, "full", 1.0)


@pytest.mark.parametrize(
    ("memory", "name"),
    [(0, "full"), (-1.0, "full"), ("8", "full"), (1.0, "gradual"), (1e-6, "full")],
)
def test_no_memory_no_strategy_and_nothing_that_fits_are_errors(
    workload, memory, name, monkeypatch
):
    monkeypatch.setattr(planning, "step_bytes", lambda *arguments: 2**20)
    with pytest.raises(StrategyError):
        planning.fit_to_memory(workload, name, memory)


def test_what_saves_little_is_not_worth_it(workload):
    full = planning.estimate(workload, timings("full"), OVERHEAD, "full")
    for share, is_worth_it in ((0.84, True), (0.86, False)):
        other = dataclasses.replace(full, seconds=share * full.seconds)
        assert other.is_worth_it(full) == is_worth_it


def test_a_strategy_of_several_phases_is_refused(workload):
    with pytest.raises(StrategyError, match="gradual has"):
        planning.prepare("gradual", workload.model, workload.params)


def test_programs_are_timed_and_the_command_s_record_has_them(workload):
    told = []
    model = small.classifier("small")
    workload = dataclasses.replace(workload, model=model, params=small.params(model), repeats=1)
    with compiled_programs() as programs:
        estimates, timed = planning.estimate_strategies(
            workload, ["bitfit"], OVERHEAD, on_progress=lambda *done: told.append(done)
        )
    assert told == [(number, 8) for number in range(1, 9)]
    assert programs["jit(step)"] == 4, "a step was compiled again to be timed"
    assert [estimate.strategy for estimate in estimates][-1] == "bitfit"
    record = timed.to_json()
    assert set(record) == {"frozen", "top:1", "full", "bitfit", "prefix", "forward"}
    assert all(value > 0 for name in ("full", "bitfit") for value in record[name])
    assert timed.forward > 0 and timed.prefix[1] > 0


# From what people hold


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


def test_the_plan_of_lists_is_a_table(bert):
    report = adapt.plan(bert, TEXTS, LABELS, also=["bitfit"], epochs=1, batch_size=8, steps=1)
    frame = report.to_pandas()
    assert list(frame["strategy"]) == ["full", "top:1", "frozen", "bitfit"]
    assert (frame["best"] <= frame["seconds"]).all() and not frame["is_worth_it"][0]
    assert frame["parameters_trained"][2] == 2 * bert.config.width + 2
    assert report.overhead.set_up > 0 and report.overhead.plot == 0
    assert "4 strategies" in repr(report) and len(repr(report)) < 200


def test_the_arguments_are_the_flags_of_the_command():
    parameters = inspect.signature(adapt.plan).parameters
    flags = {field.name: field for field in dataclasses.fields(command.Config)}
    of_the_shell = {"checkpoint", "data", "out", "overwrite", "measure", "import_"}
    of_python = {"pretrained", "inputs", "labels", "on_progress"}
    assert flags.keys() - of_the_shell == parameters.keys() - of_python
    for name in flags.keys() - of_the_shell:
        assert parameters[name].default == flags[name].default, name


def test_a_file_without_a_test_part_is_planned_for_all_the_same(bert, inputs):
    frame = pandas.DataFrame({"body": TEXTS, "stars": LABELS})
    columns = Columns(text="body", label="stars")
    for rows, options in ((inputs.train, {}), (frame, {"columns": columns})):
        workload = planning.prepare_workload(bert, rows, None, FinetuningOptions(), [], **options)
        assert set(workload.sets) == {"train", "validation"} and len(workload.names) == 2


MISTAKES = {
    "a text for a list": (("a good film", LABELS), {}, "`inputs`"),
    "a label for a list": ((TEXTS, "positive"), {}, "`labels`"),
    "too few labels": ((TEXTS, LABELS[:3]), {}, "equally long"),
    "no labels": ((TEXTS, None), {}, "has no column 'label'"),
    "a strategy for a list": ((TEXTS, LABELS), {"also": "bitfit"}, "`also`"),
    "a number for a strategy": ((TEXTS, LABELS), {"also": [3]}, "`also`"),
    "an unknown strategy": ((TEXTS, LABELS), {"also": ["bottom:2"]}, "bottom:2"),
    "a strategy of several phases": ((TEXTS, LABELS), {"also": ["gradual"]}, "gradual has"),
    "an unknown pooling": ((TEXTS, LABELS), {"pooling": "average"}, "`pooling`"),
    "a task of several rows": ((TEXTS, LABELS), {"task": "tags"}, "`task`"),
    "a word for epochs": ((TEXTS, LABELS), {"epochs": "3"}, "`epochs`"),
    "no step": ((TEXTS, LABELS), {"steps": 0}, "`steps`"),
    "a negative seed": ((TEXTS, LABELS), {"seed": -1}, "`seed`"),
    "a test of three": ((TEXTS, LABELS), {"test": (TEXTS, LABELS, 3)}, "`test`"),
    "an unknown dtype": ((TEXTS, LABELS), {"dtype": "fp16"}, "`dtype`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_parameter(bert, mistake):
    arguments, options, named = MISTAKES[mistake]
    with pytest.raises(AdaptError, match=named) as raised:
        adapt.plan(bert, *arguments, **options)
    assert "\n" not in str(raised.value)


def test_bitfit_is_left_out_of_a_plan_where_there_are_no_biases(caplog):
    none = {"encoder": {"kernel": np.ones(2)}, "head": {"bias": np.ones(2)}}
    assert planning.those_that_train(planning.ALSO, none) == ["lora:8", "adapters:16"]
    assert "bitfit is not planned" in caplog.text
    with pytest.raises(StrategyError, match="`also` has bitfit"):
        planning.those_that_train(["bitfit"], none)
    some = {"encoder": {"norm": {"bias": np.ones(2)}}}
    assert planning.those_that_train(planning.ALSO, some) == planning.ALSO


def test_programs_are_compiled_with_the_settings_of_the_caller(workload, monkeypatch):
    def cost_in_thread(*_: object) -> tuple[object, object]:
        return jax.config.jax_default_matmul_precision, accelerated.target_device.get()

    monkeypatch.setattr(planning, "abstract_arguments", lambda *_: (None, None))
    monkeypatch.setattr(planning, "compiled_cost", cost_in_thread)
    planned = {"full": planning.plan_step(workload, "full")}
    with (
        jax.default_matmul_precision("float32"),
        accelerated.set_contextvar(accelerated.target_device, "a device"),
    ):
        costs = planning.compile_steps(workload, planned, {}, lambda _: None)
    assert costs == {"full": ("float32", "a device")}
