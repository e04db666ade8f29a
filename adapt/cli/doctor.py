"""What is wrong with a checkpoint, data, a plan of flags, or a run? Findings with evidence and a fix.

    adapt doctor --checkpoint minilm                                 # weights and tokenizer
    adapt doctor --checkpoint minilm --train mine.csv                # and the data
    adapt doctor --train mine.csv --strategy frozen --head-learning-rate 2e-5     # and the plan
    adapt doctor --train mine.csv --deep                             # and controls, in minutes
    adapt doctor --run runs/finetune                                 # a run, by its log and result
    adapt doctor --run runs/finetune --data new.csv                  # and by other labelled rows
    adapt doctor --run runs/a runs/b runs/c                          # is a difference one of seeds?
    adapt doctor --features runs/extract                             # for a head of one's own

The flags of a plan are those of finetune, so a run is looked at before it trains by writing doctor
in its place. Nothing trains. finetune makes the same checks by itself, and writes what they find
into result.json under findings.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adapt import diagnosing
from adapt.cli import console
from adapt.cli.finetune import check_held_out
from adapt.cli.flags import changed_flags, flag, flag_words, name_flags
from adapt.data.inputs import IN_MEMORY, Columns
from adapt.diagnosing import Diagnosis
from adapt.doctor.checks import check_names
from adapt.doctor.findings import Finding
from adapt.errors import DataError, StrategyError
from adapt.options import DataOptions, FinetuningOptions, ImportOptions, SplitOptions
from adapt.pretrained import hub
from adapt.run import load_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is looked at, and by which checks."""

    title: ClassVar[str] = "doctor"

    # the folder of a run of finetune, in place of a checkpoint and a plan; or of several
    run: tuple[Path, ...] = ()
    # features.npy, or the folder of extract: float [N, D]
    features: Path | None = None
    # labelled rows that the run predicts, to be judged by
    data: str | None = None
    # the names of checks; default: all that look at what is given
    checks: tuple[str, ...] = ()
    # the checks, too, that compute for seconds to minutes: random weights, a bag of words, copies
    deep: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DoctorOptions, FinetuningOptions, DataOptions, SplitOptions, ImportOptions):
    """The flags of the command."""

    # the data of the plan; default: the checkpoint alone is looked at
    train: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    # the seed of the plan
    seed: int = 0


# The flags that go with a run; any other is of a plan.
OF_RUNS = {
    "run",
    "data",
    "checks",
    "import_",
    "text_column",
    "text_pair_column",
    "label_column",
    "image_column",
}
# Those that go with several runs, with features, and with a checkpoint alone.
OF_SEVERAL_RUNS = {"run", "checks", "import_"}
OF_FEATURES = {"features", "checks", "import_"}
OF_CHECKPOINTS = {"checkpoint", "checks", "import_"}


def main(config: Config) -> dict[str, Any]:
    found = diagnosed(config)
    show(found)
    entries = [finding.to_json() for finding in found]
    result = {"what": found.what, "findings": entries, "checks": len(found.checks)}
    console.result(json.dumps(result, default=str))
    return result


def diagnosed(config: Config) -> Diagnosis:
    """What the checks find in what the flags name."""
    wanted = check_names(config.checks)
    if config.features is not None:
        check_flags(config, OF_FEATURES, f"{flag('features')} are looked at alone")
        path = str(config.features)
        features = read_features(config.features)
        return diagnosing.diagnose_features(features, path, wanted, ("doctor", {"features": path}))
    if len(config.run) > 1:
        check_flags(config, OF_SEVERAL_RUNS, "several runs are looked at by their scores alone")
        return diagnosing.diagnose_runs([load_run(folder) for folder in config.run], wanted)
    if config.run:
        check_flags(config, OF_RUNS, f"{flag('run')} is a run, which has its own settings")
        run = load_run(config.run[0])
        return diagnosing.diagnose_run(run, config.data, None, Columns.of(config), wanted)
    if config.data is not None:
        raise StrategyError("`data` is what a `run` predicts: name the run, or give `train`")
    if config.train is None:
        check_flags(config, OF_CHECKPOINTS, "without `train` the checkpoint alone is looked at")
        return diagnosing.diagnose_checkpoint(hub.load(config.checkpoint), wanted)
    check_held_out(config.held_out, config.validation)
    return diagnosing.diagnose_plan(
        config.checkpoint,
        config.train,
        None,
        config,
        validation=config.held_out if config.validation is None else config.validation,
        test=config.test,
        columns=Columns.of(config),
        seed=config.seed,
        split_seed=config.split_seed,
        checks=wanted,
        is_deep=config.deep,
    )


def read_features(path: Path) -> np.ndarray:
    """The array of a .npy file, or of features.npy in a folder. Raises :class:`DataError` where it
    is not there or can't be read.
    """
    file = path / "features.npy" if path.is_dir() else path
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} can't be read as features ({error}): give what adapt extract wrote, or a .npy "
            "file"
        ) from None


def check_flags(config: Config, known: set[str], why: str) -> None:
    """Raise :class:`StrategyError` for a flag that says nothing here."""
    others = [field.name for field in dataclasses.fields(config) if field.name in known]
    words = changed_flags(config, others)
    if words:
        raise StrategyError(f"{words[0]}: {why}: leave it out")


def show(found: Diagnosis) -> None:
    """Every finding: what was seen, its cause, the fix, and the command that shows it."""
    console.say(f"looked at {found.what}, by {len(found.checks)} checks")
    for finding in found:
        console.say()
        show_finding(finding)
    console.say()
    if not len(found):
        console.say("fine      nothing is wrong that these checks can see")
    else:
        count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
        console.say(f"found     {count}; docs/troubleshooting.md has each by its name")


def show_finding(finding: Finding) -> None:
    """A finding in some lines."""
    sure = "" if finding.certainty == "certain" else f" ({finding.certainty})"
    console.say(f"{finding.severity:9} {finding.check}")
    console.say(f"seen      {plain(finding.seen)}")
    console.say(f"cause     {plain(finding.cause)}{sure}")
    console.say(f"fix       {plain(finding.fix)}")
    if finding.shown_by is None:
        return
    command, options = finding.shown_by
    if is_in_memory(options) and "train" in options:
        lines = in_python(options, finding.check)
        console.say_unbroken(f"shown by  {lines[0]}")
        for line in lines[1:]:
            console.say_unbroken(f"          {line}")
        return
    console.say_unbroken(f"shown by  {spelled(command, options, finding.check)}")


def plain(sentence: str) -> str:
    """A clause with flags in place of parameters."""
    return name_flags(sentence, Config)


def is_in_memory(options: Mapping[str, Any]) -> bool:
    """Whether some of the data of a plan were in memory, where no command finds them."""
    return any(options.get(name) == unnamed for name, unnamed in IN_MEMORY.items())


def in_python(options: Mapping[str, Any], check: str) -> list[str]:
    """The lines of Python that show a finding again whose data were in memory."""
    options = dict(options)
    first = [repr(options.pop("checkpoint"))]
    given = []
    train = options.pop("train")
    if train == IN_MEMORY["train"]:
        given.append("texts, labels")
        first.append("texts, labels")
    else:
        first.append(repr(train))
    keywords = []
    for name in ("validation", "test"):
        if options.get(name) == IN_MEMORY[name]:
            del options[name]
            given.append(name)
            keywords.append(f"{name}={name}")
    if "held_out" in options:  # a share of the training rows
        options.setdefault("validation", options.pop("held_out"))
    if "weight_column" in options:
        options["weights"] = options.pop("weight_column")
    options["checks"] = [check]
    keywords += [f"{name}={value!r}" for name, value in options.items()]
    return [
        "import adapt",
        f"{', '.join(given)} = ...  # those of the run",
        f"print(adapt.diagnose({', '.join(first + keywords)}))",
    ]


def spelled(command: str, options: Mapping[str, Any], check: str) -> str:
    """A command as it is typed."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    words = ["adapt", command]
    for name, value in options.items():
        words += flag_words(name, value, defaults.get(name))
    if command == "doctor":
        words += [flag("checks"), check]
    return shlex.join(words)
