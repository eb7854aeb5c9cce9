"""The state's parts: moving average, clipping, running metrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastgat.config import OptimizerConfig
from fastgat.engine.metrics import LossScale, RunningMetrics
from fastgat.engine.optimizer import Ema
from fastgat.engine.position import Position
from fastgat.engine.state import TrainState
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.methods import GAT
from tests.support import BatchNormNet, Engine, minibatch, players


def test_moving_average_follows_its_formula() -> None:
    module = nn.Linear(2, 1, bias=False).double()
    ema = Ema(module, decay=0.5)
    expected = module.weight.detach().clone()
    with torch.no_grad():
        for number in range(12):
            module.weight.add_(1)
            ema.update(dict(module.named_parameters()))
            decay = min(0.5, (1 + number) / (10 + number))
            expected = decay * expected + (1 - decay) * module.weight
    torch.testing.assert_close(ema.averages()["weight"], expected)


def test_the_average_keeps_its_running_statistics_in_a_step() -> None:
    """Those of the live network are not what the averaged one sees: `test_average.py` has where they come from."""
    engine = Engine(GAT(), BatchNormNet().double(), players()[1], ema=0.5)
    for _ in range(4):
        engine.step([minibatch()])
    averages = engine.state.evaluation_parameters()
    assert not averages["norm.running_mean"].any()
    assert averages["norm.running_var"].equal(torch.ones_like(averages["norm.running_var"]))


def test_gradients_are_clipped_to_their_global_norm() -> None:
    classifier, _ = players()
    state = TrainState(classifier, None, OptimizerConfig(clip_grad=0.5), ("loss",))
    gradients = {name: torch.ones_like(p) for name, p in classifier.named_parameters()}
    clipped = state._clipped(gradients)
    assert math.sqrt(sum(float(g.square().sum()) for g in clipped.values())) == pytest.approx(0.5, rel=1e-5)
    small = {name: g * 1e-6 for name, g in gradients.items()}
    for name, gradient in state._clipped(small).items():
        torch.testing.assert_close(gradient, small[name])


def test_a_classifier_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        TrainState(nn.Flatten(), None, OptimizerConfig(), ("loss",))


def running(*values: float) -> RunningMetrics:
    metrics = RunningMetrics(("loss", "generator_loss"), torch.device("cpu"))
    for step, value in enumerate(values):
        row = {"loss": torch.tensor(1.0), "generator_loss": torch.tensor(value)}
        metrics.add(row, torch.tensor(step))
    return metrics


def test_metrics_are_summed_until_they_are_read() -> None:
    metrics = running(1.0, 2.0)
    assert metrics.read() == ({"loss": 2.0, "generator_loss": 3.0}, 2)
    assert metrics.read() == ({"loss": 0.0, "generator_loss": 0.0}, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_and_its_player_are_named(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="the loss of the generator became NaN or infinite at step 1"):
        running(1.0, bad, bad).read()


def test_an_interval_of_skipped_steps_has_no_means() -> None:
    at = Position()
    assert at.add({"loss": 0.0}, 0) == {}
    assert at.add({"loss": 6.0}, 3) == {"loss": 2.0}
    assert at.epoch_means() == {"loss": 2.0}


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 0}


def test_extra_state_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^classifier\.1 \(Extra\) has extra state, which no checkpoint keeps"):
        TrainState(nn.Sequential(nn.Flatten(), Extra(3, 2)), None, OptimizerConfig(), ("loss",))


def test_the_step_lets_nothing_require_gradients() -> None:
    engine = Engine(GAT(), *players())
    engine.step([minibatch()])
    assert all(p.grad is None for p in engine.state.parameters())
    assert not any(b.requires_grad for b in engine.state.buffers())


def test_metrics_do_not_take_torch_s_default_dtype() -> None:
    """Compiled by Inductor, the number of steps would stay 0 as a 0-d float64."""
    torch.set_default_dtype(torch.float64)
    try:
        metrics, scale = running(1.0, 2.0), LossScale(torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {metrics.totals.dtype, metrics.count.dtype, scale.scale.dtype} == {torch.float32}
