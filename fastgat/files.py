"""Files that are either complete or absent, also when the process is killed or the disk is full; and the file lock."""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastgat.errors import OutputError


@contextlib.contextmanager
def writing(path: Path, done: str = "written") -> Iterator[None]:
    """Turn an OSError on `path` into an OutputError that says that it cannot be `done`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: cannot be {done}: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents. Raises OutputError if that fails."""
    with writing(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; raises OutputError and keeps what was there if that fails."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # random: PIDs collide across hosts and containers
    try:
        with writing(path):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line to `path`; raises OutputError if that fails."""
    with writing(path), path.open("a") as file:
        file.write(line + "\n")


def read_file(path: Path, most: int = 2**40, offset: int = 0, length: int | None = None) -> bytes:
    """The content of a regular file, or `length` bytes of it from `offset` on.

    Raises OSError where it cannot be read, is no regular file (a pipe or a device may never end), or where more than
    `most` bytes are to be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        length = status.st_size - offset if length is None else length
        if length > most:
            raise OSError(errno.EFBIG, f"too large: {length:,} bytes")
        file.seek(offset)
        return file.read(length)


@dataclass
class _Lock:
    """A lock that this process holds on a file, `holders` times."""

    file: BinaryIO
    shared: bool
    holders: int = 0


_locks: dict[Path, _Lock] = {}


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of the file `path`, alone or `shared`; yields False at once where somebody else has it.

    The lock ends with the process, however that ends. A file system without locks gives it to everybody. Raises
    OutputError where the file cannot be written or locked.
    """
    # POSIX locks: a forked child does not inherit them, as it would flock's. They are the whole process's, so this
    # process counts by itself how often it holds one, and keeps the file open until the last holder is done.
    key = path.resolve()
    lock = _locks.get(key) or _acquire(path, shared)
    if lock is None or (lock.holders and not (shared and lock.shared)):
        yield False
        return
    _locks[key] = lock
    lock.holders += 1
    try:
        yield True
    finally:
        lock.holders -= 1
        if not lock.holders:
            del _locks[key]
            lock.file.close()


def _acquire(path: Path, shared: bool) -> _Lock | None:
    """The lock of `path`, newly taken; None where another process has it."""
    with writing(path):
        file = path.open("a+b")
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            file.close()
            raise OutputError(f"{path}: cannot be locked: {error.strerror}") from None
    return _Lock(file, shared)
