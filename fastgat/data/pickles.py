"""Read the pickles that CIFAR is distributed as, without running what a pickle may contain.

A pickle is a program. This reader admits the three names that the published files use, each replaced by a function that
builds a uint8 array and nothing else, and refuses every other. The MD5 sum of a file is compared before it comes here.
"""

import io
import pickle
from typing import Any

import numpy as np

from fastgat.errors import DataError


class _Uint8:
    """Stands in for numpy.dtype: takes the state that numpy writes, and stays uint8."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")

    def __setstate__(self, state: Any) -> None:
        """The byte order and the like: meaningless for single bytes."""


class _Array:
    """Stands in for numpy.ndarray: keeps the array that its pickled state describes."""

    values: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: Any) -> None:
        _, shape, _, column_major, raw = state
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Uint8,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return _ADMITTED[module, name]


def read_pickle(raw: bytes, where: str) -> dict[str, Any]:
    """The dictionary in `raw`, its keys as text, its arrays as uint8.

    Raises DataError, naming `where`, for anything that a CIFAR file does not contain.
    """
    try:
        content = _Reader(io.BytesIO(raw), encoding="bytes").load()
        return {key.decode(): value.values if isinstance(value, _Array) else value for key, value in content.items()}
    except Exception as error:  # noqa: BLE001  # a damaged pickle can fail in any way
        raise DataError(f"{where}: not a file of this data set ({error or type(error).__name__})") from None
