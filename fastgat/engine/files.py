"""Files that are either complete or absent, also when the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fastgat.errors import OutputError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; raises OutputError and keeps what was there if that fails."""
    # Of no other writer: processes of different machines, or containers, may have the same number.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Inside it no other process, on any machine that shares the folder's locks, can have the sole use of `folder`.

    It ends with the process, however that ends; a file system without locks gives it to everybody. Raises OutputError
    where another process has it, or where the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no child that was forked inherits it
        except (BlockingIOError, PermissionError):
            raise OutputError(f"{folder}: another process is training there (it holds {path.name})") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise OutputError(f"{path}: cannot be locked: {error.strerror}") from None
        yield


def append_line(path: Path, line: str) -> None:
    """Append one line to `path`; raises OutputError if that fails."""
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
