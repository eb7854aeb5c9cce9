"""Freed memory stays with the process: seen in the page faults of allocating the same again."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from fastgat.engine.device import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def allocate():
    for _ in range(20):
        torch.zeros(2**24)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_allocating_again_touches_no_new_pages() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert given_back > 10_000, "64 MiB are mapped afresh each time"
    assert kept < 1_000
