"""The cells of a comparison: one strategy, budget and seed each, and where they are kept."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt import files
from adapt.errors import OutputError
from adapt.tasks.metrics import Scores
from adapt.training.strategies import is_own

Key = tuple[str, str, int]  # strategy, budget and seed of a cell
Outputs = Mapping[str, np.ndarray]  # of the head on every test set, by name


@dataclasses.dataclass(frozen=True)
class Try:
    """A fit with one rate, judged by the examples that choose. nan where the loss diverged."""

    rate: float  # a factor of the strategy's rates; of a probe the strength of its penalty
    score: float
    loss: float
    seconds: float  # without compiling; of fits that trained together the mean
    steps: int
    best_step: int
    together: int = 1  # fits that trained in one program, this one among them


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the chosen fit of a cell took, the encoding of its examples included."""

    seconds: float
    flops: float
    parameters: int  # that train


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was chosen of the tries of one strategy, budget and seed, and its test."""

    strategy: str
    budget: str
    seed: int
    labelled: int  # examples that were used, those that choose among them
    tries: Sequence[Try]
    chosen: int  # of the tries
    scores: Mapping[str, Mapping[str, float | None]]  # by test set and metric
    floors: Mapping[str, float | None]  # what scores on the test without a look at any input
    seconds: float  # of the chosen fit, encoding included
    flops: float  # of it
    parameters: int  # that train

    @property
    def key(self) -> Key:
        return self.strategy, self.budget, self.seed

    @property
    def best(self) -> Try:
        return self.tries[self.chosen]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a try, as plain values: the test scores are those of the one that was chosen."""
        for number, tried in enumerate(self.tries):
            is_chosen = number == self.chosen
            row: dict[str, Any] = {
                "strategy": self.strategy,
                "labels": self.budget,
                "labelled": self.labelled,
                "seed": self.seed,
                "rate": tried.rate,
                "chosen": is_chosen,
                "validation_score": tried.score,
                "validation_loss": tried.loss,
                "steps": tried.steps,
                "best_step": tried.best_step,
                "together": tried.together,
                "fit_seconds": tried.seconds,
                "seconds": self.seconds if is_chosen else None,
                "flops": self.flops,
                "parameters": self.parameters,
            }
            for set_name, scores in self.scores.items():
                for metric, value in scores.items():
                    row[f"{set_name}_{metric}"] = value if is_chosen else None
            yield row


class Cells:
    """The cells that are done, in memory or in a folder: with it a comparison goes on after a stop.

    A cell counts as done when its JSON is there, which is written last.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.done: dict[Key, Cell] = {}
        self.outputs: dict[Key, Outputs] = {}
        if folder is not None:
            folder.mkdir(exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                cell = read_cell(path)
                self.done[cell.key] = cell

    def __contains__(self, key: Key) -> bool:
        return key in self.done

    def __len__(self) -> int:
        return len(self.done)

    def add(self, cell: Cell, outputs: Outputs) -> None:
        """Keep a cell with its outputs on the test sets, float32."""
        self.done[cell.key] = cell
        if self.folder is None:
            self.outputs[cell.key] = outputs
            return
        path = self.folder / f"{file_name(cell.key)}.json"
        write_arrays(path.with_suffix(".npz"), outputs)
        files.write_json(path, dataclasses.asdict(cell))

    def outputs_of(self, key: Key) -> Outputs:
        if self.folder is None:
            return self.outputs[key]
        path = self.folder / f"{file_name(key)}.npz"
        return read_arrays(path, path.with_suffix(".json"))


def read_cell(path: Path) -> Cell:
    """Raises :class:`OutputError` for a damaged file."""
    try:
        content = json.loads(path.read_text("utf-8"))
        content["tries"] = [Try(**tried) for tried in content["tries"]]
        return Cell(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(damaged(path, path)) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, compressed: all of them, or no file."""
    with files.atomic_path(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path, to_delete: Path | None = None) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote. Raises :class:`OutputError` for a damaged file, and says what
    to delete, by default that file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return dict(kept)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise OutputError(damaged(path, to_delete or path)) from error


def damaged(path: Path, to_delete: Path) -> str:
    return f"{path} is damaged: delete {to_delete}, and `resume` makes it anew"


def file_name(key: Key) -> str:
    """The name of a cell's files, without suffix. Phases of one's own have a digest for a name."""
    strategy, budget, seed = key
    if is_own(strategy):
        strategy = f"phases-{hashlib.sha256(strategy.encode()).hexdigest()[:12]}"
    plain = "".join(sign if sign.isalnum() or sign in "+-." else "_" for sign in strategy)
    return f"{plain}-{budget}-{seed}"


def choose(tries: Sequence[Try]) -> int:
    """The try with the best score, of equal ones that with the lower loss; one that diverged is
    never chosen while there is another.
    """

    def order(number: int) -> tuple[bool, float, float]:
        tried = tries[number]
        has_score = bool(np.isfinite(tried.score))
        loss = tried.loss if np.isfinite(tried.loss) else np.inf
        return np.isfinite(tried.loss), tried.score if has_score else -1.0, -loss

    return max(range(len(tries)), key=order)


def as_finite(scores: Scores) -> dict[str, float | None]:
    """Scores as JSON has them: None where one is not defined."""
    return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}
