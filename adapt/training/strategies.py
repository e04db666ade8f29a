"""Strategies: a name becomes phases of ordered rules, and the rules label every parameter.

    strategy("full", layers, epochs)                 strategy("lora:8+bitfit", layers, epochs)
    strategy("lp-ft+decay:0.9", layers, epochs)      strategy("top:2+l2sp:0.01", layers, epochs)

Methods (``STRATEGIES``) say what trains. Joined by ``+`` they train what any of them trains.
Modifiers (``MODIFIERS``) change the strategy that the methods make. Both are dictionaries, and an
entry added to one works wherever a strategy is named:

    def norms(layers, epochs):
        return single_phase(("encoder/.*norm/(scale|bias)", "encoder"), epochs=epochs)

    STRATEGIES["norms"] = Method(norms)

Phases of one's own need no name: :func:`as_text` makes a text of them that :func:`strategy` reads.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapt import tree
from adapt.errors import RuleError, StrategyError
from adapt.files import parse_json
from adapt.models import EncoderConfig
from adapt.models.peft import PEFT_FIELDS
from adapt.options import is_of, wanted
from adapt.training.frozen_prefix import stage
from adapt.training.optim import FROZEN

# Times the encoder's learning rate, by group: few parameters take larger rates.
LR_MULTIPLIERS = {
    "lora": 10.0,
    "bias": 10.0,
    "adapter": 10.0,
    "prefix": 100.0,
}
HEAD_RULE = ("head/.*", "head")
BELOW = "head/below/.*"
ENCODER_RULE = ("encoder/.*", "encoder")
FROZEN_ENCODER_RULE = ("encoder/.*", FROZEN)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What trains for some epochs.

    ``rules`` label every parameter (:func:`adapt.tree.label`). The group ``head`` has the head's
    learning rate, ``frozen`` none, any other the encoder's or a multiple (``LR_MULTIPLIERS``).
    ``layer_decay`` is the factor from the learning rate of a stage to that of the stage below it; 1
    gives all stages the same rate.

        Phase([("head/.*", "head"), (".*", adapt.FROZEN)], epochs=1)
    """

    rules: tree.Rules
    epochs: int
    layer_decay: float = 1.0

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the rules name and that train: ``head``, ``encoder``, ``lora``, ..."""
        names = [group for _, group in self.rules if group != FROZEN]
        return tuple(dict.fromkeys(names))

    @property
    def trains_head_alone(self) -> bool:
        """Whether the encoder is frozen."""
        return self.groups == ("head",)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Phases one after the other, and what they need beside rules.

    ``peft`` sets the fields of :class:`adapt.models.EncoderConfig` that add parameters
    (``lora_rank``, ``adapter_width``, ...). With ``shared_schedule`` one learning-rate schedule
    runs over all phases; else each phase warms up and decays by itself. ``reinit`` is the number of
    last blocks that begin with fresh weights. ``l2sp`` and ``mixout`` are the strengths of
    :class:`adapt.training.regularizers.Regularizer`. ``bias_correction`` is that of
    :func:`adapt.training.optim.adamw`.
    """

    phases: tuple[Phase, ...]
    peft: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shared_schedule: bool = False
    reinit: int = 0
    l2sp: float = 0.0
    mixout: float = 0.0
    bias_correction: bool = True


@dataclasses.dataclass(frozen=True)
class Arg:
    """A value after the colon of a name. ``parse`` is ``int``, ``float`` or ``str``."""

    name: str
    parse: Callable[[str], int | float | str]
    default: int | float | str | None = None  # None: it must be given


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of ``STRATEGIES`` or ``MODIFIERS``: a function, and the values that its name takes.

    A method's ``build`` gets (number of layers of the encoder, epochs of the run, *values), a
    modifier's (strategy to change, number of layers, *values). Both return a :class:`Strategy`.
    Values are separated by commas; those with a default come last, and the last may contain commas.

        STRATEGIES["top"] = Method(top, [Arg("k", int)])     # top:2
    """

    build: Callable[..., Strategy]
    args: Sequence[Arg] = ()

    def shortest_spelling(self, name: str) -> str:
        """``lora:RANK``: what has to be given."""
        needed = [arg.name.upper() for arg in self.args if arg.default is None]
        return f"{name}:{','.join(needed)}" if needed else name

    def spelling(self, name: str) -> str:
        """``lora:RANK[,ALPHA[,TARGETS]]``."""
        text = ""
        for index, arg in reversed(list(enumerate(self.args))):
            separator = "," if index else ":"
            text = f"{separator}{arg.name.upper()}{text}"
            if arg.default is not None:
                text = f"[{text}]"
        return name + text


def strategy(spec: str, layers: int, epochs: int = 1) -> Strategy:
    """The strategy ``spec`` for an encoder of ``layers`` blocks and a run of ``epochs``.

    A spec is one method or modifier, or several joined by ``+``, in any order. Modifiers alone
    change ``full``. They are applied in the order of ``MODIFIERS``.

    Raises :class:`StrategyError` for an unknown name, for a value that is missing, wrong or too
    much, and for a contradiction. A text of :func:`as_text` is a spec, too.

        strategy("top:2", layers=12).phases[0].rules
        strategy("lora:8+decay:0.9", layers=12, epochs=3)
    """
    if is_own(spec):
        return parse_own(spec, layers, epochs)
    methods = []
    modifiers = {}
    for word in sorted(word.strip() for word in spec.split("+")):
        name, _, text = word.partition(":")
        method = find_method(name, word)
        values = parse_values(word, name, text, method)
        if name in STRATEGIES:
            methods.append((word, method.build(layers, epochs, *values)))
        elif name in modifiers:
            raise StrategyError(f"{spec}: {name} is there twice, and a run has one: leave one out")
        else:
            modifiers[name] = values

    result = combine(spec, methods) if methods else full(layers, epochs)
    for name, modifier in MODIFIERS.items():
        if name in modifiers:
            result = modifier.build(result, layers, *modifiers[name])
    return result


def strategy_for(config: EncoderConfig, spec: str, epochs: int) -> Strategy:
    """The strategy ``spec`` for an encoder, and a run of ``epochs``: :func:`strategy`.

    Blocks that share their weights are one block, and so ``top:1`` trains all of them. Raises
    :class:`StrategyError` as that does.
    """
    try:
        return strategy(spec, config.own_blocks, epochs)
    except StrategyError as error:
        if not config.shared_blocks:
            raise
        shared = f"its {config.layers} layers are one block, which is used again and again"
        raise StrategyError(f"{error} ({shared})") from None


def find_method(name: str, word: str) -> Method:
    """The entry ``name`` of either dictionary. ``word`` is what was typed, for the error."""
    entries = STRATEGIES | MODIFIERS
    if name not in entries:
        spellings = [method.shortest_spelling(name) for name, method in entries.items()]
        raise StrategyError(
            f"unknown strategy {word!r}: give one of {', '.join(spellings)}, or some joined by +"
        )
    return entries[name]


def parse_values(word: str, name: str, text: str, method: Method) -> list[Any]:
    """The values in ``text``, what follows the colon; defaults for those left out."""
    texts = []
    if text:
        most_commas = max(len(method.args) - 1, 1)
        texts = text.split(",", most_commas)
    required = [arg for arg in method.args if arg.default is None]
    if not len(required) <= len(texts) <= len(method.args):
        raise StrategyError(f"{word!r} must be spelled {method.spelling(name)}")

    values: list[Any] = [arg.default for arg in method.args]
    for index, value_text in enumerate(texts):
        value = parse_value(method.args[index], value_text)
        if value is None:
            raise StrategyError(f"{word!r} must be spelled {method.spelling(name)}, with numbers")
        values[index] = value
    return values


def parse_value(arg: Arg, text: str) -> int | float | str | None:
    """One value, or None for what is no number, not finite, or absurdly large."""
    try:
        value = arg.parse(text)
    except ValueError:
        return None
    if isinstance(value, str) or abs(value) < 1e9:
        return value
    return None


def combine(spec: str, methods: list[tuple[str, Strategy]]) -> Strategy:
    """One strategy that trains what any of the methods (word, strategy) trains.

    Raises :class:`StrategyError` where one of them has several phases, or adds nothing to the
    others.
    """
    if len(methods) == 1:
        return methods[0][1]

    rules: dict[tuple[str, str], str] = {}  # the word that has the rule
    fields: dict[str, str] = {}  # the word that sets the field
    peft: dict[str, Any] = {}
    for word, method in methods:
        check_can_join(spec, word, method)
        for field in method.peft:
            if field in fields:
                raise StrategyError(
                    f"{spec}: {fields[field]} and {word} both set {field}: leave one of them out"
                )
            fields[field] = word
        for rule in method.phases[0].rules:
            if rule == HEAD_RULE or rule[1] == FROZEN:
                continue
            if rule in rules:
                raise StrategyError(
                    f"{spec}: {word} trains what {rules[rule]} trains already: "
                    "leave one of them out"
                )
            rules[rule] = word
        peft.update(method.peft)

    patterns: dict[str, list[str]] = {}  # by group
    for pattern, group in rules:
        patterns.setdefault(group, []).append(pattern)
    # Added parameters and biases lie inside blocks: their rules go before those of the blocks.
    groups = sorted(patterns, key=lambda group: (group == "encoder", group == "bias"))
    joined = [(any_of(patterns[group]), group) for group in groups]
    return single_phase(*joined, epochs=methods[0][1].phases[0].epochs, peft=peft)


def any_of(patterns: Sequence[str]) -> str:
    """One pattern for what any of ``patterns`` matches.

    As rules of their own, one that lies within another would win nothing where it comes second.
    """
    if len(patterns) == 1:
        return patterns[0]
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def check_can_join(spec: str, word: str, method: Strategy) -> None:
    """Raise :class:`StrategyError` for a method that can't be joined with any other."""
    phase, *others = method.phases
    if others:
        raise StrategyError(
            f"{spec}: {word} has phases of its own and can't be joined with another way to train"
        )
    if phase.trains_head_alone:
        raise StrategyError(
            f"{spec}: {word} trains the head, and what it is joined with trains it too: "
            f"leave {word} out"
        )
    if ENCODER_RULE in phase.rules:
        raise StrategyError(
            f"{spec}: {word} trains all that it is joined with: leave one of them out"
        )


def single_phase(*rules: tuple[str, str], epochs: int, **fields: Any) -> Strategy:
    """A strategy of one phase that trains the head and what ``rules`` match; the rest is frozen.

    ``rules`` are (pattern, group), matched in order after the head's. ``fields`` are those of
    :class:`Strategy`. The group's name chooses its learning rate: ``encoder`` has the encoder's,
    others may have a multiple of it (``LR_MULTIPLIERS``).
    """
    phase = Phase([HEAD_RULE, *rules, (".*", FROZEN)], epochs)
    return Strategy((phase,), **fields)


# Methods


def full(layers: int, epochs: int) -> Strategy:
    """Fine-tune everything."""
    return Strategy((Phase([HEAD_RULE, ENCODER_RULE], epochs),))


def frozen(layers: int, epochs: int) -> Strategy:
    """Linear probing: the encoder is a fixed feature extractor, only the head trains."""
    return Strategy((Phase([HEAD_RULE, FROZEN_ENCODER_RULE], epochs),))


def top(layers: int, epochs: int, k: int) -> Strategy:
    """The head and the last K blocks, with the final norm if there is one."""
    if not 1 <= k <= layers:
        raise StrategyError(
            f"top:{k} wants {k} blocks and the encoder has {layers}: "
            f"give top:1 to top:{layers}, frozen or full"
        )
    blocks = block_pattern(range(layers - k, layers))
    return single_phase((f"encoder/({blocks}|final_norm)/.*", "encoder"), epochs=epochs)


def bottom_frozen(layers: int, epochs: int, k: int) -> Strategy:
    """All but the embedding and the first K blocks."""
    if not 0 <= k < layers:
        raise StrategyError(
            f"bottom-frozen:{k} leaves none of {layers} blocks: "
            f"give bottom-frozen:0 to {layers - 1}"
        )
    return top(layers, epochs, layers - k)


def surgical(layers: int, epochs: int, blocks: str) -> Strategy:
    """The head and one band of blocks, counted from 0: surgical:0-1 (Lee et al. 2023)."""
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", blocks)
    band = range(0)
    if match:
        first = int(match[1])
        last = int(match[2] or first)
        band = range(first, last + 1)
    if not band or band[-1] >= layers:
        raise StrategyError(
            f"surgical:{blocks} is no band of the blocks 0 to {layers - 1}: give surgical:A-B"
        )
    return single_phase((f"encoder/({block_pattern(band)})/.*", "encoder"), epochs=epochs)


BIASES = "encoder/.*/bias"


def bitfit(layers: int, epochs: int) -> Strategy:
    """The head and every bias (Ben Zaken et al. 2022)."""
    return single_phase((BIASES, "bias"), epochs=epochs)


def has_biases(params: tree.Tree) -> bool:
    """Whether an encoder has what :func:`bitfit` trains."""
    return any(re.fullmatch(BIASES, path) for path in tree.paths(params))


def lora(layers: int, epochs: int, rank: int, alpha: float, targets: str) -> Strategy:
    """Low-rank updates beside dense layers (Hu et al. 2021).

    ``targets`` is a pattern, without ``+``, for the layers' paths in the encoder.
    """
    peft = {"lora_rank": rank, "lora_alpha": alpha, "lora_targets": targets}
    return single_phase(("encoder/.*/lora/.*", "lora"), epochs=epochs, peft=peft)


def rslora(layers: int, epochs: int, rank: int, alpha: float, targets: str) -> Strategy:
    """LoRA scaled by alpha / sqrt(rank), whose learning does not slow down as the rank grows
    (Kalajdzievski 2023).
    """
    plain = lora(layers, epochs, rank, alpha, targets)
    return dataclasses.replace(plain, peft={**plain.peft, "lora_stabilised": True})


def dora(layers: int, epochs: int, rank: int, alpha: float, targets: str) -> Strategy:
    """LoRA that changes directions, and beside it the lengths of kernels (Liu et al. 2024)."""
    plain = lora(layers, epochs, rank, alpha, targets)
    return dataclasses.replace(plain, peft={**plain.peft, "lora_magnitudes": True})


def adapters(layers: int, epochs: int, width: int) -> Strategy:
    """Bottlenecks after attention and MLP of every block, and norms (Houlsby et al. 2019)."""
    rule = ("encoder/block_.*/(attention|mlp)_(adapter|norm|branch_norm)/.*", "adapter")
    return single_phase(rule, epochs=epochs, peft={"adapter_width": width})


def prefix(layers: int, epochs: int, tokens: int) -> Strategy:
    """Prefix tuning: keys and values before those of every layer (Li and Liang 2021)."""
    rule = ("encoder/.*/prefix/.*", "prefix")
    return single_phase(rule, epochs=epochs, peft={"prefix_tokens": tokens})


def gradual(layers: int, epochs: int) -> Strategy:
    """Gradual unfreezing from the head down, a phase an epoch (ULMFiT, Howard and Ruder 2018).

    Each stage has a rate 2.6 times smaller than the one above it, as there. The last phase trains
    everything for the epochs that are left.
    """
    if epochs < 2:
        raise StrategyError(
            "gradual unfreezes from epoch to epoch and `epochs` is 1: give 2 or more"
        )
    count = min(epochs, layers + 2)
    steps = []
    for number in range(count):
        depth = round(number * (layers + 1) / (count - 1))
        if number == 0:
            steps.append(frozen(layers, 1))
        elif number < count - 1:
            steps.append(top(layers, 1, depth))
        else:
            steps.append(full(layers, epochs - count + 1))
    phases = [dataclasses.replace(step.phases[0], layer_decay=1 / 2.6) for step in steps]
    return Strategy(tuple(phases), shared_schedule=True)


# Modifiers


def lp_ft(base: Strategy, layers: int) -> Strategy:
    """Train the head for a third of the epochs, then fine-tune (Kumar et al. 2022)."""
    phase, *others = base.phases
    if others:
        raise StrategyError(
            "lp-ft probes and then trains: it wants one phase to precede, "
            f"and what it is joined with has {len(base.phases)}"
        )
    probe_epochs = max(round(phase.epochs / 3), 1)
    if probe_epochs >= phase.epochs:
        raise StrategyError(
            "lp-ft probes and then trains: it wants one phase to precede, "
            "and `epochs` is 1: give 2 or more"
        )
    if phase.trains_head_alone:
        raise StrategyError(
            "lp-ft with frozen trains nothing after the probe: leave out one of them"
        )
    probe = Phase([HEAD_RULE, FROZEN_ENCODER_RULE], probe_epochs)
    fine_tuning = dataclasses.replace(phase, epochs=phase.epochs - probe_epochs)
    return dataclasses.replace(base, phases=(probe, fine_tuning))


def decay(base: Strategy, layers: int, factor: float) -> Strategy:
    """A stage's rate is FACTOR times that of the stage above it (Clark et al. 2020)."""
    if not 0 < factor <= 1:
        raise StrategyError(f"decay:{factor:g} must be above 0 and at most 1")
    if all(phase.trains_head_alone for phase in base.phases):
        raise StrategyError(
            "decay with frozen changes nothing, as no block trains: leave out one of them"
        )
    phases = [dataclasses.replace(phase, layer_decay=factor) for phase in base.phases]
    return dataclasses.replace(base, phases=tuple(phases))


def reinit(base: Strategy, layers: int, k: int) -> Strategy:
    """Begin with fresh weights in the last K blocks (Zhang et al. 2021)."""
    if not 1 <= k <= layers:
        raise StrategyError(
            f"reinit:{k} wants {k} blocks and the encoder has {layers}: "
            f"give reinit:1 to reinit:{layers}"
        )
    rules = base.phases[-1].rules
    for index in range(layers - k, layers):
        kernel = f"encoder/block_{index:02d}/mlp/up/kernel"
        if tree.first_match(kernel, rules)[1] == FROZEN:
            raise StrategyError(
                f"reinit:{k} draws weights anew that would stay frozen ({kernel}): "
                "train these blocks too"
            )
    return dataclasses.replace(base, reinit=k)


def l2sp(base: Strategy, layers: int, strength: float) -> Strategy:
    """Penalise the squared distance to the pre-trained values by STRENGTH / 2 (Li et al. 2018)."""
    if not strength > 0:
        raise StrategyError(f"l2sp:{strength:g} must be above 0")
    return dataclasses.replace(base, l2sp=strength)


def mixout(base: Strategy, layers: int, rate: float) -> Strategy:
    """In every step, a fraction RATE of what trains has its pre-trained value (Lee et al. 2020)."""
    if not 0 < rate < 1:
        raise StrategyError(f"mixout:{rate:g} must be above 0 and below 1")
    return dataclasses.replace(base, mixout=rate)


def bertadam(base: Strategy, layers: int) -> Strategy:
    """Leave Adam's averages uncorrected, as BERT's first optimizer did (Zhang et al. 2021)."""
    return dataclasses.replace(base, bias_correction=False)


LORA_ARGS = (
    Arg("rank", int),
    Arg("alpha", float, 16.0),
    Arg("targets", str, ".*/(query|value)"),
)
STRATEGIES: dict[str, Method] = {
    "full": Method(full),
    "frozen": Method(frozen),
    "top": Method(top, [Arg("k", int)]),
    "bottom-frozen": Method(bottom_frozen, [Arg("k", int)]),
    "surgical": Method(surgical, [Arg("blocks", str)]),
    "bitfit": Method(bitfit),
    "lora": Method(lora, LORA_ARGS),
    "rslora": Method(rslora, LORA_ARGS),
    "dora": Method(dora, LORA_ARGS),
    "adapters": Method(adapters, [Arg("width", int)]),
    "prefix": Method(prefix, [Arg("tokens", int)]),
    "gradual": Method(gradual),
}
MODIFIERS: dict[str, Method] = {
    "lp-ft": Method(lp_ft),
    "decay": Method(decay, [Arg("factor", float)]),
    "reinit": Method(reinit, [Arg("k", int)]),
    "l2sp": Method(l2sp, [Arg("strength", float)]),
    "mixout": Method(mixout, [Arg("rate", float)]),
    "bertadam": Method(bertadam),
}


# Phases of one's own


def as_text(strategy: Any) -> Any:
    """A strategy, a phase or a list of phases as text for the option ``strategy``: JSON.

        as_text([Phase(rules, 1), Phase(others, 2)])     # '{"phases": [{"rules": ...

    A name, and whatever is no strategy, stays what it is.
    """
    if isinstance(strategy, Phase):
        strategy = [strategy]
    if is_phases(strategy):
        strategy = Strategy(tuple(strategy))
    if not isinstance(strategy, Strategy):
        return strategy
    check_own(strategy)
    content = changed_fields(strategy)
    content["phases"] = [changed_fields(phase) for phase in strategy.phases]
    return json.dumps(content, default=as_plain)


def is_phases(value: Any) -> bool:
    """Whether a value is a list of phases, with one at least."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(phase, Phase) for phase in value)


def changed_fields(value: "Strategy | Phase") -> dict[str, Any]:
    """The fields of a strategy or a phase that are not at their defaults."""
    changed = {}
    for field in dataclasses.fields(value):
        default = {} if field.name == "peft" else field.default
        if getattr(value, field.name) != default:
            changed[field.name] = getattr(value, field.name)
    return changed


def as_plain(value: Any) -> Any:
    """What JSON has no form for: a number of NumPy as Python's, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def is_own(spec: str) -> bool:
    """Whether a spec is a text of :func:`as_text`."""
    return spec.lstrip().startswith("{")


def shown(spec: str) -> str:
    """A spec as a sentence names it."""
    return "own phases" if is_own(spec) else spec


def parse_own(text: str, layers: int, epochs: int) -> Strategy:
    """The strategy of a text of :func:`as_text`, for an encoder of ``layers`` blocks.

    Raises :class:`StrategyError` for anything else, and where its phases have not ``epochs`` in
    all.
    """
    try:
        content = parse_json(text)
        phases = [Phase(**phase) for phase in content.pop("phases")]
        own = Strategy(tuple(phases), **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StrategyError(
            f"`strategy` is no text of phases ({error}): it has phases, each with rules and epochs"
        ) from None
    check_own(own)
    if own.reinit > layers:
        raise StrategyError(f"`strategy`: reinit {own.reinit}: the encoder has {layers} blocks")
    total = sum(phase.epochs for phase in phases)
    if total != epochs:
        raise StrategyError(
            f"`epochs` {epochs}: the phases of `strategy` have {total} in all: give `epochs` "
            f"{total}"
        )
    return dataclasses.replace(own, phases=tuple(map(with_pairs, phases)))


def with_pairs(phase: Phase) -> Phase:
    """The phase with its rules as tuples, which JSON does not have."""
    return dataclasses.replace(phase, rules=[(pattern, group) for pattern, group in phase.rules])


def check_own(strategy: Strategy) -> None:
    """Raise :class:`StrategyError` for what no strategy can have: of a wrong type, or out of range."""
    if not is_phases(strategy.phases):
        raise StrategyError("`strategy` has no phases: give a list of Phase, with one at least")
    for number, phase in enumerate(strategy.phases, 1):
        check_phase(phase, f"`strategy`, phase {number}")
    check_fields(strategy)


def check_phase(phase: Phase, where: str) -> None:
    """Raise :class:`StrategyError` for rules that are no pairs of texts, and numbers out of range."""
    if not isinstance(phase.rules, list | tuple):
        raise StrategyError(f"{where}: the rules are {phase.rules!r}: give a list of pairs")
    for rule in phase.rules:
        is_pair = isinstance(rule, list | tuple) and len(rule) == 2
        if not is_pair or not all(isinstance(word, str) for word in rule):
            raise StrategyError(f"{where}: the rule {rule!r} is no pair (pattern, group) of texts")
    if not phase.groups:
        raise StrategyError(f"{where}: every rule freezes, so nothing would train")
    if not is_of(phase.epochs, int) or phase.epochs < 1:
        raise StrategyError(f"{where}: epochs {phase.epochs!r} must be a whole number from 1 on")
    if not is_of(phase.layer_decay, float) or not 0 < phase.layer_decay <= 1:
        raise StrategyError(
            f"{where}: layer_decay {phase.layer_decay!r} must be above 0 and at most 1"
        )


def check_fields(strategy: Strategy) -> None:
    """Raise :class:`StrategyError` for what a strategy of one's own has beside its phases."""
    if not isinstance(strategy.peft, Mapping) or strategy.peft.keys() - set(PEFT_FIELDS):
        raise StrategyError(
            f"`strategy`: peft is {strategy.peft!r}: give a dict of {', '.join(PEFT_FIELDS)}"
        )
    hints = typing.get_type_hints(EncoderConfig)
    for name, value in strategy.peft.items():
        if not is_of(value, hints[name]):
            raise StrategyError(f"`strategy`: {name} is {value!r}: give {wanted(hints[name])}")
    if not isinstance(strategy.shared_schedule, bool):
        raise StrategyError("`strategy`: shared_schedule must be True or False")
    if not isinstance(strategy.bias_correction, bool):
        raise StrategyError("`strategy`: bias_correction must be True or False")
    if not is_of(strategy.reinit, int) or strategy.reinit < 0:
        raise StrategyError(f"`strategy`: reinit {strategy.reinit!r} must be a number of blocks")
    if not is_of(strategy.l2sp, float) or strategy.l2sp < 0:
        raise StrategyError(f"`strategy`: l2sp {strategy.l2sp!r} must be at least 0")
    if not is_of(strategy.mixout, float) or not 0 <= strategy.mixout < 1:
        raise StrategyError(f"`strategy`: mixout {strategy.mixout!r} must be from 0 to below 1")


def check_rules(strategy: Strategy, params: tree.Tree) -> None:
    """Raise :class:`StrategyError` for a phase whose rules leave a parameter out, or match none."""
    for number, phase in enumerate(strategy.phases, 1):
        try:
            tree.label(params, phase.rules)
        except RuleError as error:
            raise StrategyError(f"`strategy`, phase {number}: {error}") from None


def with_head_below(strategy: Strategy) -> Strategy:
    """The strategy for a head on that of pre-training, ``head/below``: this is a part of what was
    pre-trained, so it trains as the encoder's blocks do, or is frozen as they are.
    """
    phases = []
    for phase in strategy.phases:
        group = "encoder" if "encoder" in phase.groups else FROZEN
        rules = [(BELOW, group), *phase.rules]
        phases.append(dataclasses.replace(phase, rules=rules))
    return dataclasses.replace(strategy, phases=tuple(phases))


# From rules to labels


def block_pattern(blocks: range) -> str:
    """A pattern for some blocks: ``block_00|block_01``."""
    return "|".join(f"block_{index:02d}" for index in blocks)


def label_phase(phase: Phase, params: tree.Tree, layers: int) -> tuple[tree.Tree, dict[str, float]]:
    """The label tree of a phase, and the factor of each group's learning rate, ``{group: factor}``.

    With a ``layer_decay`` each stage is a group of its own, ``encoder_05``; :func:`base_group`
    gives ``encoder`` back. Groups of which ``params`` has no leaf are left out. Raises
    :class:`StrategyError` for biases to train where there are none.
    """
    if (BIASES, "bias") in phase.rules and not has_biases(params):
        raise StrategyError(
            "bitfit trains the biases of the encoder, and this one has none: give lora:8, or another "
            "strategy"
        )
    labels = tree.label(params, phase.rules)
    factors = dict.fromkeys(phase.groups, 1.0)

    def stage_group(path: str, group: str) -> str:
        number = stage(path, layers)
        if group == FROZEN or number is None:
            return group
        name = f"{group}_{number:02d}"
        factors[name] = phase.layer_decay ** (layers - number)
        return name

    if phase.layer_decay != 1:
        labels = tree.map_paths(stage_group, labels)
    present = set(tree.paths(labels).values())
    return labels, {group: factor for group, factor in factors.items() if group in present}


def base_group(group: str) -> str:
    """``encoder`` for ``encoder_05``: the name that the rules give a group."""
    return re.sub(r"_\d+$", "", group)
