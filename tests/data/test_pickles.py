"""Pickles are read without running what they contain."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fastgat.data.pickles import read_pickle
from fastgat.errors import DataError

Pickler: Any = pickle._Pickler  # the one in Python, whose dispatch can be changed


class Python2Pickler(Pickler):
    """Writes bytes as Python 2 wrote its str, which is what the published files hold."""

    dispatch: ClassVar[dict[Any, Any]] = dict(Pickler.dispatch)

    def save_bytes(self, raw: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(raw)

    dispatch[bytes] = save_bytes


def python2(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def published(content: dict[str, object]) -> bytes:
    """A pickle as CIFAR's: Python 2, protocol 2, numpy's old module names."""
    return python2({key.encode(): value for key, value in content.items()})


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_bytes_are_read(order: str) -> None:
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = np.asfortranarray(data) if order == "F" else data
    content = read_pickle(published({"data": data, "labels": [1, 2, 3]}), "file")
    np.testing.assert_array_equal(content["data"], data)
    assert content["labels"] == [1, 2, 3]


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(DataError, match=r"file: not a file of this data set \(the name posix\.system\)"):
        read_pickle(published({"data": Attack(witness)}), "file")
    assert not witness.exists()


@pytest.mark.parametrize("array", [np.zeros(2), np.array([object()])], ids=["float64", "object"])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="an array of dtype"):
        read_pickle(published({"data": array}), "file")


@pytest.mark.parametrize("raw", [b"", b"not a pickle", published({"labels": [1]})[:-5], pickle.dumps([1, 2])])
def test_what_is_not_a_pickled_dictionary_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="file: not a file of this data set"):
        read_pickle(raw, "file")
