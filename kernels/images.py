"""How a kernel works through images: as flat ranges of elements, in one dense layout for inputs and outputs.

Operations on images are elementwise within a sample, so a sample of C x H x W elements is one flat range. An input of
another layout, or a slice, is copied first; in a step there is none.
"""

from __future__ import annotations

from typing import Any

import torch
from fastgat.kernels.backend import launching_on, triton
from torch import Tensor


def launch(
    kernel: Any,
    images: Tensor,
    *arguments: object,
    whole: bool = False,
    block: int = 4096,
    each: int = 16,
    **more: object,
) -> None:
    """Run a kernel over `images`, with a program for each block of a sample, or for a `whole` sample.

    Args:
        arguments, more: those of the kernel; it is given BLOCK besides.
        block, each: elements of a block and of a thread, at most. The defaults make a 32 x 32 x 3 image one block of 8
            warps, with four 16-byte loads in flight.
    """
    elements = images[0:1].numel()
    if elements:
        block = block_size(elements, block)
        grid = (len(images),) if whole else (len(images), triton.cdiv(elements, block))
        with launching_on(images):
            kernel[grid](*arguments, **more, BLOCK=block, num_warps=max(1, min(8, block // (32 * each))))


def block_size(elements: int, most: int = 4096) -> int:
    """A power of two that covers the elements, within limits."""
    return int(min(max(triton.next_power_of_2(elements), 128), most))


def layout(images: Tensor) -> torch.memory_format:
    """The dense layout nearest to that of `images`: channels-last for (B, C, H, W) whose channels vary fastest."""
    if images.shape[1] > 1 and images.stride(1) < min(images.stride()[2:]):
        return torch.channels_last
    return torch.contiguous_format


def is_channels_last(images: Tensor) -> bool:
    """Whether images are channels last and not contiguous too, as they are with one channel or one pixel."""
    return images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def dense(images: Tensor, *others: Tensor) -> list[Tensor]:
    """`images` and others of the same shape, all in the dense layout nearest to that of the first."""
    return [tensor.contiguous(memory_format=layout(images)) for tensor in (images, *others)]


def empty_like(images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Unwritten images of this shape, in the dense layout nearest to theirs.

    Channels-last ones as the permutation of contiguous ones: Inductor fills an empty tensor of another layout first.
    """
    if layout(images) == torch.channels_last:
        return images.new_empty([images.shape[i] for i in (0, 2, 3, 1)], dtype=dtype).permute(0, 3, 1, 2)
    return images.new_empty(images.shape, dtype=dtype)


def per_sample(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), to be broadcast over images."""
    return values.view(-1, 1, 1, 1)
