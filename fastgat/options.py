"""Frozen dataclasses whose fields document, convert and check themselves.

One declaration of a field serves the Python constructor, the TOML file and the command line:

    @dataclass(frozen=True)
    class Player(Options):
        lr: float = option(1e-3, "learning rate", above=0)

Every value passes the same checks, wherever it comes from; a bad one raises ConfigError with the field's name.
"""

import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastgat.errors import ConfigError
from fastgat.typed import INT_LIMIT, shown, type_hints

FARTHEST = 1e6  # in L2, and more than the diagonal of the largest image; its square is far below the largest float32
FLOAT32 = 2.0**-149, (2 - 2.0**-23) * 2.0**127  # the least and the greatest number that float32 has above 0


@dataclass(frozen=True)
class Constraint:
    """The help text of a field and the values that it accepts."""

    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name}: unknown value {shown(value)}{suggestion(str(value), self.choices)}")
        for bound, holds, words in (
            (self.at_least, operator.ge, "at least"),
            (self.above, operator.gt, "above"),
            (self.at_most, operator.le, "at most"),
            (self.below, operator.lt, "below"),
        ):
            if bound is not None and not holds(value, bound):
                raise ConfigError(f"{name} must be {words} {bound:g}, got {shown(value)}")


def option(default: Any, help: str, **constraint: Any) -> Any:
    """A dataclass field with a help text and, optionally, choices, at_least, above, at_most and below."""
    return field(default=default, metadata={"constraint": Constraint(help, **constraint)})


def constraint(f: Field[Any]) -> Constraint:
    return f.metadata["constraint"]


def declared(settings: Any) -> list[Field[Any]]:
    """The fields of a dataclass, or of one of its instances, that `option` declares."""
    return [f for f in fields(settings) if "constraint" in f.metadata]


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them when none is near."""
    known, word = list(known), word[:100]
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def value_type(cls: type, name: str) -> tuple[type, bool]:
    """The plain type of a field and whether it may be None."""
    hint = type_hints(cls)[name]
    if isinstance(hint, types.UnionType):
        (plain,) = (t for t in typing.get_args(hint) if t is not type(None))
        return plain, True
    return hint, False


class Options:
    """Base of the configuration dataclasses: converts and checks every field declared with `option`."""

    def __post_init__(self) -> None:
        for f in declared(self):
            plain, optional = value_type(type(self), f.name)
            value = getattr(self, f.name)
            if value is None and optional:
                continue
            value = convert(f.name, value, plain)
            constraint(f).check(f.name, value)
            object.__setattr__(self, f.name, value)


def convert(name: str, value: Any, plain: type) -> Any:
    """`value` as `plain`: numbers may come as text ("8/255"), paths as text; nothing else changes its type.

    Raises ConfigError where the value cannot be read as that type.
    """
    if isinstance(value, (str, Path)) and "\0" in str(value):
        raise ConfigError(f"{name} must not have a null character, got {shown(value)}")
    if plain is bool or isinstance(value, bool):
        if plain is bool and isinstance(value, bool):
            return value
    elif plain is float:
        try:
            if isinstance(value, str) and "/" in value:
                above, below = map(float, value.split("/"))
                number = above / below
            else:
                number = float(value)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            raise ConfigError(f"{name} must be a number such as 0.03 or 8/255, got {shown(value)}") from None
        if not math.isfinite(number):
            raise ConfigError(f"{name} must be finite, got {shown(value)}")
        if number and not FLOAT32[0] <= abs(number) <= FLOAT32[1]:
            raise ConfigError(f"{name} must be a number that float32 can hold, got {shown(value)}")
        return number
    elif plain is int:
        if isinstance(value, int):
            if abs(value) >= INT_LIMIT:
                raise ConfigError(f"{name} must be at most 2^63 - 1, got {shown(value)}")
            return value
    elif plain is Path:
        if isinstance(value, (str, Path)) and str(value):
            return home_path(name, value)
    elif isinstance(value, plain):
        return value
    raise ConfigError(f"{name} must be of type {plain.__name__}, got {shown(value)}")


def check_unit(name: str, size: float, norm: str) -> None:
    """Raises ConfigError for the size of a perturbation that no image in [0, 1] is away from another, in linf as where
    pixels of 0 to 255 were meant."""
    if norm == "linf" and size > 1:
        raise ConfigError(f"{name} must be at most 1 in linf, where pixels are in [0, 1] (8/255, say); got {size:g}")
    if norm == "l2" and size > FARTHEST:
        raise ConfigError(f"{name} must be at most {FARTHEST:g} in l2, which no two images are apart; got {size:g}")


def home_path(name: str, value: str | Path) -> Path:
    """`value` as a path, a user's home in place of `~`. Raises ConfigError where it cannot be one."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}: {value}: there is no such user") from None
