"""What other tools call the options: for the error of a name that there is not.

A name that none of them has may be a slip.

    near_name("num_train_epochs", ["epochs", "out"])        # "epochs"
    near_name("epoch", ["epochs", "out"])                   # "epochs", by its spelling
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# By option: its names in transformers, its scripts, sentence-transformers, Keras, scikit-learn,
# Lightning and the like. Where a name is of several options, the first that a command has is meant.
NAMES = {
    "checkpoint": """model model_name model_name_or_path pretrained_model_name_or_path model_id
        model_path base_model backbone pretrained encoder""",
    "pretrained": "model model_name model_name_or_path model_id checkpoint encoder",
    "run": "model model_name model_name_or_path model_path checkpoint checkpoint_path folder",
    "train": "train_file train_data training_data train_path train_dataset dataset dataset_name data",
    "inputs": "texts x train train_data train_dataset dataset data",
    "data": "test test_file test_data dataset dataset_name input input_file input_path file texts",
    "held_out": "test_size validation_split val_split validation_split_percentage val_size dev_size",
    "validation": """validation_file validation_data validation_dataset eval_file eval_data
        eval_dataset dev dev_file valid val val_data validation_split val_split test_size""",
    "test": "test_file test_data test_dataset test_path",
    "text_column": "text_column_name text_col column text_field input_column sentence_column",
    "label_column": "label_column_name label_col label target target_column target_col",
    "labels": "y targets",
    "out": "o output_dir output output_path output_file out_dir save_dir save_path",
    "overwrite": "overwrite_output_dir force",
    "resume": "resume_from_checkpoint continue",
    "steps": "max_steps num_steps num_train_steps n_steps iterations",
    "epochs": """num_train_epochs num_epochs n_epochs nb_epoch max_epochs n_iter steps max_steps
        num_steps num_train_steps""",
    "batch_size": """per_device_train_batch_size per_gpu_train_batch_size train_batch_size
        per_device_eval_batch_size eval_batch_size batch bs mini_batch_size""",
    "accumulate": "gradient_accumulation_steps accumulate_grad_batches grad_accum",
    "learning_rate": "lr rate eta learning_rate_init encoder_lr encoder_learning_rate",
    "head_learning_rate": "head_lr classifier_lr lr_head classifier_learning_rate",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_proportion",
    "decay": "lr_scheduler_type lr_scheduler scheduler schedule lr_schedule",
    "weight_decay": "wd l2",
    "clip_norm": "max_grad_norm gradient_clip_val gradient_clip clip clip_grad_norm grad_clip",
    "max_length": "max_seq_length max_seq_len max_len max_sequence_length seq_length block_size",
    "stride": "doc_stride",
    "template": "prompt pattern prompt_template",
    "verbalizer": "verbalizers label_words",
    "seed": "random_state random_seed",
    "seeds": "num_seeds n_seeds seed",
    "dtype": "fp16 bf16 mixed_precision precision half amp torch_dtype",
    "dropout": "hidden_dropout_prob dropout_prob dropout_rate",
    "attention_dropout": """attention_probs_dropout_prob attention_dropout_prob attention_probs_dropout
        attn_dropout attn_pdrop""",
    "pooling": "pooling_mode pool pooling_strategy",
    "normalize": "normalize_embeddings",
    "strategy": """freeze freeze_encoder freeze_layers frozen frozen_layers peft lora lora_r lora_rank
        adapter unfreeze""",
    "strategies": """strategy models methods freeze freeze_encoder freeze_layers frozen frozen_layers
        peft lora lora_r lora_rank adapter unfreeze""",
    "class_weights": "class_weight pos_weight",
    "score": "metric_for_best_model monitor metric metrics eval_metric",
    "patience": "early_stopping_patience early_stopping",
    "log_every": "logging_steps log_interval log_every_n_steps",
    "save_every": "save_steps",
    "validate_every": "eval_steps val_check_interval eval_interval",
    "remat": "gradient_checkpointing",
    "track": "report_to logger wandb tensorboard use_wandb",
    "mask_rate": "mlm_probability mask_probability mlm_prob",
    "text": "train_file train train_data data dataset corpus texts",
    "texts": "text train_file train_data dataset corpus inputs",
    "format": "to",
    "config": "config_file config_path yaml",
}
# The value that such a name stands for.
STRATEGIES = {
    "frozen": "freeze freeze_encoder frozen",
    "lora:8": "lora lora_r lora_rank",
}
VALUES = {
    "dtype": {"bfloat16": "fp16 bf16 half amp"},
    "strategy": STRATEGIES,
    "strategies": STRATEGIES,
}
LISTS = ("strategies",)  # the options whose value is a list


def near_name(name: str, known: Iterable[str]) -> str | None:
    """The option of ``known`` that another tool calls ``name``, or whose spelling is near; None
    where there is none. Names are spelled as in Python.
    """
    known = list(known)
    for option, names in NAMES.items():
        if option in known and name in names.split():
            return option
    near = difflib.get_close_matches(name, known, n=1)
    return near[0] if near else None


def meant_value(option: str, name: str) -> str | None:
    """The value of ``option`` that another tool calls ``name``: ``bfloat16`` for ``fp16``."""
    for value, names in VALUES.get(option, {}).items():
        if name in names.split():
            return value
    return None


def suggests(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; a keyword that it does not take is refused with the one that may be meant."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}"
                    f"{keyword_meant(name, parameters)}"
                )
        missing = missing_parameters(parameters, len(args), kwargs)
        if missing and kwargs.get("resume"):
            names = " and ".join(map(repr, missing))
            raise TypeError(
                f"{function.__name__}() with resume=True needs {names}, too: a run goes on with the "
                "arguments that it had, see adapt.load_run(out).arguments"
            )
        return function(*args, **kwargs)

    return checked


def takes_keywords_of(
    other: Callable[..., Any], *, but: Iterable[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function with ``**keywords`` that are those of ``other``, without ``but``.

    Its signature names them all; one that is not among them is refused as :func:`suggests` does.
    An editor's completion finds them where the function calls ``other(**keywords)``.

        @takes_keywords_of(Keywords)
        def diagnose(pretrained, inputs, **plan):
            keywords = Keywords(**plan)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        parameters = list(own.parameters.values())[:-1]
        known = {*own.parameters, *but}
        for parameter in inspect.signature(other).parameters.values():
            if parameter.name not in known:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        function.__signature__ = own.replace(parameters=parameters)  # pyright: ignore
        return suggests(function)

    return decorate


def keyword_meant(name: str, known: Iterable[str]) -> str:
    """What the refusal of a keyword ends with: ``: did you mean 'epochs'?``, or nothing."""
    near = near_name(name, known)
    if near is None:
        return ""
    value = meant_value(near, name)
    if value is None:
        return f": did you mean {near!r}?"
    shown = [value] if near in LISTS else value
    return f": did you mean {near}={shown!r}?"


def missing_parameters(
    parameters: Mapping[str, inspect.Parameter], count: int, named: Iterable[str]
) -> list[str]:
    """The parameters without a default that a call with ``count`` positional arguments and these
    keywords leaves out.
    """
    given = {*list(parameters)[:count], *named}
    needed = [name for name, one in parameters.items() if one.default is inspect.Parameter.empty]
    return [name for name in needed if name not in given]
