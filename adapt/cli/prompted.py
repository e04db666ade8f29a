"""Flags by which a language model that was not trained here predicts as a run does."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from adapt.errors import StrategyError
from adapt.options import LabelledRunColumnOptions, RunColumnOptions
from adapt.prompting import zero_shot
from adapt.run import Run, load_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """A prompt, with which any language model predicts in place of a run."""

    title: ClassVar[str] = "prompt"

    # without training: `run` is then any language model, and this its prompt, with {text}, or
    # {text_a} and {text_b}, and one [MASK] that a word fills
    template: str | None = None
    # the words that say each class, positive=great|good,negative=terrible
    verbalizer: str | None = None


def open_run(run: Path, prompt: PromptOptions, columns: RunColumnOptions) -> Run:
    """The run in a folder, or with a prompt a checkpoint as it is."""
    if prompt.template is None and prompt.verbalizer is None:
        return load_run(run)
    if prompt.template is None or prompt.verbalizer is None:
        raise StrategyError("`template` and `verbalizer` go together: give both, or none for a run")
    label_column = None
    if isinstance(columns, LabelledRunColumnOptions):
        label_column = columns.label_column
    return zero_shot(
        str(run),
        prompt.template,
        prompt.verbalizer,
        text_column=columns.text_column or "text",
        text_pair_column=columns.text_pair_column,
        label_column=label_column or "label",
        quoting=columns.quoting,
    )
