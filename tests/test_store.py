"""The keyed store: a value is computed once for each key, and a file that is not right is never taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastgat.errors import DataError, OutputError
from fastgat.store import Store, key_digest


def never() -> Any:
    raise AssertionError("computed a second time")


def test_a_value_is_computed_once_for_each_key(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert Store(folder).remember({"x": 1, "y": 2}, lambda: [1, 0]) == [1, 0]
    assert Store(folder).remember({"y": 2, "x": 1}, never) == [1, 0]
    assert Store(folder).remember({"x": 2}, lambda: {"loss": 0.5}) == {"loss": 0.5}
    assert Store().remember({"x": 1}, lambda: 3) == 3


@pytest.mark.parametrize("content", ["", "[1]", '{"key": "other", "value": 1}', '{"val', '{"key": 1}', "[" * 9999])
def test_what_is_not_right_is_computed_again(tmp_path: Path, content: str) -> None:
    key = {"x": 1}
    Store(tmp_path).remember(key, lambda: 1)
    (tmp_path / f"{key_digest(key)}.json").write_text(content)
    assert Store(tmp_path).remember(key, lambda: 2) == 2
    assert Store(tmp_path).remember(key, never) == 2


def test_a_fresh_store_knows_only_what_it_wrote(tmp_path: Path) -> None:
    Store(tmp_path).remember({"x": 1}, lambda: 1)
    store = Store(tmp_path, fresh=True)
    assert store.remember({"x": 1}, lambda: 2) == 2
    assert store.remember({"x": 1}, never) == 2
    assert Store(tmp_path).remember({"x": 1}, never) == 2


def test_objects_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("time-b", {"ms": 2})
    store.save("time-a", {"ms": 1})
    store.save("other", {})
    assert store.load("time-a") == {"ms": 1}
    assert store.load("absent") is None
    assert store.names("time-") == ["time-a", "time-b"]
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        store.load("other")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        Store(tmp_path / "file").save("x", {})
