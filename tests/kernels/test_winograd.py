"""winograd: 3 x 3 convolutions by F(4 x 4, 3 x 3), and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastgat.kernels import winograd
from torch import Tensor

from fastgat.errors import CompileError
from tests.kernels.oracle import laid_out, layouts

PROBLEMS = [
    (2, 16, 32, 9, 7, 1),
    (13, 48, 48, 8, 8, 1),  # three vectors of filters at once, and more than two blocks
    (1, 32, 16, 5, 6, 0),  # a single tile of the output, of which one column is missing
    (2, 16, 16, 3, 4, 2),
    (52, 32, 64, 4, 4, 1),  # as many tiles as two blocks, and a few
    (0, 16, 16, 4, 4, 1),
]
"""Batch, channels, filters, height, width and padding."""
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: "x".join(map(str, problem)))


@pytest.fixture(params=[None, pytest.param(4, marks=pytest.mark.long), 8, 16])
def registers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This CPU's vector registers, and those of others, which its compiler imitates."""
    if request.param:
        source = tmp_path / "winograd.cpp"
        source.write_text(f"#define LANES {request.param}\n" + winograd.SOURCE.read_text())
        monkeypatch.setattr(winograd, "SOURCE", source)
        winograd.library.cache_clear()
    assert winograd.vector_length() in ([request.param] if request.param else [4, 8, 16])
    yield
    winograd.library.cache_clear()


def drawn(problem: tuple[int, ...], layout: str = "channels_last") -> tuple[list[Tensor], int]:
    """x, weight, bias and dL/dy, and the padding."""
    batch, channels, filters, height, width, padding = problem
    out = height + 2 * padding - 2, width + 2 * padding - 2
    x, weight, dy = (
        torch.randn(batch, channels, height, width),
        torch.randn(filters, channels, 3, 3),
        torch.randn(batch, filters, *out),
    )
    return [laid_out(x, layout), laid_out(weight, layout), torch.randn(filters), laid_out(dy, layout)], padding


def assert_close(kernel: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The transforms round more than a plain sum: within ten times torch's own error, in the norm."""
    assert kernel.shape == exact.shape
    error, torchs_error = ((result - exact).norm() for result in (kernel.double(), torchs.double()))
    assert error <= 10 * torchs_error + torch.finfo(torch.float32).eps * exact.norm()


@pytest.mark.usefixtures("registers")
@problems
def test_values_and_gradients(problem: tuple[int, ...]) -> None:
    tensors, padding = drawn(problem)
    x, weight, bias, dy = tensors
    assert winograd.takes(x, weight, padding)
    wide_x, wide_weight, wide_bias, wide_dy = (tensor.double() for tensor in tensors)
    y = winograd.convolution(x, weight, bias, padding)
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = winograd.convolution_reference(wide_x, wide_weight, wide_bias, padding)
    assert_close(y, winograd.convolution_reference(x, weight, bias, padding), exact)
    d_x = winograd.input_gradient(dy, weight, padding)
    exact = winograd.input_gradient_reference(wide_dy, wide_weight, padding)
    assert_close(d_x, winograd.input_gradient_reference(dy, weight, padding), exact)
    ours = winograd.parameter_gradients(dy, x, weight, padding)
    torchs = winograd.parameter_gradients_reference(dy, x, weight, padding)
    exacts = winograd.parameter_gradients_reference(wide_dy, wide_x, wide_weight, padding)
    assert ours[0].stride() == weight.stride()
    for one, other, right in zip(ours, torchs, exacts, strict=True):
        assert_close(one, other, right)


@pytest.mark.usefixtures("registers")
@problems
def test_bfloat16_rounds_what_float32_gives(problem: tuple[int, ...]) -> None:
    tensors, padding = drawn(problem)
    x, weight, bias, dy = (tensor.bfloat16() for tensor in tensors)
    x[:1, 3, 1, 1] = torch.inf
    dy[-1:, 2] = torch.nan
    wide_x, wide_weight, wide_bias, wide_dy = (tensor.float() for tensor in (x, weight, bias, dy))
    narrow = (
        winograd.convolution(x, weight, bias, padding),
        winograd.input_gradient(dy, weight, padding),
        *winograd.parameter_gradients(dy, x, weight, padding),
    )
    wide = (
        winograd.convolution(wide_x, wide_weight, wide_bias, padding),
        winograd.input_gradient(wide_dy, wide_weight, padding),
        *winograd.parameter_gradients(wide_dy, wide_x, wide_weight, padding),
    )
    for ours, expected in zip(narrow, wide, strict=True):
        assert ours.dtype == torch.bfloat16
        assert ours.stride() == expected.stride()
        torch.testing.assert_close(ours, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)


@layouts
def test_layouts(layout: str) -> None:
    (x, weight, bias, dy), padding = drawn((3, 16, 48, 6, 5, 1), layout)
    dense_x, dense_weight, dense_dy = (laid_out(tensor, "channels_last") for tensor in (x, weight, dy))
    expected = winograd.convolution(dense_x, dense_weight, bias, padding)
    assert winograd.convolution(x, weight, bias, padding).equal(expected)
    expected = winograd.convolution(dense_x, dense_weight, torch.zeros(48), padding)
    assert winograd.convolution(x, weight, None, padding).equal(expected)
    assert winograd.input_gradient(dy, weight).equal(winograd.input_gradient(dense_dy, dense_weight))
    gradients = winograd.parameter_gradients(dense_dy, dense_x, dense_weight)
    for ours, theirs in zip(winograd.parameter_gradients(dy, x, weight), gradients, strict=True):
        assert ours.equal(theirs)


def test_one_sample_does_not_touch_another() -> None:
    """Not even its rounding; and the same threads make the same sums again."""
    (x, weight, bias, dy), _ = drawn((9, 32, 32, 6, 6, 1))
    together, threads = winograd.convolution(x, weight, bias), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert winograd.convolution(x, weight, bias).equal(together)
        (three, _), (one, _) = (winograd.parameter_gradients(dy, x, weight) for _ in range(2))
        assert three.equal(one)
    finally:
        torch.set_num_threads(threads)
    for i in range(len(x)):
        assert winograd.convolution(x[i : i + 1], weight, bias).equal(together[i : i + 1])
    x[4] = torch.nan
    spoilt = winograd.convolution(x, weight, bias)
    assert spoilt[4].isnan().all()
    assert spoilt[:4].equal(together[:4])
    assert spoilt[5:].equal(together[5:])


@pytest.mark.parametrize("other", ["float64", "half", "mixed", "channels", "window", "padding", "pixels"])
def test_the_reference_takes_what_the_kernel_does_not(other: str) -> None:
    x, weight, padding = torch.randn(2, 16, 6, 6), torch.randn(32, 16, 3, 3), 1
    if other == "float64":
        x, weight = x.double(), weight.double()
    elif other == "half":
        x, weight = x.half(), weight.half()
    elif other == "mixed":
        x = x.bfloat16()
    elif other == "channels":
        x, weight = x[:, :3], weight[:, :3]
    elif other == "window":
        weight = weight[..., :1]
    elif other == "padding":
        padding = 3
    else:
        x, padding = x[..., :2, :2], 0
    assert not winograd.takes(x, weight, padding)
    if other in ("mixed", "pixels"):
        with pytest.raises(RuntimeError):
            winograd.convolution(x, weight, None, padding)
    else:
        expected = winograd.convolution_reference(x, weight, None, padding)
        assert winograd.convolution(x, weight, None, padding).equal(expected)


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "winograd.cpp"
    source.write_text("no C++")
    monkeypatch.setattr(winograd, "SOURCE", source)
    winograd.library.cache_clear()
    with pytest.raises(
        CompileError, match=r"winograd.cpp cannot be compiled or loaded \(--no-winograd does without\): "
    ):
        winograd.library()


def test_what_does_not_fit_is_torch_s_error() -> None:
    x, weight = torch.randn(4, 16, 8, 8), torch.randn(16, 16, 3, 3)
    for bias in (torch.randn(3), torch.randn(16).double()):
        with pytest.raises(RuntimeError):
            winograd.convolution(x, weight, bias)
    for dy in (
        torch.randn(4, 16, 7, 7),
        torch.randn(4, 8, 8, 8),
        torch.randn(1, 16, 8, 8),
        torch.randn_like(x).double(),
    ):
        with pytest.raises(RuntimeError):
            winograd.parameter_gradients(dy, x, weight)


def test_torch_s_default_dtype_does_not_matter() -> None:
    (x, weight, bias, dy), padding = drawn((2, 48, 48, 8, 8, 1))
    expected = winograd.convolution(x, weight, bias, padding), *winograd.parameter_gradients(dy, x, weight, padding)
    torch.set_default_dtype(torch.bfloat16)
    try:
        ours = winograd.convolution(x, weight, bias, padding), *winograd.parameter_gradients(dy, x, weight, padding)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(one.equal(other) for one, other in zip(ours, expected, strict=True))


def test_no_channels() -> None:
    for channels, filters in ((0, 0), (0, 16), (16, 0)):
        assert not winograd.takes(torch.randn(4, channels, 8, 8), torch.randn(filters, channels, 3, 3), 1)


def test_the_reference_returns_the_kernel_s_layouts() -> None:
    """A graph may come from a cache that was filled where the kernel took its convolutions."""
    x, weight, dy = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(2, 5, 8, 8)
    assert not winograd.takes(x, weight, 1)
    assert winograd.convolution(x, weight).is_contiguous(memory_format=torch.channels_last)
    assert winograd.input_gradient(dy, weight).is_contiguous(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = weight.contiguous(memory_format=layout)
        d_weight, _ = winograd.parameter_gradients(dy, x, weight)
        assert d_weight.stride() == weight.stride()
