"""This process: the launcher that may have started it as one of several, its machine, its signals."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from fastgat.errors import ConfigError


def number(variable: str, default: int) -> int:
    """A whole number from the environment; raises ConfigError where the variable holds something else."""
    text = os.environ.get(variable, "")
    try:
        return int(text or default)
    except ValueError:
        raise ConfigError(f"the environment has {variable}={text!r}, which must be a whole number") from None


def local_world_size() -> int:
    """How many of the processes that train together run on this machine."""
    return number("LOCAL_WORLD_SIZE", 1)


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return number("WORLD_SIZE", 1) > 1


def is_first() -> bool:
    """Whether this process is alone or rank 0, known before ranks are connected too."""
    return not launched() or number("RANK", 0) == 0


def local_rank() -> int | None:
    """The number of this process on its machine, which is also that of its device; None for a process alone."""
    return number("LOCAL_RANK", number("RANK", 0)) if launched() else None


def restarted() -> bool:
    """Whether torchrun has started this process in the place of one that failed."""
    return launched() and number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def cores() -> int:
    """The cores that this process may use: of several ranks on a machine, its share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // local_world_size())


@contextlib.contextmanager
def ctrl_c(handler: signal.Handlers) -> Iterator[None]:
    """What Ctrl-C does inside, also to processes that are started there; outside of the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def kernel_figure(file: str, name: str) -> int | None:
    """The bytes that Linux tells under `name` in a file of /proc; None where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None
