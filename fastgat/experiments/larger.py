"""Whether the method carries to a larger network: the baseline, fast gradient and GAT on a ResNet-18."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from fastgat.experiments.plan import Plan
from fastgat.experiments.table2 import Table2

CLASSIFIER = "timm:resnet18"


class Larger(Table2):
    name: ClassVar[str] = "larger"
    title: ClassVar[str] = "A larger network"
    chosen: ClassVar[tuple[str, ...]] = ("baseline", "fg-l2", "gat")

    def plan(self, plan: Plan) -> Plan:
        return replace(plan, base=replace(plan.base, model=replace(plan.base.model, classifier=CLASSIFIER)))

    def remarks(self, plan: Plan) -> list[str]:
        return [*super().remarks(plan), f"The classifier of `{self.name}` is {CLASSIFIER}, which has batch norm."]

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        return f"Classifier {CLASSIFIER}.\n\n" + super().section(plan, figures)
