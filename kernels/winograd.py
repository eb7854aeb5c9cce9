"""Winograd: 3 x 3 convolutions of stride 1 on a CPU, with a quarter of the multiply-adds.

F(4 x 4, 3 x 3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016. For a tile y of 4 x 4 pixels
of the output, the tile d of 6 x 6 of the input that it depends on, and a filter g (* is elementwise):

    y  = A^T [sum over channels of (G g G^T) * (B^T d B)] A              36 multiply-adds a channel, where 9 x 16 were
    dg = G^T [sum over tiles of (B^T d B) * (A dy A^T)] G                its adjoint by g

The gradient by the input is the convolution of dy with the filters turned around. The sums are products of matrices,
one for each of the 36 points of a tile. `winograd.cpp` computes all of this, in float32 for tensors of bfloat16 too;
PyTorch's convolution is the reference.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import channels_last as last
from torch.nn import functional

from fastgat.errors import CompileError, first_line

SOURCE = Path(__file__).with_suffix(".cpp")
POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
DTYPES = torch.float32, torch.bfloat16


def convolution_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 1) -> Tensor:
    return functional.conv2d(x, weight, bias, padding=padding)


def input_gradient_reference(grad_output: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    return functional.conv_transpose2d(grad_output, weight, padding=padding)


def parameter_gradients_reference(
    grad_output: Tensor, x: Tensor, weight: Tensor, padding: int = 1
) -> tuple[Tensor, Tensor]:
    window = [1, 1], [padding, padding], [1, 1], False, [0, 0], 1
    convolution_backward = torch.ops.aten.convolution_backward.default
    _, d_weight, d_bias = convolution_backward(grad_output, x, weight, [len(weight)], *window, [False, True, True])
    return d_weight, d_bias


@functools.cache
def library() -> ctypes.CDLL:
    """`winograd.cpp`, compiled for this CPU as Inductor compiles its own kernels, and cached where it caches them.

    Raises CompileError where there is no C++ compiler, or it fails.
    """
    from torch._inductor.codecache import CppCodeCache  # takes seconds

    try:
        # Fused multiply-adds, which Inductor forbids its own kernels: they round no worse here.
        compiled = CppCodeCache.load(SOURCE.read_text(), "cpu", extra_flags=("-ffp-contract=fast",))
    except (RuntimeError, OSError) as error:
        message = f"{SOURCE.name} cannot be compiled or loaded (--no-winograd does without): {first_line(error)}"
        raise CompileError(message) from error
    for function in (compiled.fastgat_convolution, compiled.fastgat_parameter_gradients):
        function.argtypes, function.restype = [POINTER] * 6 + [SIZE] * 10, None
    for function in (compiled.fastgat_convolution_scratch, compiled.fastgat_parameter_gradients_scratch):
        function.argtypes, function.restype = [SIZE] * 3, SIZE
    return compiled


def vector_length() -> int:
    """How many floats a vector register of this CPU holds."""
    return int(library().fastgat_lanes())


def takes(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether the kernel computes this convolution of stride 1: 3 x 3, on a CPU, whole vectors of channels; float32 or
    bfloat16."""
    on_cpu = all(tensor.device.type == "cpu" and tensor.dim() == 4 for tensor in (x, weight))
    if not (on_cpu and x.dtype == weight.dtype and x.dtype in DTYPES):
        return False
    if not (weight.shape[2:] == (3, 3) and 0 <= padding <= 2 and weight.shape[1] == x.shape[1]):
        return False
    pixels = min(x.shape[2:]) + 2 * padding - 2
    return pixels > 0 and all(channels > 0 and channels % vector_length() == 0 for channels in weight.shape[:2])


def gradients_scratch(weight: Tensor) -> int:
    """How many floats `parameter_gradients` needs beside its results: mostly a transformed weight for each thread."""
    filters, channels = weight.shape[:2]
    return int(library().fastgat_parameter_gradients_scratch(channels, filters, torch.get_num_threads()))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 1) -> Tensor:
    """A 3 x 3 convolution of stride 1, (B, K, H', W'), channels last. Not differentiable.

    Args:
        x: (B, C, H, W); weight: (K, C, 3, 3); bias: (K,) or None. All of one dtype, of any strides.
        padding: zeros around the images, 0 to 2.

    What the kernel does not take (`takes`) the reference computes, which raises RuntimeError if shapes do not fit.
    """
    fits = bias is None or (bias.dtype, bias.shape) == (weight.dtype, weight.shape[:1])
    if not (fits and takes(x, weight, padding)):
        return convolution_reference(x, weight, bias, padding).contiguous(memory_format=last)
    return _convolution(x, weight.data_ptr(), weight.stride(), bias, len(weight), padding)


def input_gradient(grad_output: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """The gradient of the convolution by x, (B, C, H, W), channels last, from that by its output, (B, K, H', W')."""
    if not takes(grad_output, weight.transpose(0, 1), 2 - padding):
        return input_gradient_reference(grad_output, weight, padding).contiguous(memory_format=last)
    to_filter, to_channel, down, right = weight.stride()
    last_tap = weight.data_ptr() + weight.itemsize * 2 * (down + right)
    turned_around = to_channel, to_filter, -down, -right
    return _convolution(grad_output, last_tap, turned_around, None, weight.shape[1], 2 - padding)


def _convolution(
    x: Tensor, weight: int, strides: Sequence[int], bias: Tensor | None, filters: int, padding: int
) -> Tensor:
    """The convolution by the kernel; `weight` is the address of the first tap."""
    x = x.contiguous(memory_format=last)
    batch, channels, height, width = x.shape
    out_h, out_w = height + 2 * padding - 2, width + 2 * padding - 2
    y = x.new_empty((batch, out_h, out_w, filters)).permute(0, 3, 1, 2)
    bias = bias if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    scratch = _floats(library().fastgat_convolution_scratch(channels, filters, threads))
    addresses = x.data_ptr(), weight, _array(strides), bias if bias is None else bias.data_ptr(), y.data_ptr()
    sizes = batch, height, width, channels, out_h, out_w, filters, padding, threads
    library().fastgat_convolution(*addresses, scratch.data_ptr(), *sizes, x.dtype == torch.bfloat16)
    return y


def parameter_gradients(grad_output: Tensor, x: Tensor, weight: Tensor, padding: int = 1) -> tuple[Tensor, Tensor]:
    """The gradients of the convolution by its weight and by its bias, (K, C, 3, 3) with its strides and (K,)."""
    outputs = len(x), len(weight), *(size + 2 * padding - 2 for size in x.shape[2:])
    fits = (grad_output.dtype, grad_output.device, grad_output.shape) == (x.dtype, x.device, outputs)
    if not (fits and takes(x, weight, padding)):
        d_weight, d_bias = parameter_gradients_reference(grad_output, x, weight, padding)
        return torch.empty_like(weight).copy_(d_weight), d_bias
    grad_output, x = (tensor.contiguous(memory_format=last) for tensor in (grad_output, x))
    batch, channels, height, width = x.shape
    filters, out_h, out_w = grad_output.shape[1:]
    d_weight, d_bias = torch.empty_like(weight), weight.new_empty(filters)
    scratch = _floats(gradients_scratch(weight))
    addresses = grad_output.data_ptr(), x.data_ptr(), d_weight.data_ptr(), _array(d_weight.stride()), d_bias.data_ptr()
    sizes = batch, height, width, channels, out_h, out_w, filters, padding, torch.get_num_threads()
    library().fastgat_parameter_gradients(*addresses, scratch.data_ptr(), *sizes, x.dtype == torch.bfloat16)
    return d_weight, d_bias


def _floats(count: int) -> Tensor:
    """Memory, whatever torch's defaults are."""
    return torch.empty(count, dtype=torch.float32, device="cpu")


def _array(strides: Sequence[int]) -> Any:
    return (SIZE * len(strides))(*strides)
