"""Triton where there is any, and which of a kernel and its reference runs.

Triton has no wheels outside Linux; there is no GPU there that it could drive, so the references run. On Linux the
tensors decide: on CUDA the kernel takes them, float64 aside, which it does not compute in; all others go to the
reference in the same file.
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


def runs_kernel(*tensors: torch.Tensor) -> bool:
    """Whether an operation on `tensors` launches its Triton kernel."""
    return _forced or all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors)


def launching_on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the device of `tensor` the current one, on which Triton launches; Inductor sees to that in its own code."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(tensor)


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
