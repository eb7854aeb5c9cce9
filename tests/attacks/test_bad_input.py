"""Images, labels, models and settings that no attack takes: one clear line each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgat.attacks import PGD, FastGradient
from fastgat.errors import ConfigError, NonFiniteError

GREY, LABELS = torch.full((4, 3, 8, 8), 0.5), torch.arange(4)


class Probabilities(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5].softmax(1)


class NaN(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5] * torch.nan


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("model", "images", "labels", "error", "message"),
    [
        (nn.Flatten(), GREY + 1, LABELS, ConfigError, r"pixels from 1\.5 to 1\.5"),
        (nn.Flatten(), GREY * torch.nan, LABELS, ConfigError, "pixels from nan to nan"),
        (nn.Flatten(), GREY[0], LABELS, ConfigError, "expected images"),
        (nn.Flatten(), GREY, LABELS[:2], ConfigError, "expected 4 integer labels"),
        (
            nn.Flatten(),
            GREY,
            LABELS + 500,
            ConfigError,
            r"labels from 500 to 503, but the classifier has classes 0\.\.191",
        ),
        (Probabilities(), GREY, LABELS, ConfigError, "returns probabilities"),
        (Maps(), GREY, LABELS, ConfigError, r"must return logits \(B, K\)"),
        (NaN(), GREY, LABELS, NonFiniteError, "NaN or infinite"),
    ],
)
def test_what_is_wrong_is_said(
    model: nn.Module, images: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FastGradient(model)(images, labels)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be at least 0"),
        ({"epsilon": 8}, "epsilon must be at most 1 in linf"),
        ({"norm": "l1"}, "norm: unknown value 'l1'"),
        ({"model": torch.flatten}, r"the model must be a torch\.nn\.Module, got builtin_function"),
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PGD(**{"model": nn.Flatten(), **wrong})


def test_samples_are_numbered_from_0_and_images_have_the_models_dtype() -> None:
    with pytest.raises(ConfigError, match="numbered from 0, got -1"):
        FastGradient(nn.Flatten())(GREY, LABELS, [0, 1, -1, 3])
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ConfigError, match="do not take images of shape"):
        FastGradient(network)(GREY.double(), LABELS)
