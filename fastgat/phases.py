"""Names for the parts of a training step, for profiles and traces; nothing inside a compiled step."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import torch

PHASES = (
    "data",
    "classifier forward",
    "classifier backward",
    "generator forward",
    "generator backward",
    "joints",
    "updates",
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Span = Callable[[str], AbstractContextManager[None]]
_span: Span | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """A context that marks what runs inside as part of a phase, where somebody listens."""
    if torch.compiler.is_compiling() or _span is None:
        return contextlib.nullcontext()
    return _span(name)


def joint(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, a kernel's public one, marked as part of the phase "joints"."""

    @functools.wraps(function)
    def marked(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with phase("joints"):
            return function(*arguments, **options)

    return marked


@contextlib.contextmanager
def listening(span: Span) -> Iterator[None]:
    """Enter `span(name)` around every phase, for as long as this lasts."""
    global _span
    before, _span = _span, span
    try:
        yield
    finally:
        _span = before
