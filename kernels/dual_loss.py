"""Dual loss: J = -log F(x)_y (8) of each sample with its gradient by the logits, and alpha J + (1 - alpha) J' (10).

    z_k = mean over the map of logits[k]               where logits come as a map, (B, K, H, W)
    J = log sum_k exp(z_k - max z) - (z_y - max z)     neither overflows nor loses the tail, for logits of any size
    dJ/dz_k = exp(z_k - max z) / sum - [k = y]         the unit seed of each sample: it contains no alpha and no 1/B

With label smoothing s, J_s = (1 - s) J + s (J averaged over all classes), dJ_s/dz_k = F_k - (1 - s) [k = y] - s / K is
a second seed, so that Delta, which needs the unsmoothed J, stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, launching_on, runs_kernel, tl, triton
from fastgat.kernels.images import layout
from torch import Tensor
from torch.nn import functional


class SampleLoss(NamedTuple):
    """Of each sample (B,): J, F(x)_y = exp(-J), whether the prediction is right, and J_s; and by the logits, in their
    shape: dJ/dlogits and dJ_s/dlogits. Without smoothing the last two are those of J."""

    loss: Tensor
    probability: Tensor
    correct: Tensor
    gradient: Tensor
    smoothed_loss: Tensor
    smoothed_gradient: Tensor


def sample_loss_reference(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> SampleLoss:
    wide = logits.to(accumulation_dtype(logits.dtype))
    z = wide.flatten(2).mean(2) if wide.dim() > 2 else wide
    log_f = z.log_softmax(1)
    loss = functional.nll_loss(log_f, labels, reduction="none")
    gradient = log_f.exp() - functional.one_hot(labels, z.shape[1])
    smoothed = (1 - smoothing) * loss - smoothing * log_f.mean(1)
    smoothed_gradient = gradient + smoothing * (functional.one_hot(labels, z.shape[1]) - 1 / z.shape[1])
    spread = [g.view(*z.shape, *[1] * (logits.dim() - 2)).expand_as(logits) for g in (gradient, smoothed_gradient)]
    places = logits[0:1, 0:1].numel() or 1
    gradients = [(g / places).to(logits.dtype) for g in spread]
    return SampleLoss(loss, loss.neg().exp(), z.argmax(1) == labels, gradients[0], smoothed, gradients[1])


@dataclass(frozen=True)
class LossLaunch:
    """One program a sample; tiles of `classes` logits by `places` of the map, `warps` warps."""

    classes: int
    places: int
    warps: int

    @staticmethod
    def for_logits(classes: int, places: int) -> LossLaunch:
        """Tiles of at most 4096 elements: the whole of 10 x 64, or a run of 4096 classes without a map."""
        across = min(triton.next_power_of_2(places), 1024)
        down = min(max(triton.next_power_of_2(classes), 16), 4096 // across)
        return LossLaunch(down, across, warps=max(1, min(8, down * across // 256)))


@triton.jit
def _logits_of_classes(logits, k, classes, places, class_stride, place_stride, K: tl.constexpr, S: tl.constexpr):
    """z of the classes k (K of them): the mean over the map, minus infinity beyond the last class."""
    total = tl.zeros((K,), tl.float32)
    for start in range(0, places, S):
        s = start + tl.arange(0, S)
        at = k[:, None].to(tl.int64) * class_stride + s[None, :] * place_stride
        total += tl.sum(
            tl.load(logits + at, (k < classes)[:, None] & (s < places)[None, :], other=0.0).to(tl.float32), 1
        )
    return tl.where(k < classes, total / places, float("-inf"))


@triton.jit
def _half(
    logits,
    label,
    gradient,
    smoothed_gradient,
    classes,
    places,
    class_stride,
    place_stride,
    gradient_class_stride,
    gradient_place_stride,
    smoothing,
    SMOOTHED: tl.constexpr,
    SINGLE: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
):
    """J, J_s and whether the prediction is right, for one sample; writes the gradients."""
    lane = tl.arange(0, K)
    top, norm, own, total, best = float("-inf"), 0.0, 0.0, 0.0, 0
    z = tl.zeros((K,), tl.float32)
    for start in range(0, classes, K):
        k = start + lane
        z = _logits_of_classes(logits, k, classes, places, class_stride, place_stride, K, S)
        here = tl.max(z, 0)
        grown = tl.maximum(top, here)
        norm = norm * tl.exp(top - grown) + tl.sum(tl.exp(z - grown), 0)
        first = tl.min(tl.where(z == here, k, classes), 0)
        best = tl.where(here > top, first, best)
        own += tl.sum(tl.where(k == label, z, 0.0), 0)
        total += tl.sum(tl.where(k < classes, z, 0.0), 0)
        top = grown
    norm = tl.where((label >= 0) & (label < classes), norm, float("nan"))  # a label of no class spoils its sample
    log_norm = tl.log(norm)
    loss = log_norm - (own - top)
    mean_loss = log_norm - (total / classes - top)
    for start in range(0, classes, K):
        k = start + lane
        if not SINGLE:
            z = _logits_of_classes(logits, k, classes, places, class_stride, place_stride, K, S)
        f = tl.exp(z - top) / norm
        seed = (f - tl.where(k == label, 1.0, 0.0)) / places
        for corner in range(0, places, S):
            s = corner + tl.arange(0, S)
            inside = (k < classes)[:, None] & (s < places)[None, :]
            at = k[:, None].to(tl.int64) * gradient_class_stride + s[None, :] * gradient_place_stride
            tile = tl.broadcast_to(seed[:, None], (K, S))
            tl.store(gradient + at, tile.to(gradient.dtype.element_ty), inside)
            if SMOOTHED:
                shift = smoothing * (tl.where(k == label, 1.0, 0.0) - 1.0 / classes) / places
                tile = tl.broadcast_to((seed + shift)[:, None], (K, S))
                tl.store(smoothed_gradient + at, tile.to(gradient.dtype.element_ty), inside)
    return loss, loss + smoothing * (mean_loss - loss), best == label


@triton.jit
def _dual_loss_kernel(
    first,
    second,
    labels,
    clean_loss,
    figures,
    correct,
    first_gradient,
    first_smoothed,
    second_gradient,
    second_smoothed,
    dual,
    batch,
    classes,
    places,
    first_stride,
    first_class,
    first_place,
    second_stride,
    second_class,
    second_place,
    first_gradient_class,
    first_gradient_place,
    second_gradient_class,
    second_gradient_place,
    alpha,
    smoothing,
    BOTH: tl.constexpr,
    DUAL: tl.constexpr,
    SMOOTHED: tl.constexpr,
    SINGLE: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    written = sample * classes * places
    alpha = tl.cast(alpha, tl.float32)
    smoothing = tl.cast(smoothing, tl.float32)
    label = tl.load(labels + sample)
    loss, weighed, right = _half(
        first + sample * first_stride,
        label,
        first_gradient + written,
        first_smoothed + written,
        classes,
        places,
        first_class,
        first_place,
        first_gradient_class,
        first_gradient_place,
        smoothing,
        SMOOTHED,
        SINGLE,
        K,
        S,
    )
    tl.store(figures + sample, loss)
    tl.store(figures + batch + sample, tl.exp(-loss))
    tl.store(figures + 2 * batch + sample, weighed)
    tl.store(correct + sample, right)
    if DUAL:
        tl.store(dual + sample, alpha * tl.load(clean_loss + sample).to(tl.float32) + (1 - alpha) * weighed)
    if BOTH:
        loss, other, right = _half(
            second + sample * second_stride,
            label,
            second_gradient + written,
            second_smoothed + written,
            classes,
            places,
            second_class,
            second_place,
            second_gradient_class,
            second_gradient_place,
            smoothing,
            SMOOTHED,
            SINGLE,
            K,
            S,
        )
        tl.store(figures + 3 * batch + sample, loss)
        tl.store(figures + 4 * batch + sample, tl.exp(-loss))
        tl.store(figures + 5 * batch + sample, other)
        tl.store(correct + batch + sample, right)
        tl.store(dual + sample, alpha * weighed + (1 - alpha) * other)


class _Half(NamedTuple):
    """One half's logits as (B, K, places), and its empty gradients in the logits' own layout."""

    logits: Tensor
    gradient: Tensor
    smoothed: Tensor

    @staticmethod
    def of(logits: Tensor, smoothing: float) -> _Half:
        flat = logits.dim() < 4 or logits.stride(2) == logits.stride(3) * logits.shape[3]
        logits = logits if flat else logits.contiguous()
        gradient = torch.empty_like(logits, memory_format=layout(logits))
        return _Half(logits, gradient, torch.empty_like(gradient) if smoothing else gradient)

    def strides(self) -> tuple[int, int]:
        """Of a class and of a place of the map, in the gradients."""
        return self.gradient.stride(1), self.gradient.stride(-1) if self.gradient.dim() > 2 else 1


def dual_loss_kernel(
    first: Tensor,
    second: Tensor | None,
    labels: Tensor,
    clean_loss: Tensor | None,
    alpha: float,
    smoothing: float,
) -> tuple[SampleLoss, SampleLoss | None, Tensor]:
    batch, classes = first.shape[:2]
    places = first[0:1, 0:1].numel() if first.dim() > 2 else 1
    halves = [_Half.of(logits, smoothing) for logits in (first, second) if logits is not None]
    one, other = halves[0], halves[-1]
    figures = first.new_empty((len(halves), 3, batch), dtype=torch.float32)
    correct = first.new_empty((len(halves), batch), dtype=torch.bool)
    dual = first.new_empty(batch, dtype=torch.float32)
    if batch:
        launch = LossLaunch.for_logits(classes, places)
        with launching_on(first):
            _dual_loss_kernel[(batch,)](
                one.logits,
                other.logits,
                labels.contiguous(),
                clean_loss.contiguous() if clean_loss is not None else figures,
                figures,
                correct,
                one.gradient,
                one.smoothed,
                other.gradient,
                other.smoothed,
                dual,
                batch,
                classes,
                places,
                one.logits.stride(0),
                one.logits.stride(1),
                one.logits.stride(-1) if one.logits.dim() > 2 else 1,
                other.logits.stride(0),
                other.logits.stride(1),
                other.logits.stride(-1) if other.logits.dim() > 2 else 1,
                *one.strides(),
                *other.strides(),
                alpha,
                smoothing,
                BOTH=second is not None,
                DUAL=clean_loss is not None,
                SMOOTHED=bool(smoothing),
                SINGLE=classes <= launch.classes,
                K=launch.classes,
                S=launch.places,
                num_warps=launch.warps,
            )
    results = [
        SampleLoss(figure[0], figure[1], right, half.gradient, figure[2], half.smoothed)
        for half, figure, right in zip(halves, figures, correct, strict=True)
    ]
    return results[0], results[1] if second is not None else None, dual


def sample_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> SampleLoss:
    """The clean half of a step: J, F(x)_y, correctness and the seeds of the backward pass. Not differentiable.

    Args:
        logits: (B, K), or a map (B, K, h, w) whose mean they are; float32, bfloat16 or float16, any strides; float64 by
            the reference.
        labels: (B,) int64 in 0..K-1, any stride. For another label the kernel gives NaN, since it cannot raise without
            waiting for the device; the reference raises IndexError or RuntimeError.
        smoothing: of the labels, for J_s.

    Losses and probabilities come in float32 or wider, gradients in the dtype of the logits.
    """
    if runs_kernel(logits):
        return dual_loss_kernel(logits, None, labels, None, 0.0, smoothing)[0]
    return sample_loss_reference(logits.detach(), labels, smoothing)


def perturbed_loss(
    logits: Tensor, labels: Tensor, clean_loss: Tensor, alpha: float, *, smoothing: float = 0.0
) -> tuple[SampleLoss, Tensor]:
    """The perturbed half, and alpha J + (1 - alpha) J' (10) of each sample from the clean half's loss, (B,)."""
    if runs_kernel(logits):
        half, _, dual = dual_loss_kernel(logits, None, labels, clean_loss, alpha, smoothing)
        return half, dual
    half = sample_loss_reference(logits.detach(), labels, smoothing)
    return half, alpha * clean_loss + (1 - alpha) * half.smoothed_loss


def dual_loss(
    clean: Tensor, perturbed: Tensor, labels: Tensor, alpha: float, *, smoothing: float = 0.0
) -> tuple[SampleLoss, SampleLoss, Tensor]:
    """Both halves and alpha J + (1 - alpha) J' (10) of each sample in one launch, where both halves exist at once."""
    if runs_kernel(clean):
        first, second, dual = dual_loss_kernel(clean, perturbed, labels, None, alpha, smoothing)
        assert second is not None
        return first, second, dual
    first, second = (sample_loss_reference(half.detach(), labels, smoothing) for half in (clean, perturbed))
    return first, second, alpha * first.smoothed_loss + (1 - alpha) * second.smoothed_loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        half = sample_loss(logits, labels)
        return half.loss, half.gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, seed: Tensor, _: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * seed.view(-1, *[1] * (gradient.dim() - 1))).to(gradient.dtype), None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """J (8) of each sample, (B,), float32 or wider; differentiable, once, by the logits. Arguments as `sample_loss`."""
    if runs_kernel(logits):
        return _CrossEntropy.apply(logits, labels)[0]
    wide = logits.to(accumulation_dtype(logits.dtype))
    z = wide.flatten(2).mean(2) if wide.dim() > 2 else wide
    # By default torch takes a label of -100 for one to leave out, at a loss of 0.
    return functional.cross_entropy(z, labels, reduction="none", ignore_index=torch.iinfo(torch.int64).min)
