"""The moving average of a network with batch norm is judged, and kept, with statistics of its own passes."""

import copy
import os
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fastgat import load_classifier
from fastgat.batch import Batch
from fastgat.config import OptimizerConfig
from fastgat.engine.accuracy import score
from fastgat.engine.average import AverageStatistics
from fastgat.engine.state import TrainState
from fastgat.methods import GAT, Baseline, FastGradientL2, Method
from fastgat.methods.players import Draws
from tests.engine.small import At, assert_same_weights, config, loader, rows, trainer, weights
from tests.support import BatchNormNet, minibatch, players


class Norms(nn.Module):
    """Two layers of batch norm, the second of which sees what the first makes of its statistics."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, 8, 3, padding=1, bias=False) for channels in (3, 8)]
        self.body = nn.Sequential(*(m for c in convolutions for m in (c, nn.BatchNorm2d(8), nn.ReLU())))
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def test_they_are_what_torch_estimates() -> None:
    """Over the last steps of an epoch, here two of eight."""
    state = TrainState(Norms(), None, OptimizerConfig(ema=0.9), Baseline.metrics)
    assert state.ema is not None
    with torch.no_grad():
        for tensor in state.ema.averages().values():
            tensor.add_(0.3 * torch.rand_like(tensor))
    statistics = AverageStatistics(state, Baseline(), batch_size=8, steps_per_epoch=8)
    batches = [Batch(*pair) for pair in islice(loader(0), 2)]
    average = copy.deepcopy(state.classifier)
    parameters = dict(average.named_parameters())
    for name, value in state.ema.averages().items():
        if name in parameters:
            parameters[name].data.copy_(value)
    for step in range(6):
        statistics.after(step, batches[:1], [Draws()], "full")
    assert state.ema.averages()["body.1.running_var"].max() > 1, "not yet touched"
    for step, batch in enumerate(batches, 14):
        statistics.after(step, [batch], [Draws()], "full")
    update_bn([batch.images for batch in batches], average)
    for name, expected in average.named_buffers():
        if name.endswith(("mean", "var")):
            torch.testing.assert_close(state.ema.averages()[name], expected)
    assert all(layer.momentum == 0.1 for layer in state.classifier.modules() if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize("method", [FastGradientL2(), GAT()])
def test_both_passes_of_a_step_count(method: Method) -> None:
    state = TrainState(BatchNormNet().double(), players()[1], OptimizerConfig(ema=0.9), method.metrics)
    batch = minibatch(8)
    draws = [method.draw(state.classifier, batch.images, torch.Generator())]
    AverageStatistics(state, method, 1000, 1).after(0, [batch], draws, "full")
    clean, seen = (state.classifier.conv(batch.images).mean((0, 2, 3)), state.evaluation_parameters())  # type: ignore[operator]
    assert not torch.allclose(seen["norm.running_mean"], clean, atol=1e-9), "the perturbed pass counts"
    torch.testing.assert_close(seen["norm.running_mean"], clean, atol=0.2, rtol=0)


def test_a_float16_pass_that_overflows_does_not_count() -> None:
    method, batch = GAT(), minibatch(8, dtype=torch.float32)
    state = TrainState(
        BatchNormNet(), players(dtype=torch.float32)[1], OptimizerConfig(ema=0.9), method.metrics, torch.float16
    )
    before = {name: average.clone() for name, average in state.evaluation_parameters().items()}
    assert state.loss_scale is not None
    for scale, changes in ((2.0**24, False), (2.0**10, True)):
        state.loss_scale.scale.fill_(scale)
        AverageStatistics(state, method, 1000, 1).after(0, [batch], [Draws()], "full")
        assert (not state.evaluation_parameters()["norm.running_var"].equal(before["norm.running_var"])) == changes
        assert all(average.isfinite().all() for average in state.evaluation_parameters().values())


@pytest.mark.parametrize("renewed", [True, False])
def test_it_matters(renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three epochs the average is much better so than with the classifier's own statistics, or, not `renewed`,
    with those of the start; the file that is kept has what the epoch's row says."""
    if not renewed:
        monkeypatch.setattr("fastgat.engine.average.SHARE", 0)
    optimizer = OptimizerConfig(optimizer="sgd", lr=0.1, ema=0.9)
    trainer(config(tmp_path, method="baseline", select="last", optimizer=optimizer), Norms).fit()
    kept = load_classifier(tmp_path, classifier=Norms())
    ours = score(kept, [Batch(*pair) for pair in loader(1)])
    assert ours.loss == pytest.approx(rows(tmp_path, "epoch")[-1]["validation_loss"], rel=1e-5)
    saved = weights(tmp_path)
    for name, buffer in kept.named_buffers():
        buffer.copy_(saved[f"classifier.{name}"])
    live = score(kept, [Batch(*pair) for pair in loader(1)])
    better = ours.accuracy > live.accuracy + 0.2 and ours.loss < live.loss / 5
    assert better == renewed


def test_a_loader_of_one_s_own_says_how_large_its_batches_are(tmp_path: Path) -> None:
    settings = config(tmp_path, method="baseline", batch_size=1000, optimizer=OptimizerConfig(ema=0.9))
    assert trainer(settings, Norms).prepare().average_statistics.steps == 2, "a quarter of six steps, of 8 images each"


def test_a_run_stopped_among_the_last_steps_goes_on_the_same(tmp_path: Path) -> None:
    changes = {"method": "baseline", "optimizer": OptimizerConfig(lr=1e-2, ema=0.9), "epochs": 2}
    trainer(config(tmp_path / "whole", **changes), Norms).fit()
    parts = config(tmp_path / "parts", resume="auto", **changes)
    for step in (4, 10):
        trainer(parts, Norms, callbacks=(At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)),)).fit()
    assert trainer(parts, Norms).fit().summary is not None
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
