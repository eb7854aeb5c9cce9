"""The reader of JSON, TOML and headers: whatever a file holds, values of the expected types or one line of error."""

import functools
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

from fastgat.files import read_file

MAX_TEXT_BYTES = 1 << 26  # bytes of a text file, or of the header of another
INT_LIMIT = 1 << 63  # whole numbers are smaller, of either sign
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "a table"}


def shown(value: Any) -> str:
    """`value` in an error message: its repr, cut where that is long or impossible."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= 100 else f"{text[:90]}... ({len(text):,} characters)"


def parse_json(raw: bytes | str) -> Any:
    """The value of a JSON text, in UTF-8 with or without a byte order mark. Raises ValueError if it is none."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, in UTF-8 with or without a byte order mark. Raises OSError or ValueError.

    Other bytes come back as Python represents them in paths, for those that are not UTF-8.
    """
    raw = read_file(path, MAX_TEXT_BYTES)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is in UTF-16; save it in UTF-8")
    try:
        return tomllib.loads(raw.decode("utf-8-sig", "surrogateescape"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_type(value: Any, kind: Any, where: str) -> None:
    """Raises ValueError, beginning with `where`, unless `value` is of the type that `kind` says.

    `kind` is an annotation: int, float, str, bool, list, dict, Any, `X | None`, or a TypedDict or dataclass, of which
    a table may have other keys too.
    """
    parts = typing.get_args(kind)
    if type(None) in parts:
        if value is None:
            return
        (kind,) = (part for part in parts if part is not type(None))
        parts = typing.get_args(kind)
    if kind is Any:
        return
    plain = typing.get_origin(kind) or kind
    if plain not in NAMES:
        _check_fields(value, kind, where)
        return
    accepted = (int, float) if plain is float else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
        raise ValueError(f"{where} must be {NAMES[plain]}, got {shown(value)}")
    if plain is int and abs(value) >= INT_LIMIT:
        raise ValueError(f"{where} must be less than 2^63, got {shown(value)}")
    if parts:
        inner: Any = value
        for key, each in inner.items() if plain is dict else enumerate(inner):
            check_type(each, parts[-1], f"{where}.{key}")


def _check_fields(value: Any, kind: Any, where: str) -> None:
    check_type(value, dict, where)
    if missing := sorted(getattr(kind, "__required_keys__", frozenset()) - value.keys()):
        raise ValueError(f"{where} has no {missing[0]!r}")
    for key, hint in type_hints(kind).items():
        if key in value:
            check_type(value[key], hint, f"{where}.{key}")


type_hints = functools.cache(typing.get_type_hints)
"""The types of a class's fields, whose evaluation takes longer than all the rest of a check."""
