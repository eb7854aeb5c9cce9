"""Input gradient: from dJ/dx per sample to what a method feeds on, in one pass over the image.

    probability   Delta = dF(x)_y/dx = -exp(-J) dJ/dx      below (7), since J = -log F(x)_y
    l2            eta   = eps dJ/dx / ||dJ/dx||_2          (3), the norm per sample; a zero gradient stays zero
    linf          eta   = eps sign(dJ/dx)                  (1)

The norm is accumulated relative to the largest entry seen, so that neither tiny gradients underflow when squared nor
large ones overflow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, runs_kernel, tl, triton
from fastgat.kernels.images import block_size, dense, empty_like, launch, per_sample
from torch import Tensor

from fastgat.phases import joint

MODES = ("probability", "l2", "linf")


class InputGradient(NamedTuple):
    """`value` as the mode says, (B, C, H, W), and the share of zeros in each sample of it, (B,)."""

    value: Tensor
    zeros: Tensor


def input_gradient_reference(gradient: Tensor, mode: str, loss: Tensor | None, epsilon: float) -> InputGradient:
    g = gradient.to(accumulation_dtype(gradient.dtype))
    if mode == "probability":
        assert loss is not None
        g = g * per_sample(-loss.to(g.dtype).neg().exp())
    elif mode == "l2":
        quotient, length = relative(g)
        g = quotient * per_sample(epsilon / length.where(length > 0, 1))
    elif mode == "linf":
        g = g.where(g.isnan(), epsilon * g.sign())
    value = g.to(gradient.dtype)
    return InputGradient(value, (value == 0).flatten(1).to(g.dtype).mean(1))


def relative(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient over the largest entry of each sample, and the norm of each quotient, (B,)."""
    largest = gradient.flatten(1).abs().amax(1) if gradient[0:1].numel() else gradient.new_zeros(len(gradient))
    quotient = gradient / per_sample(largest.where(largest > 0, 1))
    return quotient, quotient.flatten(1).norm(dim=1)


TINY = tl.constexpr(torch.finfo(torch.float32).smallest_normal)
"""Keeps the reciprocal of the largest entry finite; below it a float32 has lost its digits anyway."""


@triton.jit
def _store(value_ptr, index, inside, g, unit, factor, MODE: tl.constexpr):
    """Writes some entries of the value, and counts those that are zero once rounded."""
    signed = tl.where(g > 0, factor, tl.where(g < 0, -factor, g))  # a NaN stays one
    g = signed if MODE == "linf" else g * unit * factor  # in this order: neither product leaves float32's range
    rounded = g.to(value_ptr.dtype.element_ty)
    tl.store(value_ptr + index, rounded, inside)
    return tl.sum(((rounded.to(tl.float32) == 0) & inside).to(tl.int32), 0)


@triton.jit
def _input_gradient_kernel(
    gradient_ptr,
    loss_ptr,
    value_ptr,
    zeros_ptr,
    elements,
    epsilon,
    MODE: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    gradient_ptr += sample * elements
    value_ptr += sample * elements
    lane = tl.arange(0, BLOCK)
    inside = lane < elements
    # A single block stays in registers until it is written.
    first = tl.load(gradient_ptr + lane, inside, other=0.0).to(tl.float32)
    unit, factor = 1.0, tl.cast(epsilon, tl.float32)  # Inductor passes floats as float64
    if MODE == "probability":
        factor = -tl.exp(-tl.load(loss_ptr + sample).to(tl.float32))
    elif MODE == "l2":
        largest = tl.maximum(tl.abs(first), TINY)
        if SINGLE:
            unit = 1 / tl.max(largest, 0)
            squares = (first * unit) * (first * unit)
        else:
            squares = (first / largest) * (first / largest)
            for start in range(BLOCK, elements, BLOCK):
                index = start + lane
                g = tl.load(gradient_ptr + index, index < elements, other=0.0).to(tl.float32)
                new_largest = tl.maximum(largest, tl.abs(g))
                scale = 1 / new_largest
                squares = squares * (largest * scale) * (largest * scale) + (g * scale) * (g * scale)
                largest = new_largest
            unit = 1 / tl.max(largest, 0)
            squares *= (largest * unit) * (largest * unit)
        length = tl.sqrt_rn(tl.sum(squares, 0))
        factor /= tl.where(length > 0, length, 1.0)
    zeros = tl.full((), 0, tl.int32)
    if SINGLE:
        zeros = _store(value_ptr, lane, inside, first, unit, factor, MODE)
    else:
        for start in range(0, elements, BLOCK):  # for l2 from the second-level cache
            index = start + lane
            g = tl.load(gradient_ptr + index, index < elements, other=0.0).to(tl.float32)
            zeros += _store(value_ptr, index, index < elements, g, unit, factor, MODE)
    tl.store(zeros_ptr + sample, zeros.to(tl.float32) / elements)


@joint
def input_gradient(gradient: Tensor, mode: str, *, loss: Tensor | None = None, epsilon: float = 1.0) -> InputGradient:
    """What a method feeds on, from the gradient of each sample's loss by its image. Not differentiable.

    Args:
        gradient: dJ/dx, (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        mode: "probability", "l2" or "linf".
        loss: J, (B,), for "probability". Exact where each sample's loss depends on that sample alone; under train-mode
            batch norm seed the backward pass with -exp(-J) instead.
        epsilon: the norm for "l2" and "linf", in pixel units.

    The value comes in the dtype and layout of `gradient`, zeros in float32 or wider.

    Raises ValueError for an unknown mode, or "probability" without a loss.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    if mode == "probability" and loss is None:
        raise ValueError("mode 'probability' needs the loss of each sample")
    if not runs_kernel(gradient):
        return input_gradient_reference(gradient.detach(), mode, loss, epsilon)
    (gradient,) = dense(gradient)
    value, zeros = empty_like(gradient), gradient.new_empty(len(gradient), dtype=torch.float32)
    elements = gradient[0:1].numel()
    pointers = gradient, loss.contiguous() if loss is not None else zeros, value, zeros
    single = elements <= block_size(elements)
    launch(_input_gradient_kernel, gradient, *pointers, elements, epsilon, MODE=mode, SINGLE=single, whole=True)
    return InputGradient(value, zeros)
