"""Convolution ReLU: y = relu(conv(x) + b) in one kernel, so that the sum before the ReLU is never written.

    y_nf = relu(b_f + sum over taps t and channels c of x_(n + t)c w_ftc)        n a pixel of the output

An implicit GEMM: tiles of the im2col matrix are loaded from the images tap by tap; it is never stored.
"""

from __future__ import annotations

import torch
from fastgat.kernels.backend import launching_on, runs_kernel, tl, triton
from torch import Tensor
from torch import channels_last as last
from torch.nn import functional


def convolution_relu_reference(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return functional.conv2d(x, weight, bias.to(x.dtype), stride, padding).relu()


@triton.jit
def _convolution_relu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    f = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = pixel % (OUT_H * OUT_W)
    top = place // OUT_W * STRIDE - PADDING
    left = place % OUT_W * STRIDE - PADDING
    x_ptr += (pixel // (OUT_H * OUT_W)).to(tl.int64)[:, None] * (HEIGHT * WIDTH * CHANNELS)
    chunks: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(KERNEL_H * KERNEL_W * chunks):
        tap = k // chunks
        c = k % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        row, column = top + tap // KERNEL_W, left + tap % KERNEL_W
        inside = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH) & (pixel < pixels)
        at = ((row * WIDTH + column) * CHANNELS)[:, None] + c[None, :]
        x = tl.load(x_ptr + at, inside[:, None] & (c < CHANNELS)[None, :], other=0.0)
        at = (f * (KERNEL_H * KERNEL_W * CHANNELS))[None, :] + tap * CHANNELS + c[:, None]
        w = tl.load(weight_ptr + at, (c < CHANNELS)[:, None] & (f < FILTERS)[None, :], other=0.0)
        total = tl.dot(x, w, total)
    total += tl.load(bias_ptr + f, f < FILTERS, other=0.0).to(tl.float32)[None, :]
    total = tl.where(total <= 0, 0.0, total)  # a NaN stays one
    at = pixel.to(tl.int64)[:, None] * FILTERS + f[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), (pixel < pixels)[:, None] & (f < FILTERS)[None, :])


def _has_tensor_cores(x: Tensor) -> bool:
    """Whether `tl.dot` takes those of the GPU that holds x; true of the interpreter."""
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 0)


def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """relu(conv(x) + b), (B, F, H', W'). Not differentiable.

    Args:
        x: (B, C, H, W), bfloat16 or float16, any strides; another dtype by the reference, and everything on a GPU
            before compute capability 8.0, whose tensor cores Triton does not use.
        weight: (F, C, R, S), of the same dtype.
        bias: (F,), of any floating dtype.

    The kernel adds up in float32, and gives y channels last.

    Raises ValueError if the shapes do not fit, RuntimeError from the reference.
    """
    if not (runs_kernel(x, weight) and x.itemsize == 2 and _has_tensor_cores(x)):
        return convolution_relu_reference(x, weight, bias, stride, padding)
    batch, channels, height, width = x.shape
    filters, weights_channels, *window = weight.shape
    out_h, out_w = (
        (size + 2 * padding - taps) // stride + 1 for size, taps in zip((height, width), window, strict=True)
    )
    if weights_channels != channels or bias.shape != (filters,) or min(out_h, out_w) < 1:
        shapes = f"{tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"no convolution of images, weights and a bias of the shapes {shapes}")
    y = x.new_empty((batch, out_h, out_w, filters)).permute(0, 3, 1, 2)
    pixels = batch * out_h * out_w
    block_m = 128 if pixels >= 2**15 else 64  # a program for each multiprocessor of a large GPU, where there are so few
    block_n = min(max(triton.next_power_of_2(filters), 16), 128)
    block_k = min(max(triton.next_power_of_2(channels), 16), 64)
    sizes = height, width, channels, filters, *window, stride, padding, out_h, out_w
    x, weight = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    if y.numel():
        grid = triton.cdiv(pixels, block_m), triton.cdiv(filters, block_n)
        with launching_on(x):
            _convolution_relu_kernel[grid](
                *(x, weight, bias.contiguous(), y, pixels, *sizes, block_m, block_n, block_k),
                num_warps=8 if block_m * block_n > 8192 else 4,
                num_stages=3,
            )
    return y
