"""The device's settings, and how they are put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastgat.engine.device import fastest_convolutions, tf32

MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with tf32(False):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["highest", "high", "medium"])
def users(request: pytest.FixtureRequest) -> str:
    """What the user has set."""
    torch.set_float32_matmul_precision(request.param)
    return str(request.param)


def readings() -> list[Any]:
    """By the older interface, which torch refuses to read where it does not fit the newer one, and by that."""
    with CUDNN.flags(enabled=True):
        pass
    older = [MATMUL.allow_tf32, CUDNN.allow_tf32, torch.get_float32_matmul_precision()]
    newer = [MATMUL.fp32_precision == "tf32", CUDNN.conv.fp32_precision == "tf32"]
    return [*older, *newer, torch.backends.mkldnn.matmul.fp32_precision]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("allowed", "precision"), [(False, "highest"), (True, "high")])
def test_tf32_can_be_read_in_every_way(allowed: bool, precision: str, users: str) -> None:
    before = readings()
    with tf32(allowed):
        assert readings()[:5] == [allowed, allowed, precision, allowed, allowed]
        with tf32(not allowed):
            assert readings()[:2] == [not allowed] * 2
        assert readings()[:5] == [allowed, allowed, precision, allowed, allowed]
    assert readings() == before
    assert torch.get_float32_matmul_precision() == users


def test_what_the_newer_interface_was_told_is_put_back() -> None:
    MATMUL.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with tf32(False):
        assert readings()[:2] == [False, False]
    assert MATMUL.fp32_precision == "tf32"


@pytest.mark.parametrize("asked", ["nothing", "of torch", "of cudnn"])
def test_algorithms_are_timed_for_a_while_and_only_where_they_may_vary(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", asked == "of cudnn")
    torch.use_deterministic_algorithms(asked == "of torch")
    seen = []

    def fail() -> None:
        with fastest_convolutions():
            seen.append(torch.backends.cudnn.benchmark)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [asked == "nothing"]
    assert torch.backends.cudnn.benchmark is False
