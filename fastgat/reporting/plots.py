"""Plots: loss and accuracy of a run; of an evaluation, accuracy against epsilon and power, and a sheet of pictures."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"l2": "L2 norm of the perturbation", "linf": "L∞ norm of the perturbation, in 1/255"}
PERTURBATION_STYLES = {
    "generator": ("generator", "o-"),
    "fg-l2 per sample": ("fast gradient L2, same power per sample", "s--"),
    "fg-l2 on average": ("fast gradient L2, same mean power", "s:"),
    "fg-linf per sample": ("fast gradient L∞, same power per sample", "^--"),
    "fg-linf on average": ("fast gradient L∞, same mean power", "^:"),
}


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
    width = 4.2 * len(panels)
    figure = new_figure(width, 3.2, layout="none")  # to find what fits would take as long as the rest
    figure.subplots_adjust(left=0.55 / width, right=1 - 0.1 / width, bottom=0.16, top=0.9, wspace=0.28)
    x = [row["epoch"] for row in epochs]
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, (key, scale) in lines.items():
            if key in measured:
                axes.plot(x, [scale * row.get(key, np.nan) for row in epochs], marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if any(lines):
            # Not where it hides least, which matplotlib warns takes long on a slow machine.
            axes.legend(loc="lower right" if "accuracy" in title else "upper right")
    return saved(figure, "png")


def plot_curves(curves: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy over epsilon, one panel a norm: a line for each attack, network and source.

    The end of a ladder that is far beyond the others (epsilon so large that nothing is left) is not drawn.
    """
    figure = new_figure(11, 4.2)
    norms = [norm for norm in TITLES if any(curve["norm"] == norm for curve in curves)]
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        scale = 255 if norm == "linf" else 1
        drawn = [curve for curve in curves if curve["norm"] == norm]
        end = max(max(curve["epsilons"]) for curve in drawn if curve["attack"] == "fast gradient")
        for curve in drawn:
            points = [
                (scale * epsilon, 100 * accuracy)
                for epsilon, accuracy in zip(curve["epsilons"], curve["accuracies"], strict=True)
                if epsilon <= end
            ]
            label = f"{curve['network']}, {curve['attack']}"
            if curve["source"]:
                label += f" from {curve['source']}"
            style = "--" if curve["source"] else "-" if curve["attack"] == "fast gradient" else "-."
            axes.plot(*zip(*points, strict=True), style, marker=".", label=literal(label))
        axes.set_ylim(0, 100)
        axes.set_xlim(0)
        label_axes(axes, TITLES[norm], "accuracy, %")
    return figure


def plot_power(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy over the root of the mean power, a generator for each c_g beside fast gradient: Figure 2."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: row["power"])
    x = [row["power"] ** 0.5 for row in ordered]
    for side, (label, style) in PERTURBATION_STYLES.items():
        axes.plot(x, [100 * row["accuracy"][side] for row in ordered], style, label=label)
    for row in ordered:
        at = row["power"] ** 0.5, 100 * row["accuracy"]["generator"]
        axes.annotate(f"$c_g$ {row['cg']:g}", at, (4, -12), textcoords="offset points", fontsize=8)
    label_axes(axes, "root of the perturbation's mean power, $\\sqrt{E\\|p\\|_2^2}$", "accuracy, %")
    return figure


class Picture(NamedTuple):
    """Pixels (H, W, C) in [0, 1], what stands above them, and whether that is a wrong answer."""

    pixels: NDArray[np.floating]
    title: str
    wrong: bool = False


def draw_sheet(rows: Sequence[tuple[str, Sequence[Picture]]]) -> Figure:
    """Rows of pictures, each with its name at the left."""
    side, gap, above, margin = 1.4, 0.1, 0.24, 1.55
    width = margin + (side + gap) * max(len(pictures) for _, pictures in rows)
    height = (above + side) * len(rows) + gap
    # One plane for all of them, in inches from the top left: matplotlib is slow at arranging many.
    figure = new_figure(width, height, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, (name, pictures) in enumerate(rows):
        top = above + row * (above + side)
        axes.text(margin - gap, top + side / 2, literal(name), ha="right", va="center", fontsize=9, wrap=True)
        for column, picture in enumerate(pictures):
            left = margin + column * (side + gap)
            pixels = picture.pixels.clip(0, 1)
            axes.imshow(
                pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels,
                interpolation="nearest",
                extent=(left, left + side, top + side, top),
            )
            color = "#b00020" if picture.wrong else "black"
            title = literal(picture.title)
            axes.text(left + side / 2, top - 0.04, title, ha="center", va="bottom", fontsize=8, color=color)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def magnified(perturbation: NDArray[np.floating]) -> tuple[NDArray[np.floating], float]:
    """A perturbation as a picture: grey is 0, and its largest entry is black or white; and by how much it grew."""
    largest = float(np.abs(perturbation).max())
    if largest == 0:
        return np.full_like(perturbation, 0.5), 1.0
    return 0.5 + 0.5 * perturbation / largest, 0.5 / largest


def label_axes(axes: Any, x: str, y: str, legend: str = "upper right") -> None:
    """Name both axes, draw a grid, and put the legend into a corner."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(loc=legend, fontsize=8)


def literal(text: str) -> str:
    """Text that matplotlib must neither take for mathematics, nor hide for its first `_`, nor fail to encode."""
    text = text.encode(errors="backslashreplace").decode().replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def saved(figure: Figure, kind: str) -> bytes:
    """The figure as "png" or "svg", the same bytes for the same figure."""
    import matplotlib

    image = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fastgat", "svg.fonttype": "none"}):
        figure.savefig(image, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else None)
    return image.getvalue()


def new_figure(width: float, height: float, layout: Literal["constrained", "none"] = "constrained") -> Figure:
    """An empty figure of that size in inches, apart from any display."""
    # Its first use on a machine announces a font cache, as a warning.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]  # the stub lacks "none"
