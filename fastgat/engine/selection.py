"""Which epoch's classifier counts, and the files that keep the candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RULES = ("accuracy", "loss", "last", "robust")
"""Best validation accuracy, lowest validation loss, last epoch, and best robust accuracy, which not every run has."""
LAST_EPOCHS = 10  # how many epochs the mean of the last epochs' validation accuracy is over
COLLAPSED, ERRORS = 0.5, 3
"""A robust accuracy below this share of the best so far has collapsed, if by more than so many standard errors."""


class Candidate(NamedTuple):
    """The classifier of the epoch that a rule has chosen so far: its moving average, or the classifier itself.

    Without a moving average `averaged` is True and means the plain weights, by which such a run is judged.
    """

    rule: str
    averaged: bool = True

    @property
    def file(self) -> str:
        return f"best-{self.rule}{suffix(self.averaged).replace('_', '-')}.safetensors"

    def better(self, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
        """Whether the epoch of `row` is better than that of `before`, which is None where there is no earlier one.

        An epoch whose loss is NaN is never better. Of equal robust accuracy, such as 0, the greater accuracy is better.
        """
        if self.rule == "last":
            return True
        key = validation_key("robust_accuracy" if self.rule == "robust" else self.rule, self.averaged)
        if key not in row or math.isnan(row[key]) or math.isnan(row.get(validation_key("loss", self.averaged), 0)):
            return False
        if before is None or key not in before:
            return True
        if self.rule == "robust" and row[key] == before[key]:
            return Candidate("accuracy", self.averaged).better(row, before)
        return bool(row[key] < before[key] if self.rule == "loss" else row[key] > before[key])


def best_row(candidate: Candidate, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the epoch that a candidate's rule chooses; of equal ones, the first."""
    best = None
    for row in rows:
        best = row if candidate.better(row, best) else best
    return best


def rules(robust: bool) -> tuple[str, ...]:
    """The rules by which a run is judged, where it measures its `robust` accuracy or does not."""
    return RULES if robust else RULES[:-1]


def candidates(has_average: bool, robust: bool) -> list[Candidate]:
    """Those that a run keeps in files of their own; the last epoch's is in last.safetensors."""
    kept = [rule for rule in rules(robust) if rule != "last"]
    return [Candidate(rule, averaged) for averaged in ((True, False) if has_average else (True,)) for rule in kept]


class Collapse(NamedTuple):
    """Catastrophic overfitting (Wong, Rice and Kolter 2020), which `collapse` finds.

    Attributes:
        best_epoch: the epoch of the best robust accuracy so far.
        robust, training: then and now, the robust accuracy, and that on the perturbed images of training.
    """

    best_epoch: int
    robust: tuple[float, float]
    training: tuple[float, float]


def collapse(rows: Sequence[Mapping[str, Any]], samples: int) -> Collapse | None:
    """The collapse of robust accuracy in the last of these epochs; None where there is none, or it came before.

    It is below half of the best so far, by more than `samples` images scatter, while the accuracy on the perturbed
    images of training is above that of the best epoch: the classifier resists the steps that it is trained on and
    nothing else. Both are the classifier's own, not its moving average's.
    """
    return _collapsed(rows, samples) if _collapsed(rows[:-1], samples) is None else None


def _collapsed(rows: Sequence[Mapping[str, Any]], samples: int) -> Collapse | None:
    robust, training = validation_key("robust_accuracy", averaged=False), "perturbed_accuracy"
    robust = robust if rows and robust in rows[-1] else validation_key("robust_accuracy")
    measured = [row for row in rows if robust in row and training in row]
    if not measured or measured[-1] is not rows[-1]:
        return None
    now, best = rows[-1], max(measured, key=lambda row: row[robust])
    scatter = ERRORS * math.sqrt(best[robust] * (1 - best[robust]) / samples)
    least = min(COLLAPSED * best[robust], best[robust] - scatter)
    if now[robust] >= least or now[training] <= best[training]:
        return None
    return Collapse(best["epoch"], (best[robust], now[robust]), (best[training], now[training]))


def suffix(averaged: bool) -> str:
    """What a metric's name ends in: "_unaveraged" for the weights themselves, in a run that averages them."""
    return "" if averaged else "_unaveraged"


def validation_key(measure: str, averaged: bool = True) -> str:
    """Where an epoch's row has a validation measure ("accuracy", "loss" or "robust_accuracy")."""
    return f"validation_{measure}{suffix(averaged)}"


def mean_of_last(rows: list[dict[str, Any]], averaged: bool = True) -> float | None:
    """The mean validation accuracy of the last epochs, at most LAST_EPOCHS of them; None if there is none."""
    key = validation_key("accuracy", averaged)
    values = [row[key] for row in rows[-LAST_EPOCHS:] if key in row]
    return sum(values) / len(values) if values else None
