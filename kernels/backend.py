"""Triton where there is any, and which of a kernel and its reference runs.

Triton has no wheels outside Linux; there is no GPU there that it could drive, so the references run. On Linux a
tensor's device decides: CUDA takes the kernel, anything else the reference in the same file.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

triton: Any
tl: Any
try:
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")
except ModuleNotFoundError:
    triton, tl = SimpleNamespace(jit=lambda function: function), SimpleNamespace(constexpr=lambda value: value)

_forced = False


def runs_kernel(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` launches its Triton kernel."""
    return tensor.is_cuda or _forced


@contextlib.contextmanager
def forced_kernels() -> Iterator[None]:
    """Launch kernels for CPU tensors too: for tests under Triton's interpreter (TRITON_INTERPRET=1 at import)."""
    global _forced
    _forced, before = True, _forced
    try:
        yield
    finally:
        _forced = before


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or the input's dtype where that is wider."""
    return torch.promote_types(dtype, torch.float32)
