"""The paper's experiments, and the questions that it leaves open."""

from fastgat.experiments.base import Experiment
from fastgat.experiments.figure2 import Figure2
from fastgat.experiments.generator import Capacity, Inputs
from fastgat.experiments.plan import Plan
from fastgat.experiments.robustness import Figure3, Figure4
from fastgat.experiments.store import RunStore
from fastgat.experiments.table2 import Larger, Readings, Table2
from fastgat.experiments.timing import Time

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (Table2(), Figure2(), Figure3(), Figure4(), Time(), Readings(), Capacity(), Inputs(), Larger())
}
PAPER = ("table2", "figure2", "figure3", "figure4", "time")  # what the paper itself reports: `all` of it

__all__ = ["EXPERIMENTS", "PAPER", "Experiment", "Plan", "RunStore"]
