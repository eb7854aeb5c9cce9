"""Checks of a network: whether its compiled and mixed-precision forms answer alike, whether it has input gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgat.attacks.base import frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.engine.device import autocast_dtype
from fastgat.engine.step import compile_errors_in_one_line, missing_compiler
from fastgat.errors import CompileError
from fastgat.evaluation.inputs import Batches, Subject
from fastgat.functional import mixed_precision

ROUNDING = 1e-4
"""By how much of the largest logit rounding may change a logit from one pass to the next, on a GPU."""
REPETITIONS = 4
"""Of a first pass, as in AutoAttack's check: a network that tosses one coin a pass rarely answers alike."""


def agreement(subject: Subject, batch: Batch) -> tuple[dict[str, float], dict[str, str], int]:
    """Eager float32 against `torch.compile` and against automatic mixed precision, on one batch.

    Returns the share of answers that each form changes, why a form could not be tried, and the number of samples.
    """
    images, device = batch.images, batch.images.device
    dtype = autocast_dtype("auto", device)
    changed: dict[str, float] = {}
    missing: dict[str, str] = {}
    with frozen(subject), torch.no_grad():
        expected = subject(images)
        with mixed_precision(device, dtype):
            changed[str(dtype).removeprefix("torch.")] = _share_changed(subject(images), expected)
        if compiler := missing_compiler(device):
            missing["compiled"] = f"needs {compiler}"
        else:
            try:
                with compile_errors_in_one_line(CompileError, "{}"):
                    changed["compiled"] = _share_changed(torch.compile(subject)(images), expected)
            except CompileError as error:
                missing["compiled"] = f"cannot be compiled: {error}"
    return changed, missing, len(images)


def repetition(subject: Subject, batch: Batch) -> tuple[float, bool, int]:
    """The largest share of answers that a repetition changes, and whether logits change by more than rounding.

    The last number is that of the samples.
    """
    first = subject.logits(batch.images)
    finite = first.nan_to_num(posinf=0, neginf=0)
    changed, apart = 0.0, False
    for _ in range(REPETITIONS):
        again = subject.logits(batch.images)
        changed = max(changed, _share_changed(again, first))
        difference = (again.nan_to_num(posinf=0, neginf=0) - finite).abs().amax()
        apart |= bool(difference > ROUNDING * finite.abs().amax())
    return changed, apart, len(first)


def gradient_shares(subject: Subject, batches: Batches) -> tuple[float, float, float, int]:
    """The shares of clean samples whose input gradient is zero, of those where it is not finite, and of zero entries.

    The last number is that of the samples.
    """
    zero = non_finite = entries = 0.0
    with frozen(subject):
        for images, labels in batches:
            gradient = loss_gradient(subject, images, labels)[1].flatten(1)
            zero += float((gradient == 0).all(1).sum())
            non_finite += float((~gradient.isfinite()).any(1).sum())
            entries += float((gradient == 0).float().mean(1).sum())
    samples = batches.samples
    return zero / samples, non_finite / samples, entries / samples, samples


def _share_changed(logits: Tensor, expected: Tensor) -> float:
    return float((logits.argmax(1) != expected.argmax(1)).float().mean())
