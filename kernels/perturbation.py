"""Perturbation: p = tanh(z), x' = clamp(x + p, 0, 1) and the power ||p||_2^2 of each sample, in one pass.

    dL/dp = [0 <= x + p <= 1] dL/dx' + 2 p dL/dpower,    dL/dz = (1 - p^2) dL/dp

With dL/dpower = c_g / B and dL/dx' = dF_y/dx' / B this is the generator's signal of (9); where dJ'/dx' is at hand, the
factor -F_y = -exp(-J') that makes dF_y/dx' of it is taken on the way. The tanh is left out where p is given, the clamp
unless it is asked for: the paper has none. The power is that of p before the clamp. p is never recovered as x' - x: in
low precision that loses most of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, runs_kernel, tl, triton
from fastgat.kernels.images import dense, empty_like, launch, per_sample
from torch import Tensor

from fastgat.phases import joint


class Perturbation(NamedTuple):
    """x', (B, C, H, W), and ||p||_2^2, (B,)."""

    perturbed: Tensor
    power: Tensor


def perturbation_reference(images: Tensor, z: Tensor, tanh: bool, clamp: bool) -> Perturbation:
    accum = accumulation_dtype(torch.promote_types(images.dtype, z.dtype))
    p = z.to(accum).tanh() if tanh else z.to(accum)
    perturbed = images.to(accum) + p
    perturbed = perturbed.clamp(0, 1) if clamp else perturbed
    return Perturbation(perturbed.to(images.dtype), p.flatten(1).square().sum(1))


def perturbation_gradient_reference(
    images: Tensor, z: Tensor, d_perturbed: Tensor, d_power: Tensor, loss: Tensor | None, tanh: bool, clamp: bool
) -> Tensor:
    accum = accumulation_dtype(torch.promote_types(images.dtype, z.dtype))
    p = z.to(accum).tanh() if tanh else z.to(accum)
    d = d_perturbed.to(accum)
    d = d if loss is None else d * per_sample(-loss.to(accum).neg().exp())
    if clamp:
        perturbed = images.to(accum) + p
        d = d.where((perturbed >= 0) & (perturbed <= 1), 0)
    d = d + 2 * p * per_sample(d_power.to(accum))
    return (d * (1 - p * p) if tanh else d).to(z.dtype)


@triton.jit
def _tanh(z):
    # 1 - 2 / (1 + e^2z) loses every digit of a small z; the odd series carries it there.
    z2 = z * z
    series = z * (1 - z2 * (1 / 3 - z2 * (2 / 15 - z2 * (17 / 315))))
    decay = tl.exp(-2 * tl.abs(z))
    far = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(z) < 0.15, series, tl.where(z < 0, -far, far))


@triton.jit
def _perturbation_kernel(
    images_ptr,
    z_ptr,
    perturbed_ptr,
    power_ptr,
    elements,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, elements, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        inside = lane < elements
        index = sample * elements + lane
        p = tl.load(z_ptr + index, inside, other=0.0).to(tl.float32)
        if TANH:
            p = _tanh(p)
        perturbed = tl.load(images_ptr + index, inside, other=0.0).to(tl.float32) + p
        if CLAMP:
            perturbed = tl.clamp(perturbed, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        squares += p * p
        tl.store(perturbed_ptr + index, perturbed.to(perturbed_ptr.dtype.element_ty), inside)
    tl.store(power_ptr + sample, tl.sum(squares, 0))


@triton.jit
def _perturbation_gradient_kernel(
    images_ptr,
    z_ptr,
    d_perturbed_ptr,
    d_power_ptr,
    loss_ptr,
    d_z_ptr,
    elements,
    HAS_LOSS: tl.constexpr,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < elements
    index = sample * elements + lane
    p = tl.load(z_ptr + index, inside, other=0.0).to(tl.float32)
    if TANH:
        p = _tanh(p)
    d = tl.load(d_perturbed_ptr + index, inside, other=0.0).to(tl.float32)
    if HAS_LOSS:
        d *= -tl.exp(-tl.load(loss_ptr + sample).to(tl.float32))
    if CLAMP:
        perturbed = tl.load(images_ptr + index, inside, other=0.0).to(tl.float32) + p
        d = tl.where((perturbed >= 0) & (perturbed <= 1), d, 0.0)
    d += 2 * p * tl.load(d_power_ptr + sample).to(tl.float32)
    if TANH:
        d *= 1 - p * p
    tl.store(d_z_ptr + index, d.to(d_z_ptr.dtype.element_ty), inside)


@joint
def perturbation(images: Tensor, z: Tensor, *, tanh: bool = True, clamp: bool = False) -> Perturbation:
    """x' and ||p||_2^2: the generator's last step (7) and the power of (9). Not differentiable.

    Args:
        images: x, (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        z: the generator's output before its tanh, of the same shape; it may have another dtype and layout.
        tanh: False if z is p itself, which is then rounded to the dtype of the images.
        clamp: keep x' in [0, 1].

    x' comes in the dtype and layout of the images, the power in float32 or wider.

    Raises ValueError if the shapes differ.
    """
    _check_shapes(images, z)
    if not tanh:
        z = z.to(images.dtype)  # two dtypes would spill registers on sm_86, where p is clamped
    if not runs_kernel(images, z):
        return perturbation_reference(images, z, tanh, clamp)
    images, z = dense(images, z)
    perturbed, power = empty_like(images), images.new_empty(len(images), dtype=torch.float32)
    pointers = images, z, perturbed, power
    launch(_perturbation_kernel, images, *pointers, images[0:1].numel(), TANH=tanh, CLAMP=clamp, whole=True)
    return Perturbation(perturbed, power)


@joint
def perturbation_gradient(
    images: Tensor,
    z: Tensor,
    d_perturbed: Tensor,
    d_power: Tensor,
    *,
    loss: Tensor | None = None,
    tanh: bool = True,
    clamp: bool = False,
) -> Tensor:
    """dL/dz from dL/dx', (B, C, H, W), and dL/dpower, (B,): what a step pulls back through the generator.

    With `loss`, J of each sample (B,), `d_perturbed` is dJ/dx' and stands for dF_y/dx' = -exp(-J) dJ/dx': exact where
    each sample's loss depends on that sample alone. The other arguments are those of `perturbation`.

    A step takes this derivative by hand, since a kernel inside `torch.func.vjp` cannot be compiled.
    """
    _check_shapes(images, z)
    if not runs_kernel(images, z):
        return perturbation_gradient_reference(images, z, d_perturbed, d_power, loss, tanh, clamp)
    images, z, d_perturbed = dense(images, z, d_perturbed)
    d_z, d_power = empty_like(images, z.dtype), d_power.contiguous()
    pointers = images, z, d_perturbed, d_power, loss.contiguous() if loss is not None else d_power, d_z
    constants = {"HAS_LOSS": loss is not None, "TANH": tanh, "CLAMP": clamp}
    launch(_perturbation_gradient_kernel, images, *pointers, images[0:1].numel(), **constants)
    return d_z


def _check_shapes(images: Tensor, z: Tensor) -> None:
    if images.shape != z.shape:
        raise ValueError(f"images of shape {tuple(images.shape)}, but a perturbation of {tuple(z.shape)}")
