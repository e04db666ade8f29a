"""Write a finished run as a folder that transformers or sentence-transformers loads, encoder and
head together.

    adapt export --run runs/finetune --format auto --out exported
    adapt export --run runs/lora --format peft --out adapter

The folder's README.md says how to load it. `auto` takes transformers where it can express the
model, else sentence-transformers. What pretrain wrote exports too, with its language-model head,
and an encoder without a head as what makes vectors.
"""

import dataclasses
from typing import ClassVar, Literal

from adapt.cli import console
from adapt.export.exporting import export
from adapt.options import ImportOptions, OutputOptions
from adapt.pretrained import hub
from adapt.staging import written_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how."""

    title: ClassVar[str] = "export"

    # the folder of a finished run, or any checkpoint
    run: str
    # auto | transformers | sentence-transformers | peft (what LoRA added to its base)
    format: str = "auto"
    # of peft: the checkpoint that the run began with, where it is not where the run says
    base: str | None = None
    # of a run that reads more of long texts: head, to export it as one that reads their first tokens
    long: Literal["head"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ExportOptions, OutputOptions, ImportOptions):
    """The flags of the command."""


def main(config: Config) -> None:
    with written_folder(config.out, last=("modules.json", "config.json")) as folder:
        run = hub.load(config.run)
        used = export(run, folder, config.format, config.overwrite, config.long, config.base)
    console.say(f"{config.out}: written for {used}; its README.md has the code that loads it")
