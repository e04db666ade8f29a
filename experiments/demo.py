"""Why keep a pre-trained encoder, and not its head? One new head on the frozen, the fine-tuned and a
random encoder, and on the logits of the head of pre-training, on the same real data.

make demo                                              # tiny-bert on 10,568 film-review sentences
python -m experiments.demo --checkpoint minilm --train trec --out runs/demo-trec
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

from adapt.cli import console, finetune, plots
from adapt.cli.launch import launch
from adapt.models import stages_of
from adapt.pretrained import hub
from adapt.run_folder import check_out, write_json

ARMS = {
    "random encoder, frozen": {"strategy": "frozen", "random_weights": True},
    "pre-trained encoder, frozen": {"strategy": "frozen"},
    "pre-trained encoder, fine-tuned": {"strategy": "full"},
    # Beside them what is discarded: the head of pre-training, where the checkpoint has one.
    "logits of its pre-training head, frozen": {"strategy": "frozen", "keep_head": "logits"},
}
COLOURS = (plots.GREY, plots.BLUE, plots.RED, plots.YELLOW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What is shown, and where to."""

    title: ClassVar[str] = "demo"

    # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    checkpoint: str = "tiny-bert"
    # what finetune takes as --train
    train: str = "reviews"
    # default: the test part of a bundled set
    test: str | None = None
    epochs: int = 3
    seed: int = 0
    # one epoch each
    short: bool = False
    out: Path = Path("runs/demo")
    overwrite: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DemoOptions):
    """The flags of the command."""


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    epochs = 1 if config.short else config.epochs
    results = {}
    has_head = stages_of(hub.load_silently(config.checkpoint).head)
    arms = {name: flags for name, flags in ARMS.items() if has_head or "keep_head" not in flags}
    for number, (name, flags) in enumerate(arms.items(), 1):
        console.say(f"{number}/{len(arms)}  {name}")
        started = time.perf_counter()
        result = finetune.main(
            finetune.Config(
                checkpoint=config.checkpoint,
                train=config.train,
                test=config.test,
                epochs=epochs,
                seed=config.seed,
                out=config.out / name.replace(",", "").replace(" ", "-"),
                overwrite=True,
                **flags,
            )
        )
        results[name] = result | {"seconds": time.perf_counter() - started}
    write_json(config.out / "demo.json", results)
    majority = results["pre-trained encoder, frozen"]["majority_accuracy"]
    show(config, epochs, results, majority)
    console.say(f"plot      {plot(config, results, majority)}")
    return results


def show(config: Config, epochs: int, results: dict[str, Any], majority: float) -> None:
    """Print a row an encoder."""
    rows: list[tuple[Any, ...]] = [("majority class", majority, "", 0, "")]
    for name, result in results.items():
        seconds = f"{result['seconds']:.0f} s"
        scores = (result["accuracy"], result["macro_f1"])
        rows.append((name, *scores, result["parameters_trained"], seconds))
    plural = "s" if epochs > 1 else ""
    title = (
        f"the same new head on each: {config.checkpoint} on {config.train}, {epochs} epoch{plural}"
    )
    columns = ("encoder", "test accuracy", "macro F1", "trained parameters", "time")
    console.say()
    console.table(title, columns, rows)


def plot(config: Config, results: dict[str, Any], majority: float) -> Path:
    """A bar an encoder, over the majority class."""
    accuracy = {name: result["accuracy"] for name, result in results.items()}
    figure, axes = plots.figure(size=(7, 2.6))
    axis = axes[0, 0]
    bars = axis.barh(
        list(accuracy), list(accuracy.values()), color=COLOURS[: len(accuracy)], height=0.6
    )
    axis.bar_label(bars, fmt="%.3f", padding=4)
    axis.axvline(majority, color="black", ls="--", lw=1)
    axis.annotate(
        "majority class",
        (majority, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(0, 3),
        ha="center",
        fontsize=9,
    )
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_xlabel(f"test accuracy on {config.train} ({config.checkpoint})")
    return plots.save(figure, config.out / "demo.png")


if __name__ == "__main__":
    launch(Config, main)
