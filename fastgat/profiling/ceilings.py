"""What the hardware can do at best, measured in the same process: a matrix product and a copy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastgat.profiling.sides import Side

REPEATS = 5


def ceilings(side: Side) -> dict[str, float]:
    """The best rates of `side`'s device: FLOP/s of a square product in `side`'s precision, bytes/s of a copy."""
    on_gpu = side.device.type == "cuda"
    dtype = side.autocast or torch.float32
    products = []
    for size in (4096, 8192) if on_gpu else (1024, 2048):
        a, b = (torch.randn(size, size, device=side.device).to(dtype) for _ in range(2))
        products.append(2 * size**3 / _best(side, lambda a=a, b=b: a @ b))
    source = torch.randn(2**28 if on_gpu else 2**25, device=side.device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(side, lambda: target.copy_(source))
    return {"flops_per_second": max(products), "bytes_per_second": copied}


def _best(side: Side, operation: object) -> float:
    """Seconds of the fastest of several calls, after a warm-up."""
    assert callable(operation)
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        operation()
        if side.device.type == "cuda":
            torch.cuda.synchronize(side.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
