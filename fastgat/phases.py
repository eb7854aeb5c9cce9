"""Names for the parts of a training step, for profiles and traces; nothing inside a compiled step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

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

Span = Callable[[str], AbstractContextManager[None]]
_span: Span | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """Marks what runs inside as part of a phase, where somebody listens."""
    if torch.compiler.is_compiling() or _span is None:
        return contextlib.nullcontext()
    return _span(name)


@contextlib.contextmanager
def listening(span: Span) -> Iterator[None]:
    """Enter `span(name)` around every phase, for as long as this lasts."""
    global _span
    before, _span = _span, span
    try:
        yield
    finally:
        _span = before
