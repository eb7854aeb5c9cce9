"""Running means and float16's loss scale, kept on the device so that no step waits for the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgat.engine.ranks import ALONE, Ranks
from fastgat.errors import NonFiniteError

PLAYER_OF_LOSS = {"loss": "classifier", "generator_loss": "generator"}
START, GROWTH_INTERVAL = 2.0**10, 2000
"""The seeds of a step are one for each sample, not 1 / B, so it starts below the 2^16 of other trainers."""
SMALLEST = 2.0**-14  # below it, gradients overflow for a reason that no scale can mend


class RunningMetrics(nn.Module):
    """Sums of named 0-d tensors since the last reading, and for each the first step (from 1) that was not finite."""

    totals: Tensor
    count: Tensor
    first_bad: Tensor

    def __init__(self, names: tuple[str, ...], device: torch.device, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.names, self.ranks = names, ranks
        # Not torch's default dtype: Inductor drops writes to a 0-d float64.
        self.register_buffer("totals", torch.zeros(len(names), dtype=torch.float32, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.float32, device=device))
        self.register_buffer("first_bad", torch.full((len(names),), -1, dtype=torch.int64, device=device))

    def add(self, values: dict[str, Tensor], step: Tensor, step_taken: Tensor | None = None) -> None:
        """Take in the values of a step, unless `step_taken` (0-d, bool) says that it was skipped."""
        row = torch.stack([values[name].to(self.totals.dtype) for name in self.names])
        if step_taken is not None:
            row = torch.where(step_taken, row, 0)
        newly_bad = (self.first_bad < 0) & ~row.isfinite()
        self.first_bad.copy_(torch.where(newly_bad, step, self.first_bad))
        self.totals.add_(row)
        self.count.add_(1 if step_taken is None else step_taken)

    def read(self) -> tuple[dict[str, float], int]:
        """The sums since the last reading, means over ranks, and over how many steps; starts again from zero.

        Raises NonFiniteError, naming the player and the step, if a loss was NaN or infinite on any rank.
        """
        # One transfer; float64 holds every step number exactly.
        packed = torch.cat([self.totals.double(), self.count.double()[None], self.first_bad.double()]).tolist()
        rows = self.ranks.gather(packed)
        size = len(self.names)
        totals = [sum(each) / len(rows) for each in zip(*(row[:size] for row in rows), strict=True)]
        bad = [[step for step in each if step >= 0] for each in zip(*(row[size + 1 :] for row in rows), strict=True)]
        _check({name: int(min(steps)) for name, steps in zip(self.names, bad, strict=True) if steps})
        self.totals.zero_()
        self.count.zero_()
        return dict(zip(self.names, totals, strict=True)), int(packed[size])


def _check(first_bad: dict[str, int]) -> None:
    bad = {name: step for name, step in first_bad.items() if name in PLAYER_OF_LOSS}
    if bad:
        step = min(bad.values())
        players = " and ".join(PLAYER_OF_LOSS[name] for name, first in bad.items() if first == step)
        raise NonFiniteError(f"the loss of the {players} became NaN or infinite at step {step}")


class LossScale(nn.Module):
    """The factor on backward passes by which small gradients survive float16 (Micikevicius et al. 2018).

    A step with a gradient that is not finite changes nothing but the scale, which it halves; 2000 good steps in a row
    double it.
    """

    scale: Tensor
    good_steps: Tensor
    skipped: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(START, dtype=torch.float32, device=device))
        self.register_buffer("good_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64, device=device))

    def commit_or_restore(self, finite: Tensor, tensors: Iterable[Tensor], before: Iterable[Tensor]) -> None:
        """End a step: take `tensors` back to what they were `before` unless the step was `finite` (0-d, bool)."""
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, old))
        good = torch.where(finite, self.good_steps + 1, 0)
        grown = good >= GROWTH_INTERVAL
        self.scale.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.good_steps.copy_(torch.where(grown, 0, good))
        self.skipped.add_(~finite)


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite, 0-d, bool."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
