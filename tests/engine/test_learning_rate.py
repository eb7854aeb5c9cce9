"""Schedules against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from fastgat.config import OptimizerConfig, TrainConfig
from fastgat.engine.optimizer import learning_rate_factor
from fastgat.errors import ConfigError

Reference = Callable[[torch.optim.Optimizer, int], Any]


def warmed_up(optimizer: torch.optim.Optimizer, total: int) -> Any:
    """Two epochs of five steps up, and down along a cosine."""
    up = lr_scheduler.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
    down = lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - 10)
    return lr_scheduler.SequentialLR(optimizer, [up, down], milestones=[10])


REFERENCES: dict[str, tuple[OptimizerConfig, Reference]] = {
    "constant": (OptimizerConfig(), lambda o, total: lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": (
        OptimizerConfig(lr_schedule="cosine"),
        lambda o, total: lr_scheduler.CosineAnnealingLR(o, T_max=total),
    ),
    "one-cycle": (
        OptimizerConfig(lr_schedule="one-cycle"),
        lambda o, total: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=total, cycle_momentum=False),
    ),
    "cyclic": (
        OptimizerConfig(lr_schedule="cyclic"),
        lambda o, total: lr_scheduler.CyclicLR(o, 0.0, 1.0, total // 2, total // 2, cycle_momentum=False),
    ),
    "multistep": (
        OptimizerConfig(lr_schedule="multistep", milestones="1,2.4", lr_decay=0.3),
        lambda o, total: lr_scheduler.MultiStepLR(o, [5, 12], gamma=0.3),
    ),
    "half and three quarters": (
        OptimizerConfig(lr_schedule="multistep"),
        lambda o, total: lr_scheduler.MultiStepLR(o, [total // 2, total * 3 // 4], gamma=0.1),
    ),
    "warm-up": (OptimizerConfig(lr_schedule="cosine", warmup_epochs=2.0), warmed_up),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("epochs", [4, 20])
@pytest.mark.parametrize("name", REFERENCES)
def test_factors_are_torchs(name: str, epochs: int) -> None:
    config, make = REFERENCES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    total = 5 * epochs
    reference = make(optimizer, total)
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_factor(config, step, epochs, 5) == pytest.approx(expected, rel=1e-9, abs=1e-12), step
        if step < total - 1:
            reference.step()


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1), ("cosine", 1), ("one-cycle", 1), ("cyclic", 0)])
def test_a_single_step_has_a_rate(schedule: str, factor: float) -> None:
    assert learning_rate_factor(OptimizerConfig(lr_schedule=schedule), 0, 1, 1) == factor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": "75,x"}, "a number of milestones must be a number"),
        ({"milestones": "90,75"}, "milestones must be above 0 and rise"),
        ({"milestones": "0"}, "milestones must be above 0"),
        ({"lr_schedule": "cyclic", "warmup_epochs": 1}, "'cyclic' begins low by itself: leave out warmup_epochs"),
        ({"warmup_epochs": 30}, "warmup_epochs must be less than the 30 epochs of the run"),
    ],
)
def test_what_is_no_schedule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(epochs=30, optimizer=OptimizerConfig(**settings))
