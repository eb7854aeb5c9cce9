"""What attacks leave of a network: for a linear one that is known without any attack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgat.config import PrecisionConfig, RunConfig
from fastgat.experiments import RunStore
from fastgat.experiments import images as test_images
from fastgat.experiments.attacked import THREAT, attack_job
from fastgat.methods import GAT
from tests.experiments.made_up import plan

SAMPLES = 32


class Linear(nn.Module):
    """A nearest-mean classifier with much noise in its weights, so that attacks reach across its boundaries."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        means = torch.stack(
            [images[labels == k].flatten(1).sum(0) / (labels == k).sum().clamp_min(1) for k in range(10)]
        )
        noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(0.05 * (means + 1.4 * noise))
        self.bias = nn.Parameter(0.05 * means.square().sum(1) / 2 - (self.weight * means).sum(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def test_a_linear_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan("digits", samples=SAMPLES)
    asked = replace(asked, base=replace(asked.base, run=RunConfig(device="cpu"), precision=PrecisionConfig(amp=True)))
    data = test_images.load_images(asked)
    ((images, labels),) = test_images.test_batches(asked, data, torch.device("cpu"))
    network = Linear(images, labels)
    monkeypatch.setattr(RunStore, "classifier", lambda store, cell, device: network)
    store, job = RunStore(tmp_path), attack_job(asked, asked.cell(GAT(), 0))
    assert job.run(store, lambda news: None, lambda: False) is not None
    figures = job.figures(store)
    assert figures is not None

    x = images.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), x)
    x_perturbed = images + THREAT["epsilon"] * nn.functional.normalize(gradient.flatten(1)).view_as(images)
    right = (network(x_perturbed).argmax(1) == labels).float().mean().item()
    assert figures["fast_gradient"] == pytest.approx(right)
    assert 0.1 < right < (logits.argmax(1) == labels).float().mean()

    margins = logits.gather(1, labels[:, None]) - logits
    distances = margins / (network.weight[labels][:, None] - network.weight).norm(dim=2).clamp_min(1e-9)
    distances[torch.arange(SAMPLES), labels] = torch.inf
    out_of_reach = (distances.amin(1) > THREAT["epsilon"]).float().mean().item()
    clamped = (network(x_perturbed.clamp(0, 1)).argmax(1) == labels).float().mean().item()
    assert out_of_reach <= figures["worst_case"] <= clamped, "no attack can reach further; one step reaches less far"
    assert figures["worst_case"] < out_of_reach + 0.1
