"""Why keep a pre-trained encoder? One head on the frozen, the fine-tuned and a random encoder, on the same real data.

make demo                                              # tiny-bert on 10,568 film-review sentences
python -m experiments.demo --checkpoint minilm --train trec --out runs/demo-trec
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from adapt.cli import console, finetune, plots
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "tiny-bert"
    train: str = "reviews"
    test: str | None = None
    epochs: int = 3
    seed: int = 0
    short: bool = False  # one epoch each
    out: Path = Path("runs/demo")
    overwrite: bool = True


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    epochs = 1 if config.short else config.epochs
    common = {
        "checkpoint": config.checkpoint,
        "train": config.train,
        "test": config.test,
        "epochs": epochs,
        "seed": config.seed,
    }
    arms = {
        "random encoder, frozen": {"strategy": "frozen", "random_weights": True},
        "pre-trained encoder, frozen": {"strategy": "frozen"},
        "pre-trained encoder, fine-tuned": {"strategy": "full"},
    }
    rows = []
    results = {}
    for number, (name, flags) in enumerate(arms.items(), 1):
        console.say(f"{number}/{len(arms)}  {name}")
        out = config.out / "-".join(name.replace(",", "").split())
        started = time.perf_counter()
        result = finetune.main(finetune.Config(**common, **flags, out=out, overwrite=True))
        seconds = time.perf_counter() - started
        results[name] = result | {"seconds": seconds}
        rows.append(
            (
                name,
                result["accuracy"],
                result["macro_f1"],
                result["parameters_trained"],
                f"{seconds:.0f} s",
            )
        )
    floor = results["pre-trained encoder, frozen"]["majority_accuracy"]
    rows.insert(0, ("majority class", floor, "", 0, ""))
    console.say()
    title = f"the same head on three encoders: {config.checkpoint} on {config.train}, {epochs} epoch{'s' * (epochs > 1)}"
    console.table(
        title, ("encoder", "test accuracy", "macro F1", "trained parameters", "time"), rows
    )
    write_json(config.out / "demo.json", results)
    console.say(
        f"plot      {plot(config, {name: r['accuracy'] for name, r in results.items()}, floor)}"
    )
    return results


def plot(config: Config, accuracy: dict[str, float], floor: float) -> Path:
    """A bar an encoder, over the majority class."""
    figure, axes = plots.figure(size=(7, 2.6))
    axis = axes[0, 0]
    bars = axis.barh(
        list(accuracy), list(accuracy.values()), color=["#bbbbbb", "#4477aa", "#cc6677"], height=0.6
    )
    axis.bar_label(bars, fmt="%.3f", padding=4)
    axis.axvline(floor, color="black", ls="--", lw=1)
    axis.annotate(
        "majority class",
        (floor, 1),
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
