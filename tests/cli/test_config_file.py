"""--config: a run's config.json makes the same run again, bit for bit; flags beside it win; a wrong entry is named."""

import json

import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.cli import finetune, flags, pretrain
from adapt.errors import AdaptError, StrategyError
from tests.helpers import tiny
from tests.helpers.runs import assert_same_run, stored_digest

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(32), strict=True))


@pytest.fixture
def given(inputs) -> dict:
    """The flags of a run in which many are not at their defaults."""
    return {
        "checkpoint": inputs.checkpoint("bert_mlm_tied", blocks=1),
        **inputs.texts,
        "epochs": 1,
        "batch_size": 8,
        "strategy": "frozen",
        "layers": (0, 1),
        "warmup": 0.2,
        "seed": 3,
        "split_seed": 5,
        "held_out": 0.25,
    }


def config_of(*words: object) -> finetune.Config:
    """The flags of `adapt finetune WORDS`."""
    return flags.read_flags(finetune.Config, "adapt finetune", None, list(map(str, words)))


def test_a_run_s_own_file_makes_it_again_bit_for_bit(given, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    finetune.main(finetune.Config(**given, out=one))
    finetune.main(config_of("--config", one / "config.json", "--out", other))
    assert_same_run(one, other)
    settings = [json.loads((run / "config.json").read_text()) for run in (one, other)]
    for content in settings:
        del content["out"]
    assert settings[0] == settings[1]


def test_the_same_from_python(given, tmp_path):
    finetune.main(finetune.Config(**given, out=tmp_path / "one"))
    run = adapt.load_run(tmp_path / "one")
    adapt.finetune(**run.arguments, out=tmp_path / "other")
    assert_same_run(tmp_path / "one", tmp_path / "other")
    other = adapt.finetune(**run.arguments | {"inputs": TEXTS, "labels": LABELS})
    assert tree.digest(other.pretrained.params) == tree.digest(run.pretrained.params)


def test_a_run_of_lists_goes_on_from_the_shell_when_its_data_are_named(given, inputs, tmp_path):
    options = {name: given[name] for name in ("epochs", "batch_size", "strategy", "seed")}
    made = adapt.finetune(given["checkpoint"], TEXTS, LABELS, out=tmp_path / "one", **options)
    file = tmp_path / "one/config.json"
    with pytest.raises(StrategyError, match="in memory: give `train`"):
        config_of("--config", file)
    with pytest.raises(AdaptError, match="`inputs`"):
        adapt.finetune(**made.arguments)
    again = config_of("--config", file, "--train", inputs.train, "--out", tmp_path / "other")
    finetune.main(again)
    assert stored_digest(tmp_path / "one", "best") == stored_digest(tmp_path / "other", "best")


def test_flags_beside_the_file_win_and_what_is_of_one_call_is_not_taken(given, tmp_path):
    content = {"epochs": 5, "layers": [0, 1], "out": "runs/x", "overwrite": True, "mesh": "data=2"}
    content |= {"coordinator": "host:1", "resume": True, "stop_after": 3, "validation": None}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    config = config_of("--config", file, "--epochs", 2)
    assert (config.epochs, config.layers, str(config.out)) == (2, (0, 1), "runs/x")
    assert config.mesh == "data=2" and config.coordinator is None
    assert not config.overwrite and not config.resume and config.stop_after is None
    assert config_of(f"--config={file}").epochs == 5


def test_what_a_run_imported_is_never_imported_by_its_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"import_": ["my_module"]}')
    with pytest.raises(StrategyError, match=r"imported my_module, .* give `import=my_module`"):
        config_of("--config", file)
    assert config_of("--config", file, "--import", "my_module").import_ == ("my_module",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epoch": 3}', "there is no option 'epoch': did you mean epochs?"),
        ('{"epochs": "three"}', "epochs is 'three': a whole number"),
        ('{"cache": "maybe"}', "cache is 'maybe': give one of auto, on, off"),
        ('{"experiment": "extract"}', "is of extract, not of finetune"),
        ('{"loss": "mine.focal"}', "its own `loss`, .* from Python"),
        ('{"epochs": 3', "can't be read as JSON"),
        ("[3]", "holds no JSON object"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_name(content, message, tmp_path):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StrategyError, match=f"`config` .*{message}".replace("?", r"\?")):
        config_of("--config", file)


def test_the_command_says_the_flag_and_result_json_the_command(here, given, tmp_path):
    (tmp_path / "odd.json").write_text('{"stratgy": "full"}')
    done = here("finetune", "--config", "odd.json", cwd=tmp_path)
    said = "error: --config odd.json: there is no option 'stratgy': did you mean strategy?\n"
    assert (done.returncode, done.stderr) == (2, said)
    (tmp_path / "mine.json").write_text(json.dumps(given))
    done = here("finetune", "--config", "mine.json", "--out", "a run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a run/result.json").read_text())
    assert result["command"] == "adapt finetune --config mine.json --out 'a run'"


@pytest.mark.parametrize("share", [0.0, 1.0, float(np.nan)])
def test_a_share_that_holds_nothing_out_is_refused(given, share):
    with pytest.raises(StrategyError, match="`held_out`"):
        finetune.main(finetune.Config(**given | {"held_out": share}))


def test_a_share_of_rows_beside_other_data_is_refused(given, inputs):
    with pytest.raises(StrategyError, match=r"`held_out` 0\.25 .* `validation`"):
        finetune.main(finetune.Config(**given, validation=inputs.test))


def test_pre_training_has_the_same(inputs, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in tiny.sentences(30)))
    file = tmp_path / "mine.json"
    checkpoint = inputs.checkpoint("bert_pretraining", blocks=1)
    content = {"text": str(tmp_path / "text.txt"), "checkpoint": checkpoint, "steps": 2}
    file.write_text(json.dumps(content | {"batch_size": 4}))
    for out in ("one", "other"):
        words = ["--config", str(file), "--out", str(tmp_path / out)]
        config = flags.read_flags(pretrain.Config, "adapt pretrain", None, words)
        result = pretrain.main(config)
        file = tmp_path / "one/config.json"
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert result["checkpoint"] == checkpoint and result["primary_metric"] == "accuracy"


def test_the_file_of_a_run_that_was_extended_needs_its_epochs(given, tmp_path):
    finetune.main(finetune.Config(**given | {"epochs": 1}, out=tmp_path / "run"))
    finetune.main(finetune.Config(**given | {"epochs": 2}, out=tmp_path / "run", resume=True))
    file = tmp_path / "run/config.json"
    with pytest.raises(StrategyError, match=r"extended \(epochs 1 to 2\)"):
        config_of("--config", file, "--out", tmp_path / "other")
    assert config_of("--config", file, "--epochs", 1, "--out", tmp_path / "other").epochs == 1
    assert config_of("--resume", "--out", tmp_path / "run").epochs == 2


def test_the_file_of_a_run_with_weights_in_memory_is_refused(given, tmp_path):
    options = {name: given[name] for name in ("epochs", "batch_size", "strategy", "seed")}
    weights = np.linspace(0, 1, len(TEXTS))
    adapt.finetune(
        given["checkpoint"], TEXTS, LABELS, weights=weights, out=tmp_path / "one", **options
    )
    with pytest.raises(StrategyError, match=r"its own `weights`, which no flag can bring back"):
        config_of("--config", tmp_path / "one/config.json")
