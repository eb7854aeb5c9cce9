"""The device to train on: which one, its precision and convolutions, and the memory of a CPU."""

import contextlib
import ctypes
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastgat.errors import ConfigError, DeviceError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device called `name`; "auto" is the first GPU where there is one, otherwise the CPU.

    Of several processes on a machine, each has the GPU of its number, `local_rank`.

    A GPU becomes torch's current one: streams, graphs and kernels go to that, whatever their tensors are on.

    Raises ConfigError for a name that is no device, DeviceError for one that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: unknown device {name!r}; known: auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        if device.index:
            raise ConfigError(f"device: there is one CPU, and no {name!r}")
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(f"device: {name!r} is not supported; known: auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        build = "this build of torch is for CPUs only" if torch.version.cuda is None else "torch sees no GPU"
        raise DeviceError(f"device {name!r} asked for, but {build}; use --device cpu or auto")
    if device.index is not None and local_rank is not None:
        raise ConfigError(f"every rank would use device {name!r}; --device cuda gives each rank its own")
    index = device.index or local_rank or 0
    if index >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} asked for, but there are {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # Autograd's own thread says so where cuBLAS is what it begins with, and then does what it should.
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context", UserWarning)
    return device


def device_name(device: torch.device) -> str:
    """The hardware's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = (line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name"))
    threads = torch.get_num_threads()
    name = next(names, platform.processor() or platform.machine())
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _cpuinfo() -> str:
    """Linux's description of the processors; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of mixed precision: `name`, or for "auto" bfloat16 unless the device is a GPU that lacks it."""
    if name == "auto":
        name = "float16" if device.type == "cuda" and not has_fast_bfloat16(device) else "bfloat16"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 matrix products and convolutions on a GPU round their factors to TF32, or forbid it, for a while.

    Torch has two interfaces to this, and refuses to read the older one where only the newer one was set; Inductor reads
    it, and so may a network. The older one sets both.
    """
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    newer: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul]
    precisions = [backend.fp32_precision for backend in newer]
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # so only the newer one was set
        older = None
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        cudnn.allow_tf32 = allowed
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            cudnn.allow_tf32 = older[1]
        for backend, precision in zip(newer, precisions, strict=True):
            backend.fp32_precision = precision


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each convolution that this thread first meets in this context, on a GPU.

    The thread keeps the fastest. Which one that is may change from run to run, and with it the last bits: where only
    deterministic algorithms are asked for, of torch or of cuDNN, it goes on to choose by its rules of thumb.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    if not (torch.are_deterministic_algorithms_enabled() or cudnn.deterministic):
        cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself; elsewhere --amp is right, but slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" in _cpuinfo()  # as avx512_bf16, amx_bf16 or ARM's bf16


def multiplies_matrices() -> bool:
    """Whether the CPU has units for products of bfloat16 matrices (AMX)."""
    return "amx_bf16" in _cpuinfo()


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the kernel; returns whether that worked.

    By default glibc maps a large tensor afresh each time it is allocated, and the kernel then clears every page of it
    again: a quarter of a step's time on a CPU, or more. A GPU's allocator keeps its memory too. The setting holds for
    the whole process and grows it to the peak of its use, so it is made by the command line, not by importing fastgat.
    """
    mallopt, settings = _glibc("mallopt"), ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def give_back_freed_memory() -> None:
    """Give free memory back to the kernel, where glibc is in charge, so that what is in use can be measured."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc; None where the C library is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
