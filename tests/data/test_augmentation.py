"""Augmentation: drawn per sample from the seeded stream; the three that move pixels, and the one that scales them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgat.data import Augmentation
from fastgat.data.augmentation import largest_boxes
from fastgat.errors import ConfigError

ALL = Augmentation(flip=True, padded_crop=4, random_resized_crop=0.3, cutout=6)


def sizes(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.tile([[height, width]], (count, 1))


def test_nothing_varies_by_default() -> None:
    assert not Augmentation().active
    assert ALL.active


def test_draws_are_a_function_of_seed_player_and_batch() -> None:
    first = ALL.draw(1, 0, 7, 5)
    np.testing.assert_array_equal(first, ALL.draw(1, 0, 7, 5))
    others = [ALL.draw(2, 0, 7, 5), ALL.draw(1, 1, 7, 5), ALL.draw(1, 0, 8, 5)]
    assert all(not np.array_equal(first, other) for other in others)


def test_one_augmentation_leaves_the_draws_of_another_alone() -> None:
    drawn = ALL.draw(0, 0, 0, 100)
    alone = Augmentation(flip=True).place(drawn, sizes(100), (32, 32))
    np.testing.assert_array_equal(alone.flips, ALL.place(drawn, sizes(100), (32, 32)).flips)


def test_their_distributions() -> None:
    count = 20_000
    placed = ALL.place(ALL.draw(0, 0, 0, count), sizes(count), (32, 32))
    assert abs(placed.flips.mean() - 0.5) < 0.02
    for column in placed.shifts.T:
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert abs(counts - count / 9).max() < 0.1 * count / 9
    centres = placed.holes + 3
    assert (centres.min(), centres.max()) == (0, 31)


def torchvision_box(rng: random.Random, height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision, written down from its description."""
    for _ in range(10):
        area = height * width * rng.uniform(least, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    if width / height < 3 / 4:
        w, h = width, round(width * 4 / 3)
    elif width / height > 4 / 3:
        w, h = round(height * 4 / 3), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width", "least"), [(32, 32, 0.25), (32, 32, 0.9), (40, 60, 0.08), (20, 90, 0.9)])
def test_random_parts_are_distributed_as_those_of_torchvision(height: int, width: int, least: float) -> None:
    count, rng = 10_000, random.Random(1)
    crop = Augmentation(random_resized_crop=least)
    ours = crop.place(crop.draw(0, 0, 0, count), sizes(count, height, width), (32, 32)).boxes
    theirs = np.array([torchvision_box(rng, height, width, least) for _ in range(count)])
    for measure in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 3] / boxes[:, 2],
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1],
    ):
        a, b = np.sort(measure(ours)), np.sort(measure(theirs))
        at = np.union1d(a, b)
        distance = abs(np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")).max() / count
        assert distance < 0.028  # Kolmogorov and Smirnov: one in 1,000 is further apart


def test_shifts_are_independent_of_random_parts() -> None:
    count = 5_000
    both = Augmentation(padded_crop=4, random_resized_crop=0.25)
    placed = both.place(both.draw(0, 0, 0, count), sizes(count), (32, 32))
    for column in placed.boxes.T:
        for shift in placed.shifts.T:
            assert abs(np.corrcoef(column, shift)[0, 1]) < 0.06
    # The draws of shifts are those of runs without random parts.
    alone = Augmentation(padded_crop=4)
    np.testing.assert_array_equal(placed.shifts, alone.place(alone.draw(0, 0, 0, count), sizes(count), (32, 32)).shifts)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32))
def test_parts_lie_within_their_images(height: int, width: int, out_h: int, out_w: int, seed: int) -> None:
    drawn = ALL.draw(seed, 0, 0, 8)
    for boxes in (
        ALL.place(drawn, sizes(8, height, width), (out_h, out_w)).boxes,
        largest_boxes(sizes(1, height, width), (out_h, out_w)),
    ):
        top, left, box_height, box_width = boxes.T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (box_height >= 1).all()
        assert (box_width >= 1).all()
        assert (top + box_height <= height).all()
        assert (left + box_width <= width).all()


@pytest.mark.parametrize(
    ("size", "output", "box"),
    [
        ((32, 32), (32, 32), [0, 0, 32, 32]),
        ((60, 40), (32, 32), [10, 0, 40, 40]),
        ((40, 61), (32, 32), [0, 10, 40, 40]),
        ((40, 60), (20, 40), [5, 0, 30, 60]),
    ],
)
def test_without_draws_the_largest_part_in_the_middle(
    size: tuple[int, int], output: tuple[int, int], box: list[int]
) -> None:
    placed = ALL.place(None, np.array([size]), output)
    assert placed.table().tolist() == [[*box, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [{"padded_crop": 0}, {"cutout": 0}, {"random_resized_crop": 0}, {"flip": "yes"}])
def test_bad_values_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Augmentation(**wrong)  # type: ignore[arg-type]  # that is what is tested
