"""The base class of experiments: their jobs, their figures, and the section that shows them.

A new experiment is one file with a class derived from Experiment, registered in `fastgat.experiments`, and a template
of its section, `NAME.md.jinja`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from fastgat.experiments import paper
from fastgat.experiments.archive import Measured
from fastgat.experiments.cell import Cell
from fastgat.experiments.jobs import Job, Measurement, Training
from fastgat.experiments.plan import Plan
from fastgat.experiments.spread import FILTERS
from fastgat.experiments.store import RunStore
from fastgat.reporting.page import render


class Experiment(ABC):
    """An experiment of `fastgat reproduce`, called `name` there.

    Its section has a `title` and a `template` (by default that of its name). A search chooses the hyperparameter of the
    methods in `chosen`; `images` says whether it needs the data set. `extent` names the options of the plan that it
    heeds, `ignored` those of a run that it sets by itself.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    template: ClassVar[str] = ""
    chosen: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[bool] = True
    extent: ClassVar[tuple[str, ...]] = ("seeds",)
    ignored: ClassVar[tuple[str, ...]] = ()

    def check(self, plan: Plan, given: Mapping[str, Any]) -> None:  # noqa: B027  # most have nothing to check
        """Raises ConfigError where the plan, or an option that was given for it, makes no sense here."""

    def plan(self, plan: Plan) -> Plan:
        """The plan with this experiment's own changes."""
        return plan

    def cells(self, plan: Plan, store: RunStore) -> list[Cell]:
        """The runs behind its figures, in the order in which they are wanted. Those that depend on a choice which is
        still open come once it has been made."""
        return []

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        """The measurements that the finished runs allow, done or not."""
        return []

    def measured(self, plan: Plan, store: RunStore) -> dict[str, Measured]:
        """The kept measurements of this experiment, by name; timings of other machines too."""
        names = (job.name for job in self.measurements(plan, store))
        return {name: content for name in names if (content := store.measured(name)) is not None}

    def jobs(self, plan: Plan, store: RunStore) -> list[Job]:
        """Every job that can be done now, done or not."""
        plan = self.plan(plan)
        return [*map(Training, self.cells(plan, store)), *self.measurements(plan, store)]

    @abstractmethod
    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        """The figures so far, as plain values; None where there are none yet."""

    def remarks(self, plan: Plan) -> list[str]:
        """Lines on where it differs from the paper, or decides what the paper leaves open."""
        return []

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        """The figures as Markdown, below the title."""
        values = {"plan": self.plan(plan), "paper": paper, "experiment": self, **figures}
        return rendered(self.template or self.name, **values)

    def plots(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Its plots, matplotlib's figures, by name."""
        return {}


def rendered(name: str, **values: Any) -> str:
    """The template called `name`, filled in."""
    return render(f"{name}.md.jinja", __package__, FILTERS, **values)
