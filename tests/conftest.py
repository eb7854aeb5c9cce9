"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes side by side, each with one thread: threads that outnumber the cores wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # which reads that when it is imported

if not torch.cuda.is_available():
    # Read when a kernel is defined, so before anything of fastgat is imported.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache or data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTGAT_DATA", raising=False)
