"""The training step: a method's gradients and both players' updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastgat.batch import Batch
from fastgat.engine.state import TrainState
from fastgat.methods.base import Method
from fastgat.methods.players import Draws


@torch.no_grad()
def train_step(
    state: TrainState, method: Method, batches: Sequence[Batch], draws: Sequence[Draws], kind: str = "full"
) -> None:
    """One step of `method`, in place: everything that changes is in `state`, and nothing waits for the device."""
    before = state.begin()
    players, metrics = method.step(state.players(), batches, draws, state.update, kind)
    state.keep_buffers(players)
    state.finish(metrics, before)
