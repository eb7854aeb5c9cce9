"""SIGINT and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar, Self

from fastgat.processes import launched


class Interrupts:
    """A context in which the first Ctrl-C or SIGTERM only sets `received`; a second one acts at once.

    Of contexts within each other all are told, also one that is opened after the signal. Of several ranks none acts on
    a second SIGTERM. Signals can be handled in a process's main thread alone; elsewhere this does nothing.
    """

    _open: ClassVar[list[Interrupts]] = []
    """The contexts that the main thread is in, the outermost first."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._open.append(self)
            self.received = self._open[0].received
            if self.received is None:
                self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self in self._open:
            self._open.remove(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        for context in reversed(self._open):
            context.received = signal.Signals(number).name
            if number != signal.SIGTERM or not launched():  # torchrun sends one more when it receives one itself
                context._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
