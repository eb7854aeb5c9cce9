"""Read the pickles that CIFAR is distributed as, without running what a pickle may contain.

A pickle is a program. This reader admits the three names that the published files use, each replaced by a function that
builds a uint8 array and nothing else, and refuses every other.
"""

import io
import pickle
import pickletools
import re
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


_OPERATIONS = re.compile(
    "PROTO|MARK|STOP|GLOBAL|REDUCE|BUILD|NEWOBJ|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BINSTRING|"
    "(SHORT_)?BINBYTES|BINUNICODE|EMPTY_TUPLE|TUPLE[123]?|EMPTY_LIST|APPENDS?|EMPTY_DICT|SETITEMS?|(LONG_)?BIN(GET|PUT)"
)
_MEMO = 10**6  # entries of a pickle's memo, at most; the published files have 100,000
_CONTAINERS = 100  # tuples, lists and dictionaries in one file, at most; the published ones have about ten


def _check_operations(raw: bytes) -> None:
    """Raises UnpicklingError for a program that could nest deeply, or take memory out of proportion to its length."""
    containers = 0
    for operation, argument, _ in pickletools.genops(raw):
        if not _OPERATIONS.fullmatch(operation.name):
            raise pickle.UnpicklingError(f"the operation {operation.name}")
        if operation.name.endswith("PUT") and argument is not None and argument > _MEMO:
            raise pickle.UnpicklingError(f"a memo of {argument} entries")
        containers += "TUPLE" in operation.name or operation.name in ("EMPTY_LIST", "EMPTY_DICT")
        if containers > _CONTAINERS:
            raise pickle.UnpicklingError(f"more than {_CONTAINERS} containers")


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
        _check_operations(raw)
        content = _Reader(io.BytesIO(raw), encoding="bytes").load()
        return {key.decode(): value.values if isinstance(value, _Array) else value for key, value in content.items()}
    except Exception as error:  # noqa: BLE001  # a damaged pickle can fail in any way
        raise DataError(f"{where}: not a file of this data set ({error or type(error).__name__})") from None
