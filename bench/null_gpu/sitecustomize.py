"""In every process on the null GPU: what torch would ask cuDNN for, and what its stubs cannot answer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def convolution(x: Tensor, weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, *_: Any) -> Tensor:
    how = None, stride, padding, dilation, False, [0, 0], groups
    shape = torch.ops.aten.convolution(x.to("meta"), weight.to("meta"), *how).shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x, weight))


def layout(*tensors: Tensor) -> torch.memory_format:
    """That of what cuDNN makes from these: channels last if one of them is."""
    last = any(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)
    return torch.channels_last if last else torch.contiguous_format


def convolution_backward(seed: Tensor, x: Tensor, weight: Tensor, bias: list[int] | None, *how: Any) -> Any:
    by_weight = torch.empty_like(weight, memory_format=layout(x, weight))
    gradients = torch.empty_like(x), by_weight, weight.new_empty(bias or [0])
    return tuple(each if wanted else None for each, wanted in zip(gradients, how[-1], strict=True))


def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(0)  # asked for where a tensor is printed


warnings.filterwarnings("ignore", message="(?s).*verrid")
LIBRARY = torch.library.Library("aten", "IMPL")
for answer in (convolution_backward, masked_select):
    LIBRARY.impl(answer.__name__, answer, "CUDA")
LIBRARY.impl("cudnn_convolution", convolution, "CUDA")
