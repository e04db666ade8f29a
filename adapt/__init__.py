"""adapt: take a pre-trained model, discard the head of its pre-training, make the encoder that is left useful.

    pretrained = load("minilm")                              # .config .params .tokenizer
    params = drop(pretrained.params, "head")                 # {"encoder": ...}: pure, pretrained is untouched
    model  = Model(Encoder(pretrained.config), Classifier(classes=2, pooling="mean"))
    params = graft(params, "head", model.init_head(key))
    labels = label(params, [("head/.*", "head"), ("encoder/block_05/.*", "top"), (".*", FROZEN)])
    tx     = by_label({"head": adamw(1e-3), "top": adamw(2e-5)}, labels)   # freezing is an optax mask
    frozen, state = init_state(params, labels, tx, key)      # frozen: not copied, not donated, not returned
    step   = make_step(model, cross_entropy, tx)             # one jit, state donated
    for batch in batches: state, metrics = step(frozen, state, batch)

Trees and surgery: adapt/tree.py. Freezing: adapt/training/optim.py. The step: adapt/training/step.py. Strategies: adapt/training/strategies.py.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "tree": (
        "drop",
        "discarded",
        "graft",
        "label",
        "merge",
        "select",
        "paths",
        "digest",
        "check_like",
        "summary",
    ),
    "training.optim": ("FROZEN", "adamw", "by_label", "schedule"),
    "training.losses": ("cross_entropy", "binary_cross_entropy", "squared_error"),
    "training.strategies": ("strategy",),
    "models": (
        "Classifier",
        "CausalLM",
        "Encoder",
        "EncoderConfig",
        "MaskedLM",
        "Model",
        "Span",
        "Tagger",
    ),
    "training.step": ("State", "init_state", "make_eval", "make_step"),
    "features": ("encode",),
    "pretrained.hub": ("Pretrained", "load"),
    "errors": ("AdaptError",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import adapt`` costs milliseconds and touches no device."""
    if name not in _WHERE:
        raise AttributeError(f"module 'adapt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"adapt.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
