"""Strategies as data: a name becomes phases of ordered rules that label every parameter. Adding one is adding a function.

    strategy("full", layers, epochs)                 strategy("lora:8+bitfit", layers, epochs)
    strategy("lp-ft+decay:0.9", layers, epochs)      strategy("top:2+reinit:2+l2sp:0.01", layers, epochs)

Ways to train are joined by uniting what they train; changes to them (``CHANGES``) apply to the whole. A function here gets
the encoder's depth, the run's epochs, and what follows the colon.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from adapt import tree
from adapt.errors import StrategyError
from adapt.training.frozen_prefix import stage
from adapt.training.optim import FROZEN

LR_MULTIPLIERS = {
    "lora": 10.0,
    "bias": 10.0,
    "adapter": 10.0,
    "prefix": 100.0,
}  # few parameters take larger rates


@dataclasses.dataclass(frozen=True)
class Phase:
    """Ordered rules for the labels, and for how many epochs; ``layer_decay`` is the factor of the rate from a stage to that below."""

    rules: tree.Rules
    epochs: int
    layer_decay: float = 1.0

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the rules name: ``head``, ``encoder``, and what is added."""
        return tuple(dict.fromkeys(group for _, group in self.rules if group != FROZEN))


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Phases one after the other, what is added to the encoder, and what holds it near its pre-trained weights."""

    phases: tuple[Phase, ...]
    peft: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # fields of EncoderConfig: see adapt.models.peft
    shared_schedule: bool = False  # over all phases; else each warms up and decays by itself
    reinit: int = 0  # last blocks that begin with fresh weights
    l2sp: float = 0.0
    mixout: float = 0.0


HEAD = ("head/.*", "head")
REST = (".*", FROZEN)


def single_phase(*rules: tuple[str, str], epochs: int, **more: Any) -> Strategy:
    """One phase: the head and what ``rules`` name trains, the rest is frozen."""
    return Strategy((Phase([HEAD, *rules, REST], epochs),), **more)


def full(layers: int, epochs: int) -> Strategy:
    """Fine-tune everything."""
    return Strategy((Phase([HEAD, ("encoder/.*", "encoder")], epochs),))


def frozen(layers: int, epochs: int) -> Strategy:
    """Linear probing: the encoder is a fixed feature extractor, only the head trains."""
    return Strategy((Phase([HEAD, ("encoder/.*", FROZEN)], epochs),))


def top(layers: int, epochs: int, k: int) -> Strategy:
    """The head and the last K blocks, with the final norm where there is one."""
    if not 1 <= k <= layers:
        raise StrategyError(
            f"top:{k} wants {k} blocks and the encoder has {layers}: give top:1 to top:{layers}, frozen or full"
        )
    return single_phase(
        (f"encoder/({band(layers - k, layers)}|final_norm)/.*", "encoder"), epochs=epochs
    )


def bottom_frozen(layers: int, epochs: int, k: int) -> Strategy:
    """All but the embedding and the first K blocks."""
    if not 0 <= k < layers:
        raise StrategyError(
            f"bottom-frozen:{k} leaves none of {layers} blocks: give bottom-frozen:0 to {layers - 1}"
        )
    return top(layers, epochs, layers - k)


def surgical(layers: int, epochs: int, blocks: str) -> Strategy:
    """The head and one band of blocks, counted from 0: surgical:0-1 (Lee et al. 2023)."""
    first, _, last = blocks.partition("-")
    numbers = [int(word) if word.isdecimal() else layers for word in (first, last or first)]
    if not numbers[0] <= numbers[1] < layers:
        raise StrategyError(
            f"surgical:{blocks} is no band of the blocks 0 to {layers - 1}: give surgical:A-B"
        )
    return single_phase(
        (f"encoder/({band(numbers[0], numbers[1] + 1)})/.*", "encoder"), epochs=epochs
    )


def bitfit(layers: int, epochs: int) -> Strategy:
    """The head and every bias (Ben Zaken et al. 2022)."""
    return single_phase(("encoder/.*/bias", "bias"), epochs=epochs)


def lora(
    layers: int, epochs: int, rank: int, alpha: float = 16.0, targets: str = ".*/(query|value)"
) -> Strategy:
    """Low-rank updates beside the dense layers whose path in the encoder matches ``targets``, without ``+`` (Hu et al. 2021)."""
    peft = {"lora_rank": rank, "lora_alpha": alpha, "lora_targets": targets}
    return single_phase(("encoder/.*/lora/.*", "lora"), epochs=epochs, peft=peft)


def adapters(layers: int, epochs: int, width: int) -> Strategy:
    """Bottlenecks after attention and MLP of every block, and the norms beside them (Houlsby et al. 2019)."""
    rules = ("encoder/block_.*/(attention|mlp)_(adapter|norm)/.*", "adapter")
    return single_phase(rules, epochs=epochs, peft={"adapter_width": width})


def prefix(layers: int, epochs: int, tokens: int) -> Strategy:
    """Keys and values before those of every layer (prefix tuning, Li and Liang 2021)."""
    return single_phase(
        ("encoder/.*/prefix/.*", "prefix"), epochs=epochs, peft={"prefix_tokens": tokens}
    )


def gradual(layers: int, epochs: int) -> Strategy:
    """Unfreeze from the head down, a phase an epoch, rates 2.6 times smaller a stage (ULMFiT, Howard and Ruder 2018)."""
    if epochs < 2:
        raise StrategyError(
            "gradual unfreezes from epoch to epoch and --epochs is 1: give 2 or more"
        )
    count = min(epochs, layers + 2)
    depths = [round(number * (layers + 1) / (count - 1)) for number in range(count)]
    ways = [
        frozen(layers, 1),
        *(top(layers, 1, depth) for depth in depths[1:-1]),
        full(layers, epochs - count + 1),
    ]
    phases = tuple(dataclasses.replace(way.phases[0], layer_decay=1 / 2.6) for way in ways)
    return Strategy(phases, shared_schedule=True)


def lp_ft(base: Strategy, layers: int) -> Strategy:
    """Probe first, for a third of the epochs, then fine-tune from there (Kumar et al. 2022)."""
    phase = base.phases[0]
    probe = max(round(phase.epochs / 3), 1)
    if len(base.phases) > 1 or probe >= phase.epochs:
        why = (
            f"what it is joined with has {len(base.phases)}"
            if len(base.phases) > 1
            else "--epochs is 1: give 2 or more"
        )
        raise StrategyError(
            f"lp-ft probes and then trains: it wants one phase to precede, and {why}"
        )
    if phase.groups == ("head",):
        raise StrategyError(
            "lp-ft with frozen trains nothing after the probe: leave out one of them"
        )
    again = dataclasses.replace(phase, epochs=phase.epochs - probe)
    return dataclasses.replace(base, phases=(Phase([HEAD, ("encoder/.*", FROZEN)], probe), again))


def decay(base: Strategy, layers: int, factor: float) -> Strategy:
    """Layer-wise rate decay: each stage's rate is FACTOR times that of the stage above (Clark et al. 2020)."""
    if not 0 < factor <= 1:
        raise StrategyError(f"decay:{factor:g} must be above 0 and at most 1")
    if all(phase.groups == ("head",) for phase in base.phases):
        raise StrategyError(
            "decay with frozen changes nothing, as no block trains: leave out one of them"
        )
    return dataclasses.replace(
        base, phases=tuple(dataclasses.replace(p, layer_decay=factor) for p in base.phases)
    )


def reinit(base: Strategy, layers: int, k: int) -> Strategy:
    """Begin with fresh weights in the last K blocks (Zhang et al. 2021)."""
    if not 1 <= k <= layers:
        raise StrategyError(
            f"reinit:{k} wants {k} blocks and the encoder has {layers}: give reinit:1 to reinit:{layers}"
        )
    kernels = [f"encoder/block_{index:02d}/mlp/up/kernel" for index in range(layers - k, layers)]
    still = [name for name in kernels if matching_group(base.phases[-1].rules, name) == FROZEN]
    if still:
        raise StrategyError(
            f"reinit:{k} draws weights anew that would stay frozen ({still[0]}): train these blocks too"
        )
    return dataclasses.replace(base, reinit=k)


def l2sp(base: Strategy, layers: int, strength: float) -> Strategy:
    """Pull what trains toward its pre-trained values: STRENGTH / 2 times the squared distance (Li et al. 2018)."""
    if not strength > 0:
        raise StrategyError(f"l2sp:{strength:g} must be above 0")
    return dataclasses.replace(base, l2sp=strength)


def mixout(base: Strategy, layers: int, rate: float) -> Strategy:
    """In every step, a share RATE of the weights that train is as it was pre-trained (Lee et al. 2020)."""
    if not 0 < rate < 1:
        raise StrategyError(f"mixout:{rate:g} must be above 0 and below 1")
    return dataclasses.replace(base, mixout=rate)


def names(*functions: Callable[..., Strategy]) -> dict[str, Callable[..., Strategy]]:
    return {function.__name__.replace("_", "-"): function for function in functions}


STRATEGIES = names(
    full, frozen, top, bottom_frozen, surgical, bitfit, lora, adapters, prefix, gradual
)
MODIFIERS = names(lp_ft, decay, reinit, l2sp, mixout)


def strategy(spec: str, layers: int, epochs: int = 1) -> Strategy:
    """Read ``"top:2"`` or ``"lora:8+decay:0.9"`` for an encoder of ``layers`` blocks and a run of ``epochs``.

    Raises :class:`StrategyError` for an unknown name, a number missing, wrong or too many, or a contradiction.
    """
    ways = []
    changes = []
    for word in map(str.strip, spec.split("+")):
        name, _, rest = word.partition(":")
        if name not in STRATEGIES | MODIFIERS:
            spellings = ", ".join(
                spelling(name, function) for name, function in (STRATEGIES | MODIFIERS).items()
            )
            raise StrategyError(
                f"unknown strategy {word!r}: give one of {spellings}, or some joined by +"
            )
        function = (STRATEGIES | MODIFIERS)[name]
        values = arguments(
            word, function, rest.split(",", max(len(parameters(function)) - 1, 1)) if rest else []
        )
        if function in [used for used, _ in changes]:
            raise StrategyError(f"{spec}: {name} is there twice, and a run has one: leave one out")
        if name in STRATEGIES:
            ways.append(function(layers, epochs, *values))
        else:
            changes.append((function, values))
    whole = combine(spec, ways or [full(layers, epochs)])
    for function, values in changes:
        whole = function(whole, layers, *values)
    return whole


def combine(spec: str, ways: list[Strategy]) -> Strategy:
    """One strategy that trains what any of the ways trains."""
    if len(ways) == 1:
        return ways[0]
    if any(len(way.phases) > 1 for way in ways):
        raise StrategyError(
            f"{spec}: gradual has phases of its own and can't be joined with another way to train"
        )
    rules = dict.fromkeys(rule for way in ways for rule in way.phases[0].rules if rule[1] != FROZEN)
    added = [field for way in ways for field in way.peft]
    if (
        len(set(added)) < len(added)
        or ("encoder/.*", "encoder") in rules
        or len(rules) < 1 + len(ways)
    ):
        raise StrategyError(
            f"{spec}: one of these trains what another trains already: leave it out"
        )
    every: dict[str, Any] = {}
    for way in ways:
        every |= way.peft
    own = sorted(
        (rule for rule in rules if rule != HEAD),
        key=lambda rule: (rule[1] == "encoder", rule[1] == "bias"),
    )
    return single_phase(
        *own, epochs=ways[0].phases[0].epochs, peft=every
    )  # what is added goes before the blocks that it is in


def arguments(word: str, function: Callable[..., Strategy], given: list[str]) -> list[Any]:
    """The words after the colon as the numbers that ``function`` takes."""
    wanted = parameters(function)
    needed = sum(parameter.default is inspect.Parameter.empty for parameter in wanted)
    if not needed <= len(given) <= len(wanted):
        raise StrategyError(
            f"{word!r} must be spelled {spelling(function.__name__.replace('_', '-'), function)}"
        )
    try:
        values = [
            parameter.annotation(text) for parameter, text in zip(wanted, given, strict=False)
        ]
        if not all(abs(value) < 1e9 for value in values if not isinstance(value, str)):
            raise ValueError
        return values
    except ValueError:
        raise StrategyError(
            f"{word!r} must be spelled {spelling(function.__name__.replace('_', '-'), function)}, with numbers"
        ) from None


def parameters(function: Callable[..., Strategy]) -> list[inspect.Parameter]:
    """What a strategy takes beside the depth, the epochs or the strategy that it changes."""
    return list(inspect.signature(function).parameters.values())[2:]


def spelling(name: str, function: Callable[..., Strategy]) -> str:
    """``lora:RANK[,ALPHA[,TARGETS]]``."""
    found = ""
    for parameter in reversed(parameters(function)):
        optional = parameter.default is not inspect.Parameter.empty
        found = (
            f"[,{parameter.name.upper()}{found}]"
            if optional
            else f":{parameter.name.upper()}{found}"
        )
    return name + found


def matching_group(rules: tree.Rules, path: str) -> str:
    """The group of one path. See :func:`adapt.tree.match`, which wants all of them."""
    return next(group for pattern, group in rules if re.fullmatch(pattern, path))


def band(first: int, last: int) -> str:
    """A pattern for the blocks ``first`` to ``last - 1``."""
    return "|".join(f"block_{index:02d}" for index in range(first, last))


def label_phase(phase: Phase, params: tree.Tree, layers: int) -> tuple[tree.Tree, dict[str, float]]:
    """(label tree, factor of each group's rate). With ``layer_decay`` each stage is a group, ``encoder_05``; see :func:`base_group`."""
    labels = tree.label(params, phase.rules)
    factors = dict.fromkeys(phase.groups, 1.0)

    def by_stage(path: str, group: str) -> str:
        at = stage(path, layers)
        if group == FROZEN or at is None:
            return group
        factors[name := f"{group}_{at:02d}"] = phase.layer_decay ** (layers - at)
        return name

    labels = labels if phase.layer_decay == 1 else tree.map_paths(by_stage, labels)
    return labels, {
        group: factor
        for group, factor in factors.items()
        if group in set(tree.paths(labels).values())
    }


def base_group(group: str) -> str:
    """``encoder`` for ``encoder_05``: what the rules call a group."""
    return re.sub(r"_\d+$", "", group)
