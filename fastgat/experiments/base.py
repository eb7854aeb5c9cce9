"""What an experiment is: jobs, the figures that come of them, and how they are shown.

A new experiment is one file with a class derived from Experiment, registered in `fastgat.experiments`, and a template
of its section, `NAME.md.jinja`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from fastgat.experiments import paper
from fastgat.experiments.archive import Measured
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Measurement, Training
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import FILTERS
from fastgat.experiments.store import RunStore
from fastgat.reporting.page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Experiment(ABC):
    """Attributes: `name` on the command line, `title` of its section, `template` of the section (by default `name`),
    `chosen`, the methods whose hyperparameter it takes from the search, `images`, whether it needs the data set."""

    name: ClassVar[str]
    title: ClassVar[str]
    template: ClassVar[str] = ""
    chosen: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[bool] = True

    def plan(self, plan: Plan) -> Plan:
        """The plan as this experiment has it."""
        return plan

    @abstractmethod
    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        """The runs behind its figures that are known by now, in the order in which they are wanted. What depends on a
        choice that has not been made yet comes when it has."""

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        """What can be computed from the runs that are finished, done or not."""
        return []

    def measured(self, plan: Plan, store: RunStore) -> dict[str, Measured]:
        """What was measured for it, by name; of times also on other machines than this one."""
        names = (job.name for job in self.measurements(plan, store))
        return {name: content for name in names if (content := store.measured(name)) is not None}

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        """What can be done now, done or not."""
        plan = self.plan(plan)
        return [*map(Training, self.cells(plan, store)), *self.measurements(plan, store)]

    @abstractmethod
    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """The figures that there are, as plain values; None where there are none yet."""

    def remarks(self, plan: Plan) -> list[str]:
        """What it does otherwise than the paper, or decides where the paper says nothing, a line each."""
        return []

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        """The figures as Markdown, below the title."""
        values = {"plan": self.plan(plan), "paper": paper, "experiment": self, **figures}
        return render(f"{self.template or self.name}.md.jinja", __package__, FILTERS, **values)

    def plots(self, figures: dict[str, Any]) -> dict[str, Figure]:
        """Its plots, by name."""
        return {}
