"""The training step: a method's gradients and both players' updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastgat.data.batch import Batch
from fastgat.engine.state import TrainState
from fastgat.methods.base import Method
from fastgat.methods.players import Draws


@torch.no_grad()
def train_step(state: TrainState, method: Method, batches: Sequence[Batch], draws: Sequence[Draws]) -> None:
    """One step of `method`, in place: everything that changes is in `state`, and nothing waits for the device."""
    players, metrics = method.step(state.players(), batches, draws, state.update)
    state.keep_buffers(players)
    state.step.add_(1)
    state.metrics.add(metrics, state.step)
