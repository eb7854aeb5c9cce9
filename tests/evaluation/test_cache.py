"""The cache: what was computed is not computed again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fastgat.evaluation.cache import Cache


def never() -> list[int]:
    raise AssertionError("computed again")


def test_numbers_are_kept(tmp_path: Path) -> None:
    assert Cache(tmp_path / "a" / "b").numbers({"x": 1}, lambda: [1, 0]) == [1, 0]
    assert Cache(tmp_path / "a" / "b").numbers({"x": 1}, never) == [1, 0]
    assert Cache(tmp_path / "a" / "b").numbers({"x": 2}, lambda: [5]) == [5]
    assert Cache().numbers({"x": 1}, lambda: [3]) == [3]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "another", "value": [9]}', '{"value": [9]}'])
def test_what_is_damaged_is_computed_anew(tmp_path: Path, damage: str) -> None:
    Cache(tmp_path).numbers({"x": 1}, lambda: [1])
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert Cache(tmp_path).numbers({"x": 1}, lambda: [2]) == [2]
    assert Cache(tmp_path).numbers({"x": 1}, never) == [2]


def test_a_value_that_has_changed_is_computed_anew(tmp_path: Path) -> None:
    Cache(tmp_path).numbers({"x": 1}, lambda: [1, 0, 1])
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace("[1, 0, 1]", "[1, 0]"))
    assert Cache(tmp_path).numbers({"x": 1}, lambda: [2]) == [2]


def test_a_fresh_cache_keeps_what_is_its_own(tmp_path: Path) -> None:
    Cache(tmp_path).numbers({"x": 1}, lambda: [1])
    fresh = Cache(tmp_path, fresh=True)
    assert fresh.numbers({"x": 1}, lambda: [2]) == [2]
    assert fresh.numbers({"x": 1}, never) == [2]
    assert Cache(tmp_path).numbers({"x": 1}, never) == [2]


def test_modules_are_kept(tmp_path: Path) -> None:
    made = nn.Linear(3, 2)
    first, said = Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (made, {"loss": [0.5]}))
    assert first is made
    again, said_again = Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (nn.Linear(3, 2), None))
    assert said == said_again == {"loss": [0.5]}
    assert again is not made
    assert again.weight.equal(made.weight)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    other = nn.Linear(3, 2)
    assert Cache(tmp_path).module({"m": 1}, lambda: nn.Linear(3, 2), lambda: (other, None))[0] is other
