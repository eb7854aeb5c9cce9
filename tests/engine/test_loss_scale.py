"""float16: a step that overflows changes nothing but the loss scale; one that does not is the float32 step."""

from __future__ import annotations

import copy

import pytest
import torch

from fastgat.engine.metrics import GROWTH_INTERVAL, SMALLEST
from fastgat.engine.optimizer import Adam
from fastgat.errors import NonFiniteError
from fastgat.methods import GAT, FastGradientL2, Free, GradientPenalty, Method
from tests.support import BatchNormNet, Engine, minibatch, players

METHODS = [
    GAT(cg=0.3, schedule="paper", delta="fixed"),
    GAT(cg=0.3, schedule="alternating", delta="fixed"),
    GAT(cg=0.3, schedule="simultaneous", delta="fixed"),
    GAT(cg=0.3, delta="through"),
    GradientPenalty(),
    FastGradientL2(),
]
UNTOUCHED = ("loss_scale.", "metrics.", "step")


def engine_for(method: Method, batch_norm: bool = False) -> Engine:
    classifier, generator = players(dtype=torch.float32)
    return Engine(
        method,
        BatchNormNet() if batch_norm else classifier,
        generator,
        autocast=torch.float16,
        memory=memory_for(method),
        ema=0.9,
    )


def memory_for(method: Method) -> torch.Tensor | None:
    return torch.zeros_like(minibatch(dtype=torch.float32).images) if method.remembers else None


def batches_for(method: Method) -> list[object]:
    return [minibatch(dtype=torch.float32) for _ in range(method.minibatches())]


@pytest.mark.parametrize(
    "method",
    [*METHODS, Free(replays=2)],
    ids=lambda m: f"{m.name} {getattr(m, 'schedule', '')} {getattr(m, 'delta', '')}",
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_overflow_skips_both_players(method: Method, batch_norm: bool) -> None:
    engine = engine_for(method, batch_norm)
    scale = engine.state.loss_scale
    assert scale is not None
    scale.scale.fill_(2.0**30)
    before = copy.deepcopy(engine.state.state_dict())
    metrics = engine.step(batches_for(method))  # type: ignore[arg-type]  # batches
    for name, tensor in engine.state.state_dict().items():
        if not name.startswith(UNTOUCHED):
            assert tensor.equal(before[name]), name
    assert (float(scale.scale), int(scale.skipped)) == (2.0**29, 1)
    assert not any(metrics.values()), "a step that is skipped does not count"
    assert int(engine.state.step) == 1


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name} {getattr(m, 'schedule', '')} {getattr(m, 'delta', '')}"
)
def test_otherwise_it_is_the_float32_step(method: Method) -> None:
    classifier, generator = players(dtype=torch.float32)
    rounded, exact = (
        Engine(method, classifier, generator, generator_lr=1e-9, autocast=dtype) for dtype in (torch.float16, None)
    )
    assert rounded.state.loss_scale is not None
    rounded.state.loss_scale.scale.fill_(2.0**6)
    batches = batches_for(method)
    metrics, expected = (engine.step(batches) for engine in (rounded, exact))  # type: ignore[arg-type]  # batches
    assert int(rounded.state.loss_scale.skipped) == 0
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    size = "perturbation_norm" if "perturbation_norm" in metrics else "gradient_norm"
    assert metrics[size] == pytest.approx(expected[size], rel=0.02)
    adams = rounded.state.classifier_optimizer, exact.state.classifier_optimizer
    one, other = (
        torch.cat([buffer.flatten() for buffer in adam.exp_avg.buffers()]) for adam in adams if isinstance(adam, Adam)
    )
    assert float((one - other).norm() / other.norm()) < 0.04


def test_the_scale_grows_after_many_good_steps() -> None:
    engine = engine_for(FastGradientL2())
    scale = engine.state.loss_scale
    assert scale is not None
    scale.scale.fill_(4.0)
    scale.good_steps.fill_(GROWTH_INTERVAL - 1)
    engine.step(batches_for(FastGradientL2()))  # type: ignore[arg-type]  # batches
    assert (float(scale.scale), int(scale.good_steps)) == (8.0, 0)


def test_what_overflows_at_any_scale_is_an_error() -> None:
    engine = engine_for(FastGradientL2())
    assert engine.state.loss_scale is not None
    engine.state.check_loss_scale()
    engine.state.loss_scale.scale.fill_(SMALLEST / 2)
    with pytest.raises(NonFiniteError, match="overflow float16 at any loss scale"):
        engine.state.check_loss_scale()
