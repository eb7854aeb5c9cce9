"""Augmentation: drawn per sample from the seeded stream; the three that move pixels, and the one that scales them."""

from __future__ import annotations

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
    share = placed.boxes[:, 2] * placed.boxes[:, 3] / 32**2
    assert share.min() < 0.35
    assert share.min() > 0.25  # 0.3 but for whole pixels and cut sides
    assert abs(share.mean() - 0.65) < 0.03


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
