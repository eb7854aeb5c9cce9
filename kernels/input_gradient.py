"""Input gradient: from dJ/dx per sample to what a method feeds on, in one pass over the image.

    probability   Delta = dF(x)_y/dx = -exp(-J) dJ/dx      below (7), since J = -log F(x)_y
    l2            eta   = eps dJ/dx / ||dJ/dx||_2          (3), the norm per sample; a zero gradient stays zero
    linf          eta   = eps sign(dJ/dx)                  (1)
    none          dJ/dx

The norm is accumulated relative to the largest entry seen, so that neither tiny gradients underflow when squared nor
large ones overflow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, launching_on, runs_kernel, tl, triton
from fastgat.kernels.images import ImageLaunch, Walk, as_images, empty_like, image_offsets
from torch import Tensor

MODES = ("probability", "l2", "linf", "none")


class InputGradient(NamedTuple):
    """`value` as the mode says, ||dJ/dx||_2 of each sample (B,), and the share of zeros in each sample's value (B,)."""

    value: Tensor
    norm: Tensor
    zeros: Tensor


def input_gradient_reference(gradient: Tensor, mode: str, loss: Tensor | None, epsilon: float) -> InputGradient:
    g = gradient.to(accumulation_dtype(gradient.dtype))
    each = (-1, *[1] * (g.dim() - 1))
    direction, largest, length = _relative(g)
    value = {
        "probability": lambda: g * -loss.to(g.dtype).neg().exp().view(each),  # type: ignore[union-attr]  # checked by the caller
        "l2": lambda: direction * (epsilon / length.where(length > 0, 1)).view(each),
        "linf": lambda: g.where(g.isnan(), epsilon * g.sign()),
        "none": lambda: g,
    }[mode]().to(gradient.dtype)
    return InputGradient(value, largest * length, (value == 0).flatten(1).to(g.dtype).mean(1))


def _relative(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g over the largest entry of each sample, those entries, and the norms of the quotients."""
    largest = g.flatten(1).abs().amax(1) if g[0:1].numel() else g.new_zeros(len(g))
    quotient = g / largest.where(largest > 0, 1).view(-1, *[1] * (g.dim() - 1))
    return quotient, largest, quotient.flatten(1).norm(dim=1)


TINY = tl.constexpr(torch.finfo(torch.float32).smallest_normal)
"""Keeps the reciprocal of the largest entry finite; below it a float32 has lost its digits anyway."""


@triton.jit
def _write(value, index, inside, g, unit, factor, epsilon, MODE: tl.constexpr):
    """The value of some entries, and where they are zero once rounded."""
    if MODE == "linf":
        out = tl.where(g > 0, epsilon, tl.where(g < 0, -epsilon, g))  # a NaN stays one
    elif MODE == "l2":
        out = g * unit * factor  # in this order: neither product leaves float32's range
    else:
        out = g * factor
    out = out.to(value.dtype.element_ty)
    tl.store(value + index, out, inside)
    return ((out.to(tl.float32) == 0) & inside).to(tl.int32)


@triton.jit
def _input_gradient_kernel(
    gradient,
    loss,
    value,
    norm,
    zeros,
    elements,
    gradient_stride,
    value_stride,
    middle,
    inner,
    outer_stride,
    middle_stride,
    inner_stride,
    epsilon,
    MODE: tl.constexpr,
    DENSE: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    gradient += sample * gradient_stride
    value += sample * value_stride
    epsilon = tl.cast(epsilon, tl.float32)  # Inductor passes floats as float64
    lane = tl.arange(0, BLOCK)
    factor = 1.0
    if MODE == "probability":
        factor = -tl.exp(-tl.load(loss + sample).to(tl.float32))

    if SINGLE:  # the image stays in registers from its load to its write
        inside = lane < elements
        at = image_offsets(lane, middle, inner, outer_stride, middle_stride, inner_stride, DENSE)
        g = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
        unit = 1 / tl.maximum(tl.max(tl.abs(g), 0), TINY)
        length = tl.sqrt_rn(tl.sum((g * unit) * (g * unit), 0))
        if MODE == "l2":
            factor = epsilon / tl.where(length > 0, length, 1.0)
        zero = _write(value, lane, inside, g, unit, factor, epsilon, MODE)
    else:
        largest = tl.full((BLOCK,), TINY, tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        zero = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, elements, BLOCK):
            index = start + lane
            inside = index < elements
            at = image_offsets(index, middle, inner, outer_stride, middle_stride, inner_stride, DENSE)
            g = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
            grown = tl.maximum(largest, tl.abs(g))
            unit = 1 / grown
            squares = squares * (largest * unit) * (largest * unit) + (g * unit) * (g * unit)
            largest = grown
            if MODE != "l2":
                zero += _write(value, index, inside, g, unit, factor, epsilon, MODE)
        unit = 1 / tl.max(largest, 0)
        length = tl.sqrt_rn(tl.sum(squares * (largest * unit) * (largest * unit), 0))
        if MODE == "l2":
            factor = epsilon / tl.where(length > 0, length, 1.0)
            for start in range(0, elements, BLOCK):  # from the second-level cache
                index = start + lane
                inside = index < elements
                at = image_offsets(index, middle, inner, outer_stride, middle_stride, inner_stride, DENSE)
                g = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
                zero += _write(value, index, inside, g, unit, factor, epsilon, MODE)
    tl.store(norm + sample, length / unit)
    tl.store(zeros + sample, tl.sum(zero, 0).to(tl.float32) / elements)


def input_gradient_kernel(
    gradient: Tensor,
    mode: str,
    loss: Tensor | None,
    epsilon: float,
) -> InputGradient:
    images = as_images(gradient)
    value = empty_like(images)
    norm = images.new_empty(len(images), dtype=torch.float32)
    zeros = torch.empty_like(norm)
    elements = images[0:1].numel()
    if not elements:
        return InputGradient(value.view(gradient.shape), norm.zero_(), zeros.zero_())
    walk, launch = Walk.over(value), ImageLaunch.for_elements(elements)
    with launching_on(images):
        _input_gradient_kernel[(len(images),)](
            images,
            loss.contiguous() if loss is not None else norm,
            value,
            norm,
            zeros,
            elements,
            images.stride(0),
            value.stride(0),
            *walk.sizes[1:],
            *walk.strides(images),
            epsilon,
            MODE=mode,
            DENSE=walk.is_dense(images),
            SINGLE=elements <= launch.block,
            BLOCK=launch.block,
            num_warps=launch.warps,
        )
    return InputGradient(value.view(gradient.shape), norm, zeros)


def input_gradient(gradient: Tensor, mode: str, *, loss: Tensor | None = None, epsilon: float = 1.0) -> InputGradient:
    """What a method feeds on, from the gradient of each sample's loss by its image. Not differentiable.

    Args:
        gradient: dJ/dx, (B, C, H, W) or (B, ...), float32, bfloat16 or float16, any strides; float64 by the reference.
        mode: "probability", "l2", "linf" or "none".
        loss: J, (B,), for "probability". Exact where each sample's loss depends on that sample alone; under train-mode
            batch norm seed the backward pass with -exp(-J) instead.
        epsilon: the norm for "l2" and "linf", in pixel units.

    The value comes in the dtype and layout of `gradient`, norm and zeros in float32 or wider.

    Raises ValueError for an unknown mode, or "probability" without a loss.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    if mode == "probability" and loss is None:
        raise ValueError("mode 'probability' needs the loss of each sample")
    run = input_gradient_kernel if runs_kernel(gradient) else input_gradient_reference
    return run(gradient.detach(), mode, loss, epsilon)


def ascent(gradient: Tensor, norm: str, size: float) -> Tensor:
    """The `value` of `input_gradient` alone for "l2" or "linf": where a step of an attack goes.

    Entries that are NaN go nowhere, infinite ones count as the largest finite ones: where a model's gradient breaks, an
    attack goes on from the same point. Without a GPU it makes half as many passes over the images.
    """
    gradient = gradient.nan_to_num()
    if runs_kernel(gradient):
        return input_gradient(gradient, norm, epsilon=size).value
    if norm == "linf":
        return gradient.sign().mul_(size)
    direction, _, length = _relative(gradient)
    return direction.mul_((size / length.where(length > 0, 1)).view(-1, *[1] * (gradient.dim() - 1)))
