"""A sheet of pictures: each image, what an attack adds to it, and what comes of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgat.reporting.plots import literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """Pixels (H, W, C) in [0, 1], what stands above them, and whether that is a wrong answer."""

    pixels: NDArray[np.floating]
    title: str
    wrong: bool = False


def draw_sheet(rows: Sequence[tuple[str, Sequence[Picture]]]) -> Figure:
    """Rows of pictures, each with its name at the left."""
    columns = max(len(pictures) for _, pictures in rows)
    figure = new_figure(1.5 * columns + 1.6, 1.62 * len(rows))
    for axes_row, (name, pictures) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, picture in zip(axes_row, pictures, strict=False):
            pixels = picture.pixels.clip(0, 1)
            axes.imshow(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
            axes.set_title(literal(picture.title), fontsize=8, color="#b00020" if picture.wrong else "black")
        axes_row[0].text(
            -0.1, 0.5, literal(name), transform=axes_row[0].transAxes, ha="right", va="center", fontsize=9, wrap=True
        )
    return figure


def magnified(perturbation: NDArray[np.floating]) -> tuple[NDArray[np.floating], float]:
    """A perturbation as a picture: grey is 0, and its largest entry is black or white; and by how much it grew."""
    largest = float(np.abs(perturbation).max())
    if largest == 0:
        return np.full_like(perturbation, 0.5), 1.0
    return 0.5 + 0.5 * perturbation / largest, 0.5 / largest
