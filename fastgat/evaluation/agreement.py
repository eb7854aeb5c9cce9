"""Whether the faster forms of a network, compiled or in mixed precision, answer as it does in eager float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgat.attacks.base import frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.engine.compiled import explained, missing_compiler
from fastgat.engine.device import autocast_dtype
from fastgat.errors import CompileError


class Agreement(NamedTuple):
    """The share of answers that each form changes, and why a form could not be tried."""

    changed: dict[str, float]
    missing: dict[str, str]
    samples: int


@torch.no_grad()
def agreement(model: nn.Module, batch: Batch) -> Agreement:
    """Eager float32 against `torch.compile` and against automatic mixed precision, on one batch."""
    images, device = batch.images, batch.images.device
    dtype = autocast_dtype("auto", device)
    changed: dict[str, float] = {}
    missing: dict[str, str] = {}
    with frozen(model), torch.no_grad():
        expected = model(images)
        with torch.autocast(device.type, dtype):
            changed[str(dtype).removeprefix("torch.")] = _changed(model(images), expected)
        lacking = missing_compiler(device)
        if lacking is None:
            try:
                with explained(CompileError, "{}"):
                    changed["compiled"] = _changed(torch.compile(model)(images), expected)
            except CompileError as error:
                missing["compiled"] = f"cannot be compiled: {error}"
        else:
            missing["compiled"] = f"needs {lacking}"
    return Agreement(changed, missing, len(images))


class Gradients(NamedTuple):
    """Of the clean input gradients: the share of samples where it is zero, where it is not finite, and of entries
    that are zero."""

    zero: float
    non_finite: float
    entries: float
    samples: int


def gradient_shares(model: nn.Module, batches: Iterable[Batch]) -> Gradients:
    """What share of the samples has no input gradient to attack by."""
    zero = broken = entries = 0.0
    samples = 0
    with frozen(model):
        for images, labels in batches:
            gradient = loss_gradient(model, images, labels)[1].flatten(1)
            zero += float((gradient == 0).all(1).sum())
            broken += float((~gradient.isfinite()).any(1).sum())
            entries += float((gradient == 0).float().mean(1).sum())
            samples += len(labels)
    return Gradients(zero / samples, broken / samples, entries / samples, samples)


def _changed(logits: Tensor, expected: Tensor) -> float:
    return float((logits.argmax(1) != expected.argmax(1)).float().mean())
