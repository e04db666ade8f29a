"""Continue or start pre-training on plain text or pictures, by the objective of the checkpoint's
own head or another that its family has.

    adapt pretrain --checkpoint tiny-bert --text FILE --steps 1000 --out runs/pretrain
    adapt finetune --checkpoint runs/pretrain --out runs/adapted    # discards the head trained here

``{"encoder", "head"}`` goes in and comes out. A checkpoint without the head of the objective gets a
fresh one. Every line of the text is an example, and one longer than --max-length several; for pairs
a line is a sentence, and a blank line ends a document. 5% of the examples are held out.
"""

import dataclasses
from pathlib import Path
from typing import Any

from adapt.cli import launch, plots, showing
from adapt.cli.run_folder import default_flags, flags_of
from adapt.cli.training_report import training_report
from adapt.options import ConfigFileOptions, DeviceOptions, ImportOptions, RunOptions
from adapt.parallel import sharding
from adapt.pretraining import PretrainingOptions, prepare
from adapt.run_folder import check_run_out
from adapt.training.trackers import make_trackers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PretrainingOptions, RunOptions, ConfigFileOptions, ImportOptions, DeviceOptions):
    out: Path = Path("runs/pretrain")


def main(config: Config) -> dict[str, Any]:
    check_run_out(config.out, config.resume, config.overwrite, config.checkpoint)
    layout = sharding.make_layout(config.mesh)
    named = config.text or config.pictures
    prepared = prepare(config.checkpoint, named, config, seed=config.seed, layout=layout)
    trackers = make_trackers(config.track, config.out, prepared.settings)
    showing.show_text(prepared)
    with training_report("pre-training", shows_epochs=False) as report:
        run = prepared.train(
            config.out,
            settings=flags_of(config),
            defaults=default_flags(Config),
            resume=config.resume,
            overwrite=config.overwrite,
            callbacks=[report, *trackers],
            command=launch.command_line(),
            add_files=lambda folder: plots.plot_history(folder, prepared.data.primary_metric),
        )
    if run.outcome == "stopped":
        return showing.show_stopped(run.steps, config.out)
    showing.show_text_end(config.out, run.result)
    return dict(run.result)
