"""The experiments' plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgat.experiments import search
from fastgat.experiments.front import MEASURES, Variant, devices, pareto, points
from fastgat.experiments.spread import Spread, interval
from fastgat.reporting.plots import TITLES, label_axes, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_robustness(figures: dict[str, Any], title: str) -> Figure:
    """Accuracy over epsilon, a line for each network with a band of one standard deviation: Figures 3 and 4."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, curve in figures["accuracies"].items():
        values = 100 * np.array(curve)  # (epsilons, seeds)
        means = values.mean(1)
        axes.plot(figures["epsilons"], means, marker=".", label=name)
        if values.shape[1] > 1:
            sd = values.std(1, ddof=1)
            axes.fill_between(figures["epsilons"], means - sd, means + sd, alpha=0.2)
    axes.set_title(title, fontsize=9)
    axes.set_ylim(0)
    axes.set_xlim(0)
    label_axes(axes, TITLES[figures["norm"]], "accuracy, %")
    return figure


def plot_searches(rows: Mapping[str, Any]) -> Figure:
    """Validation accuracy over the hyperparameter of each method (rows of Table 2 by method), the choice marked."""
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


def plot_front(variants: Sequence[Variant], labels: str) -> Figure:
    """Accuracy over the cost of a step, clean and attacked, with 95 % intervals: the Pareto front is joined."""
    shown = {name: words for name, words in MEASURES.items() if any(each["accuracies"][name] for each in variants)}
    height = -(-len(shown) // 2)
    figure = new_figure(11, 4.2 * height)
    for axes, (measure, words) in zip(figure.subplots(height, 2).flat, shown.items(), strict=True):
        axes.set_xscale("log")
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks("{x:g}")
        for device in devices(variants):
            at = points(variants, device, measure)
            widths = [100 * (interval(list(each["accuracies"][measure].values())) or 0) for each in at.values()]
            x, y = [cost for cost, _ in at], [100 * accuracy for _, accuracy in at]
            (dots, *_) = axes.errorbar(x, y, widths, fmt="o", capsize=2, alpha=0.8, label=device)
            for place, each in zip(zip(x, y, strict=True), at.values(), strict=True):
                axes.annotate(literal(each["name"]), place, (4, 4), textcoords="offset points", fontsize=8)
            costs, accuracies = zip(*pareto(at), strict=True) if at else ((), ())
            front = [100 * accuracy for accuracy in accuracies]
            axes.step(costs, front, "--", where="post", alpha=0.6, color=dots.get_color())
        label_axes(axes, "time of a step over fast gradient L2", f"{words}, %", "lower right")
    figure.suptitle(f"labels: {labels}", fontsize=9)
    return figure
