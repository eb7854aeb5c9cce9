"""Projected step: from dJ/dx to the next perturbation in the L-inf ball, in one pass.

    delta' = clamp(delta + a sign(dJ/dx), -eps, eps)       (1), projected onto the ball, if there is an eps
    delta' = clamp(delta', -x, 1 - x)                      so that x + delta' is an image

or, where dJ/dx was taken through x' = clamp(x + delta, 0, 1), the first line alone, and without a step where x + delta
is outside [0, 1]: there x' does not depend on delta.
"""

from __future__ import annotations

from fastgat.kernels.backend import accumulation_dtype, runs_kernel, tl, triton
from fastgat.kernels.images import dense, empty_like, launch
from torch import Tensor

from fastgat.phases import joint


def projected_step_reference(
    images: Tensor, delta: Tensor, gradient: Tensor, size: float, epsilon: float | None, through_clamp: bool
) -> Tensor:
    x, d, g = (tensor.to(accumulation_dtype(delta.dtype)) for tensor in (images, delta, gradient))
    if through_clamp:
        g = g.where((x + d >= 0) & (x + d <= 1), 0)
    d = d + g.where(g.isnan(), size * g.sign())
    d = d if epsilon is None else d.clamp(-epsilon, epsilon)
    return (d if through_clamp else d.clamp(-x, 1 - x)).to(delta.dtype)


@triton.jit
def _projected_step_kernel(
    images_ptr,
    delta_ptr,
    gradient_ptr,
    result_ptr,
    elements,
    size,
    epsilon,
    PROJECT: tl.constexpr,
    THROUGH_CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < elements
    index = tl.program_id(0).to(tl.int64) * elements + lane
    x = tl.load(images_ptr + index, inside, other=0.0).to(tl.float32)
    d = tl.load(delta_ptr + index, inside, other=0.0).to(tl.float32)
    g = tl.load(gradient_ptr + index, inside, other=0.0).to(tl.float32)
    size, epsilon = tl.cast(size, tl.float32), tl.cast(epsilon, tl.float32)  # Inductor passes floats as float64
    if THROUGH_CLAMP:
        g = tl.where((x + d >= 0) & (x + d <= 1), g, 0.0)
    d += tl.where(g > 0, size, tl.where(g < 0, -size, g))  # a NaN stays one
    if PROJECT:
        d = tl.clamp(d, -epsilon, epsilon, propagate_nan=tl.PropagateNan.ALL)
    if not THROUGH_CLAMP:
        d = tl.clamp(d, -x, 1 - x, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result_ptr + index, d.to(result_ptr.dtype.element_ty), inside)


@joint
def projected_step(
    images: Tensor, delta: Tensor, gradient: Tensor, *, size: float, epsilon: float | None, through_clamp: bool = False
) -> Tensor:
    """The perturbation after a step of `size` uphill, projected and clamped. Not differentiable.

    Args:
        images: x in [0, 1], (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        delta, gradient: of the same shape; they may have other dtypes and layouts.
        size: a, how far each pixel goes.
        epsilon: the radius of the ball; None for no projection.
        through_clamp: whether dJ/dx was taken through clamp(x + delta, 0, 1).

    It comes in the dtype of `delta` and the layout of the images.

    Raises ValueError if the shapes differ.
    """
    if not images.shape == delta.shape == gradient.shape:
        shapes = (tuple(tensor.shape) for tensor in (images, delta, gradient))
        raise ValueError("images, delta and gradient must have one shape, got {}, {} and {}".format(*shapes))
    if not runs_kernel(images, delta, gradient):
        return projected_step_reference(images, delta, gradient, size, epsilon, through_clamp)
    images, delta, gradient = dense(images, delta, gradient)
    result = empty_like(images, delta.dtype)
    arguments = images, delta, gradient, result, images[0:1].numel(), size, epsilon or 0.0
    constants = {"PROJECT": epsilon is not None, "THROUGH_CLAMP": through_clamp}
    launch(_projected_step_kernel, images, *arguments, **constants)
    return result
