"""How a kernel walks over one image: blocks of elements in the order of its output, any strides in its inputs.

Operations on images are elementwise within a sample, so an image of C x H x W elements is walked as one flat range. An
input of another layout than the output, or a slice, is addressed by its strides; no copy is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from fastgat.kernels.backend import tl, triton
from torch import Tensor


@dataclass(frozen=True)
class ImageLaunch:
    """One program a sample; `block` elements at a time, `warps` warps.

    Up to `block` elements the whole image stays in registers between the reduction and the write.
    """

    block: int
    warps: int

    @staticmethod
    def for_elements(elements: int) -> ImageLaunch:
        """A 32 x 32 x 3 image fits one block of 4096: 16 elements a thread at 8 warps, four 16-byte loads in flight."""
        block = min(max(triton.next_power_of_2(elements), 128), 4096)
        return ImageLaunch(block, warps=max(1, min(8, block // 512)))


class Walk(NamedTuple):
    """The dimensions of an image in the memory order of a walk: the last varies fastest."""

    order: tuple[int, ...]
    sizes: tuple[int, int, int]

    @staticmethod
    def over(output: Tensor) -> Walk:
        """The walk that writes `output`, (B, C, H, W) contiguous or channels-last, in order."""
        order = (1, 2, 3) if output.is_contiguous() else (2, 3, 1)
        return Walk(order, tuple(output.shape[i] for i in order))  # type: ignore[arg-type]  # three of them

    def strides(self, tensor: Tensor) -> tuple[int, int, int]:
        """The strides of `tensor` in the order of the walk."""
        return tuple(tensor.stride(i) for i in self.order)  # type: ignore[return-value]  # three of them

    def is_dense(self, tensor: Tensor) -> bool:
        """Whether a sample of `tensor` lies in memory just as it is walked."""
        _, middle, inner = self.sizes
        expected = (middle * inner, inner, 1)
        pairs = zip(self.sizes, self.strides(tensor), expected, strict=True)
        return all(size == 1 or stride == wanted for size, stride, wanted in pairs)


def layout(images: Tensor) -> torch.memory_format:
    """The dense layout nearest to that of `images`: channels-last for (B, C, H, W) whose channels vary fastest."""
    if images.dim() == 4 and images.shape[1] > 1 and images.stride(1) < min(images.stride()[2:]):
        return torch.channels_last
    return torch.contiguous_format


def empty_like(images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Unwritten images of this shape, of this dtype or another, in the dense layout nearest to theirs.

    Channels-last ones as the permutation of contiguous ones: Inductor fills an empty tensor of another layout first.
    """
    if layout(images) == torch.channels_last:
        return images.new_empty([images.shape[i] for i in (0, 2, 3, 1)], dtype=dtype).permute(0, 3, 1, 2)
    return images.new_empty(images.shape, dtype=dtype)


def as_images(tensor: Tensor) -> Tensor:
    """A view of (B, ...) as (B, C, H, W); of more dimensions than four, the leading ones are joined into C."""
    if tensor.dim() > 4:
        return tensor.flatten(1, tensor.dim() - 3)
    return tensor.reshape(*tensor.shape, *[1] * (4 - tensor.dim()))


@triton.jit
def image_offsets(index, middle, inner, outer_stride, middle_stride, inner_stride, DENSE: tl.constexpr):
    """Where elements `index` of a walk lie within a sample."""
    if DENSE:
        return index
    row = index // inner
    return (row // middle) * outer_stride + (row % middle) * middle_stride + (index % inner) * inner_stride
