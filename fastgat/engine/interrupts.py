"""SIGINT and SIGTERM as a request to stop at the next safe point."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from fastgat.processes import launched


class Interrupts:
    """A context in which the first Ctrl-C or SIGTERM only sets `received`; a second one acts at once.

    In a context within a context, both are told. Of several ranks none acts on a second SIGTERM. Signals can be handled
    in a process's main thread alone; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        before = self._before.get(number)
        if number != signal.SIGTERM or not launched():  # torchrun sends one more when it receives one itself
            self._restore()
        outer = getattr(before, "__self__", None)
        if isinstance(outer, Interrupts):
            outer._note(number, frame)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
