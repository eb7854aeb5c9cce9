"""dual_loss: J of each sample, the seed of its backward pass, and the dual loss."""

from __future__ import annotations

import pytest
import torch
from fastgat.kernels.backend import forced_kernels
from fastgat.kernels.dual_loss import SampleLoss, perturbed_loss, sample_loss, sample_loss_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.kernels.oracle import DEVICE, assert_as_good_as_torch, dtypes

SHAPES = [(5, 10), (1, 2), (1, 1), (3, 1000), (0, 10), (2, 5000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (3 * torch.randn(shape)).to(DEVICE, dtype), torch.randint(shape[1], shape[:1]).to(DEVICE)


def test_reference_is_torchs_cross_entropy_and_its_gradient() -> None:
    logits, labels = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.randint(7, (5,))
    result = sample_loss_reference(logits.detach(), labels)
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(result.loss, expected.detach())
    torch.testing.assert_close(result.gradient, torch.autograd.grad(expected.sum(), logits)[0])
    torch.testing.assert_close(result.probability, logits.softmax(1)[torch.arange(5), labels].detach())
    assert result.correct.equal(logits.argmax(1) == labels)


def check(result: SampleLoss, logits: Tensor, labels: Tensor) -> None:
    torchs = sample_loss_reference(logits, labels)
    exact = sample_loss_reference(logits.double(), labels)
    for name in ("loss", "probability", "gradient"):
        assert_as_good_as_torch(getattr(result, name), getattr(torchs, name), getattr(exact, name))
    assert result.correct.equal(exact.correct)


@pytest.mark.usefixtures("kernels")
@dtypes
@shapes
def test_kernel_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, labels = problem(shape, dtype)
    check(sample_loss(logits, labels), logits, labels)


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_slices_of_logits() -> None:
    wide, labels = problem((6, 23))
    for logits in (wide[::2, 3:14], wide[::2].T.contiguous().T[:, :10]):
        rows = labels[::2] % logits.shape[1]
        check(sample_loss(logits, rows), logits, rows)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("stride", [(1, 1), (7, 5), (0, 0)])
@pytest.mark.parametrize("shape", [(1, 10), (4, 1), (1, 1)])
def test_the_stride_of_a_size_of_1_means_nothing(shape: tuple[int, int], stride: tuple[int, int]) -> None:
    logits, labels = problem(shape)
    strides = [wrong if size == 1 else right for size, right, wrong in zip(shape, logits.stride(), stride, strict=True)]
    check(sample_loss(logits.as_strided(shape, strides), labels), logits, labels)


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_columns_of_labels_and_losses() -> None:
    logits, labels = problem((5, 10))
    column = torch.stack([labels, (labels + 1) % 10], 1)[:, 0]
    clean = torch.rand(5, 2, device=DEVICE)[:, 0]
    perturbed, dual = perturbed_loss(logits, column, clean, 0.3)
    check(perturbed, logits, labels)
    torch.testing.assert_close(dual, 0.3 * clean + 0.7 * perturbed.loss)


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("classes", [10, 9000])
def test_masked_classes_have_no_probability_and_no_gradient(classes: int) -> None:
    """A logit of -inf; the first tile of 4096 classes may hold no other."""
    logits, labels = problem((3, classes))
    masked = torch.arange(classes, device=DEVICE) < classes // 2
    labels = labels % (classes - classes // 2) + classes // 2
    result, dual = perturbed_loss(logits.masked_fill(masked, -torch.inf), labels, torch.ones(3, device=DEVICE), 0.5)
    rest = sample_loss_reference(logits[:, ~masked].double(), labels - classes // 2)
    for name in ("loss", "probability"):
        torch.testing.assert_close(getattr(result, name).double(), getattr(rest, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.gradient[:, ~masked].double(), rest.gradient, rtol=1e-5, atol=1e-6)
    assert not result.gradient[:, masked].any()
    assert result.correct.equal(rest.correct)
    assert dual.isfinite().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(3, 10), (3, 5000)])
@pytest.mark.parametrize("label", [-100, -1, "classes"])
def test_kernel_gives_nan_for_a_label_of_no_class(label: int | str, shape: tuple[int, ...]) -> None:
    logits, labels = problem(shape)
    labels[1] = shape[1] if isinstance(label, str) else label
    result, dual = perturbed_loss(logits, labels, torch.zeros(3, device=DEVICE), 0.5)
    for spoilt in (result.loss, result.probability, result.gradient, dual):
        assert spoilt[1].isnan().all()
    assert not result.correct[1]
    for sound in (result.loss, result.probability, result.gradient, dual):
        assert sound[[0, 2]].isfinite().all()


@pytest.mark.parametrize("label", [-100, -1, 10])
def test_reference_refuses_a_label_of_no_class(label: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"[Oo]ut of bounds|must be"):
        sample_loss(torch.rand(2, 10), torch.tensor([1, label]))


@pytest.mark.usefixtures("kernels")
def test_kernel_of_many_classes() -> None:
    logits, labels = problem((2, 65_536 + 3))
    check(sample_loss(logits, labels), logits, labels)


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("classes", [3, 5000])
def test_large_logits_stay_exact(classes: int) -> None:
    logits = torch.full((2, classes), -1e4, device=DEVICE)
    logits[:, 0] = 1e4
    result = sample_loss(logits, torch.tensor([0, 1], device=DEVICE))
    assert result.loss.tolist() == [0.0, 2e4]
    assert result.probability.tolist() == [1.0, 0.0]
    assert result.correct.tolist() == [True, False]
    assert result.gradient[0].tolist() == [0.0] * classes
    assert result.gradient[1].tolist()[:3] == [1.0, -1.0, 0.0]


@pytest.mark.usefixtures("reference_and_kernels")
def test_of_equal_logits_the_first_class_is_predicted() -> None:
    logits = torch.zeros(3, 5000, device=DEVICE)
    logits[2, [4321, 17]] = 1.0
    assert sample_loss(logits, torch.tensor([0, 4999, 17], device=DEVICE)).correct.tolist() == [True, False, True]


@pytest.mark.usefixtures("reference_and_kernels")
@pytest.mark.parametrize("shape", [(5, 10), (0, 10), (2, 5000)])
def test_the_dual_loss_weighs_clean_and_perturbed(shape: tuple[int, ...]) -> None:
    logits, labels = problem(shape)
    clean = sample_loss(logits, labels)
    other = problem(shape)[0]
    perturbed, dual = perturbed_loss(other, labels, clean.loss, 0.3)
    check(perturbed, other, labels)
    torch.testing.assert_close(dual, 0.3 * clean.loss + 0.7 * perturbed.loss)


@settings(deadline=None, max_examples=25)
@given(shift=st.floats(-1e4, 1e4), classes=st.integers(2, 40), forced=st.booleans(), seed=st.integers(0, 99))
def test_shifts_change_nothing_and_probabilities_sum_to_one(
    shift: float, classes: int, forced: bool, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    # Multiples of 1/64 survive the shift, so that what is tested is the loss and not the addition.
    row = torch.randint(-200, 200, (classes,), generator=source) / 64
    logits, labels = row.repeat(classes, 1).to(DEVICE), torch.arange(classes).to(DEVICE)
    shifted = logits + round(shift)
    if forced:
        with forced_kernels():
            one, other = sample_loss(logits, labels), sample_loss(shifted, labels)
    else:
        one, other = sample_loss(logits, labels), sample_loss(shifted, labels)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-5)
    assert float(one.probability.sum()) == pytest.approx(1, rel=1e-5)
    assert one.gradient.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(4, 1000).to(dtype), torch.randint(1000, (4,))
    loss = sample_loss(logits, labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), sample_loss(logits.double(), labels).loss, rtol=1e-6, atol=1e-6)
