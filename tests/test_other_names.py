"""What other tools call an option is answered with ours, in the shell and in Python."""

import importlib
import inspect

import pytest

import adapt
from adapt.__main__ import COMMANDS, unknown
from adapt.cli import flags
from adapt.errors import AdaptError
from adapt.other_names import NAMES, near_name

FUNCTIONS = (adapt.finetune, adapt.pretrain, adapt.encode, adapt.probe, adapt.compare, adapt.plan)


def config_of(command: str) -> type:
    return importlib.import_module(f"adapt.cli.{command}").Config


def test_every_name_leads_to_an_option_that_there_is():
    known = {name for function in FUNCTIONS for name in inspect.signature(function).parameters}
    for command in COMMANDS:
        known |= config_of(command).__dataclass_fields__.keys()
    assert NAMES.keys() <= known


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("finetune", "--lr 1e-3", "--learning-rate"),
        ("finetune", "--epoch 3", "--epochs"),
        ("finetune", "--num_train_epochs 3", "--epochs"),
        ("finetune", "--num-train-epochs=3", "--epochs"),
        ("finetune", "--model x", "--checkpoint"),
        ("finetune", "--model_name_or_path x", "--checkpoint"),
        ("finetune", "--per_device_train_batch_size 8", "--batch-size"),
        ("finetune", "--output_dir x", "--out"),
        ("finetune", "--train_file x", "--train"),
        ("finetune", "--validation_file x", "--validation"),
        ("finetune", "--val_split 0.1", "--held-out"),
        ("finetune", "--max_seq_length 64", "--max-length"),
        ("finetune", "--gradient_accumulation_steps 2", "--accumulate"),
        ("finetune", "--warmup_ratio 0.1", "--warmup"),
        ("finetune", "--lr_scheduler_type cosine", "--decay"),
        ("finetune", "--wd 0.1", "--weight-decay"),
        ("finetune", "--fp16", "--dtype bfloat16"),
        ("finetune", "--bf16", "--dtype bfloat16"),
        ("finetune", "--steps 100", "--epochs"),
        ("finetune", "--metric f1", "--score"),
        ("finetune", "-o x", "--out"),
        ("finetune", "--freeze", "--strategy frozen"),
        ("compare", "--freeze", "--strategies frozen"),
        ("finetune", "--frozen", "--strategy frozen"),
        ("finetune", "--lora-r 8", "--strategy lora:8"),
        ("finetune", "--lora_rank 8", "--strategy lora:8"),
        ("finetune", "--attention_probs_dropout_prob 0.1", "--attention-dropout"),
        ("finetune", "--label x", "--label-column"),
        ("pretrain", "--train_file x", "--text"),
        ("pretrain", "--max_steps 3", "--steps"),
        ("predict", "--model x", "--run"),
        ("predict", "--test_file x", "--data"),
        ("predict", "-o x", "--out"),
        ("evaluate", "--checkpoint x", "--run"),
        ("compare", "--label x", "--label-column"),
        ("compare", "--metric f1", "--score"),
    ],
)
def test_a_flag_of_another_tool_names_ours(command, typed, meant):
    with pytest.raises(AdaptError) as error:
        flags.read_flags(config_of(command), f"adapt {command}", None, typed.split())
    name = typed.split()[0].partition("=")[0]
    assert str(error.value) == f"there is no flag {name}: did you mean {meant}?"


def test_a_flag_that_needs_no_word_here_is_said_to_need_none():
    with pytest.raises(AdaptError, match="no flag --do_train: finetune trains without it"):
        flags.read_flags(config_of("finetune"), "adapt finetune", None, ["--do_train"])


@pytest.mark.parametrize(
    ("function", "typed", "meant"),
    [
        (adapt.finetune, "lr", "learning_rate"),
        (adapt.finetune, "num_train_epochs", "epochs"),
        (adapt.finetune, "y", "labels"),
        (adapt.finetune, "texts", "inputs"),
        (adapt.finetune, "model", "pretrained"),
        (adapt.finetune, "steps", "epochs"),
        (adapt.finetune, "metric", "score"),
        (adapt.pretrain, "max_steps", "steps"),
        (adapt.encode, "normalize_embeddings", "normalize"),
        (adapt.compare, "stratgies", "strategies"),
    ],
)
def test_a_keyword_of_another_tool_names_ours(function, typed, meant):
    with pytest.raises(TypeError, match=rf"'{typed}': did you mean '{meant}'\?"):
        function(**{typed: 1})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bf16", "dtype='bfloat16'"),
        ("freeze", "strategy='frozen'"),
        ("lora_r", "strategy='lora:8'"),
    ],
)
def test_a_keyword_that_is_a_value_here_is_shown_with_it(typed, meant):
    with pytest.raises(TypeError, match=rf"'{typed}': did you mean {meant}\?$"):
        adapt.finetune("tiny-bert", [], **{typed: True})


def test_resuming_says_which_arguments_it_needs_beside_the_folder():
    given = {"out": "runs/mine", "resume": True}
    with pytest.raises(TypeError, match=r"needs 'pretrained' and 'inputs', too.*load_run"):
        adapt.finetune(**given)
    with pytest.raises(TypeError, match=r"needs 'texts', too"):
        adapt.pretrain("tiny-bert", **given)


def test_a_keyword_that_is_near_nothing_is_refused_as_python_does():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzzzzz'$"):
        adapt.finetune("tiny-bert", [], zzzzzz=1)
    assert near_name("zzzzzz", ["epochs"]) is None


def test_a_command_of_another_tool_names_ours():
    assert unknown("train").endswith("did you mean finetune?")
    assert unknown("embed").endswith("did you mean extract?")
