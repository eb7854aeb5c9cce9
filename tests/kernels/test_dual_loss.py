"""dual_loss: J of each sample, the seeds of its backward pass, and the dual loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.dual_loss import (
    LossLaunch,
    SampleLoss,
    cross_entropy,
    dual_loss,
    perturbed_loss,
    sample_loss,
    sample_loss_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes, laid_out, layouts

SHAPES = [(5, 10), (1, 2), (3, 1000), (0, 10), (2, 5000), (4, 10, 8, 8), (2, 7, 3, 5), (1, 20, 40, 33)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (3 * torch.randn(shape)).to(DEVICE, dtype), torch.randint(shape[1], shape[:1]).to(DEVICE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 2, 3)])
def test_reference_is_torchs_cross_entropy_and_its_gradient(shape: tuple[int, ...], smoothing: float) -> None:
    logits, labels = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randint(shape[1], shape[:1])
    half = sample_loss_reference(logits.detach(), labels, smoothing)
    z = logits.flatten(2).mean(2) if logits.dim() > 2 else logits
    for value, gradient, amount in (
        (half.loss, half.gradient, 0.0),
        (half.smoothed_loss, half.smoothed_gradient, smoothing),
    ):
        expected = functional.cross_entropy(z, labels, reduction="none", label_smoothing=amount)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits, retain_graph=True)[0])
    torch.testing.assert_close(half.probability, z.softmax(1)[torch.arange(len(z)), labels].detach())
    assert half.correct.equal(z.argmax(1) == labels)


def check(half: SampleLoss, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> None:
    torchs = sample_loss_reference(logits, labels, smoothing)
    exact = sample_loss_reference(logits.double(), labels, smoothing)
    for name in ("loss", "probability", "gradient", "smoothed_loss", "smoothed_gradient"):
        assert_as_good_as_torch(getattr(half, name), getattr(torchs, name), getattr(exact, name))
    assert half.correct.equal(exact.correct)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, smoothing: float) -> None:
    logits, labels = problem(shape, dtype)
    check(sample_loss(logits, labels, smoothing=smoothing), logits, labels, smoothing)


@pytest.mark.usefixtures("kernels")
@layouts
def test_kernel_layouts_of_a_map(layout: str) -> None:
    logits, labels = problem((3, 10, 4, 6))
    logits = laid_out(logits, layout)
    half = sample_loss(logits, labels)
    check(half, logits, labels)
    if layout in ("contiguous", "channels_last"):
        assert half.gradient.stride() == logits.stride()


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_slices_of_logits() -> None:
    wide, labels = problem((6, 23))
    for logits in (wide[::2, 3:14], wide[::2].T.contiguous().T[:, :10]):
        rows = labels[::2] % logits.shape[1]
        check(sample_loss(logits, rows), logits, rows)


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_columns_of_labels_and_losses() -> None:
    logits, labels = problem((5, 10))
    column = torch.stack([labels, (labels + 1) % 10], 1)[:, 0]
    clean = torch.rand(5, 2, device=DEVICE)[:, 0]
    half, dual = perturbed_loss(logits, column, clean, 0.3)
    check(half, logits, labels)
    torch.testing.assert_close(dual, 0.3 * clean + 0.7 * half.loss)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(3, 10), (3, 5000), (3, 10, 4, 4)])
@pytest.mark.parametrize("label", [-100, -1, "classes"])
def test_kernel_gives_nan_for_a_label_of_no_class(label: int | str, shape: tuple[int, ...]) -> None:
    logits, labels = problem(shape)
    labels[1] = shape[1] if isinstance(label, str) else label
    half, dual = perturbed_loss(logits, labels, torch.zeros(3, device=DEVICE), 0.5)
    for spoilt in (half.loss, half.probability, half.gradient, dual):
        assert spoilt[1].isnan().all()
    assert not half.correct[1]
    for sound in (half.loss, half.probability, half.gradient, dual):
        assert sound[[0, 2]].isfinite().all()


@pytest.mark.parametrize("function", [sample_loss, cross_entropy])
@pytest.mark.parametrize("label", [-100, -1, 10])
def test_reference_refuses_a_label_of_no_class(label: int, function: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"[Oo]ut of bounds|must be"):
        function(torch.rand(2, 10), torch.tensor([1, label]))


@pytest.mark.usefixtures("kernels")
def test_kernel_of_many_classes() -> None:
    logits, labels = problem((2, 65_536 + 3))
    check(sample_loss(logits, labels), logits, labels)


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("classes", [3, 5000])
def test_large_logits_stay_exact(classes: int) -> None:
    logits = torch.full((2, classes), -1e4, device=DEVICE)
    logits[:, 0] = 1e4
    half = sample_loss(logits, torch.tensor([0, 1], device=DEVICE))
    assert half.loss.tolist() == [0.0, 2e4]
    assert half.probability.tolist() == [1.0, 0.0]
    assert half.correct.tolist() == [True, False]
    assert half.gradient[0].tolist() == [0.0] * classes
    assert half.gradient[1].tolist()[:3] == [1.0, -1.0, 0.0]


@pytest.mark.usefixtures("reference_and_kernels")
def test_of_equal_logits_the_first_class_is_predicted() -> None:
    logits = torch.zeros(3, 5000, device=DEVICE)
    logits[2, [4321, 17]] = 1.0
    assert sample_loss(logits, torch.tensor([0, 4999, 17], device=DEVICE)).correct.tolist() == [True, False, True]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(5, 10), (0, 10), (3, 6, 4, 4), (2, 5000)])
def test_kernel_of_the_perturbed_half_and_of_both(shape: tuple[int, ...], smoothing: float) -> None:
    clean, labels = problem(shape)
    moved = problem(shape)[0]
    if clean.dim() > 2:
        moved = moved.contiguous(memory_format=torch.channels_last)
    first, second, dual = dual_loss(clean, moved, labels, 0.3, smoothing=smoothing)
    check(first, clean, labels, smoothing)
    check(second, moved, labels, smoothing)
    expected = 0.3 * first.smoothed_loss + 0.7 * second.smoothed_loss
    torch.testing.assert_close(dual, expected)
    half, weighed = perturbed_loss(moved, labels, first.smoothed_loss, 0.3, smoothing=smoothing)
    check(half, moved, labels, smoothing)
    torch.testing.assert_close(weighed, expected)


def test_dual_loss_weighs_clean_and_perturbed() -> None:
    clean, labels = problem((5, 10))
    moved = problem((5, 10))[0]
    first, second, dual = dual_loss(clean, moved, labels, 0.25)
    torch.testing.assert_close(dual, 0.25 * first.loss + 0.75 * second.loss)
    torch.testing.assert_close(perturbed_loss(moved, labels, first.loss, 0.25)[1], dual)


@pytest.mark.usefixtures("kernels")
@dtypes
@pytest.mark.parametrize("shape", [(5, 10), (3, 6, 4, 4), (0, 10)])
def test_kernel_derivative(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, labels = problem(shape, dtype)
    seed = torch.randn(shape[0], device=DEVICE)
    results = []
    for tensor in (logits, logits.double()):
        at = tensor.detach().requires_grad_()
        value = cross_entropy(at, labels) if tensor is logits else _eager(at, labels)
        (gradient,) = torch.autograd.grad((value * seed.to(value.dtype)).sum(), at)
        results.append(gradient)
    pull = torch.func.vjp(lambda z: cross_entropy(z, labels), logits)[1]
    assert pull(seed)[0].equal(results[0])
    assert results[0].dtype == dtype
    torch.testing.assert_close(results[0].double(), results[1], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def _eager(logits: Tensor, labels: Tensor) -> Tensor:
    z = logits.flatten(2).mean(2) if logits.dim() > 2 else logits
    return functional.cross_entropy(z, labels, reduction="none")


@settings(deadline=None, max_examples=25)
@given(shift=st.floats(-1e4, 1e4), classes=st.integers(2, 40), forced=st.booleans(), seed=st.integers(0, 99))
def test_shifts_change_nothing_and_probabilities_sum_to_one(
    shift: float, classes: int, forced: bool, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    # Multiples of 1/64 survive the shift, so that what is tested is the loss and not the addition.
    row = torch.randint(-200, 200, (classes,), generator=source) / 64
    logits, labels = row.repeat(classes, 1).to(DEVICE), torch.arange(classes).to(DEVICE)
    moved = logits + round(shift)
    if forced:
        with forced_kernels():
            one, other = sample_loss(logits, labels), sample_loss(moved, labels)
    else:
        one, other = sample_loss(logits, labels), sample_loss(moved, labels)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-5)
    assert float(one.probability.sum()) == pytest.approx(1, rel=1e-5)
    assert one.gradient.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(4, 1000).to(dtype), torch.randint(1000, (4,))
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), cross_entropy(logits.double(), labels), rtol=1e-6, atol=1e-6)


def test_launches_cover_tiles_of_bounded_size() -> None:
    pytest.importorskip("triton")
    for classes in (2, 10, 1000, 65_536):
        for places in (1, 64, 4000):
            launch = LossLaunch.for_logits(classes, places)
            assert launch.classes * launch.places <= 16 * 1024
            assert 1 <= launch.warps <= 8
