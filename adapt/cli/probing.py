"""What the probe shows beside a table: the layer curve, and its speed against scikit-learn's."""

from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44")
SOLVERS = ("lbfgs", "newton-cholesky")


def plot(config: Any, methods: tuple[str, ...], result: dict[str, Any]) -> Path:
    """layers.png: test score and interval by layer, a line a pooling, a panel a method; validation dotted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.6 * len(methods) + 2.2, 3.8)
    figure, axes = plt.subplots(
        1, len(methods), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes[0], methods, strict=True):
        for number, pooling in enumerate(config.pooling):
            cells = [
                cell
                for cell in result["cells"]
                if (cell["method"], cell["pooling"]) == (method, pooling)
            ]
            layer, test, low, high, validation = (
                np.array([cell[name] for cell in cells])
                for name in ("layer", "test", "low", "high", "validation")
            )
            x = layer + 0.08 * (number - (len(config.pooling) - 1) / 2)
            band = np.maximum([test - low, high - test], 0)
            axis.errorbar(
                x,
                test,
                band,
                fmt="o-",
                color=COLOURS[number],
                ms=4,
                lw=1.4,
                capsize=2,
                label=f"{pooling}, test",
            )
            axis.plot(
                x, validation, ":", color=COLOURS[number], lw=1.2, label=f"{pooling}, inner folds"
            )
        axis.axhline(result["floor"], color="black", ls="--", lw=1, label="without features")
        axis.set_title(method, fontsize=10)
        axis.set_xlabel("layer (0: embedding)")
        axis.set_xticks(sorted({cell["layer"] for cell in result["cells"]}))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("accuracy" if result["classes"] else "Pearson's correlation")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside center right", frameon=False, fontsize=8)  # pyright: ignore[reportArgumentType]
    figure.suptitle(
        f"{config.checkpoint} on {config.data}: heads on frozen layers, 95% intervals", fontsize=11
    )
    path = config.out / "layers.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
