"""Work that threads do ahead of the one who wants it, in order."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

DEPTH = 4
"""Results that are being prepared at a time."""

T = TypeVar("T")


def ahead(work: Callable[[int], T], first: int = 0, count: int | None = None) -> Generator[T, None, None]:
    """The results of `work(first)`, `work(first + 1)`, ..., up to number `count`; what `work` raises is raised here."""
    numbers = itertools.count(first) if count is None else iter(range(first, count))
    threads = ThreadPoolExecutor(min(DEPTH, os.cpu_count() or 1), thread_name_prefix="fastgat-reader")
    waiting: deque[Future[T]] = deque()
    try:
        while True:
            waiting.extend(threads.submit(work, number) for number in itertools.islice(numbers, DEPTH - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
