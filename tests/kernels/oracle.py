"""How close a kernel must come, and the inputs that it must cope with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(4, 3, 8, 8), (1, 3, 7, 5), (3, 1, 1, 1), (2, 5, 3, 11), (0, 3, 4, 4), (2, 3, 40, 36)]
"""One block and several, odd sizes, one sample and none; the last has more elements than a block."""


def laid_out(images: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((len(images) * 2, *images.shape[1:3], images.shape[3] * 2 + 1), torch.nan, dtype=images.dtype)
        view = wide.to(images.device)[::2, :, :, 1::2]
        return view.copy_(images)
    if layout == "transposed":
        return images.transpose(2, 3).contiguous().transpose(2, 3)
    return images.contiguous()


LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed"]


def assert_as_good_as_torch(kernel: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The kernel's error is at most twice that of torch's own result in the same dtype, plus two roundings.

    `exact` is the result in float64.
    """
    assert kernel.shape == exact.shape
    assert kernel.dtype == torchs.dtype
    if not exact.numel():
        return
    assert kernel.isfinite().equal(exact.to(kernel.dtype).isfinite())
    own, theirs = ((result.double() - exact).abs() for result in (kernel, torchs))
    # A rounding of the result, or of the float32 arithmetic before a larger cancellation.
    rounding = torch.finfo(kernel.dtype).eps * exact.abs() + 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    tiny = torch.finfo(kernel.dtype).smallest_normal
    worst = (own - (2 * theirs.max() + 2 * rounding + tiny)).max()
    assert worst <= 0, f"off by {float(own.max()):.3g}, torch by {float(theirs.max()):.3g}"


layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
