"""Dual loss: J = -log F(x)_y (8) of each sample with its gradient by the logits, and alpha J + (1 - alpha) J' (10).

J = log sum_k exp(z_k - max z) - (z_y - max z)     neither overflows nor loses the tail, for logits of any size
dJ/dz_k = exp(z_k - max z) / sum - [k = y]         the unit seed of each sample: it contains no alpha and no 1/B
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, launching_on, runs_kernel, tl, triton
from torch import Tensor
from torch.nn import functional

from fastgat.phases import joint


class SampleLoss(NamedTuple):
    """J, F(x)_y = exp(-J) and whether the prediction is right, (B,), and dJ/dlogits, (B, K)."""

    loss: Tensor
    probability: Tensor
    correct: Tensor
    gradient: Tensor


def sample_loss_reference(logits: Tensor, labels: Tensor) -> SampleLoss:
    log_f = logits.to(accumulation_dtype(logits.dtype)).log_softmax(1)
    gradient = log_f.exp() - functional.one_hot(labels, logits.shape[1])
    loss = functional.nll_loss(log_f, labels, reduction="none")
    return SampleLoss(loss, loss.neg().exp(), logits.argmax(1) == labels, gradient.to(logits.dtype))


def perturbed_loss_reference(
    logits: Tensor, labels: Tensor, clean_loss: Tensor, alpha: float
) -> tuple[SampleLoss, Tensor]:
    perturbed = sample_loss_reference(logits, labels)
    return perturbed, alpha * clean_loss + (1 - alpha) * perturbed.loss


@triton.jit
def _load_logits(logits_ptr, k, classes, class_stride):
    return tl.load(logits_ptr + k.to(tl.int64) * class_stride, k < classes, other=float("-inf")).to(tl.float32)


@triton.jit
def _cross_entropy_row(
    logits_ptr,
    labels_ptr,
    clean_loss_ptr,
    row_stats_ptr,
    correct_ptr,
    gradient_ptr,
    batch,
    classes,
    row_stride,
    class_stride,
    alpha,
    DUAL: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One sample. The rows of `row_stats` are J, F(x)_y and, with DUAL, the dual loss."""
    sample = tl.program_id(0).to(tl.int64)
    logits_ptr += sample * row_stride
    label = tl.load(labels_ptr + sample)
    lane = tl.arange(0, BLOCK)
    # Not -inf: for a tile whose logits are all -inf, top - new_top would be inf - inf, a NaN.
    top, total, label_logit, best = -3.4028234663852886e38, 0.0, 0.0, 0
    z = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, classes, BLOCK):
        k = start + lane
        z = _load_logits(logits_ptr, k, classes, class_stride)
        largest = tl.max(z, 0)
        new_top = tl.maximum(top, largest)
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        best = tl.where(largest > top, tl.min(tl.where(z == largest, k, classes), 0), best)
        label_logit += tl.sum(tl.where(k == label, z, 0.0), 0)
        top = new_top
    total = tl.where((label >= 0) & (label < classes), total, float("nan"))  # a label of no class spoils its sample
    loss = tl.log(total) - (label_logit - top)
    for start in range(0, classes, BLOCK):
        k = start + lane
        if not SINGLE:
            z = _load_logits(logits_ptr, k, classes, class_stride)
        seed = tl.exp(z - top) / total - tl.where(k == label, 1.0, 0.0)
        tl.store(gradient_ptr + sample * classes + k, seed.to(gradient_ptr.dtype.element_ty), k < classes)
    tl.store(row_stats_ptr + sample, loss)
    tl.store(row_stats_ptr + batch + sample, tl.exp(-loss))
    tl.store(correct_ptr + sample, best == label)
    if DUAL:
        alpha = tl.cast(alpha, tl.float32)  # Inductor passes floats as float64
        dual = alpha * tl.load(clean_loss_ptr + sample).to(tl.float32) + (1 - alpha) * loss
        tl.store(row_stats_ptr + 2 * batch + sample, dual)


def _launch(logits: Tensor, labels: Tensor, clean_loss: Tensor | None, alpha: float) -> tuple[SampleLoss, Tensor]:
    batch, classes = logits.shape
    row_stats = logits.new_empty((3, batch), dtype=torch.float32)
    correct, gradient = logits.new_empty(batch, dtype=torch.bool), logits.new_empty((batch, classes))
    pointers = logits, labels.contiguous(), row_stats if clean_loss is None else clean_loss.contiguous()
    outputs = row_stats, correct, gradient
    block = min(max(triton.next_power_of_2(classes), 16), 4096)
    constants = {"DUAL": clean_loss is not None, "SINGLE": classes <= block, "BLOCK": block}
    with launching_on(logits):
        _cross_entropy_row[(batch,)](
            *pointers,
            *outputs,
            batch,
            classes,
            *logits.stride(),
            alpha,
            **constants,
            num_warps=max(1, min(8, block // 256)),
        )
    return SampleLoss(row_stats[0], row_stats[1], correct, gradient), row_stats[2]


@joint
def sample_loss(logits: Tensor, labels: Tensor) -> SampleLoss:
    """The clean pass of a step: J, F(x)_y, correctness and the seed of the backward pass. Not differentiable.

    Args:
        logits: (B, K), float32, bfloat16 or float16, any strides; float64 by the reference.
        labels: (B,) int64 in 0..K-1, any stride. For another label the kernel gives NaN, since it cannot raise without
            waiting for the device; the reference raises IndexError or RuntimeError.

    Losses and probabilities come in float32 or wider, the gradient in the dtype of the logits.
    """
    if runs_kernel(logits):
        return _launch(logits, labels, None, 0.0)[0]
    return sample_loss_reference(logits.detach(), labels)


@joint
def perturbed_loss(logits: Tensor, labels: Tensor, clean_loss: Tensor, alpha: float) -> tuple[SampleLoss, Tensor]:
    """The perturbed pass, and alpha J + (1 - alpha) J' (10) of each sample from the clean pass's loss, (B,)."""
    if runs_kernel(logits):
        return _launch(logits, labels, clean_loss, alpha)
    return perturbed_loss_reference(logits.detach(), labels, clean_loss, alpha)
