"""Checks of a network: whether it answers alike, and so do its faster forms, and whether it has input gradients."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgat.attacks.base import frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.engine.device import autocast_dtype
from fastgat.engine.step import compile_errors_in_one_line, missing_compiler
from fastgat.errors import CompileError, first_line, is_out_of_memory
from fastgat.evaluation.inputs import Batches, Subject
from fastgat.functional import mixed_precision

ROUNDING = 1e-4  # by how much of the largest logit rounding may change a logit from one pass to the next, on a GPU
REGROUPED = 1e-2
"""The same where other images share the pass: other kernels may then be used, also in a network's own bfloat16."""
DIGITS = 16  # how many of a format's last places rounding may change, where that is more
REPETITIONS = 2
"""How often the first pass is repeated as it was. Two more passes group the images otherwise, so there are five in all,
as in AutoAttack's check: a network that tosses a coin in each pass rarely gives the same answers five times."""
SAMPLES = 256  # how many images the checks of answers use, whatever the size of batches
PASS, FEW = 64, 8  # about how many images share a pass, and where few do


def agreement(subject: Subject, batch: Batch) -> tuple[dict[str, float], dict[str, str], int]:
    """Eager float32 against `torch.compile` and against automatic mixed precision, on one batch.

    Returns the share of answers that each form changes, why a form could not be tried, and the number of samples.
    """
    images, device = batch.images, batch.images.device
    dtype = autocast_dtype("auto", device)
    changed: dict[str, float] = {}
    missing: dict[str, str] = {}
    with frozen(subject), torch.no_grad():
        expected = _in_passes(subject, images, PASS)
        name = str(dtype).removeprefix("torch.")
        try:
            with mixed_precision(device, dtype):
                found = _in_passes(subject, images, PASS)
            changed[name] = _share(found.argmax(1) != expected.argmax(1))
        except Exception as error:  # whatever operations say that do not take its mixture of dtypes
            if is_out_of_memory(error):
                raise
            missing[name] = f"fails: {first_line(error)}"
        if compiler := missing_compiler(device):
            missing["compiled"] = f"needs {compiler}"
        else:
            try:
                torch._dynamo.reset()  # which otherwise runs a ninth network of this process uncompiled
                with compile_errors_in_one_line(CompileError, "{}"):
                    found = _in_passes(torch.compile(subject), images, PASS)
                    changed["compiled"] = _share(found.argmax(1) != expected.argmax(1))
            except CompileError as error:
                missing["compiled"] = f"cannot be compiled: {error}"
    return changed, missing, len(images)


def repetition(subject: Subject, batch: Batch) -> tuple[float, bool, int]:
    """The largest share of answers that a repetition changes, and whether logits change by more than rounding.

    The first repetitions are the pass as it was. Then the images come in the reverse order, and a few at a time. An
    answer whose logits differ by rounding alone is not changed. The last number is that of the samples.
    """
    first = _in_passes(subject.logits, batch.images, PASS)
    finite = first.nan_to_num(posinf=0, neginf=0)
    largest, least = finite.abs().amax(), DIGITS * torch.finfo(_coarser(subject.dtype, first.dtype)).eps
    changed, apart = 0.0, False
    for again, rounding in _repetitions(subject, batch.images):
        difference = (again.nan_to_num(posinf=0, neginf=0) - finite).abs().amax(1)
        differs = difference > max(rounding, least) * largest
        changed = max(changed, _share(differs & (again.argmax(1) != first.argmax(1))))
        apart |= bool(differs.any())
    return changed, apart, len(first)


def _repetitions(subject: Subject, images: Tensor) -> Iterator[tuple[Tensor, float]]:
    """The logits (N, K) of passes over the same images, and what counts as rounding."""
    for _ in range(REPETITIONS):
        yield _in_passes(subject.logits, images, PASS), ROUNDING
    for size in (PASS, min(FEW, max(len(images) // 2, 2))):
        yield _in_passes(subject.logits, images.flip(0), size).flip(0), REGROUPED


def _in_passes(network: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """The logits (N, K), from passes over `size` images or a few more, of almost equal numbers."""
    return torch.cat([network(part) for part in images.tensor_split(max(len(images) // size, 1))])


def _coarser(own: torch.dtype | None, logits: torch.dtype) -> torch.dtype:
    return max(own or logits, logits, key=lambda dtype: torch.finfo(dtype).eps)


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


def _share(answers: Tensor) -> float:
    return float(answers.float().mean())
