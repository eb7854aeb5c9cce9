"""Which epoch's classifier counts, and the files that keep the candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

RULES = ("accuracy", "loss", "last")
"""Best validation accuracy, lowest validation loss, last epoch."""
LAST_EPOCHS = 10
"""How many epochs the mean of the last epochs' validation accuracy is over."""


class Candidate(NamedTuple):
    """The classifier of the epoch that a rule has chosen so far: its moving average, or the classifier itself.

    The parameters of a run without a moving average count as averaged: they are what the run is judged by.
    """

    rule: str
    averaged: bool = True

    @property
    def file(self) -> str:
        return f"best-{self.rule}{suffix(self.averaged).replace('_', '-')}.safetensors"

    def better(self, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
        """Whether the epoch of `row` is better than that of `before`, which is None where there is no earlier one.

        An epoch whose loss is NaN is never better.
        """
        if self.rule == "last":
            return True
        key = validation_key(self.rule, self.averaged)
        if key not in row or math.isnan(row[key]):
            return False
        if before is None or key not in before:
            return True
        return bool(row[key] > before[key] if self.rule == "accuracy" else row[key] < before[key])


def candidates(has_average: bool) -> list[Candidate]:
    """Those that a run keeps in files of their own; the last epoch's is in last.safetensors."""
    return [Candidate(rule, averaged) for averaged in ((True, False) if has_average else (True,)) for rule in RULES[:2]]


def suffix(averaged: bool) -> str:
    """What the name of a figure ends in: those of the classifier itself beside its moving average are marked."""
    return "" if averaged else "_unaveraged"


def validation_key(measure: str, averaged: bool = True) -> str:
    """Where an epoch's row has a validation measure ("accuracy" or "loss")."""
    return f"validation_{measure}{suffix(averaged)}"


def mean_of_last(rows: list[dict[str, Any]], averaged: bool = True) -> float | None:
    """The mean validation accuracy of the last epochs, at most LAST_EPOCHS of them; None if there is none."""
    key = validation_key("accuracy", averaged)
    values = [row[key] for row in rows[-LAST_EPOCHS:] if key in row]
    return sum(values) / len(values) if values else None
