"""How far a run is, and its checkpoints: in a folder, to go on after a stop, or in memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adapt import files, tree
from adapt.errors import CheckpointError, StrategyError
from adapt.parallel import multihost
from adapt.parallel.sharding import Layout
from adapt.training import checkpoint, optim
from adapt.training.metrics_log import MetricsLog
from adapt.training.step import State, copy_leaves

# The best score where none is defined: any other is better, and JSON can hold it.
UNDEFINED = -1e300


@dataclasses.dataclass
class Progress:
    """What a run has to know beside its state to go on; every checkpoint has it, by these names."""

    best_score: float | None = None  # None: not validated yet
    best_loss: float = 0.0
    best_step: int = 0
    stale: int = 0  # epochs since the best
    step: int = 0
    saved: int = 0  # the step of the last checkpoint
    examples: float = 0.0  # in steps that compiled nothing, and
    seconds: float = 0.0  # what these took
    tokens: float = 0  # of all examples, and
    slots: float = 0  # of the rows in which they were packed
    metrics_bytes: int = 0
    phase: int = 0
    best_phase: int = 0
    # of every phase that began: the digest of what is frozen, how it is stored where that rounds
    # it, whether it is cached, and how
    phases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    first_loss: float | None = None  # of a validation before the first step, where there is one
    # of the best validation, by metric; empty in a run that began before they were kept
    best_scores: dict[str, float | None] = dataclasses.field(default_factory=dict)
    total_steps: int | None = None  # of the whole run; None in one that began before it was kept

    @classmethod
    def read(cls, info: dict[str, Any]) -> "Progress":
        """The progress that was stored with a checkpoint.

        Raises :class:`CheckpointError` where there is none: in a run that ``Run.save`` saved.
        """
        if "progress" in info:
            return cls(**info["progress"])
        if "validation" not in info:
            raise CheckpointError(
                "`resume`: the run was saved with its best parameters alone, and can't go on: "
                "start anew with `overwrite`"
            )
        # A pre-training run that was begun before it stored the same as fine-tuning.
        return cls(
            best_score=info["validation"]["accuracy"],
            best_loss=info["validation"]["loss"],
            examples=info["examples"],
            seconds=info["seconds"],
            metrics_bytes=info["metrics_bytes"],
            phases=[{"digest": "", "cached": False, "cache": None}],
            first_loss=info["start_loss"],
        )

    @property
    def examples_per_second(self) -> float | None:
        return self.examples / self.seconds if self.examples else None

    def has_begun(self, phase: int) -> bool:
        return phase < len(self.phases)

    def was_cached(self, phase: int) -> bool | None:
        """Whether a phase used the cache before a stop; None if it had not begun."""
        return self.phases[phase]["cached"] if self.has_begun(phase) else None

    def begin_phase(self, phase: int, digest: str, is_cached: bool) -> None:
        self.phase = phase
        self.stale = 0
        self.phases = [
            *self.phases[:phase],
            {"digest": digest, "cached": is_cached},
        ]

    def count(self, record: dict[str, float]) -> None:
        """Add a record of the training loop."""
        self.step = int(record["step"])
        self.examples += record["timed_examples"]
        self.seconds += record["seconds"]
        self.tokens += record["tokens"]
        self.slots += record["slots"]

    def stored(self, phase: int) -> dict[str, Any] | None:
        """What :meth:`note_stored` noted of a phase."""
        return self.phases[phase].get("stored")

    def note_stored(self, phase: int, summary: dict[str, Any]) -> None:
        self.phases[phase] |= {"stored": summary}

    def note_cache(self, phase: int, summary: dict[str, Any] | None) -> None:
        self.phases[phase] |= {"cached": summary is not None, "cache": summary}

    def compare(self, score: float, loss: float, latest_is_best: bool = False) -> bool:
        """Whether a validation is the best until now, in which case it is noted.

        A tie goes to the lower loss, and a score that is not defined loses to any. All processes
        decide as the lead one: on other hardware a tie may go another way.
        """
        score = score if np.isfinite(score) else UNDEFINED
        is_best = True
        if self.best_score is not None and not latest_is_best:
            is_best = (score, -loss) > (self.best_score, -self.best_loss)
        is_best = bool(multihost.broadcast_from_lead(is_best))
        if is_best:
            self.best_score = score
            self.best_loss = loss
            self.best_step = self.step
            self.best_phase = self.phase
        self.stale = 0 if is_best else self.stale + 1
        return is_best


def best_validation(progress: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics and the loss of the best validation until now, by the :class:`Progress` that a
    checkpoint has; {} before the first one.
    """
    if progress.get("best_score") is None:
        return {}
    scores = progress.get("best_scores") or {}  # a run that began before they were kept has none
    return {**scores, "loss": progress.get("best_loss")}


class Checkpoints(Protocol):
    """Where a run keeps its parameters."""

    def resume(self) -> Progress | None:
        """The progress of the run that goes on; None: a new run begins."""
        ...

    def load_params(self, like: tree.Tree, which: str = "best") -> tree.Tree:
        """All parameters of the best checkpoint, or of the "last"."""
        ...

    def restore(self, state: State) -> State:
        """The last checkpoint's state, on the devices of ``state``; of a new run ``state`` itself."""
        ...

    def begin_phase(self, frozen: tree.Tree, state: State, progress: Progress) -> None:
        """Save what a phase begins with."""
        ...

    def save(self, state: State, progress: Progress, is_best: bool) -> None: ...


@dataclasses.dataclass
class FolderCheckpoints:
    """Checkpoints in a folder. Whenever the process is killed, the last complete one is good.

    ``encoder`` is a pre-trained encoder that checkpoints refer to in place of storing it, ``log``
    the metrics that are cut back to the checkpoint when a run goes on, ``layout`` the mesh on which
    parameters are read. A run that ``grows`` goes on with more epochs than it had, and has its
    patience anew.
    """

    folder: Path
    resumes: bool = False
    encoder: tree.Tree | None = None
    log: MetricsLog | None = None
    layout: Layout | None = None
    grows: bool = False

    @property
    def referred(self) -> tree.Tree:
        """The parameters that are not stored here, unless they differ."""
        return {} if self.encoder is None else {"encoder": self.encoder}

    def resume(self) -> Progress | None:
        progress = None
        if self.resumes:
            progress = Progress.read(checkpoint.read_last(self.folder))
            progress.stale = 0 if self.grows else progress.stale
        if self.log:
            self.log.cut_back(progress.metrics_bytes if progress else 0)
        return progress

    def load_params(self, like: tree.Tree, which: str = "best") -> tree.Tree:
        return checkpoint.load_params(self.folder, like, self.referred, which, self.layout)

    def restore(self, state: State) -> State:
        return checkpoint.restore(self.folder, state)[0] if self.resumes else state

    def begin_phase(self, frozen: tree.Tree, state: State, progress: Progress) -> None:
        checkpoint.save_frozen(self.folder, changed(frozen, self.referred), progress.phase)
        self.save(state, progress, is_best=False)

    def save(self, state: State, progress: Progress, is_best: bool) -> None:
        progress.saved = int(state.step)
        progress.metrics_bytes = self.log.size if self.log else 0
        info = {"progress": dataclasses.asdict(progress)}
        checkpoint.save(self.folder, state, info, is_best, progress.phase)


class MemoryCheckpoints:
    """The best parameters on the devices, and nothing else: a run with these can't be resumed.

    They take as much memory again as the parameters that train.
    """

    def __init__(self) -> None:
        self.frozen: tree.Tree = {}
        self.best: tree.Tree | None = None

    def resume(self) -> Progress | None:
        return None

    def restore(self, state: State) -> State:
        return state

    def load_params(self, like: tree.Tree, which: str = "best") -> tree.Tree:
        """The best parameters, whatever ``which`` says: no others are kept."""
        assert self.best is not None, "nothing was validated yet"
        tree.check_like(self.best, like, "the best parameters", dtypes=True)
        return self.best

    def begin_phase(self, frozen: tree.Tree, state: State, progress: Progress) -> None:
        self.frozen = frozen

    def save(self, state: State, progress: Progress, is_best: bool) -> None:
        progress.saved = int(state.step)
        if is_best:  # a copy, for the next step is given the state's own memory
            self.best = tree.merge(self.frozen, copy_leaves(state.params))


def changed(frozen: tree.Tree, base: tree.Tree) -> tree.Tree:
    """The frozen leaves that differ from ``base``: what a checkpoint that refers to it stores."""
    leaves = tree.paths(base)

    def differs(path: str) -> bool:
        return path not in leaves or not has_same_bits(tree.get(frozen, path), leaves[path])

    return tree.select(frozen, differs)


def has_same_bits(one: Any, other: Any) -> bool:
    one = tree.to_numpy(one).reshape(-1)
    other = tree.to_numpy(other).reshape(-1)
    return np.array_equal(one.view(np.uint8), other.view(np.uint8))


def encoder_reference(
    source: str,
    params: tree.Tree,
    labels: tree.Tree,
    save: str,
    out: Path,
    digest: str,
    random_weights: bool = False,
) -> dict[str, str] | None:
    """The source and ``digest`` of the encoder that checkpoints refer to; None: they store it.

    ``labels`` are those of the last phase. ``save`` auto refers to the encoder where at most half
    of its parameters train. Raises :class:`StrategyError` where ``save`` delta can't be.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder.resolve())
    hindrance = ""
    if random_weights:
        hindrance = "`random_weights` has no encoder to refer to"
    if files.to_path(source) == files.absolute(out):
        hindrance = f"`out` {out} replaces the checkpoint that it would refer to"
    if hindrance and save == "delta":
        raise StrategyError(f"`save` delta: {hindrance}: give `save` full")

    trained = tree.count(optim.trainable(params, labels).get("encoder", {}))
    mostly_trained = 2 * trained > tree.count(params["encoder"])
    if hindrance or save == "full" or (save == "auto" and mostly_trained):
        return None
    return {"source": source, "digest": digest}
