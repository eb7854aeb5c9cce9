"""A process of its own, for work that must not share memory, cores or compiler state with this one."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, Self

from fastgat.errors import FastgatError, is_out_of_memory
from fastgat.processes import ctrl_c


class WorkerProcess:
    """Runs `target(pipe, *arguments)` in a fresh process; use it as a context manager.

    Errors of `target` are raised here, by `receive`; `advice` says what to do if memory runs out. Ctrl-C does not reach
    the process; it ends with the context, and at once where that ends by Ctrl-C.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, advice: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(target, theirs, arguments, advice))
        with ctrl_c(signal.SIG_IGN):
            self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        """Send to a process that listens. Raises what `receive` raises where it does not any more."""
        with contextlib.suppress(ConnectionError):  # the reason is still in the pipe
            self.pipe.send(message)

    def receive(self) -> Any:
        """The next message. Raises what `target` raised, and FastgatError if the process has died."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise FastgatError(f"a process of this command died (exit code {code}; out of memory?)") from None
        if isinstance(message, BaseException):
            raise message
        return message

    def stop(self) -> None:
        """Ask the process to end: training writes its checkpoint first."""
        self.process.terminate()

    def close(self) -> None:
        """Wait for a process that ends when nobody listens to it; after some seconds, end it."""
        self.pipe.close()
        self.process.join(5)
        self.process.terminate()
        self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.process.kill()
        elif kind is not None:
            self.stop()
            self.process.join()
        self.close()


def _serve(target: Callable[..., None], pipe: Any, arguments: tuple[Any, ...], advice: str) -> None:
    """Run `target` in the process; an error is sent, to be raised where the command runs."""
    os.setsid()
    told: Exception
    try:
        target(pipe, *arguments)
        return
    except FastgatError as error:
        told = error
    except Exception as error:  # noqa: BLE001
        if is_out_of_memory(error):
            told = FastgatError(f"out of memory: {advice}")
        elif isinstance(error, OSError):
            told = FastgatError(f"{error.filename or 'output'}: {error.strerror or error}")
        else:
            traceback.print_exc()
            told = RuntimeError(f"{type(error).__name__}: {error}")
    with contextlib.suppress(ConnectionError):
        pipe.send(told)
