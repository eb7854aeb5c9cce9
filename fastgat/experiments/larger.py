"""Whether the method carries to a larger network: the baseline, fast gradient and GAT on a ResNet-18."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Job
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import Store
from fastgat.experiments.table2 import accuracies, accuracy_jobs, accuracy_section

METHODS = ("baseline", "fg-l2", "gat")
CLASSIFIER = "timm:resnet18"


class Larger(Experiment):
    name: ClassVar[str] = "larger"
    title: ClassVar[str] = "A larger network"

    def jobs(self, plan: Plan, store: Store) -> list[Job]:
        return accuracy_jobs(_larger(plan), store, METHODS)

    def collect(self, plan: Plan, store: Store) -> dict[str, Any] | None:
        return accuracies(_larger(plan), store, METHODS)

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        return f"Classifier {CLASSIFIER}, otherwise as above.\n\n" + accuracy_section(_larger(plan), figures)


def _larger(plan: Plan) -> Plan:
    return replace(plan, base=replace(plan.base, model=replace(plan.base.model, classifier=CLASSIFIER)))
