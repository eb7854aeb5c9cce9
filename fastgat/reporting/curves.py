"""curves.png: loss and accuracy of a run, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from fastgat.reporting.plots import new_figure, saved


def draw_curves(epochs: list[dict[str, Any]]) -> bytes:
    """A PNG of the rows that metrics.jsonl has for epochs; what a method does not measure is not drawn."""
    panels: dict[str, dict[str, tuple[str, float]]] = {
        "accuracy, %": {
            "training": ("accuracy", 100),
            "training, perturbed": ("perturbed_accuracy", 100),
            "validation": ("validation_accuracy", 100),
            "validation, robust": ("validation_robust_accuracy", 100),
        },
        "loss": {"training": ("loss", 1), "validation": ("validation_loss", 1), "generator": ("generator_loss", 1)},
        "perturbation, mean L2 norm": {"": ("perturbation_norm", 1)},
    }
    measured = {key for row in epochs for key in row}
    panels = {title: lines for title, lines in panels.items() if any(key in measured for key, _ in lines.values())}
    figure = new_figure(4.2 * len(panels), 3.2)
    x = [row["epoch"] for row in epochs]
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, (key, scale) in lines.items():
            if key in measured:
                axes.plot(x, [scale * row.get(key, math.nan) for row in epochs], marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if any(lines):
            # Not where it hides least, which matplotlib warns takes long on a slow machine.
            axes.legend(loc="lower right" if "accuracy" in title else "upper right")
    return saved(figure, "png")
