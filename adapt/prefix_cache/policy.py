"""Does the cache of a frozen prefix pay? A decision with its reason, and the sets that follow from
it.

Nothing here prints or measures: progress goes to callbacks, the machine's speed comes as an
argument.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adapt.cost import flops
from adapt.data.examples import Examples
from adapt.errors import OutputError, StrategyError
from adapt.models import EncoderConfig
from adapt.options import StrategyOptions
from adapt.parallel.multihost import all_processes, broadcast_from_lead
from adapt.prefix_cache import states, store
from adapt.prefix_cache.states import OnWait, ignore
from adapt.prefix_cache.store import CachedArray
from adapt.training.events import OnProgress, counting_from
from adapt.training.frozen_prefix import Cut
from adapt.tree import Tree

logger = logging.getLogger(__name__)

WRITE_RATE = 200e6  # bytes/s to a file of the cache, where they were not measured: a slow disk
READ_RATE = 1e9
EFFICIENCY = 0.7  # of the machine's rate of matrix products, which an encoder reaches


@dataclasses.dataclass(frozen=True)
class CacheDecision:
    """Whether training reads the frozen prefix's states from the cache, and why.

    ``arrays`` has an entry for each set, and sets of one file share it; without the cache it is
    empty.
    """

    arrays: dict[str, CachedArray]
    reason: str
    required: bool = False  # an error is raised, rather than going on without the cache
    seconds_saved: float | None = None  # an estimate; None: nothing was estimated
    relative_error: float | None = None  # of storing the states; None: they are not there yet

    @property
    def enabled(self) -> bool:
        return bool(self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, those that are there and those to write."""
        return sum(array.nbytes for array in distinct(self.arrays))

    def summary(self) -> dict[str, Any] | None:
        """What result.json says of the cache; None where it was off."""
        if not self.enabled:
            return None
        dtype = next(iter(self.arrays.values())).dtype
        return {
            "bytes": self.nbytes,
            "dtype": str(dtype),
            "relative_error": self.relative_error,
            "folders": sorted(str(array.folder) for array in distinct(self.arrays)),
        }


def distinct(arrays: Mapping[str, CachedArray]) -> list[CachedArray]:
    """The arrays of all sets, each once: sets of one file share it."""
    return list({array.folder: array for array in arrays.values()}.values())


def check(options: StrategyOptions, cuts: Sequence[Cut | None]) -> None:
    """Raise :class:`StrategyError` if the cache is required and no phase has a frozen stage.

    ``cuts`` has one entry a phase: where its frozen prefix ends.
    """
    if options.cache == "on" and not any(cuts):
        raise StrategyError(
            f"`cache` on: with `strategy` {options.strategy} the embedding trains, so nothing "
            "before it is frozen; give top:K or frozen, or `cache` auto"
        )


def choose(
    cut: Cut | None,
    params: Tree,
    sets: Mapping[str, Examples],
    options: StrategyOptions,
    *,
    epochs: int,
    matmul_rate: float | None = None,
    earlier: bool | None = None,
) -> CacheDecision:
    """Whether a phase of ``epochs`` epochs uses the cache. Computes and writes no states.

    ``cut`` is where the phase's frozen prefix ends (``step.prefix``), ``matmul_rate`` the FLOP/s
    of this machine as :func:`adapt.cost.clock.matmul_rate` measures them: without it nothing is
    estimated, and ``auto`` takes the cache. ``earlier`` is what a run that is resumed decided
    before its stop: it decides the same. Raises :class:`OutputError` if the disk can't hold what
    ``on`` asks for.
    """
    if cut is None:
        return CacheDecision({}, "the embedding trains, so nothing is frozen")
    asked = options.cache
    if earlier is not None:
        asked = "on" if earlier else "off"
    if asked == "off":
        return CacheDecision({}, "as asked")

    arrays = arrays_of(cut, params, sets, options.cache_dtype)
    saved = None
    if matmul_rate is not None:
        saved = seconds_saved(cut, sets, arrays, epochs, matmul_rate)
        saved = broadcast_from_lead(saved)
    size = describe(arrays, saved)
    if asked == "auto" and saved is not None and saved <= 0:
        return CacheDecision({}, size, seconds_saved=saved)

    error = space_error(arrays)
    if error is not None:
        if asked == "on":
            raise error
        logger.warning("no cache: %s", error)
        return CacheDecision({}, str(error), seconds_saved=saved)
    reason = f"{cut.depth} of {cut.model.stages} stages are frozen: {size}"
    return CacheDecision(arrays, reason, options.cache == "on", saved)


def arrays_of(
    cut: Cut,
    params: Tree,
    sets: Mapping[str, Examples],
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, CachedArray]:
    """Where the cache keeps the states of each set; ``dtype`` is by default that of the encoder."""
    stored_in = cut.model.encoder.dtype if dtype is None else dtype
    arrays = {}
    by_folder = {}
    for name, examples in sets.items():
        array = states.cached_array(params, cut.model, cut.depth, examples, stored_in)
        arrays[name] = by_folder.setdefault(array.folder, array)
    return arrays


def seconds_saved(
    cut: Cut,
    sets: Mapping[str, Examples],
    arrays: Mapping[str, CachedArray],
    epochs: int,
    matmul_rate: float,
) -> float:
    """Seconds that the cache of all sets saves. The test set is read once, the others each epoch."""
    total = 0.0
    written = set()
    for name, array in arrays.items():
        examples = sets[name]
        passes = 1 if name == "test" else epochs
        share = len(examples.sequences) / len(examples.file_sequences)
        is_written = array.is_complete or array.folder in written
        total += prefix_seconds_saved(
            cut.model.encoder.config,
            cut.depth,
            examples.file_sequences.lengths,
            passes * share,
            array.nbytes,
            is_written,
            matmul_rate,
        )
        written.add(array.folder)
    return float(total)


def prefix_seconds_saved(
    config: EncoderConfig,
    depth: int,
    lengths: np.ndarray,
    passes: float,
    nbytes: int,
    is_written: bool,
    matmul_rate: float,
) -> float:
    """Seconds that keeping the states of one file saves; negative where it costs more.

    ``depth`` is the number of frozen stages. ``lengths`` [N] are the tokens of every example of
    the file, ``passes`` how often it is gone through, as a share of the file (nine tenths of it in
    five epochs: 4.5). ``nbytes`` is the size of the array, ``is_written`` whether it is there.
    """
    work = flops.prefix_flops(config, depth, float(lengths.sum()), float(lengths.mean()))
    once = work / (matmul_rate * EFFICIENCY)
    reading = passes * nbytes / READ_RATE
    if is_written:
        return passes * once - reading
    return (passes - 1) * once - reading - nbytes / WRITE_RATE


def describe(arrays: Mapping[str, CachedArray], saved: float | None) -> str:
    """Sizes and seconds, as in ``12 MB there, 3 MB to write, saves about 4.2 s``."""
    sizes = {"there": 0, "to write": 0}
    for array in distinct(arrays):
        sizes["there" if array.is_complete else "to write"] += array.nbytes
    said = [f"{nbytes / 1e6:.0f} MB {state}" for state, nbytes in sizes.items() if nbytes]
    if saved is not None:
        said.append(f"{'saves' if saved > 0 else 'would cost'} about {abs(saved):.1f} s")
    return ", ".join(said)


def space_error(arrays: Mapping[str, CachedArray]) -> OutputError | None:
    """The error, in every process, if any process has no room for the arrays."""
    error = None
    try:
        store.need_space(list(arrays.values()))
    except OutputError as raised:
        error = raised
    if all_processes(error is None):
        return None
    return error or OutputError(
        "another process has no room for the cache: see what it says, or give `cache` off"
    )


def with_states(
    cut: Cut | None,
    params: Tree,
    sets: Mapping[str, Examples],
    decision: CacheDecision | None = None,
    *,
    on_progress: OnProgress = ignore,
    on_wait: OnWait = ignore,
) -> tuple[dict[str, Examples], CacheDecision]:
    """(the sets with the states of the frozen prefix, what was decided in the end).

    States that the cache does not have yet are computed now. Without a ``decision`` every set is
    cached. Where the states can't be written, the sets come back as they are with a decision that
    says why, unless the decision requires the cache: then :class:`OutputError` is raised.
    ``on_progress(done, total)`` counts examples; ``on_wait()`` is called if another process is
    computing the states.

    A training loop of one's own needs two calls, one for where the frozen prefix ends and this::

        depth = frozen_prefix.cut(labels, config.layers)      # stages before the first that trains
        step = make_step(model, loss, tx, depth)
        sets, decision = with_states(step.prefix, frozen, {"train": train, "validation": held_out})
        for batch in sets["train"].batches(shapes, seed, epoch):  # they bring "hidden"
            state, metrics = step(frozen, state, batch)
    """
    if cut is None:
        return dict(sets), CacheDecision({}, "the embedding trains, so nothing is frozen")
    if decision is None:
        arrays = arrays_of(cut, params, sets)
        decision = CacheDecision(arrays, describe(arrays, None), required=True)
    if not decision.enabled:
        return dict(sets), decision

    missing = {}
    for name, array in decision.arrays.items():
        if not array.is_complete:
            missing[array.folder] = len(sets[name].file_sequences)
    total = sum(missing.values())
    computed = {}
    before = 0
    try:
        for name, array in decision.arrays.items():
            if array.folder in computed:
                continue
            report = counting_from(before, total, on_progress)
            computed[array.folder] = states.compute_states(
                cut, params, sets[name], array, on_progress=report, on_wait=on_wait
            )
            before += missing.get(array.folder, 0)
    except OutputError as error:
        if decision.required:
            raise
        logger.warning("no cache: %s", error)
        return dict(sets), CacheDecision({}, str(error), seconds_saved=decision.seconds_saved)

    with_hidden = {}
    for name, examples in sets.items():
        found = computed[decision.arrays[name].folder]
        with_hidden[name] = dataclasses.replace(examples, states=found)
    error = max(array.relative_error for array in decision.arrays.values())
    return with_hidden, dataclasses.replace(decision, relative_error=error)
