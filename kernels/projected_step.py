"""Projected step: from dJ/dx to the next perturbation in the L-inf ball, in one pass.

    p' = clamp(p + a sign(dJ/dx), -eps, eps)       (1), projected onto the ball, if there is an eps
    p' = clamp(p', -x, 1 - x)                      so that x + p' is an image

or, where dJ/dx was taken through x' = clamp(x + p, 0, 1), the first line alone, and without a step where x + p is
outside [0, 1]: there x' does not depend on p.
"""

from __future__ import annotations

from fastgat.kernels.backend import accumulation_dtype, runs_kernel, tl, triton
from fastgat.kernels.images import dense, empty_like, launch
from torch import Tensor

from fastgat.phases import joint


def projected_step_reference(
    images: Tensor, p: Tensor, gradient: Tensor, size: float, epsilon: float | None, through_clamp: bool
) -> Tensor:
    dtype = p.dtype
    x, p, g = (tensor.to(accumulation_dtype(dtype)) for tensor in (images, p, gradient))
    if through_clamp:
        g = g.where((x + p >= 0) & (x + p <= 1), 0)
    p = p + g.where(g.isnan(), size * g.sign())
    p = p if epsilon is None else p.clamp(-epsilon, epsilon)
    return (p if through_clamp else p.clamp(-x, 1 - x)).to(dtype)


@triton.jit
def _projected_step_kernel(
    images_ptr,
    p_ptr,
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
    p = tl.load(p_ptr + index, inside, other=0.0).to(tl.float32)
    g = tl.load(gradient_ptr + index, inside, other=0.0).to(tl.float32)
    size, epsilon = tl.cast(size, tl.float32), tl.cast(epsilon, tl.float32)  # Inductor passes floats as float64
    if THROUGH_CLAMP:
        g = tl.where((x + p >= 0) & (x + p <= 1), g, 0.0)
    p += tl.where(g > 0, size, tl.where(g < 0, -size, g))  # a NaN stays one
    if PROJECT:
        p = tl.clamp(p, -epsilon, epsilon, propagate_nan=tl.PropagateNan.ALL)
    if not THROUGH_CLAMP:
        p = tl.clamp(p, -x, 1 - x, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result_ptr + index, p.to(result_ptr.dtype.element_ty), inside)


@joint
def projected_step(
    images: Tensor, p: Tensor, gradient: Tensor, *, size: float, epsilon: float | None, through_clamp: bool = False
) -> Tensor:
    """The perturbation after a step of `size` uphill, projected and clamped. Not differentiable.

    Args:
        images: x in [0, 1], (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        p, gradient: of the same shape; they may have other dtypes and layouts.
        size: a, how far each pixel goes.
        epsilon: the radius of the ball; None for no projection.
        through_clamp: whether dJ/dx was taken through clamp(x + p, 0, 1).

    It comes in the dtype of `p` and the layout of the images.

    Raises ValueError if the shapes differ.
    """
    if not images.shape == p.shape == gradient.shape:
        shapes = (tuple(tensor.shape) for tensor in (images, p, gradient))
        raise ValueError("images, p and gradient must have one shape, got {}, {} and {}".format(*shapes))
    if not runs_kernel(images, p, gradient):
        return projected_step_reference(images, p, gradient, size, epsilon, through_clamp)
    images, p, gradient = dense(images, p, gradient)
    result = empty_like(images, p.dtype)
    arguments = images, p, gradient, result, images[0:1].numel(), size, epsilon or 0.0
    constants = {"PROJECT": epsilon is not None, "THROUGH_CLAMP": through_clamp}
    launch(_projected_step_kernel, images, *arguments, **constants)
    return result
