"""image_batch: samples of a data set of bytes, placed, as images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fastgat.kernels.image_batch import COLUMNS, image_batch, image_batch_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from tests.kernels.oracle import DEVICE

SIZES = [(3, 8, 8), (1, 7, 5), (4, 1, 1), (3, 40, 36)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
both_layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])

POSITION = 1e-5
"""Of a place in an image float32 knows eight digits, and neighbouring pixels may differ by 1."""

AS_IT_IS = [0, 0, None, None, 0, 0, 0, 0, 0]
"""A row of a placement; None stands for the image's own height and width."""


def data_set(size: tuple[int, int, int], channels_last: bool = False, count: int = 6) -> Tensor:
    """(N, C, H, W) random bytes on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randint(256, (count, *size), dtype=torch.uint8).to(DEVICE).contiguous(memory_format=layout)


def at(*rows: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=DEVICE)


def placed(pixels: Tensor, *rows: Sequence[int | None]) -> Tensor:
    own = {2: pixels.shape[2], 3: pixels.shape[3]}
    table = [[own[i] if value is None else value for i, value in enumerate(row)] for row in rows]
    return torch.tensor(table, dtype=torch.int32, device=DEVICE)


def oracle(image: Tensor, row: list[int], hole: int) -> Tensor:
    """One image (C, H, W) of bytes, step by step, in float64."""
    top, left, height, width, dy, dx, flip, hole_top, hole_left = row
    _, full_height, full_width = image.shape
    part = image[None, :, top : top + height, left : left + width].double() / 255
    whole = functional.interpolate(part, (full_height, full_width), mode="bilinear", align_corners=False)[0]
    pad = max(abs(dy), abs(dx), 1)
    padded = functional.pad(whole, (pad, pad, pad, pad))
    moved = padded[:, pad + dy : pad + dy + full_height, pad + dx : pad + dx + full_width]
    turned = (moved.flip(2) if flip else moved).clone()
    turned[:, max(hole_top, 0) : max(hole_top + hole, 0), max(hole_left, 0) : max(hole_left + hole, 0)] = 0
    return turned


def random_row(generator: np.random.Generator, height: int, width: int) -> list[int]:
    box_height, box_width = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
    top, left = int(generator.integers(height - box_height + 1)), int(generator.integers(width - box_width + 1))
    dy, dx = (int(value) for value in generator.integers(-3, 4, 2))
    hole_top, hole_left = int(generator.integers(-2, height)), int(generator.integers(-2, width))
    return [top, left, box_height, box_width, dy, dx, int(generator.integers(2)), hole_top, hole_left]


@pytest.mark.usefixtures("reference_and_kernels")
@both_layouts
@sizes
def test_samples_are_scaled_exactly(size: tuple[int, int, int], channels_last: bool) -> None:
    pixels, rows = data_set(size, channels_last), at(5, 0, 0, 3)
    images = image_batch(pixels, rows)
    assert images.cpu().equal(pixels[rows].cpu().float() / 255)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("reference_and_kernels")
def test_every_byte_is_divided_as_torch_divides() -> None:
    pixels = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(1, 1, 16, 16)
    assert image_batch(pixels, at(0)).flatten().cpu().equal(torch.arange(256).float() / 255)


@pytest.mark.usefixtures("reference_and_kernels")
@both_layouts
@sizes
def test_placed_as_the_steps_one_by_one(size: tuple[int, int, int], channels_last: bool) -> None:
    generator = np.random.default_rng(1)
    pixels, rows, hole = data_set(size, channels_last), [5, 1, 1, 4, 0], 3
    table = [random_row(generator, *size[1:]) for _ in rows]
    images = image_batch(pixels, at(*rows), placed(pixels, *table), hole=hole)
    expected = torch.stack([oracle(pixels[r].cpu(), row, hole) for r, row in zip(rows, table, strict=True)])
    torch.testing.assert_close(images.double().cpu(), expected, rtol=0, atol=POSITION)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("kernels")
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.booleans(), st.integers(0, 9))
def test_any_placement(seed: int, size: tuple[int, int, int], channels_last: bool, hole: int) -> None:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    pixels, row = data_set(size, channels_last, count=1), random_row(generator, *size[1:])
    images = image_batch(pixels, at(0), placed(pixels, row), hole=hole)
    torch.testing.assert_close(images[0].double().cpu(), oracle(pixels[0].cpu(), row, hole), rtol=0, atol=POSITION)


@pytest.mark.usefixtures("reference_and_kernels")
@both_layouts
def test_without_resizing_pixels_are_only_moved(channels_last: bool) -> None:
    pixels = data_set((3, 9, 7), channels_last)
    table = [[0, 0, 9, 7, dy, dx, flip, 2, -1] for dy, dx, flip in ((0, 0, 1), (-2, 3, 0), (4, -1, 1))]
    images = image_batch(pixels, at(0, 1, 2), placed(pixels, *table), hole=4, resize=False)
    expected = torch.stack([oracle(pixels[i].cpu(), row, 4) for i, row in enumerate(table)])
    assert images.double().cpu().equal(expected.float().double())
    with_resizing = image_batch(pixels, at(0, 1, 2), placed(pixels, *table), hole=4)
    torch.testing.assert_close(images, with_resizing, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("kernels")
def test_kernel_takes_columns_of_rows_and_placements() -> None:
    pixels, rows, table = (
        data_set((3, 6, 5)),
        at(4, 1),
        placed(data_set((3, 6, 5)), [0, 0, 6, 5, 1, 0, 1, 0, 0], AS_IT_IS),
    )
    strided = torch.stack([rows, rows + 1], 1)[:, 0], table.T.contiguous().T
    assert image_batch(pixels, *strided).equal(image_batch(pixels, rows, table))


@pytest.mark.parametrize("resize", [False, True])
def test_the_reference_does_not_wait_for_the_device(resize: bool) -> None:
    """It is captured where it is timed. Fake tensors have no values that a host could ask for."""
    with FakeTensorMode():
        pixels, rows = torch.empty(6, 3, 8, 8, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
        placement = torch.empty(4, COLUMNS, dtype=torch.int32)
        assert image_batch_reference(pixels, rows, placement, 2, resize).shape == (4, 3, 8, 8)


@pytest.mark.usefixtures("reference_and_kernels")
def test_no_samples() -> None:
    assert image_batch(data_set((3, 4, 4)), at()).shape == (0, 3, 4, 4)


def test_wrong_arguments_are_described() -> None:
    pixels = data_set((3, 4, 4))
    with pytest.raises(ValueError, match=r"expected a data set \(N, C, H, W\) of uint8, got .* of torch.float32"):
        image_batch(pixels.float(), at(0))
    with pytest.raises(ValueError, match=rf"expected a placement \(1, {COLUMNS}\), got \(2, {COLUMNS}\)"):
        image_batch(pixels, at(0), placed(pixels, AS_IT_IS, AS_IT_IS))
