"""Figures 3 and 4: trained networks under fast gradient L2, made on each network itself or on another baseline."""

from functools import partial
from typing import Any, ClassVar, TypedDict

from fastgat.engine.device import pick_device, tf32
from fastgat.evaluation.results import CURVE_EPSILONS
from fastgat.evaluation.sweep import fast_gradient_sweep
from fastgat.experiments import search
from fastgat.experiments.cell import Cell
from fastgat.experiments.images import load_images, samples_remark, test_batches
from fastgat.experiments.jobs import Advance, Measurement
from fastgat.experiments.plan import Plan
from fastgat.experiments.plots import plot_robustness
from fastgat.experiments.store import RunStore
from fastgat.methods import Baseline

NETWORKS = ("baseline", "fg-linf", "gat")
SOURCE = "source"
NORM = "l2"
EPSILONS = CURVE_EPSILONS[NORM]
SHOWN = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0)  # the epsilons of the table; the plot has all


class _Curves(TypedDict):
    """The figures of a measurement: accuracy at each epsilon, by network."""

    accuracies: dict[str, list[float]]


class Robustness(search.Searching):
    """Base of both figures: `indirect` where perturbations are made on another network than the attacked one."""

    template = "robustness"
    shown = SHOWN
    chosen = NETWORKS
    extent = (*search.Searching.extent, "samples")
    indirect: ClassVar[bool]

    def source(self, plan: Plan) -> Cell:
        """The network that indirect perturbations are made on: a baseline of a seed that no attacked network has."""
        return plan.cell(Baseline(), plan.seed_values.stop)

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        return [cell for seed in plan.seed_values for cell in self._networks(plan, store, seed).values()]

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        """A measurement for each seed whose networks are all trained."""
        cells = {seed: self._networks(plan, store, seed) for seed in plan.seed_values}
        return [
            self._measurement(plan, networks, seed)
            for seed, networks in cells.items()
            if set(NETWORKS) <= networks.keys() and all(map(store.summary, networks.values()))
        ]

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows = [figures for each in self.measurements(plan, store) if (figures := each.figures(store)) is not None]
        if not rows:
            return None
        curves = {
            name: [[figures["accuracies"][name][i] for figures in rows] for i in range(len(EPSILONS))]
            for name in NETWORKS
        }
        return {"norm": NORM, "epsilons": list(EPSILONS), "accuracies": curves, "samples": plan.samples}

    def remarks(self, plan: Plan) -> list[str]:
        remark = f"Figure 4's perturbations are made on the baseline of seed {self.source(plan).seed}."
        return [*([remark] if self.indirect else []), *samples_remark(plan)]

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        return {self.name: plot_robustness(figures, self.title)}

    def _networks(self, plan: Plan, store: RunStore, seed: int) -> dict[str, Cell]:
        """The networks whose method has been chosen, and the source."""
        methods = {name: search.chosen(plan, store, name) for name in NETWORKS}
        cells = {name: plan.cell(method, seed) for name, method in methods.items() if method is not None}
        return {**cells, SOURCE: self.source(plan)} if self.indirect else cells

    def _measurement(self, plan: Plan, cells: dict[str, Cell], seed: int) -> Measurement:
        names = {name: cell.name for name, cell in cells.items()}
        images = {"samples": plan.samples, "of seed": plan.base.seed if plan.samples is not None else None}
        key = {"cells": names, "norm": NORM, "epsilons": list(EPSILONS), **images}
        compute = partial(_compute, plan, cells)
        return Measurement(f"{self.name}-seed{seed}", key, compute, _Curves, plan.base.run.device)


class Figure3(Robustness):
    name = "figure3"
    title = "Figure 3: direct attack, fast gradient L2 made on each network itself"
    indirect = False


class Figure4(Robustness):
    name = "figure4"
    title = "Figure 4: indirect attack, fast gradient L2 made on another baseline"
    indirect = True


@tf32(False)
def _compute(plan: Plan, cells: dict[str, Cell], store: RunStore, advance: Advance) -> dict[str, Any]:
    device = pick_device(plan.base.run.device)
    networks = {name: store.classifier(cell, device) for name, cell in cells.items()}
    source = networks.pop(SOURCE, None)
    images = load_images(plan)
    batches, sources = test_batches(plan, images, device), None if source is None else {SOURCE: source}
    curves = fast_gradient_sweep(
        networks, batches, EPSILONS, NORM, sources=sources, progress=lambda done, total: advance(done / total)
    )
    return {"accuracies": {network: accuracies for (network, _), accuracies in curves.items()}}
