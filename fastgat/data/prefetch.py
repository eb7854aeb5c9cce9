"""Threads that compute results in order, before they are needed."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fastgat.processes import cores

T = TypeVar("T")


def prefetch(work: Callable[[int], T], numbers: range, depth: int = 4) -> Generator[T, None, None]:
    """The results of `work` on each number, in order, `depth` of them being prepared at a time.

    Errors of `work` are raised here. Closing the generator cancels what has not begun.
    """
    threads = ThreadPoolExecutor(min(depth, cores()), thread_name_prefix="fastgat-reader")
    left, waiting = iter(numbers), deque[Future[T]]()
    try:
        while True:
            waiting.extend(threads.submit(work, number) for number in islice(left, depth - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
