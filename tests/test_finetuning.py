"""From two lists to a model that predicts, and back from its folder."""

import dataclasses
import inspect
from types import SimpleNamespace

import jax
import numpy as np
import pandas
import pytest

import adapt
from adapt import devices, finetuning, fitting, pretraining, tree
from adapt.errors import (
    AdaptError,
    CheckpointError,
    DataError,
    OutputError,
    StrategyError,
    TrainingError,
)
from adapt.finetuning import prepare
from adapt.options import FinetuningOptions
from adapt.training import events, phases
from adapt.training.phases import CompiledPhase
from adapt.training.step import cast_kernels
from tests.helpers import tiny
from tests.helpers.runs import assert_same_run

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(32), strict=True))
NEW_TEXTS, NEW_LABELS = map(list, zip(*tiny.sentences(14, seed=1), strict=True))
FAST = {"epochs": 2, "batch_size": 8, "learning_rate": 0.003, "patience": 0}
TAGGED = ([["the", "good", "film"]] * 8, [["O", "B-PER", "O"]] * 8)


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture
def finetune(bert):
    def run(inputs=TEXTS, labels=LABELS, **options):
        return adapt.finetune(bert, inputs, labels, **FAST | options)

    return run


def test_two_lists_become_a_model_that_predicts(finetune, bert):
    before = tree.digest(bert.params)
    run = finetune(test=(NEW_TEXTS, NEW_LABELS))
    assert set(run.scores) == {"validation", "test"}
    predictions = run.predict(NEW_TEXTS)
    accuracy = np.mean(predictions.labels == np.array(NEW_LABELS))
    assert accuracy == pytest.approx(run.scores["test"]["accuracy"])
    assert predictions.classes == ("negative", "positive")
    assert predictions.probabilities.sum(1) == pytest.approx(np.ones(14), abs=1e-6)
    assert tree.digest(bert.params) == before, "the checkpoint in memory moved"


def test_the_options_are_those_of_the_command():
    signature = inspect.signature(adapt.finetune)
    for field in dataclasses.fields(FinetuningOptions):
        if field.name != "checkpoint":
            assert signature.parameters[field.name].default == field.default, field.name


def test_every_option_is_handed_on(monkeypatch):
    """`finetune` and `pretrain` name each option once more: none is left out, none is another one's."""

    class Handed(Exception):
        pass

    def refuse(**options):
        raise Handed(options)

    for call, module, group in (
        (adapt.finetune, finetuning, "FinetuningOptions"),
        (adapt.pretrain, pretraining, "PretrainingOptions"),
    ):
        names = {field.name for field in dataclasses.fields(getattr(module, group))}
        given = {name: object() for name in names & inspect.signature(call).parameters.keys()}
        monkeypatch.setattr(module, group, refuse)
        with pytest.raises(Handed) as raised:
            call("a checkpoint", ["a text"], **given)
        (handed,) = raised.value.args
        assert handed.keys() == names
        assert {name: handed[name] for name in given} == given


def test_the_same_run_by_lists_and_by_a_file_is_the_same_run(finetune, inputs):
    by_lists = finetune()
    by_file = finetune(inputs.train, None)
    assert tree.digest(by_lists.pretrained.params) == tree.digest(by_file.pretrained.params)


@pytest.mark.parametrize("strategy", ["top:1", "lp-ft+top:1"])
def test_frozen_kernels_in_the_compute_dtype_give_the_same_bits(inputs, monkeypatch, strategy):
    """What a step would cast at every call is cast once; the run keeps what was loaded."""
    pretrained = adapt.load(inputs.checkpoint("bert_mlm_tied"))  # of two blocks
    options = {
        "strategy": strategy,
        "dtype": "bfloat16",
        "cache": "off",
        "test": (NEW_TEXTS, NEW_LABELS),
    }
    stored = []
    place_kernels = phases.place_kernels

    def noted(params, dtype, layout):
        stored.append(place_kernels(params, dtype, layout))
        return stored[-1]

    monkeypatch.setattr(phases, "place_kernels", noted)
    once = adapt.finetune(pretrained, TEXTS, LABELS, **FAST | options)
    kernels = [leaf for path, leaf in tree.paths(stored[0]).items() if path.endswith("kernel")]
    assert kernels and {str(leaf.dtype) for leaf in kernels} == {"bfloat16"}

    monkeypatch.setattr(CompiledPhase, "frozen_dtype", None)
    count = len(stored)
    at_every_step = adapt.finetune(pretrained, TEXTS, LABELS, **FAST | options)
    assert len(stored) == count
    assert once.scores == at_every_step.scores
    assert tree.digest(once.pretrained.params) == tree.digest(at_every_step.pretrained.params)
    for name in ("frozen_digest_before", "frozen_digest_after"):
        assert once.result[name] == at_every_step.result[name]


def test_a_frozen_kernel_that_moved_on_the_device_is_reported(bert):
    params = {"encoder": {"block_00": {"mlp": {"up": {"kernel": np.ones((2, 2), np.float32)}}}}}
    phase = SimpleNamespace(frozen_dtype="bfloat16")
    computed = cast_kernels(params, "bfloat16")
    active = fitting.ActivePhase(phase, params, computed, None, None)
    active.check_unmoved()
    kernel = computed["encoder"]["block_00"]["mlp"]["up"]["kernel"]
    kernel[0, 0] = 2
    with pytest.raises(TrainingError, match="moved"):
        active.check_unmoved()


def test_an_int8_base_trains_is_told_and_is_not_what_the_run_keeps(finetune, bert, tmp_path):
    """Stopped and resumed it is the same run, bit for bit."""
    told = []
    options = {"strategy": "lora:2", "frozen_dtype": "int8", "test": (NEW_TEXTS, NEW_LABELS)}
    whole = finetune(out=tmp_path / "whole", callbacks=[told.append], **options)
    finetune(out=tmp_path / "parts", stop_after=3, **options)
    finetune(out=tmp_path / "parts", resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")

    (stored,) = [event for event in told if isinstance(event, events.FrozenStored)]
    assert (stored.dtype, stored.kernels) == ("int8", 6)
    assert stored.nbytes < 0.3 * stored.computed_bytes
    assert 0 < stored.kernel_error < 0.01 and 0 < stored.output_error < 0.05
    assert whole.result["frozen_stored"] == dataclasses.asdict(stored)

    kept = tree.paths(whole.pretrained.params["encoder"])
    for path, leaf in tree.paths(bert.params["encoder"]).items():
        assert kept[path].dtype == leaf.dtype
        np.testing.assert_array_equal(kept[path], leaf)
    again = adapt.load(tmp_path / "whole")
    assert tree.digest(again.params) == tree.digest(whole.pretrained.params)


def test_cached_states_of_an_int8_prefix_are_not_those_of_a_float_one(finetune):
    folders = []
    for frozen_dtype in (None, "int8"):
        options = {"strategy": "frozen", "learning_rate": None, "epochs": 1, "cache": "on"}
        run = finetune(frozen_dtype=frozen_dtype, **options)
        folders.append(run.result["cache"]["folders"])
    assert len(folders[0]) == len(folders[1]) > 0
    assert not set(folders[0]) & set(folders[1])


def test_a_frozen_dtype_is_refused_where_no_kernel_is_frozen(finetune):
    with pytest.raises(StrategyError, match="`frozen_dtype` int8: `strategy` full freezes no"):
        finetune(frozen_dtype="int8")
    with pytest.raises(StrategyError, match="`frozen_dtype` is 'int4': give one of float32"):
        finetune(strategy="lora:2", frozen_dtype="int4")


def test_auto_computes_in_what_the_device_has_and_says_so(finetune, tmp_path):
    assert finetune().result["dtype"] == "float32"
    with devices.pretend(devices.Device("tpu")):
        run = finetune(out=tmp_path / "run", stop_after=3)
    assert (run.settings["dtype"], run.settings["used"]["dtype"]) == ("auto", "bfloat16")

    with pytest.raises(OutputError, match=r"`dtype` was 'bfloat16' .* 'float32' now"):
        finetune(out=tmp_path / "run", resume=True)
    run = finetune(out=tmp_path / "run", resume=True, dtype="bfloat16")
    assert (run.outcome, run.result["dtype"]) == ("complete", "bfloat16")


def test_a_run_without_a_test_set_is_a_run(finetune):
    run = finetune()
    assert list(run.scores) == ["validation"]
    assert run.outcome == "complete" and run.steps == 8
    assert "validation accuracy" in repr(run) and len(repr(run)) < 300


def test_labels_come_back_as_what_they_were(finetune):
    numbers = [int(label == "positive") for label in LABELS]
    for labels in (numbers, np.array(numbers), pandas.Series(numbers)):
        predictions = finetune(labels=labels, epochs=1).predict(NEW_TEXTS)
        assert predictions.labels.dtype == np.int64 and set(predictions.classes) == {0, 1}
    halves = pandas.Series([number / 2 for number in numbers])
    for labels in (np.array(numbers, float), halves):  # as pandas has them once one was missing
        predictions = finetune(labels=labels, epochs=1).predict(NEW_TEXTS)
        assert predictions.labels.dtype == float and set(predictions.classes) == set(labels)
        assert predictions.header[1:] == [
            f"probability:{name}" for name in predictions.pretrained.labels
        ]
        assert {row[0] for row in predictions.rows} <= set(predictions.pretrained.labels)
    flags = [bool(number) for number in numbers]
    predictions = finetune(labels=flags, epochs=1).predict(NEW_TEXTS)
    assert predictions.labels.dtype == bool and predictions.classes == (False, True)


def test_tags_come_back_as_what_they_were(finetune):
    words = [text.split() for text in TEXTS]
    tags = [[int(word in tiny.GOOD) for word in sentence] for sentence in words]
    predictions = finetune(words, tags, task="tags", epochs=1).predict(words)
    assert {tag for sentence in predictions.labels for tag in sentence} <= {0, 1}
    assert all(set(row[0]) <= set('[]", 01') for row in predictions.rows)


def test_evaluate_scores_labelled_data(finetune):
    run = finetune(test=(NEW_TEXTS, NEW_LABELS))
    scores = run.evaluate(NEW_TEXTS, NEW_LABELS)
    assert scores["accuracy"] == run.scores["test"]["accuracy"]
    assert scores["loss"] == pytest.approx(run.scores["test"]["loss"], rel=1e-5)
    with pytest.raises(DataError, match="unseen"):
        run.evaluate(["a film"], ["so-so"])


@pytest.mark.parametrize("written_while_training", [True, False])
def test_a_run_comes_back_from_its_folder(finetune, tmp_path, written_while_training):
    folder = tmp_path / "run"
    run = finetune(strategy="top:1", **{"out": folder} if written_while_training else {})
    if not written_while_training:
        run.save(folder)
    again = adapt.load_run(folder)
    assert tree.digest(again.pretrained.params) == tree.digest(run.pretrained.params)
    assert repr(again) == repr(run)
    assert again.result == run.result and again.settings == run.settings
    assert again.history == run.history
    one, other = (each.predict(NEW_TEXTS).outputs for each in (run, again))
    assert np.array_equal(one, other)
    with pytest.raises(OutputError):
        run.save(folder)


def test_a_stopped_run_goes_on_bit_for_bit(finetune, tmp_path):
    whole = finetune(out=tmp_path / "whole")
    stopped = finetune(out=tmp_path / "run", stop_after=5)
    assert stopped.outcome == "stopped" and stopped.result == {}
    loaded = adapt.load_run(tmp_path / "run")
    assert repr(loaded) == repr(stopped) and repr(stopped).endswith("stopped after step 5 of 8)")
    (validation,) = (record for record in stopped.history if "validation_loss" in record)
    for run in (stopped, loaded):
        assert run.scores["validation"]["loss"] == validation["validation_loss"]
        assert run.scores["validation"]["accuracy"] == validation["validation_accuracy"]
    resumed = finetune(out=tmp_path / "run", resume=True)
    assert tree.digest(resumed.pretrained.params) == tree.digest(whole.pretrained.params)
    assert resumed.scores == whole.scores


def test_a_number_is_no_folder(finetune):
    run = finetune(epochs=1)
    for write in (run.save, run.export):
        with pytest.raises(OutputError, match="out"):
            write(3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder_to_write(finetune, tmp_path, overwrite):
    file = tmp_path / "train.csv"
    file.write_text("text,label")
    run = finetune(epochs=1)
    for out in (file, file / "run"):
        with pytest.raises(OutputError, match=r"train\.csv"):
            run.save(out, overwrite=overwrite)
        with pytest.raises(OutputError, match=r"train\.csv"):
            finetune(epochs=1, out=out, overwrite=overwrite)
    assert file.read_text() == "text,label"


def test_a_run_that_was_saved_afterwards_does_not_go_on(finetune, tmp_path):
    finetune(epochs=1).save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="resume"):
        finetune(epochs=1, out=tmp_path / "run", resume=True)
    assert adapt.load_run(tmp_path / "run").steps == 4


def test_callbacks_see_the_run(finetune):
    seen = []
    run = finetune(callbacks=[seen.append])
    assert isinstance(seen[0], events.Started) and isinstance(seen[-1], events.Finished)
    validated = [event for event in seen if isinstance(event, events.Validated)]
    best = max(validated, key=lambda event: (event.scores["accuracy"], -event.loss))
    assert run.scores["validation"]["accuracy"] == best.scores["accuracy"]


# What decides


def first_logit(outputs, labels):
    """A metric for which the labels do not matter."""
    return outputs[:, 0].mean()


def validations(finetune, **options):
    """(the run, its validations)."""
    seen = []
    run = finetune(callbacks=[seen.append], **FAST | {"epochs": 4} | options)
    return run, [event for event in seen if isinstance(event, events.Validated)]


@pytest.mark.parametrize("score", [None, "rare_f1", "first_logit", "loss"])
def test_any_metric_decides_which_checkpoint_is_the_best(finetune, tmp_path, score):
    options = {"score": score, "metrics": {"first_logit": first_logit}, "out": tmp_path / "run"}
    run, seen = validations(finetune, **options)
    decides = score or "accuracy"
    values = [-event.loss if score == "loss" else event.scores[decides] for event in seen]
    keys = [(value, -event.loss) for value, event in zip(values, seen, strict=True)]
    best = seen[keys.index(max(keys))]
    assert run.result["best_step"] == best.step
    best_value = best.loss if score == "loss" else best.scores[decides]
    assert run.result["validation_score"] == best_value
    assert run.result["primary_metric"] == run.lineage["primary_metric"] == decides
    assert f"validation {decides}" in repr(run)
    again = adapt.load_run(tmp_path / "run")
    assert again.settings["score"] == score and again.settings["metrics"] == ["first_logit"]
    assert again.scores["validation"]["first_logit"] == best.scores["first_logit"]


def test_metrics_of_ones_own_are_in_every_score_and_in_the_log(finetune):
    run = finetune(metrics={"first_logit": first_logit}, test=(NEW_TEXTS, NEW_LABELS))
    outputs = run.predict(NEW_TEXTS).outputs
    assert run.scores["test"]["first_logit"] == pytest.approx(outputs[:, 0].mean(), rel=1e-5)
    scores = run.evaluate(NEW_TEXTS, NEW_LABELS, metrics={"first_logit": first_logit})
    assert scores["first_logit"] == pytest.approx(outputs[:, 0].mean(), rel=1e-5)
    assert sum("validation_first_logit" in record for record in run.history) == 2


def test_a_score_that_is_never_defined_is_no_number(finetune):
    run = finetune(metrics={"undefined": lambda outputs, labels: np.nan}, score="undefined")
    assert run.result["validation_score"] is None and run.outcome == "complete"


@pytest.mark.parametrize(
    "task", ["regression", "multilabel", "tags", "span", "choice", "multitask"]
)
def test_every_task_lists_its_metrics_where_the_score_is_unknown(finetune, task):
    texts, labels = CASES[task]
    with pytest.raises(StrategyError, match=r"score.*(accuracy|pearson|f1)") as raised:
        finetune(texts, labels, task=task, score="acuracy")
    assert str(raised.value).endswith("loss")


# Phases of one's own

HEAD = ("head/.*", "head")
REST = (".*", adapt.FROZEN)
SCHEDULE = [
    adapt.Phase([HEAD, REST], 1),
    adapt.Phase([HEAD, ("encoder/block_00/.*", "top"), REST], np.int64(2), layer_decay=0.5),
]


def test_a_list_of_phases_is_a_strategy_that_the_run_names(finetune, bert, tmp_path):
    seen = []
    options = {"epochs": FinetuningOptions.epochs, "learning_rate": None, "seed": 1}
    run = finetune(strategy=SCHEDULE, callbacks=[seen.append], out=tmp_path / "run", **options)
    phases = [event.phase for event in seen if isinstance(event, events.PhaseStarted)]
    assert [phase.epochs for phase in phases] == [range(1), range(1, 3)]
    groups = [{group.name for group in phase.groups} for phase in phases]
    assert groups == [{"head", "frozen"}, {"head", "top_01", "frozen"}]
    assert run.settings["epochs"] == 3 and "own phases" in repr(run)
    again = adapt.load_run(tmp_path / "run")
    spelled = again.settings["strategy"]
    read = adapt.strategy(spelled, bert.config.layers, 3)
    assert [phase.rules for phase in read.phases] == [phase.rules for phase in SCHEDULE]
    assert [phase.layer_decay for phase in read.phases] == [1.0, 0.5]
    by_text = finetune(strategy=spelled, **options)
    assert tree.digest(by_text.pretrained.params) == tree.digest(run.pretrained.params)


def test_phases_that_a_name_has_are_those_of_the_name(finetune):
    own = adapt.strategy("lora:2+bitfit+l2sp:0.1", layers=1, epochs=2)
    by_object = finetune(strategy=own)
    by_name = finetune(strategy="lora:2+bitfit+l2sp:0.1")
    assert tree.digest(by_object.pretrained.params) == tree.digest(by_name.pretrained.params)


# Weights


def weighted(bert, texts, labels, **options):
    """The digestible parameters after three steps over all rows at once, without dropout."""
    run = adapt.finetune(
        bert,
        texts,
        labels,
        validation=(NEW_TEXTS, NEW_LABELS),
        **FAST | {"epochs": 3, "batch_size": 64, "dropout": 0.0, "score": "loss"} | options,
    )
    return tree.paths(run.pretrained.params)


def assert_same_params(one, other):
    """All but the biases of keys: a softmax does not see them, so Adam scales up what is round-off."""
    for path, leaf in one.items():
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(leaf, other[path], rtol=1e-3, atol=2e-5, err_msg=path)


def test_a_weight_of_2_is_the_example_twice(bert):
    weights = [2.0] * 8 + [1.0] * 24
    assert_same_params(
        weighted(bert, TEXTS, LABELS, weights=weights),
        weighted(bert, TEXTS[:8] + TEXTS, LABELS[:8] + LABELS),
    )


def test_a_weight_of_0_leaves_the_example_out_and_only_ratios_matter(bert):
    weights = np.array([0.0] * 8 + [5.0] * 24)
    assert_same_params(
        weighted(bert, TEXTS, LABELS, weights=weights), weighted(bert, TEXTS[8:], LABELS[8:])
    )


def test_weights_come_from_a_column_too(bert, tmp_path):
    rows = [(*row, 1 + number % 2) for number, row in enumerate(tiny.sentences(32))]
    file = tiny.write_table(tmp_path / "train.csv", rows, ("text", "label", "count"))
    by_column = weighted(bert, file, None, weights="count")
    by_list = weighted(bert, TEXTS, LABELS, weights=pandas.Series([1, 2] * 16))
    assert tree.digest(tree.unflatten(by_column)) == tree.digest(tree.unflatten(by_list))


def test_validation_and_test_are_not_weighted(bert):
    options = FinetuningOptions(**FAST)
    prepared = prepare(
        bert, TEXTS, LABELS, options, test=(NEW_TEXTS, NEW_LABELS), weights=[1, 3] * 16
    )
    sets = prepared.data.sets
    assert sets["validation"].weights is None and sets["test"].weights is None
    assert sets["train"].weights.mean() == pytest.approx(1)
    assert len(np.unique(sets["train"].weights)) == 2


def test_a_changed_weight_is_other_data(finetune, tmp_path):
    finetune(out=tmp_path / "run", stop_after=2, weights=[1, 2] * 16)
    with pytest.raises(OutputError, match="training data"):
        finetune(out=tmp_path / "run", resume=True, weights=[2, 1] * 16)


def test_words_have_the_weight_of_their_example(finetune):
    texts, labels = CASES["tags"]
    run = finetune(texts, labels, task="tags", weights=np.arange(32), epochs=1)
    assert run.lineage["weighted"] and np.isfinite(run.result["validation_score"])


# Losses of one's own

ONE_HOT = np.eye(2)[[int(label == "positive") for label in LABELS]]


@adapt.context_loss
def distil(context):
    """The cross-entropy with the classes that ``extras`` say."""
    return -(context.batch["teacher"] * jax.nn.log_softmax(context.outputs)).sum(-1)


@pytest.mark.parametrize(
    ("strategy", "cache"), [("frozen", "on"), ("top:1", "on"), ("full", "auto")]
)
def test_extras_come_with_their_example(bert, strategy, cache):
    """Distillation from a teacher who knows the labels is training with them, split or not."""
    options = FAST | {"strategy": strategy, "cache": cache, "learning_rate": None, "dropout": 0.0}
    plain = adapt.finetune(bert, TEXTS, LABELS, **options)
    options |= {"loss": distil, "extras": {"teacher": ONE_HOT}}
    distilled = adapt.finetune(bert, TEXTS, LABELS, **options)
    assert_same_params(*[tree.paths(run.pretrained.params) for run in (plain, distilled)])


def test_a_loss_of_ones_own_trains_and_is_named(finetune, tmp_path):
    def squared(outputs, labels):
        return ((outputs - jax.nn.one_hot(labels, 2)) ** 2).sum(-1)

    run = finetune(loss=squared, out=tmp_path / "run", stop_after=2)
    assert run.settings["loss"].endswith("squared")
    for other in (None, distil):
        with pytest.raises(OutputError, match="`loss`"):
            finetune(loss=other, out=tmp_path / "run", resume=True)
    resumed = finetune(loss=squared, out=tmp_path / "run", resume=True)
    whole = finetune(loss=squared)
    assert tree.digest(resumed.pretrained.params) == tree.digest(whole.pretrained.params)
    # What validation says is the loss of the task.
    assert resumed.scores["validation"]["loss"] == pytest.approx(0.7, abs=0.2)


def test_what_a_loss_reads_from_outside_is_read_in_every_run(finetune):
    factor = 1.0

    def scaled(outputs, labels):
        return factor * adapt.cross_entropy(outputs, labels)

    assert finetune(loss=scaled, epochs=1).history[0]["loss"] > 0
    factor = 0.0
    assert finetune(loss=scaled, epochs=1).history[0]["loss"] == 0


def test_a_split_seed_changes_the_split_alone(bert):
    digests = set()
    for split_seed in (None, 0, 1):
        prepared = prepare(
            bert,
            TEXTS,
            LABELS,
            FinetuningOptions(**FAST),
            seed=0,
            split_seed=split_seed,
        )
        digests.add(prepared.data.sets["validation"].digest)
    assert len(digests) == 2


def test_truncated_texts_are_counted_wherever_texts_go_in(finetune, caplog):
    long = ["good " * 30, *TEXTS]
    labels = ["positive", *LABELS]
    said = "1 text is longer than 20 tokens and truncated"
    run = finetune(long, labels, epochs=1, test=(NEW_TEXTS, NEW_LABELS))
    of_lengths = [
        record for record in caplog.records if record.name == "adapt.pretrained.tokenizer"
    ]
    assert [record.message for record in of_lengths] == [f"train: {said}: 12 tokens are left out"]
    for call in (run.predict, run.encode, lambda texts: run.evaluate(texts, labels)):
        caplog.clear()
        call(long)
        assert [message.split(": ")[1] for message in caplog.messages] == [said]


def test_numbers_of_numpy_are_settings_as_numbers_of_python_are(bert):
    options = FinetuningOptions(epochs=np.int64(2), learning_rate=np.float32(0.5))
    prepared = prepare(bert, TEXTS, LABELS, options, validation=np.float32(0.25), seed=np.int64(3))
    settings = prepared.settings
    assert settings["epochs"] == 2 and settings["seed"] == 3
    assert settings["learning_rate"] == 0.5 and settings["held_out"] == 0.25


CASES = {
    "regression": (TEXTS, [float(label == "positive") for label in LABELS]),
    "multilabel": (
        TEXTS,
        [[label, "film"] if "film" in text else [label] for text, label in tiny.sentences(32)],
    ),
    "tags": (
        [text.split() for text in TEXTS],
        [["x" if word in tiny.GOOD else "o" for word in text.split()] for text in TEXTS],
    ),
    "span": (TEXTS, [[0, len(text.split()[0])] for text in TEXTS]),
    "choice": (
        [(text, ["good", "bad"]) for text in TEXTS],
        [int(label == "negative") for label in LABELS],
    ),
    "multitask": (TEXTS, {"tone": LABELS, "first": [text[0] for text in TEXTS]}),
    "contrastive": ([(text, text) for text in TEXTS], None),
    "setfit": (TEXTS, LABELS),
}


@pytest.mark.parametrize("task", CASES)
def test_every_task_trains_predicts_and_is_scored_from_lists(finetune, task, tmp_path):
    texts, labels = CASES[task]
    run = finetune(texts, labels, task=task, epochs=1)
    scores = run.evaluate(texts, labels)
    assert np.isfinite(scores["loss"])
    run.save(tmp_path / "run")
    again = adapt.load_run(tmp_path / "run")
    if task in ("contrastive", "setfit"):
        with pytest.raises(CheckpointError, match="embeddings"):
            again.predict(texts)
        assert again.encode(TEXTS).shape == (32, again.pretrained.config.width)
        return
    predictions = again.predict(texts)
    assert len(predictions) == len(predictions.to_pandas()) == 32
    assert len(repr(predictions)) < 300


def test_pictures_train_from_arrays(inputs):
    pictures = [np.asarray(tiny.picture(number)) for number in range(24)]
    labels = ["bright", "dark"] * 12
    vit = inputs.checkpoint("vit_classifier")
    run = adapt.finetune(vit, pictures, labels, **FAST)
    assert set(run.predict(pictures[:4]).labels) <= {"bright", "dark"}
    assert run.evaluate(inputs.images["test"])["accuracy"] >= 0


MISTAKES = {
    "a text for a list": (("a good film", LABELS), {}, "a good film"),
    "a label for a list": ((TEXTS, "positive"), {}, "labels"),
    "no labels": ((TEXTS, None), {}, "has no column 'label'"),
    "too few labels": ((TEXTS, LABELS[:3]), {}, "equally long"),
    "labels that are lists": ((TEXTS, [[label] for label in LABELS]), {}, "multilabel"),
    "one class": ((TEXTS, ["good"] * 32), {}, "two classes"),
    "a missing label": ((TEXTS, [None, *LABELS[1:]]), {}, "row 1"),
    "a missing text": (([None, *TEXTS[1:]], LABELS), {}, "row 1"),
    "a number for a text": (([3] * 32, LABELS), {}, "int"),
    "a file that is not there": (("nowhere.csv", None), {}, "nowhere.csv"),
    "an unknown task": ((TEXTS, LABELS), {"task": "clasification"}, "task"),
    "an unknown strategy": ((TEXTS, LABELS), {"strategy": "bottom:2"}, "bottom:2"),
    "an unknown pooling": ((TEXTS, LABELS), {"pooling": "average"}, "pooling"),
    "a word for a number": ((TEXTS, LABELS), {"epochs": "3"}, "epochs"),
    "half an epoch": ((TEXTS, LABELS), {"epochs": 0.5}, "epochs"),
    "no epoch": ((TEXTS, LABELS), {"epochs": 0}, "epochs"),
    "a negative rate": ((TEXTS, LABELS), {"learning_rate": -1.0}, "learning_rate"),
    "an unknown dtype": ((TEXTS, LABELS), {"dtype": "fp16"}, "dtype"),
    "an array for a choice": ((TEXTS, LABELS), {"cache": np.array(["on"])}, "cache"),
    "a list of strategies": ((TEXTS, LABELS), {"strategy": ["full"]}, "strategy"),
    "the whole for validation": ((TEXTS, LABELS), {"validation": 1.0}, "validation"),
    "a test of three": ((TEXTS, LABELS), {"test": (TEXTS, LABELS, 3)}, "test"),
    "test labels unseen": ((TEXTS, LABELS), {"test": (["a"], ["odd"])}, "unseen"),
    "resuming nothing": ((TEXTS, LABELS), {"resume": True}, "out"),
    "a stop that nothing can resume": ((TEXTS, LABELS), {"stop_after": 1}, "stop_after"),
    "an uneven split of a batch": ((TEXTS, LABELS), {"accumulate": 3}, "accumulate"),
    "a rate for what is frozen": ((TEXTS, LABELS), {"strategy": "frozen"}, "learning_rate"),
    "a column that is not there": ((({"body": TEXTS, "label": LABELS}), None), {}, "text"),
    "pairs for a single task": (
        ([(text, text) for text in TEXTS], LABELS),
        {"task": "tags"},
        "words",
    ),
    "a very long text": ((TEXTS, LABELS), {"max_length": 10_000}, "max_length"),
    "a negative seed": ((TEXTS, LABELS), {"seed": -1}, "seed"),
    "a word for a seed": ((TEXTS, LABELS), {"seed": "zero"}, "seed"),
    "half a split seed": ((TEXTS, LABELS), {"split_seed": 0.5}, "split_seed"),
    "a list of columns": ((TEXTS, LABELS), {"label_column": ["a", "b"]}, "label_column"),
    "a number for a column": ((TEXTS, LABELS), {"text_pair_column": 1}, "text_pair_column"),
    "a callback that is no list": ((TEXTS, LABELS), {"callbacks": print}, "callbacks"),
    "a callback that is none": ((TEXTS, LABELS), {"callbacks": ["print"]}, r"callbacks`\[0\]"),
    "a number for a folder": ((TEXTS, LABELS), {"out": 3}, "out"),
    "a number for a mesh": ((TEXTS, LABELS), {"mesh": 2}, "mesh"),
    "a phase for a list": ((TEXTS, LABELS), {"strategy": adapt.Strategy(SCHEDULE[0])}, "phases"),  # pyright: ignore
    "a phase that freezes all": ((TEXTS, LABELS), {"strategy": adapt.Phase([REST], 2)}, "freezes"),
    "a word for a rank": (
        (TEXTS, LABELS),
        {"strategy": adapt.Strategy((adapt.Phase([HEAD, REST], 2),), peft={"lora_rank": "2"})},
        "strategy.*lora_rank",
    ),
    "no phase": ((TEXTS, LABELS), {"strategy": adapt.Strategy(())}, "strategy"),
    "a phase that leaves parameters out": (
        (TEXTS, LABELS),
        {"strategy": adapt.Phase([HEAD], 2)},
        "strategy.*phase 1.*no rule matches 'encoder",
    ),
    "a rule that wins nothing": (
        (TEXTS, LABELS),
        {"strategy": [adapt.Phase([("top/.*", "top"), REST], 2)]},
        "strategy.*top/",
    ),
    "a group that grows": (
        (TEXTS, LABELS),
        {
            "strategy": [
                adapt.Phase([HEAD, ("encoder/embedding/.*", "some"), REST], 1),
                adapt.Phase([HEAD, ("encoder/.*", "some")], 1),
            ]
        },
        "strategy.*phase 2.*some",
    ),
    "phases of other epochs": ((TEXTS, LABELS), {"strategy": SCHEDULE}, "`epochs` 3"),
    "half an epoch of a phase": (
        (TEXTS, LABELS),
        {"strategy": adapt.Phase([HEAD, REST], 0.5)},  # pyright: ignore
        "phase 1.*epochs",
    ),
    "a group that is no text": (
        (TEXTS, LABELS),
        {"strategy": adapt.Phase([HEAD, (".*", None)], 2)},  # pyright: ignore
        "phase 1.*None",
    ),
    "an unknown addition": (
        (TEXTS, LABELS),
        {"strategy": adapt.Strategy((adapt.Phase([HEAD, REST], 2),), peft={"rank": 2})},
        "strategy.*peft",
    ),
    "a broken text of phases": ((TEXTS, LABELS), {"strategy": "{phases}"}, "strategy"),
    "an unknown score": ((TEXTS, LABELS), {"score": "f1"}, "score.*rare_f1.*loss"),
    "a function for a score": ((TEXTS, LABELS), {"score": first_logit}, "score"),
    "a list of metrics": ((TEXTS, LABELS), {"metrics": [first_logit]}, "metrics"),
    "a metric that is none": ((TEXTS, LABELS), {"metrics": {"f1": "f1"}}, "metrics"),
    "a metric by a name of the task": (
        (TEXTS, LABELS),
        {"metrics": {"accuracy": first_logit}},
        "metrics.*accuracy",
    ),
    "a metric that raises": ((TEXTS, LABELS), {"metrics": {"own": lambda outputs: 1}}, "own"),
    "a metric that gives an array": (
        (TEXTS, LABELS),
        {"metrics": {"own": lambda outputs, labels: outputs}},
        "own",
    ),
    "a name for a loss": ((TEXTS, LABELS), {"loss": "focal"}, "loss"),
    "a loss that is not said to take a context": (
        (TEXTS, LABELS),
        {"loss": lambda context: context.outputs},
        "loss.*context_loss",
    ),
    "a context that is asked for two": (
        (TEXTS, LABELS),
        {"loss": adapt.context_loss(adapt.cross_entropy)},
        "loss.*cross_entropy does not take a context",
    ),
    "a loss of one number": (
        (TEXTS, LABELS),
        {"loss": lambda outputs, labels: adapt.cross_entropy(outputs, labels).mean()},
        "loss",
    ),
    "weights of classes beside a loss": (
        (TEXTS, LABELS),
        {"loss": distil, "class_weights": "balanced"},
        "class_weights",
    ),
    "a list of extras": ((TEXTS, LABELS), {"extras": [ONE_HOT]}, "extras"),
    "too few extras": ((TEXTS, LABELS), {"extras": {"teacher": ONE_HOT[:3]}}, "teacher"),
    "words for extras": ((TEXTS, LABELS), {"extras": {"teacher": LABELS}}, "teacher"),
    "uneven extras": ((TEXTS, LABELS), {"extras": {"teacher": [[1], [1, 2]] * 16}}, "teacher"),
    "extras that batches have": ((TEXTS, LABELS), {"extras": {"label": ONE_HOT}}, "label"),
    "too few weights": ((TEXTS, LABELS), {"weights": [1, 2]}, "weights"),
    "a negative weight": ((TEXTS, LABELS), {"weights": [-1] + [1] * 31}, r"weights`\[0\]"),
    "a weight that is no number": ((TEXTS, LABELS), {"weights": ["a"] * 32}, r"weights`\[0\]"),
    "a missing weight": ((TEXTS, LABELS), {"weights": [1] * 31 + [np.nan]}, r"weights`\[31\]"),
    "an infinite weight": ((TEXTS, LABELS), {"weights": [np.inf] * 32}, "weights"),
    "weights that are all 0": ((TEXTS, LABELS), {"weights": np.zeros(32)}, "weights"),
    "weights in another order": (
        (pandas.Series(TEXTS), LABELS),
        {"weights": pandas.Series(np.ones(32))[::-1]},
        "`weights` has the index of `inputs` in another order",
    ),
    "a number for weights": ((TEXTS, LABELS), {"weights": 2}, "weights"),
    "a column of weights that is not there": ((TEXTS, LABELS), {"weights": "count"}, "count"),
    "weights of pairs": ((TEXTS, LABELS), {"weights": [1] * 32, "task": "setfit"}, "weights"),
    "bytes for labels": ((TEXTS, np.array(LABELS, "S")), {}, "bytes"),
    "a column twice": (
        (pandas.DataFrame([["a", "b", "c"]] * 9, columns=["text", "label", "label"]), None),
        {},
        "twice",
    ),
    "a frame of texts": ((TEXTS, {"label": pandas.DataFrame({"label": LABELS})}), {}, "one column"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_parameter(finetune, mistake):
    arguments, options, named = MISTAKES[mistake]
    with pytest.raises(AdaptError, match=named) as raised:
        finetune(*arguments, **options)
    assert "\n" not in str(raised.value)


def test_what_a_run_does_not_read_is_refused(finetune):
    run = finetune(epochs=1)
    with pytest.raises(StrategyError, match="trained"):
        run.predict([("a film", "a plot")])
    with pytest.raises(DataError, match="inputs"):
        run.predict("a good film")
    with pytest.raises(DataError, match="row 2"):
        run.predict(["a film", ""])
    with pytest.raises(CheckpointError, match="nowhere"):
        adapt.load_run("nowhere")
    for call in (adapt.load, adapt.load_run, lambda run: adapt.finetune(run, TEXTS, LABELS)):
        for argument, named in ((run, "pretrained"), (None, "NoneType"), (3, "int")):
            with pytest.raises(CheckpointError, match=named):
                call(argument)


# What is scored


def test_scored_rows_that_were_trained_on_are_counted_and_said(finetune, caplog):
    run = finetune(
        epochs=1, test=([*NEW_TEXTS, TEXTS[3], TEXTS[0]], [*NEW_LABELS, "negative", "positive"])
    )
    assert run.result["in_training_data"] == {"test": 2}
    assert "2 of 16 rows are in the training data, too (row 15, 16)" in caplog.text
    caplog.clear()
    run = finetune(epochs=1, validation=(NEW_TEXTS, NEW_LABELS))
    assert run.result["in_training_data"] == {"validation": 0}
    assert "training data, too" not in caplog.text


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_a_run_is_scored_on_may_not_change_while_it_is_stopped(finetune, tmp_path, part):
    options = {"validation": (NEW_TEXTS, NEW_LABELS), "test": (NEW_TEXTS, NEW_LABELS)}
    finetune(out=tmp_path / "run", stop_after=1, **options)
    others = options | {part: (NEW_TEXTS[::-1], NEW_LABELS[::-1])}
    with pytest.raises(OutputError, match=f"the {part} data changed since the run"):
        finetune(out=tmp_path / "run", resume=True, **others)
    run = finetune(out=tmp_path / "run", resume=True, **options)
    assert run.outcome == "complete"


def cubed(outputs, labels):
    return 3 * adapt.cross_entropy(outputs, labels) ** 2


@pytest.mark.parametrize(
    "own",
    [
        {"weights": np.linspace(0, 1, 32)},
        {"loss": cubed},
        {"extras": {"noise": np.zeros(32)}},
        {"metrics": {"half": lambda outputs, labels: 0.5}},
        {"test": (NEW_TEXTS, NEW_LABELS)},
        {"validation": (NEW_TEXTS, NEW_LABELS)},
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_a_run_does_not_keep_has_to_be_given_again(finetune, own):
    """Never another run in silence."""
    data = {"inputs": TEXTS, "labels": LABELS}
    run = finetune(epochs=1, **own)
    (name,) = own
    with pytest.raises(StrategyError, match=f"`{name}`: .*: give it again"):
        adapt.finetune(**run.arguments | data)
    again = adapt.finetune(**run.arguments | data | own)
    assert tree.digest(again.pretrained.params) == tree.digest(run.pretrained.params)


def test_a_run_that_was_extended_is_not_made_again_at_once(finetune, tmp_path):
    finetune(epochs=1, out=tmp_path / "run")
    run = finetune(epochs=2, out=tmp_path / "run", resume=True)
    data = {"inputs": TEXTS, "labels": LABELS}
    for arguments in (run.arguments, adapt.load_run(tmp_path / "run").arguments):
        with pytest.raises(StrategyError, match=r"`epochs`: the run was extended .1 to 2."):
            adapt.finetune(**arguments | data)
        assert adapt.finetune(**arguments | data | {"epochs": 1}).steps


def test_a_run_goes_on_with_the_metric_that_decided_when_it_began(bert, tmp_path, caplog):
    """As a run of entities from before their F1 decided, whose config.json names no score."""
    words = [["the", "good", "fine", "film"], ["a", "dull", "plot", "is"]] * 12
    tags = [["O", "B-PER", "I-PER", "O"], ["O", "O", "O", "O"]] * 12
    given = {"task": "tags", "epochs": 3, "batch_size": 8, "patience": 0}
    data = (bert, words, tags)
    by_accuracy = given | {"score": "accuracy"}
    whole = adapt.finetune(*data, out=tmp_path / "whole", **by_accuracy)
    adapt.finetune(*data, out=tmp_path / "run", stop_after=4, **by_accuracy)
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace('"accuracy"', "null"))
    run = adapt.finetune(*data, out=tmp_path / "run", resume=True, **given)
    assert "accuracy decided" in caplog.text and "entity_f1" in caplog.text
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert run.result["primary_metric"] == whole.result["primary_metric"] == "accuracy"
    assert len(run.predict(words[:2]).labels) == 2
    with pytest.raises(OutputError, match="`score`"):
        adapt.finetune(*data, out=tmp_path / "run", resume=True, score="macro_f1", **given)


def test_words_of_which_no_token_is_left_teach_and_score_nothing(bert):
    words, blank = [["the", "good"]] * 8, [["\u200b", "\u200b"]] * 8
    tags = [["O", "B-PER"]] * 8
    for train, test in ((words, blank), (blank, words)):
        with pytest.raises(DataError, match="no token of any of its words"):
            adapt.finetune(bert, train, tags, task="tags", test=(test, tags))


def test_a_word_a_row_is_said_to_be_read_without_its_sentence(bert, caplog):
    words, tags = [["the"], ["good"]] * 8, [["O"], ["B-PER"]] * 8
    adapt.finetune(bert, words, tags, task="tags", epochs=1)
    assert "every row is a single word" in caplog.text and ".conll" in caplog.text


def test_a_word_a_row_with_blank_lines_between_sentences_is_refused(finetune, caplog, tmp_path):
    path = tmp_path / "words.tsv"
    header = "text\tlabel\n"
    sentence = "the\tO\ngood\tB-PER\n"
    sentences = header + f"{sentence}\n" * 8
    path.write_text(sentences)
    refused = r"words\.tsv: every row is a single word.*\.conll"
    for data, more in ((path, {}), (TAGGED, {"validation": path}), (TAGGED, {"test": path})):
        words, tags = data if data is TAGGED else (data, None)
        with pytest.raises(DataError, match=refused):
            finetune(words, tags, task="tags", **more)
    # Without blank lines, or where every word stands alone, rows are what they seem.
    for content in (sentence * 8, "the\tO\n\ngood\tB-PER\n\n" * 8):
        caplog.clear()
        path.write_text(header + content)
        run = finetune(path, None, task="tags", epochs=1)
        assert "every row is a single word" in caplog.text
    path.write_text(sentences)
    with pytest.raises(DataError, match=refused):
        run.predict(path)
    # Of several files each is looked at, not the first alone.
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "train-00.tsv").write_text(header + sentence * 8)
    (shards / "train-01.tsv").write_text(sentences)
    with pytest.raises(DataError, match=r"single word, and train-01\.tsv has blank lines"):
        finetune(shards / "train-*.tsv", None, task="tags")


def test_tags_of_a_file_that_was_not_fetched_are_refused(finetune, tmp_path):
    path = tmp_path / "pointer.conll"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    for more in ({"validation": path}, {"test": path}):
        with pytest.raises(DataError, match=r"pointer\.conll.*git lfs pull"):
            finetune(*TAGGED, task="tags", **more)
    with pytest.raises(DataError, match=r"pointer\.conll.*git lfs pull"):
        finetune(path, None, task="tags")
    run = finetune(*TAGGED, task="tags", epochs=1)
    with pytest.raises(DataError, match=r"pointer\.conll.*git lfs pull"):
        run.predict(path)


def test_a_run_that_ended_early_says_so_in_its_folder(finetune, tmp_path):
    metrics = {"same": lambda outputs, labels: 0.5}
    given = {"epochs": 4, "patience": 1, "metrics": metrics, "score": "same"}
    # The loss decides between equal scores: with the rates at 0 nothing is ever better.
    run = finetune(**given, rate_factor=0.0, out=tmp_path / "run")
    assert run.outcome == "early"
    assert adapt.load_run(tmp_path / "run").outcome == "early"
    (row,) = adapt.runs(tmp_path / "run").rows
    assert row["outcome"] == "early"
    run = finetune(epochs=1, out=tmp_path / "whole")
    assert run.outcome == adapt.load_run(tmp_path / "whole").outcome == "complete"


def test_a_score_that_is_never_a_number_is_said(finetune, caplog):
    metrics = {"odd": lambda outputs, labels: float("nan")}
    run = finetune(epochs=1, metrics=metrics, score="odd")
    assert run.result["validation_score"] is None
    assert "`score` odd was never a number" in caplog.text


@pytest.mark.parametrize("given", [{"normalize": "no"}, {"prompt": 3}])
def test_a_vector_is_made_as_asked_or_not_at_all(bert, given):
    (name,) = given
    with pytest.raises(StrategyError, match=f"`{name}` is"):
        adapt.encode(bert, ["a film"], **given)


def test_few_rows_that_make_no_pair_are_one_sentence(finetune):
    with pytest.raises(StrategyError, match="row makes none: give more rows"):
        finetune(TEXTS[:12], LABELS[:12], task="setfit", epochs=1)
