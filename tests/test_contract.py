"""The contract of images and labels holds alike at every entrance: loaders, the step, the losses and attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgat
from fastgat.contract import are_probabilities, checked_batch
from fastgat.data import IterableLoader
from fastgat.errors import FastgatError
from fastgat.methods import METHODS
from fastgat.models import Classifier, Generator

IMAGES, LABELS = torch.full((4, 3, 8, 8), 0.5), torch.arange(4)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def loader(images: Tensor, labels: Tensor) -> Any:
    return next(IterableLoader([(images, labels)], 4).once())


def step(images: Tensor, labels: Tensor, method: str = "baseline") -> Any:
    return fastgat.compile_step(Classifier(4), method, compile=False)(images, labels)


def losses(images: Tensor, labels: Tensor) -> Any:
    return fastgat.gat_loss(Classifier(4), Generator(), images, labels)


ENTRANCES = [loader, step, losses]
Entrance = Callable[[Tensor, Tensor], Any]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(entrance: Entrance, dtype: torch.dtype) -> None:
    entrance(IMAGES, LABELS.to(dtype))


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_rounding_outside_is_clamped_and_the_callers_images_stay(entrance: Entrance) -> None:
    images = IMAGES.clone()
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 1 + 1.2e-7, -1e-7
    before = images.clone()
    entrance(images, LABELS)
    assert images.equal(before)
    clamped = checked_batch(images, LABELS).images
    assert (float(clamped.min()), float(clamped.max())) == (0, 1)


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 3, 8, 8).sub(MEAN) / STD, LABELS, r"pixels from -2\.11\d+ to -1\.80\d+; .* normalised"),
        (IMAGES + 0.50002, LABELS, r"to 1\.00002; they must lie in \[0, 1\]"),
        (IMAGES * torch.nan, LABELS, "pixels from nan"),
        (IMAGES, torch.full((4,), -100), "labels from -100 to -100, but"),
        (IMAGES, LABELS + 1, r"labels from 1 to 4, but the classifier has classes 0\.\.3"),
        (IMAGES, torch.eye(4), r"expected 4 integer labels, one class an image, got \(4, 4\) of torch.float32"),
        (IMAGES, LABELS[:2], r"expected 4 integer labels, .* got \(2,\)"),
        (IMAGES[0], LABELS, r"expected images \(B, C, H, W\), floating point in \[0, 1\], got \(3, 8, 8\)"),
    ],
)
def test_what_is_not_so_shows_what_was_given(entrance: Entrance, images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(FastgatError, match=message):
        entrance(images, labels)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_label_that_is_no_class(method: str) -> None:
    with pytest.raises(FastgatError, match="labels from -100"):
        step(IMAGES, torch.full((4,), -100), method)


def test_values_are_looked_at_in_every_step() -> None:
    """On a CPU, where no step waits for a device."""
    training = fastgat.compile_step(Classifier(4), "baseline", compile=False)
    training(IMAGES, LABELS)
    with pytest.raises(FastgatError, match=r"pixels from 1\.5 to 1\.5"):
        training(IMAGES + 1, LABELS)
    with pytest.raises(FastgatError, match="labels from 4"):
        training(IMAGES, LABELS + 4)


def test_coarse_formats_round_further() -> None:
    checked_batch(torch.full((1, 3, 2, 2), 1.0078125, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(FastgatError, match="pixels"):
        checked_batch(torch.full((1, 3, 2, 2), 1.0078125), torch.zeros(1, dtype=torch.int64))


def test_probabilities_are_told_from_logits() -> None:
    logits = torch.randn(4, 10)
    assert are_probabilities(logits.softmax(1))
    assert not are_probabilities(logits)
    assert not are_probabilities(nn.functional.relu(logits))
