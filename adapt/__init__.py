"""adapt: take a pre-trained model, discard the head of its pre-training, make the encoder that is
left useful.

    run    = finetune("minilm", texts, labels, strategy="top:2")           # adapt/finetuning.py
    run.predict(["a new text"]).labels

The same by hand, in pure functions:

    pretrained = load("minilm")                              # .config .params .tokenizer
    params = drop(pretrained.params, "head")                 # {"encoder": ...}: pure, pretrained is untouched
    model  = Model(Encoder(pretrained.config), Classifier(classes=2, pooling="mean"))
    params = graft(params, "head", model.init_head(key))
    labels = label(params, [("head/.*", "head"), ("encoder/block_05/.*", "top"), (".*", FROZEN)])
    tx     = by_label({"head": adamw(1e-3), "top": adamw(2e-5)}, labels)   # freezing is an optax mask
    frozen, state = init_state(params, labels, tx, key)      # frozen: not copied, not donated, not returned
    step   = make_step(model, cross_entropy, tx)             # one jit, state donated
    for batch in batches: state, metrics = step(frozen, state, batch)

Trees and surgery: adapt/tree.py. Freezing: adapt/training/optim.py. The step:
adapt/training/step.py. Strategies: adapt/training/strategies.py.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _public_names() -> dict[str, str]:
    """``{name: module}`` of what __init__.pyi imports: one list for people, type checkers and this
    module.
    """
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    names = {}
    for statement in stub.body:
        if isinstance(statement, ast.ImportFrom):
            names |= {alias.name: str(statement.module) for alias in statement.names}
    return names


_MODULES = _public_names()
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import adapt`` costs milliseconds and touches no device."""
    if name not in _MODULES:
        raise AttributeError(f"module 'adapt' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
