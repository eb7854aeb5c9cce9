"""Kernels run where they can: on a GPU, or else under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fastgat.kernels import backend

from tests.kernels.oracle import DEVICE


@pytest.fixture
def kernels() -> Iterator[None]:
    """Launches kernels whatever the device, and fills fresh memory with NaN so that an unwritten output shows."""
    pytest.importorskip("triton")
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of a module
    with backend.forced_kernels():
        yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(params=["reference", "kernel"])
def reference_and_kernels(request: pytest.FixtureRequest) -> None:
    """Runs a test twice: as the device has it, and with kernels."""
    if request.param == "kernel":
        request.getfixturevalue("kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of kernels are `interpret` without a GPU and `gpu` with one."""
    for item in items:
        if {"kernels", "reference_and_kernels"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.gpu if DEVICE == "cuda" else pytest.mark.interpret)
