"""A diagnosis of a checkpoint, a plan, a run and a log, from Python and from the command line."""

import dataclasses
import inspect
import json
import shlex
import shutil

import numpy as np
import pytest

import adapt
from adapt import diagnosing
from adapt.cli.doctor import in_python, is_in_memory, spelled
from adapt.doctor import automatic
from adapt.doctor.checks import CHECKS, check_names
from adapt.doctor.findings import Finding
from adapt.errors import StrategyError
from adapt.finetuning import prepare
from adapt.options import FinetuningOptions
from tests.helpers import healthy

pytestmark = pytest.mark.usefixtures("own_cache")
TRAIN = healthy.sentences(240)
NEW = healthy.sentences(60, seed=1)
FLIPPED = {"positive": "negative", "negative": "positive"}
FAST = {"epochs": 4, "batch_size": 16, "patience": 0}
LEARNS = {"epochs": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "dropout": 0.0}


@pytest.fixture(scope="module")
def checkpoint(inputs):
    return inputs.checkpoint("bert_mlm_tied", blocks=1)


@pytest.fixture(scope="module")
def run(checkpoint, scratch_cache, tmp_path_factory):
    """One that has learned which words are good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPT_CACHE", str(scratch_cache))
        out = tmp_path_factory.mktemp("runs") / "run"
        return adapt.finetune(checkpoint, *TRAIN, out=out, **FAST | LEARNS)


def names(diagnosis):
    return {finding.check for finding in diagnosis}


def test_every_check_says_what_it_names_and_has_a_name_of_its_own():
    checks = [check for checks in CHECKS.values() for check in checks]
    assert all(check.__doc__ and check.__doc__.strip().endswith(".") for check in checks)
    assert len({check.__name__ for check in checks}) == len(checks)
    with pytest.raises(StrategyError, match="unknown `checks` no_such"):
        check_names(["no_such"])


def test_a_checkpoint_that_is_well(checkpoint):
    diagnosis = adapt.diagnose(checkpoint)
    assert not len(diagnosis) and set(diagnosis.checks) == {
        check.__name__ for check in CHECKS["checkpoint"]
    }
    assert diagnosis.to_pandas().empty


def test_the_plan_has_the_keywords_of_finetune():
    """In its signature, for completion; and one that there is not is refused."""
    planned = inspect.signature(adapt.diagnose).parameters
    trained = inspect.signature(adapt.finetune).parameters
    of_runs = {"out", "resume", "overwrite", "callbacks"}
    assert trained.keys() - planned.keys() == of_runs
    assert planned.keys() - trained.keys() == {"checks", "deep"}
    keywords = [name for name, one in trained.items() if one.kind is one.KEYWORD_ONLY]
    for name in set(keywords) - of_runs:
        assert planned[name].default == trained[name].default, name
    of_plan = {field.name for field in dataclasses.fields(diagnosing.Keywords)} - {"checkpoint"}
    assert of_plan == diagnosing.PlanKeywords.__annotations__.keys(), "for type checkers"
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        adapt.diagnose("tiny-bert", lr=1e-3)


def test_a_plan_is_looked_at_before_it_trains(checkpoint):
    plan = {"strategy": "frozen", "head_learning_rate": 2e-5}
    diagnosis = adapt.diagnose(checkpoint, *TRAIN, **plan)
    assert names(diagnosis) == {"head_rate_too_low"}
    (finding,) = diagnosis
    assert finding.shown_by == (
        "doctor",
        {"checkpoint": checkpoint, "train": "the training data", **plan},
    )
    assert "head_rate_too_low" in repr(diagnosis)
    assert list(diagnosis.to_pandas()["check"]) == ["head_rate_too_low"]


def test_a_run_has_what_was_found_in_its_result(run, checkpoint):
    assert run.result["findings"] == []
    assert json.loads((run.folder / "result.json").read_text())["findings"] == []
    low = adapt.finetune(
        checkpoint, *TRAIN, test=NEW, **FAST | {"strategy": "frozen", "head_learning_rate": 1e-6}
    )
    found = names(adapt.diagnose(low))
    assert {"head_rate_too_low", "nothing_learned"} <= found
    assert found == {entry["check"] for entry in low.result["findings"]}
    assert json.loads(json.dumps(low.result["findings"])) == low.result["findings"]


def test_findings_of_a_run_say_what_shows_them(checkpoint, tmp_path, here):
    """The command that looks at its folder; of data that were in memory lines of Python."""
    plan = {"strategy": "frozen", "head_learning_rate": 1e-6}
    folder = tmp_path / "low"
    low = adapt.finetune(checkpoint, *TRAIN, test=NEW, out=folder, **FAST | plan)
    commands = {entry["check"]: entry.get("shown_by") for entry in low.result["findings"]}
    of_folder = {"command": "doctor", "options": {"run": str(folder)}}
    assert commands["nothing_learned"] == of_folder
    shown = here("doctor", "--run", folder).stdout.splitlines()
    assert f"shown by  adapt doctor --run {folder} --checks nothing_learned" in shown
    first = shown.index("shown by  import adapt")
    assert shown[first + 1] == "          texts, labels, test = ...  # those of the run"
    line = shown[first + 2].strip()
    assert line.startswith("print(adapt.diagnose(") and "the training data" not in line
    texts, labels = TRAIN
    assert "head_rate_too_low" in repr(
        eval(line[6:-1], {"adapt": adapt, "texts": texts, "labels": labels, "test": NEW})
    )


def test_blocks_that_train_and_that_nothing_reads(checkpoint):
    """The head reads the embedding: every block above it trains for nothing."""
    low = adapt.finetune(checkpoint, *TRAIN, layers=(0,), **FAST | {"epochs": 2})
    (finding,) = [one for one in adapt.diagnose(low) if one.check == "leaves_without_gradient"]
    unmoved = finding.evidence["leaves"]
    assert unmoved and all(path.startswith("encoder/block_00/") for path in unmoved)


def test_outputs_of_the_best_validation_are_kept_for_the_checks(checkpoint):
    """Not those of the last one, nor of the test."""
    options = {"epochs": 4, "batch_size": 16, "patience": 0, "learning_rate": 3e-3, "dropout": 0.5}
    prepared = healthy.plan(
        adapt.load(checkpoint), TRAIN, validation=NEW, test=TRAIN, strategy="top:1", **options
    )
    run = prepared.train()
    data = prepared.data
    scores = data.scores(data.outputs["validation"], data.sets["validation"])
    assert scores["accuracy"] == run.result["validation_score"]
    assert len(data.outputs["test"]) == len(TRAIN[0])


def test_runs_are_compared_with_what_seeds_make(run, here, tmp_path):
    """Of three folders: two seeds of one setting, and another setting."""
    folders = []
    for name, seed, epochs, score in (("a", 0, 8, 0.8), ("b", 1, 8, 0.7), ("c", 0, 4, 0.76)):
        folder = tmp_path / name
        shutil.copytree(run.folder, folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"seed": seed, "epochs": epochs}))
        result = json.loads((folder / "result.json").read_text())
        result["scores"] = {"validation": {"accuracy": score}}
        (folder / "result.json").write_text(json.dumps(result))
        folders.append(folder)
    (finding,) = adapt.diagnose(folders)
    assert finding.check == "difference_within_seeds" and "epochs 8" in finding.seen
    done = here("doctor", "--run", *folders)
    shown = shlex.join(["adapt", "doctor", "--run", *map(str, folders)])
    assert f"shown by  {shown} --checks difference_within_seeds" in done.stdout


def test_a_run_is_judged_by_other_rows(run):
    assert not names(adapt.diagnose(run, *NEW))
    flipped = [FLIPPED[label] for label in NEW[1]]
    found = {finding.check: finding for finding in adapt.diagnose(run.folder, NEW[0], flipped)}
    assert found["labels_in_another_order"].evidence["renamed"] > 0.8
    assert found["labels_in_another_order"].shown_by == ("doctor", {"run": str(run.folder)})


def test_columns_of_other_rows_are_those_of_training_unless_one_is_named(run):
    by_review = dataclasses.replace(run, settings={**run.settings, "text_column": "review"})
    table = {"review": NEW[0], "tone": NEW[1]}
    assert not names(adapt.diagnose(by_review, table, label_column="tone"))


def test_a_prompt_is_judged_by_labelled_rows(checkpoint):
    """All of its answers are wrong here."""
    words = {"positive": "good", "negative": "bad"}
    run = adapt.zero_shot(checkpoint, "was [MASK] and {text}", words)
    answers = run.predict(NEW[0]).labels
    found = names(adapt.diagnose(run, NEW[0], [FLIPPED[label] for label in answers]))
    assert found & {"no_better_than_baseline", "labels_in_another_order", "one_class_for_all"}


def test_a_folder_of_an_earlier_version_is_judged_by_its_log(run, tmp_path):
    folder = tmp_path / "earlier"
    shutil.copytree(run.folder, folder)
    result = json.loads((folder / "result.json").read_text())
    del result["findings"]
    (folder / "result.json").write_text(json.dumps(result))
    assert not len(adapt.diagnose(folder))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if "loss" in record:
            record["rounded_away"] = 0.9
    assert names(adapt.diagnose(records)) == {"updates_rounded_away"}


def test_some_checks_alone(run, checkpoint):
    diagnosis = adapt.diagnose(checkpoint, *TRAIN, checks=["imbalance"], head_learning_rate=1e-6)
    assert diagnosis.checks == ("imbalance",) and not len(diagnosis)
    with pytest.raises(StrategyError, match="look at something else"):
        adapt.diagnose(checkpoint, checks=["padding"])
    with pytest.raises(StrategyError, match="`inputs`"):
        adapt.diagnose([{"loss": 1.0, "step": 1}], *TRAIN)


def test_checks_that_nobody_made_are_not_named(run):
    assert not {check.__name__ for check in CHECKS["deep"]} & set(adapt.diagnose(run).checks)
    with pytest.raises(StrategyError, match="look at something else"):
        adapt.diagnose(run, checks=["near_copies"])


def test_checks_of_features_are_made_where_the_head_alone_trains(checkpoint):
    wanted = {"checks": ["constant_features", "not_finite"]}
    with pytest.raises(StrategyError, match="look at something else"):
        adapt.diagnose(checkpoint, *TRAIN, **wanted)
    assert set(adapt.diagnose(checkpoint, *TRAIN, strategy="frozen", **wanted).checks) == {
        "constant_features",
        "not_finite",
    }
    rows = ["the film" for _ in TRAIN[0]]
    alike = adapt.diagnose(checkpoint, rows, TRAIN[1], strategy="frozen", **wanted)
    assert names(alike) == {"constant_features"}


def test_runs_have_digests_of_their_data_that_no_seed_changes(checkpoint):
    """Which rows are held out does; other labels of the same texts are other data."""
    digests = []
    for seed, labels in ((0, TRAIN[1]), (1, TRAIN[1]), (0, TRAIN[1][::-1])):
        prepared = prepare(
            checkpoint, TRAIN[0], labels, FinetuningOptions(checkpoint=checkpoint), seed=seed
        )
        digests.append((prepared.origin()["data_digest"], prepared.origin()["file_digests"]))
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]
    assert digests[2][1].keys() == {"train"} and digests[2][1] != digests[0][1]


def test_arguments_that_say_nothing_are_refused(run, checkpoint):
    for subject in (run, checkpoint, [{"loss": 1.0, "step": 1}]):
        with pytest.raises(StrategyError, match="`deep`"):
            adapt.diagnose(subject, deep=True)
        with pytest.raises(StrategyError, match="`labels`"):
            adapt.diagnose(subject, labels=TRAIN[1])
    with pytest.raises(StrategyError, match="`deep`"):
        adapt.diagnose(run, *NEW, deep=True)


def test_a_finding_is_read_back_from_json():
    finding = Finding(
        severity="note",
        seen="x",
        cause="y",
        fix="z",
        check="padding",
        evidence={"share": 0.5},
        shown_by=("doctor", {"run": "r"}),
    )
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_a_check_that_fails_does_not_end_a_run(checkpoint, monkeypatch, caplog):
    def broken(case):
        raise ZeroDivisionError("planted")
        yield

    monkeypatch.setitem(CHECKS, "data", (broken,))
    assert not len(adapt.diagnose(checkpoint, *TRAIN))
    assert "the check broken failed" in caplog.text


def test_what_the_checks_would_look_at_does_not_end_a_run_either(checkpoint, caplog):
    prepared = healthy.plan(adapt.load(checkpoint), TRAIN)
    trained = automatic.Trained(
        planned=prepared.planned,
        params=prepared.plan.params,
        history=[],
        result={},  # of which nothing can be made
    )
    assert automatic.after_training(trained) == []
    assert "the checks of the training failed" in caplog.text
    assert "the checks of the result failed" in caplog.text


# The command


def test_the_command_shows_each_finding_and_what_shows_it(here, checkpoint, tmp_path):
    from tests.helpers import tiny

    tiny.write_table(tmp_path / "train.csv", list(zip(*TRAIN, strict=True)))
    plan = ["--checkpoint", checkpoint, "--train", "train.csv", "--head-learning-rate", "1e-6"]
    done = here("doctor", *plan, cwd=tmp_path)
    assert done.returncode == 0
    assert "warning   head_rate_too_low" in done.stdout
    assert "fix       give a larger --head-learning-rate" in done.stdout
    assert "--head-learning-rate 1e-06 --checks head_rate_too_low" in done.stdout
    (entry,) = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert entry["check"] == "head_rate_too_low"


def test_the_command_that_is_shown_shows_it_again(here, checkpoint, tmp_path):
    from tests.helpers import tiny

    tiny.write_table(tmp_path / "train.csv", list(zip(*TRAIN, strict=True)))
    tiny.write_table(tmp_path / "test.csv", [(text, "positive") for text in NEW[0]])
    data = ["--checkpoint", checkpoint, "--train", "train.csv", "--test", "test.csv", "--seed", "3"]
    plan = ["--strategy", "frozen", "--cache", "off", "--epochs", "5", "--layers", "0", "1"]
    done = here("doctor", *data, *plan, "--max-length", "5", cwd=tmp_path)
    shown = [line for line in done.stdout.splitlines() if line.startswith("shown by")]
    checks = [entry["check"] for entry in json.loads(done.stdout.splitlines()[-1])["findings"]]
    assert {"cache_off", "truncated_texts", "absent_classes"} <= set(checks)
    for line, check in zip(shown, checks, strict=True):
        again = here(*shlex.split(line)[3:], cwd=tmp_path)
        assert json.loads(again.stdout.splitlines()[-1])["findings"][0]["check"] == check


def test_lines_of_python_for_data_in_memory():
    options = {"checkpoint": "tiny-bert", "train": "train.csv", "held_out": 0.2, "seed": 3}
    assert not is_in_memory(options)
    options |= {"test": "the test data", "weight_column": "w", "layers": [0, 1]}
    assert is_in_memory(options)
    lines = in_python(options, "imbalance")
    assert lines[1] == "test = ...  # those of the run"
    assert lines[2] == (
        "print(adapt.diagnose('tiny-bert', 'train.csv', test=test, seed=3, layers=[0, 1], "
        "validation=0.2, weights='w', checks=['imbalance']))"
    )


def test_a_command_has_flags_as_they_are_typed():
    options = {"random_weights": True, "layers": [0, 1], "template": "it was [MASK]"}
    typed = (
        "adapt doctor --random-weights --layers 0 1 --template 'it was [MASK]' --checks cache_off"
    )
    assert spelled("doctor", options, "cache_off") == typed


def test_the_command_says_that_all_is_well(here, run, checkpoint):
    for flags in (["--run", run.folder], ["--checkpoint", checkpoint]):
        done = here("doctor", *flags)
        assert "nothing is wrong that these checks can see" in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strategy", "frozen"], "--strategy: without --train the checkpoint alone"),
        (["--data", "new.csv"], "--data is what a --run predicts"),
        (["--checks", "foo"], "unknown --checks foo: give one of newly_initialised"),
        (["--run", "nowhere"], "nowhere is not a run's folder"),
        (["--run", "nowhere", "--epochs", "9"], "--epochs: --run is a run"),
        (["--train", "reviews", "--held-out", "2"], "--held-out 2.0 must be between 0 and 1"),
    ],
)
def test_flags_that_say_nothing_together_are_one_line(here, flags, said, tmp_path):
    done = here("doctor", *flags, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_fine_tuning_says_what_it_finds_in_one_line_each(here, checkpoint, tmp_path):
    from tests.helpers import tiny

    tiny.write_table(tmp_path / "train.csv", list(zip(*TRAIN, strict=True)))
    flags = ["--checkpoint", checkpoint, "--train", "train.csv", "--strategy", "frozen"]
    done = here("finetune", *flags, "--head-learning-rate", "1e-6", "--epochs", 1, cwd=tmp_path)
    notes = [line for line in done.stderr.splitlines() if "[head_rate_too_low]" in line]
    assert len(notes) == 1 and notes[0].startswith("note: the head's rate 1e-06")
    assert "give a larger --head-learning-rate" in notes[0]
    result = json.loads((tmp_path / "runs/finetune/result.json").read_text())
    assert "head_rate_too_low" in {entry["check"] for entry in result["findings"]}
    assert np.isfinite(result["validation_score"])
