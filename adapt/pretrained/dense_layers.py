"""The dense layers that a folder of sentence-transformers may have after its pooling (2_Dense).

They make vectors of pooled states, so they are no part of the encoder, and nothing trains them
here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt.errors import CheckpointError

# The activations by the names of torch's classes. They say those of their modules, too.
ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "Identity": lambda x: x,
    "Tanh": jax.nn.tanh,
    "ReLU": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "SiLU": jax.nn.silu,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
}
TANH = "torch.nn.modules.activation.Tanh"  # where config.json does not say another
TRUSTED = "torch."  # the library takes Tanh for what is not one of these
VECTOR = "sentence_embedding"


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """A dense layer of vectors.

    ``kernel`` is float32 [in, out], ``bias`` [out] or None, ``activation`` a name of
    :data:`ACTIVATIONS`.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    activation: str

    @property
    def width(self) -> int:
        """The numbers of a vector that it makes."""
        return self.kernel.shape[1]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [N, in] -> float32 [N, out]."""
        projected = vectors @ self.kernel
        if self.bias is not None:
            projected = projected + self.bias
        return np.asarray(ACTIVATIONS[self.activation](projected))


def through(layers: Sequence[DenseLayer], vectors: np.ndarray) -> np.ndarray:
    """Vectors through one layer after the other."""
    for layer in layers:
        vectors = layer(vectors)
    return vectors


def refusal(settings: Mapping[str, Any]) -> str:
    """What of a layer's config.json is not done here; "" if all is."""
    name = str(settings.get("activation_function", TANH))
    if not name.startswith(TRUSTED) or name.rpartition(".")[2] not in ACTIVATIONS:
        return f"activation_function {name}"
    for entry in ("module_input_name", "module_output_name"):
        if settings.get(entry, VECTOR) not in (VECTOR, None):
            return f"{entry} {settings[entry]}"
    return "use_residual" if settings.get("use_residual") else ""


def dense_layer(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], width: int, folder: Path
) -> DenseLayer:
    """The layer in a folder, of whose config.json these are the entries.

    ``width`` is that of the vectors before it. Raises :class:`CheckpointError` for weights that do
    not fit it or config.json.
    """
    has_bias = bool(settings.get("bias", True))
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": (settings.get("out_features"), width)}
    if has_bias:
        shapes["linear.bias"] = (settings.get("out_features"),)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise CheckpointError(
            f"{folder} holds {found}, and {shapes} is what its config.json makes of vectors of "
            f"{width}: fetch the folder again"
        )
    kernel = np.asarray(tensors["linear.weight"], np.float32).T
    bias = np.asarray(tensors["linear.bias"], np.float32) if has_bias else None
    activation = str(settings.get("activation_function", TANH)).rpartition(".")[2]
    return DenseLayer(np.ascontiguousarray(kernel), bias, activation)


def settings_of(layer: DenseLayer) -> dict[str, Any]:
    """The entries of config.json that :func:`dense_layer` reads."""
    module = {"Identity": "linear"}.get(layer.activation, "activation")
    return {
        "in_features": layer.kernel.shape[0],
        "out_features": layer.width,
        "bias": layer.bias is not None,
        "activation_function": f"torch.nn.modules.{module}.{layer.activation}",
    }


def tensors_of(layer: DenseLayer) -> dict[str, np.ndarray]:
    """The tensors that :func:`dense_layer` reads."""
    tensors = {"linear.weight": np.ascontiguousarray(layer.kernel.T)}
    if layer.bias is not None:
        tensors["linear.bias"] = layer.bias
    return tensors
