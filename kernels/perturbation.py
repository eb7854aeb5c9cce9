"""Perturbation: p = eps tanh(z), x' = clamp(x + p, low, high), power ||p||_2^2 of each sample, in one pass.

    dL/dp = [low <= x + p <= high] dL/dx' + 2 p dL/dpower + dL/dp (its own),    dL/dz = (eps - p^2 / eps) dL/dp

With dL/dpower = c_g / B and dL/dx' = dF_y/dx' / B this is the generator's signal of (9); where dJ'/dx' is at hand, the
factor -F_y = -exp(-J') that makes dF_y/dx' of it is taken on the way. The paper does not clamp x + p, so bounds are off
unless given. The power is that of p before the clamp. p is never recovered as x' - x: in low precision that loses most
of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, launching_on, runs_kernel, tl, triton
from fastgat.kernels.images import ImageLaunch, Walk, as_images, empty_like, image_offsets, layout
from torch import Tensor


class Perturbation(NamedTuple):
    """x' and p, (B, C, H, W), and ||p||_2^2, (B,)."""

    perturbed: Tensor
    perturbation: Tensor
    power: Tensor


def perturbation_reference(
    images: Tensor, z: Tensor, epsilon: float, low: float | None, high: float | None, bounded: bool
) -> Perturbation:
    wide = accumulation_dtype(torch.promote_types(images.dtype, z.dtype))
    p = epsilon * z.to(wide).tanh() if bounded else z.to(wide)
    moved = images.to(wide) + p
    moved = moved if low is None and high is None else moved.clamp(low, high)
    return Perturbation(moved.to(images.dtype), p.to(images.dtype), p.flatten(1).square().sum(1))


def perturbation_gradient_reference(
    images: Tensor,
    z: Tensor,
    d_perturbed: Tensor,
    d_power: Tensor,
    loss: Tensor | None,
    epsilon: float,
    low: float | None,
    high: float | None,
    bounded: bool,
) -> Tensor:
    wide = accumulation_dtype(torch.promote_types(images.dtype, z.dtype))
    p = epsilon * z.to(wide).tanh() if bounded else z.to(wide)
    moved, d, each = images.to(wide) + p, d_perturbed.to(wide), (-1, *[1] * (p.dim() - 1))
    d = d if loss is None else d * -loss.to(wide).neg().exp().view(each)
    d = d if low is None else d.where(moved >= low, 0)
    d = d if high is None else d.where(moved <= high, 0)
    d = d + 2 * p * d_power.to(wide).view(each)
    return (d * (epsilon - p * p / (epsilon or 1.0)) if bounded else d).to(z.dtype)


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
    images,
    z,
    perturbed,
    perturbation,
    power,
    elements,
    images_stride,
    z_stride,
    perturbed_stride,
    perturbation_stride,
    middle,
    inner,
    images_outer,
    images_middle,
    images_inner,
    z_outer,
    z_middle,
    z_inner,
    epsilon,
    low,
    high,
    BOUNDED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    IMAGES_DENSE: tl.constexpr,
    Z_DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    images += sample * images_stride
    z += sample * z_stride
    perturbed += sample * perturbed_stride
    perturbation += sample * perturbation_stride
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, elements, BLOCK):
        index = start + lane
        inside = index < elements
        at_z = image_offsets(index, middle, inner, z_outer, z_middle, z_inner, Z_DENSE)
        p = tl.load(z + at_z, inside, other=0.0).to(tl.float32)
        if BOUNDED:
            p = tl.cast(epsilon, tl.float32) * _tanh(p)
        at_x = image_offsets(index, middle, inner, images_outer, images_middle, images_inner, IMAGES_DENSE)
        moved = tl.load(images + at_x, inside, other=0.0).to(tl.float32) + p
        if LOW:
            moved = tl.maximum(moved, tl.cast(low, tl.float32), propagate_nan=tl.PropagateNan.ALL)
        if HIGH:
            moved = tl.minimum(moved, tl.cast(high, tl.float32), propagate_nan=tl.PropagateNan.ALL)
        squares += p * p
        tl.store(perturbed + index, moved.to(perturbed.dtype.element_ty), inside)
        tl.store(perturbation + index, p.to(perturbation.dtype.element_ty), inside)
    tl.store(power + sample, tl.sum(squares, 0))


@triton.jit
def _perturbation_backward_kernel(
    images,
    z,
    d_perturbed,
    d_perturbation,
    d_power,
    loss,
    d_images,
    d_z,
    elements,
    epsilon,
    low,
    high,
    BOUNDED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    HAS_LOSS: tl.constexpr,
    HAS_PERTURBED: tl.constexpr,
    HAS_PERTURBATION: tl.constexpr,
    HAS_POWER: tl.constexpr,
    WANTS_IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < elements
    index = sample * elements + lane
    p = tl.load(z + index, inside, other=0.0).to(tl.float32)
    size = tl.cast(epsilon, tl.float32)
    if BOUNDED:
        p = size * _tanh(p)
    through = tl.zeros((BLOCK,), tl.float32)
    if HAS_PERTURBED:
        through = tl.load(d_perturbed + index, inside, other=0.0).to(tl.float32)
        if HAS_LOSS:
            through *= -tl.exp(-tl.load(loss + sample).to(tl.float32))
        if LOW or HIGH:
            moved = tl.load(images + index, inside, other=0.0).to(tl.float32) + p
            if LOW:
                through = tl.where(moved >= tl.cast(low, tl.float32), through, 0.0)
            if HIGH:
                through = tl.where(moved <= tl.cast(high, tl.float32), through, 0.0)
    if WANTS_IMAGES:
        tl.store(d_images + index, through.to(d_images.dtype.element_ty), inside)
    total = through
    if HAS_PERTURBATION:
        total += tl.load(d_perturbation + index, inside, other=0.0).to(tl.float32)
    if HAS_POWER:
        total += 2 * p * tl.load(d_power + sample).to(tl.float32)
    if BOUNDED:
        total *= size - p * p / tl.where(size > 0, size, 1.0)
    tl.store(d_z + index, total.to(d_z.dtype.element_ty), inside)


def perturbation_kernel(
    images: Tensor, z: Tensor, epsilon: float, low: float | None, high: float | None, bounded: bool
) -> Perturbation:
    x, p_or_z = as_images(images), as_images(z)
    perturbed, perturbation = empty_like(x), empty_like(x)
    power = x.new_empty(len(x), dtype=torch.float32)
    elements = x[0:1].numel()
    if elements:
        walk, launch = Walk.over(perturbed), ImageLaunch.for_elements(elements)
        with launching_on(x):
            _perturbation_kernel[(len(x),)](
                x,
                p_or_z,
                perturbed,
                perturbation,
                power,
                elements,
                *(tensor.stride(0) for tensor in (x, p_or_z, perturbed, perturbation)),
                *walk.sizes[1:],
                *walk.strides(x),
                *walk.strides(p_or_z),
                epsilon,
                low if low is not None else 0.0,
                high if high is not None else 0.0,
                BOUNDED=bounded,
                LOW=low is not None,
                HIGH=high is not None,
                IMAGES_DENSE=walk.is_dense(x),
                Z_DENSE=walk.is_dense(p_or_z),
                BLOCK=launch.block,
                num_warps=launch.warps,
            )
    else:
        power.zero_()
    return Perturbation(perturbed.view(images.shape), perturbation.view(images.shape), power)


def perturbation_backward_kernel(
    images: Tensor,
    z: Tensor,
    d_perturbed: Tensor | None,
    d_perturbation: Tensor | None,
    d_power: Tensor | None,
    epsilon: float,
    low: float | None,
    high: float | None,
    bounded: bool,
    loss: Tensor | None = None,
    wants_images: bool = True,
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dz; the first is left unwritten where it is not wanted."""
    # All in one dense layout; what comes otherwise, which is rare, is copied.
    dense = layout(as_images(images))
    x, z = as_images(images).contiguous(memory_format=dense), as_images(z).contiguous(memory_format=dense)
    through, own = (
        as_images(d).contiguous(memory_format=dense) if d is not None else x for d in (d_perturbed, d_perturbation)
    )
    # As x, not as z: the strides of a dimension of size 1 do not tell which dense layout z has been given.
    d_images, d_z = empty_like(x) if wants_images else x, empty_like(x, z.dtype)
    elements = x[0:1].numel()
    if elements:
        launch = ImageLaunch.for_elements(elements)
        with launching_on(x):
            _perturbation_backward_kernel[(len(x), triton.cdiv(elements, launch.block))](
                x,
                z,
                through,
                own,
                d_power.contiguous() if d_power is not None else x,
                loss.contiguous() if loss is not None else x,
                d_images,
                d_z,
                elements,
                epsilon,
                low if low is not None else 0.0,
                high if high is not None else 0.0,
                BOUNDED=bounded,
                LOW=low is not None,
                HIGH=high is not None,
                HAS_LOSS=loss is not None,
                HAS_PERTURBED=d_perturbed is not None,
                HAS_PERTURBATION=d_perturbation is not None,
                HAS_POWER=d_power is not None,
                WANTS_IMAGES=wants_images,
                BLOCK=launch.block,
                num_warps=launch.warps,
            )
    return d_images.view(images.shape), d_z.view(images.shape)


class _Backward(torch.autograd.Function):
    """A function of its own, so that under torch.func the kernel is given plain tensors."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return perturbation_backward_kernel(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the perturbation is differentiated once."""


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        perturbed, p, power = perturbation_kernel(*arguments)
        return perturbed, p, power

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        images, z, *ctx.settings = inputs
        # p is computed again: rounded to the images' dtype it would spoil eps - p^2 / eps where tanh saturates.
        ctx.save_for_backward(images, z)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if all(gradient is None for gradient in gradients):
            return (None,) * 6
        d_images, d_z = _Backward.apply(*ctx.saved_tensors, *gradients, *ctx.settings)
        return d_images, d_z, None, None, None, None


def perturbation(
    images: Tensor, z: Tensor, *, epsilon: float = 1.0, low: float | None = None, high: float | None = None
) -> Perturbation:
    """p = eps tanh(z), x' = clamp(x + p, low, high) and ||p||_2^2: the generator's last step (7) and the power of (9).

    Args:
        images: x, (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        z: the generator's output before its tanh, of the same shape; it may have another dtype and layout.
        epsilon: the largest perturbation of a pixel.
        low, high: pixel bounds of x', where there are any.

    x' and p come in the dtype and layout of the images, the power in float32 or wider. Differentiable, once, by x and
    z.

    Raises ValueError if the shapes differ.
    """
    return _dispatch(images, z, epsilon, low, high, bounded=True)


def perturb(images: Tensor, p: Tensor, low: float | None = None, high: float | None = None) -> Perturbation:
    """x' = clamp(x + p, low, high) and ||p||_2^2 for a given p, as the fast-gradient and random methods have it."""
    return _dispatch(images, p, 1.0, low, high, bounded=False)


def perturbation_gradient(
    images: Tensor,
    z: Tensor,
    d_perturbed: Tensor,
    d_power: Tensor,
    *,
    loss: Tensor | None = None,
    epsilon: float = 1.0,
    low: float | None = None,
    high: float | None = None,
    bounded: bool = True,
) -> Tensor:
    """dL/dz from dL/dx', (B, C, H, W), and dL/dpower, (B,): what a step pulls back through the generator.

    With `loss`, J of each sample (B,), `d_perturbed` is dJ/dx' and stands for dF_y/dx' = -exp(-J) dJ/dx': exact where
    each sample's loss depends on that sample alone. The other arguments are those of `perturbation`, or with
    `bounded=False` of `perturb`.

    For those who take their derivatives by hand: a compiled step does, since a kernel inside `torch.func.vjp` cannot be
    compiled.
    """
    _check_shapes(images, z)
    if runs_kernel(images, z):
        settings = (epsilon, low, high, bounded)
        given = (images, z, d_perturbed, None, d_power, *settings)
        return perturbation_backward_kernel(*given, loss=loss, wants_images=False)[1]
    return perturbation_gradient_reference(images, z, d_perturbed, d_power, loss, epsilon, low, high, bounded)


def _dispatch(
    images: Tensor, z: Tensor, epsilon: float, low: float | None, high: float | None, bounded: bool
) -> Perturbation:
    _check_shapes(images, z)
    if runs_kernel(images, z):
        if not torch.is_grad_enabled():
            return perturbation_kernel(images, z, epsilon, low, high, bounded)
        return Perturbation(*_Forward.apply(images, z, epsilon, low, high, bounded))
    return perturbation_reference(images, z, epsilon, low, high, bounded)


def _check_shapes(images: Tensor, z: Tensor) -> None:
    if images.shape != z.shape:
        raise ValueError(f"images of shape {tuple(images.shape)}, but a perturbation of {tuple(z.shape)}")
