"""A training step with kernels at its joints is the step with their references, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from fastgat.kernels.backend import forced_kernels

from fastgat.methods import (
    GAT,
    FastGradientL2,
    FastGradientLinf,
    Free,
    GradientPenalty,
    Method,
    PGDTraining,
    RandomPerturbation,
)
from fastgat.methods.players import Draws
from tests.support import Engine, minibatch, players

METHODS: Sequence[Method] = [
    GAT(cg=0.3, schedule="paper", delta="fixed"),
    GAT(cg=0.3, schedule="simultaneous", delta="fixed"),
    GAT(cg=0.3, delta="through"),
    GradientPenalty(),
    GAT(cg=0.3, schedule="simultaneous", clamp=True),
    FastGradientL2(),
    FastGradientLinf(clamp=True),
    RandomPerturbation(),
    PGDTraining(attack_steps=2),
    Free(replays=2),
]


@pytest.mark.interpret
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled where there is a GPU, not interpreted")
@pytest.mark.parametrize(
    "method",
    METHODS,
    ids=lambda method: f"{method.name} {getattr(method, 'schedule', '')} {getattr(method, 'delta', '')}",
)
def test_kernels_change_nothing(method: Method) -> None:
    pytest.importorskip("triton")
    classifier, generator = players(dtype=torch.float32)
    with_kernels, without = (
        Engine(method, classifier, generator, memory=torch.zeros(4, 3, 8, 8) if method.remembers else None)
        for _ in range(2)
    )
    for _ in range(2):
        batches = [minibatch(dtype=torch.float32) for _ in range(method.minibatches())]
        draws = [Draws(noise=torch.randn_like(batch.images)) for batch in batches]
        with forced_kernels():
            metrics = with_kernels.step(batches, draws)
        for name, value in without.step(batches, draws).items():
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    # Two steps of Adam with rate 1e-3 move each weight by up to 2e-3; a joint that is wrong turns some of them round.
    for one, other in zip(with_kernels.state.parameters(), without.state.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
