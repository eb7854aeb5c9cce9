"""Files that are either complete or absent, also when the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import os
import secrets
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


def append_line(path: Path, line: str) -> None:
    """Append one line to `path`; raises OutputError if that fails."""
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
