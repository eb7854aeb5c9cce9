"""Batch norm's running statistics for the moving average, taken from the average's own passes.

The average of the classifier's statistics does not fit the averaged parameters: one burst of large variances stays in
it for 1 / (1 - decay) steps. So the last steps of an epoch are taken once more, uncompiled and without an update, with
the average in the classifier's place: the statistics that they leave, averaged over them, become its own, as
`torch.optim.swa_utils.update_bn` does it (Izmailov et al. 2018), on what the method shows the classifier.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn.modules.batchnorm import _NormBase

from fastgat.batch import Batch
from fastgat.engine.state import TrainState
from fastgat.engine.trial import no_update
from fastgat.methods.base import Method
from fastgat.methods.players import Draws, Tensors

IMAGES, SHARE = 1000, 0.25
"""The statistics are those of so many images at the end of an epoch, but of at most this share of its steps."""


class AverageStatistics:
    """Renews the running statistics of the moving average of `state`, where there are any, at the end of each epoch."""

    def __init__(self, state: TrainState, method: Method, batch_size: int, steps_per_epoch: int) -> None:
        self.state, self.method, self.steps_per_epoch = state, method, steps_per_epoch
        enough = min(math.ceil(IMAGES / batch_size), math.ceil(SHARE * steps_per_epoch))
        self.steps = enough if state.ema is not None and state.ema.statistic_names else 0

    def after(self, step: int, minibatches: Sequence[Batch], draws: Sequence[Draws], kind: str) -> None:
        """If `step`, the number of the step just taken, is among its epoch's last `steps`: average its statistics in.

        Only the statistics so far are kept between two steps, so a run can stop and go on at any step.
        """
        before = self.steps - (self.steps_per_epoch - step % self.steps_per_epoch)
        if before < 0:
            return
        assert self.state.ema is not None
        left, averages = self._left(minibatches, draws, kind), self.state.ema.averages()
        for name in self.state.ema.statistic_names:
            now = left[name].to(averages[name].dtype)
            now = now.where(now.isfinite(), averages[name])  # float16 may overflow, where training skips a step
            averages[name].lerp_(now, 1 / (before + 1))

    @torch.no_grad()
    def _left(self, minibatches: Sequence[Batch], draws: Sequence[Draws], kind: str) -> Tensors:
        """The running statistics after a step on the averaged weights, without an update: the mean over its passes."""
        assert self.state.ema is not None
        averages, players = self.state.ema.averages(), self.state.players()
        own = players.classifier
        norms = {
            name: layer for name, layer in own.module.named_modules() if isinstance(layer, _NormBase) and layer.training
        }
        fresh = {f"{name}.num_batches_tracked".lstrip(".") for name in norms}
        buffers = {name: buffer * (name not in fresh) for name, buffer in {**own.buffers, **averages}.items()}
        network = own._replace(
            parameters={name: averages[name] for name in own.parameters},
            buffers={name: buffers[name] for name in own.buffers},
        )
        momenta = {layer: layer.momentum for layer in norms.values()}
        try:
            for layer in momenta:
                layer.momentum = None  # from no batch on, the average of all that come
            players, _ = self.method.step(players._replace(classifier=network), minibatches, draws, no_update, kind)
        finally:
            for layer, momentum in momenta.items():
                layer.momentum = momentum
        return players.classifier.buffers
