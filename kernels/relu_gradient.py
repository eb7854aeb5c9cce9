"""ReLU gradient: the mask of a ReLU and the gradient of the bias before it, in one pass over y = relu(conv(x) + b).

    dL/dz = [y > 0] dL/dy,    dL/db_c = the sum of dL/dz_c over samples and pixels

A program sums the pixels of its part. The parts are the same in every run, and so are the sums. A few hundred rows of
them are left to be added up, with what reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastgat.kernels.backend import accumulation_dtype, launching_on, runs_kernel, tl, triton
from fastgat.kernels.images import empty_like
from torch import Tensor

MOST_PARTS = 512  # about four programs for each multiprocessor of a large GPU
ELEMENTS = 4096  # of a tile: two loads of 16 bytes for each thread in bfloat16, at eight warps


class ReluGradient(NamedTuple):
    """dL/dz, (B, C, H, W), and the sums of its parts, (P, C), which together are dL/db."""

    value: Tensor
    sums: Tensor


def relu_gradient_reference(d_y: Tensor, y: Tensor) -> ReluGradient:
    value = d_y.where(~(y <= 0), 0)
    return ReluGradient(value, value.sum((0, 2, 3), dtype=accumulation_dtype(d_y.dtype))[None])


@triton.jit
def _relu_gradient_kernel(
    d_y_ptr,
    y_ptr,
    value_ptr,
    sums_ptr,
    pixels,
    channels,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(TILES):
        pixel = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (pixel < pixels) & (channel < channels)
        index = pixel * channels + channel
        y = tl.load(y_ptr + index, inside, other=0.0)
        # A NaN of y lets dL/dy through, as torch does.
        d = tl.where(y <= 0, 0.0, tl.load(d_y_ptr + index, inside, other=0.0).to(tl.float32))
        sums += d
        tl.store(value_ptr + index, d.to(value_ptr.dtype.element_ty), inside)
    tl.store(sums_ptr + part * channels + channel, tl.sum(sums, 0)[None, :], channel < channels)


def relu_gradient(d_y: Tensor, y: Tensor) -> ReluGradient:
    """dL/dz and dL/db, in parts, of y = relu(z), where z has a bias for each channel. Not differentiable.

    Args:
        d_y: dL/dy, (B, C, H, W), float32, bfloat16 or float16, any strides; float64 by the reference.
        y: what the ReLU gave, of the same shape and dtype.

    dL/dz comes in the dtype of d_y, from the kernel channels last; the sums in float32 or wider.

    Raises ValueError if the shapes differ.
    """
    if d_y.shape != y.shape:
        raise ValueError(f"a gradient of shape {tuple(d_y.shape)}, but an output of {tuple(y.shape)}")
    if not runs_kernel(d_y, y):
        return relu_gradient_reference(d_y, y)
    d_y, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (d_y, y))
    pixels, channels, block = d_y[:, :1].numel(), d_y.shape[1], _block(d_y)
    value, sums = empty_like(d_y), d_y.new_empty((parts(d_y), channels), dtype=torch.float32)
    if value.numel():
        rows = ELEMENTS // block
        tiles = triton.cdiv(pixels, rows * len(sums))
        with launching_on(d_y):
            grid = len(sums), triton.cdiv(channels, block)
            _relu_gradient_kernel[grid](d_y, y, value, sums, pixels, channels, tiles, rows, block, num_warps=8)
    return ReluGradient(value, sums)


def parts(d_y: Tensor) -> int:
    """P: how many parts the sums of such a gradient have."""
    if not runs_kernel(d_y):
        return 1
    rows, pixels = ELEMENTS // _block(d_y), d_y[:, :1].numel()
    tiles = max(1, triton.cdiv(pixels, rows * MOST_PARTS))
    return triton.cdiv(pixels, rows * tiles)


def _block(d_y: Tensor) -> int:
    """The channels that a program takes."""
    return min(max(triton.next_power_of_2(d_y.shape[1]), 16), 128)
