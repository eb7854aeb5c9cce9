"""What the hardware can do at best, measured in the same process: a matrix product, a convolution, a copy."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from fastgat.profiling.sides import Side

REPEATS = 5


def ceilings(side: Side) -> dict[str, float]:
    """The best rates of `side`'s device: FLOP/s in `side`'s precision, bytes/s of a copy.

    The first is that of a square matrix product or of a large convolution, whichever is faster: on a CPU they come
    from different libraries, and either may be far below what the other shows to be possible.
    """
    on_gpu = side.device.type == "cuda"
    dtype = side.autocast or torch.float32
    products = []
    for size in (4096, 8192) if on_gpu else (1024, 2048):
        a, b = (torch.randn(size, size, device=side.device).to(dtype) for _ in range(2))
        products.append(2 * size**3 / _best(side, partial(torch.matmul, a, b)))
    layout, channels = torch.channels_last, 256 if on_gpu else 64
    shapes = (64, channels, 32, 32), (channels, channels, 3, 3)
    x, w = (torch.randn(shape, device=side.device).to(dtype) for shape in shapes)
    x, w = (tensor.contiguous(memory_format=layout) for tensor in (x, w))
    flops = 2 * x.numel() * channels * 9
    products.append(flops / _best(side, partial(functional.conv2d, x, w, padding=1)))
    source = torch.randn(2**28 if on_gpu else 2**25, device=side.device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(side, partial(target.copy_, source))
    return {"flops_per_second": max(products), "bytes_per_second": copied}


def _best(side: Side, operation: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after a warm-up."""
    return min([side.seconds(operation) for _ in range(REPEATS + 1)][1:])
