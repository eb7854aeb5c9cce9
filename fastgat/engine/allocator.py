"""Memory that a step frees stays with the process, for the next step to take."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed instead of giving it back to the kernel; whether it could be told.

    By default glibc maps a large tensor afresh each time it is allocated, and the kernel then clears every page of it
    again: a quarter of a step's time on a CPU, or more. A GPU's allocator keeps its memory too. The setting holds for
    the whole process and grows it to the peak of its use, so it is made by the command line, not by importing fastgat.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)))


def give_back_freed_memory() -> None:
    """Let the kernel have what is free now, where glibc is in charge: for measuring what is in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
