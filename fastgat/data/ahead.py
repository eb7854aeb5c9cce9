"""Work that threads do ahead of the one who wants it, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

DEPTH = 4
"""Results that are being prepared at a time."""

T = TypeVar("T")


class Ahead(Generic[T]):
    """The results of `work(first)`, `work(first + 1)`, ..., up to number `count`; what `work` raises is raised here."""

    def __init__(self, work: Callable[[int], T], first: int = 0, count: int | None = None) -> None:
        self._work, self._number, self._count = work, first, count
        self._threads = ThreadPoolExecutor(min(DEPTH, os.cpu_count() or 1), thread_name_prefix="fastgat-reader")
        self._waiting: deque[Future[T]] = deque()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        self._fill()
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft().result()

    def _fill(self) -> None:
        while len(self._waiting) < DEPTH and (self._count is None or self._number < self._count):
            self._waiting.append(self._threads.submit(self._work, self._number))
            self._number += 1

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
