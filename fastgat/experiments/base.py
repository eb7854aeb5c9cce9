"""What an experiment is: jobs, the figures that come of them, and how they are shown.

A new experiment is one file with a class derived from Experiment, registered in `fastgat.experiments`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from fastgat.experiments.jobs import Job
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Experiment(ABC):
    """Attributes: `name` on the command line, `title` of its section."""

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def jobs(self, plan: Plan, store: Store) -> list[Job]:
        """What can be done now, in the order in which it is wanted; done or not. What depends on figures that are not
        there yet comes when they are."""

    @abstractmethod
    def collect(self, plan: Plan, store: Store) -> dict[str, Any] | None:
        """The figures, plain values, as far as they are there; None where there are none yet."""

    @abstractmethod
    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        """The figures as Markdown, below the title."""

    def plots(self, figures: dict[str, Any]) -> dict[str, Figure]:
        """Its plots, by name."""
        return {}
