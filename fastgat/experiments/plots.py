"""The experiments' plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastgat.experiments import search
from fastgat.experiments.spread import Spread
from fastgat.reporting.plots import TITLES, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_robustness(figures: dict[str, Any], title: str) -> Figure:
    """Accuracy over epsilon, a line for each network with a band of one standard deviation: Figures 3 and 4."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, curve in figures["accuracies"].items():
        means, spreads = zip(*((100 * s.mean, 100 * (s.sd or 0)) for s in map(Spread.of, curve)), strict=True)
        axes.plot(figures["epsilons"], means, marker=".", label=name)
        if len(curve[0]) > 1:
            low, high = ([m + sign * sd for m, sd in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(figures["epsilons"], low, high, alpha=0.2)
    axes.set_title(title, fontsize=9)
    axes.set_ylim(0)
    axes.set_xlim(0)
    label_axes(axes, TITLES[figures["norm"]], "accuracy, %")
    return figure


def plot_searches(rows: Mapping[str, dict[str, Any]]) -> Figure:
    """Validation accuracy over the hyperparameter of each method, what was chosen marked."""
    figure = new_figure(2.6 * len(rows), 2.8)
    for axes, (name, row) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        parameter = search.PARAMETERS[name]
        tried = [point for point in row["curve"] if point["accuracies"]]
        means = {point["value"]: 100 * Spread.of(point["accuracies"]).mean for point in tried}
        axes.plot(list(means), list(means.values()), "o-")
        chosen = row["settings"].get(parameter)  # none where all diverged
        if chosen in means:
            axes.plot([chosen], [means[chosen]], "o", markersize=10, fillstyle="none")
        axes.set_xscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(parameter)
        axes.grid(alpha=0.3)
    figure.supylabel("validation accuracy, %", fontsize=9)
    return figure


def plot_capacity(points: list[dict[str, Any]]) -> Figure:
    """Accuracy over the cost of a step, a point for each generator: those on the Pareto front are joined."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for device in dict.fromkeys(device for point in points for device in point["overheads"]):
        placed = [
            (point["overheads"][device], 100 * Spread.of(point["validation"]).mean, point)
            for point in points
            if device in point["overheads"]
        ]
        for x, y, point in placed:
            axes.annotate(
                f"{point['width']}/{point['interval']}", (x, y), (4, 4), textcoords="offset points", fontsize=8
            )
        (dots,) = axes.plot([x for x, _, _ in placed], [y for _, y, _ in placed], "o", label=device)
        front = pareto([(x, y) for x, y, _ in placed])
        axes.step(*zip(*front, strict=True), "--", where="post", alpha=0.6, color=dots.get_color())
    x = "time of a step over fast gradient L2 (labels: width / generator steps every)"
    label_axes(axes, x, "validation accuracy, %", "lower right")
    return figure


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, accuracy) that no cheaper point reaches, by cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
