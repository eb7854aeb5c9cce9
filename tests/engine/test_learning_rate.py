"""Schedules against torch's own."""

from __future__ import annotations

import pytest
import torch

from fastgat.engine.optimizer import learning_rate_factor


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.parametrize("total", [7, 100])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_factors_are_torchs(schedule: str, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    reference = {
        "constant": lambda: schedulers.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=total),
        "one-cycle": lambda: schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False),
    }[schedule]()
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_factor(schedule, step, total) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        if step < total - 1:
            reference.step()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_a_single_step_has_a_rate(schedule: str) -> None:
    assert learning_rate_factor(schedule, 0, 1) == 1.0
