"""What an experiment is: jobs, the figures that come of them, and how they are shown.

A new experiment is one file with a class derived from Experiment, registered in `fastgat.experiments`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from fastgat.experiments import search
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Measurement, Training
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Experiment(ABC):
    """Attributes: `name` on the command line, `title` of its section, `chosen`, the methods whose hyperparameter it
    takes from the search, `images`, whether it needs the data set."""

    name: ClassVar[str]
    title: ClassVar[str]
    chosen: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[bool] = True

    def plan(self, plan: Plan) -> Plan:
        """The plan as this experiment has it."""
        return plan

    @abstractmethod
    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        """The runs behind its figures, as far as they are known, in the order in which they are wanted; those of the
        search come by themselves. What depends on a choice that has not been made yet comes when it has."""

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        """What can be computed from the runs that are finished, done or not."""
        return []

    def measured(self, plan: Plan, store: RunStore) -> dict[str, dict[str, Any]]:
        """What was measured for it, by name; of times also on other machines than this one."""
        names = (job.name for job in self.measurements(plan, store))
        return {name: content for name in names if (content := store.measured(name)) is not None}

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        """What can be done now, done or not."""
        plan = self.plan(plan)
        searched = search.cells(plan, store, self.chosen)
        return [*map(Training, [*searched, *self.cells(plan, store)]), *self.measurements(plan, store)]

    @abstractmethod
    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """The figures, plain values, as far as they are there; None where there are none yet."""

    def remarks(self, plan: Plan) -> list[str]:
        """What it does otherwise than the paper, or decides where the paper says nothing, a line each."""
        return []

    @abstractmethod
    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        """The figures as Markdown, below the title."""

    def plots(self, figures: dict[str, Any]) -> dict[str, Figure]:
        """Its plots, by name."""
        return {}
