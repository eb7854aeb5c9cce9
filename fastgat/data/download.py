"""Where data lie on disk, how they get there, and the proof that they are the published ones."""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pooch

from fastgat.errors import DataError, FastgatError, OutputError
from fastgat.files import make_folder, read_file, write_atomically
from fastgat.store import Store

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is: bytes of a download, else a count."""

CONNECT_SECONDS = 10
MEMBER_BYTES = 2**28  # more than any file of a published archive has


def cache_folder() -> Path:
    """The user's cache folder for data sets."""
    return Path(pooch.os_cache("fastgat"))


def data_folder(data_dir: Path | None) -> Path:
    """`data_dir`, else the folder that FASTGAT_DATA names, else the user's cache.

    Raises DataError if a folder that was named does not exist.
    """
    for name, folder in (("--data-dir", data_dir), ("FASTGAT_DATA", os.environ.get("FASTGAT_DATA"))):
        if folder:
            path = Path(folder).expanduser()
            try:
                exists = path.exists()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror} (from {name})") from None
            if not exists:
                raise DataError(f"{path}: no such folder (from {name})")
            return path
    return cache_folder()


def remembered(
    kind: str,
    path: Path,
    compute: Callable[[], Any],
    valid: Callable[[Any], bool] = lambda value: True,
    *,
    again: bool = False,
) -> Any:
    """What `compute()` finds in the file `path`, kept in the user's cache until its size or time changes.

    Raises DataError if the file cannot be read.
    """
    try:
        status = path.stat()
        key = {"file": str(path.resolve()), "size": status.st_size, "time": status.st_mtime_ns}
        return Store(cache_folder() / kind, fresh=again, optional=True).remember(key, compute, valid)
    except FastgatError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', error)}") from None


def verify(path: Path, expected: str, *, again: bool = False) -> None:
    """Check the MD5 sum of `path` once; an unchanged file is not read again.

    Raises DataError if the file is not there, or is not the published one.
    """

    def compute() -> str:
        return hashlib.md5(read_file(path), usedforsecurity=False).hexdigest()

    digest = remembered("sums", path, compute, lambda digest: digest == expected, again=again)
    if digest != expected:
        raise DataError(
            f"{path}: damaged or altered (MD5 {digest}, published {expected}); delete it and run `fastgat data fetch`"
        )


def download(url: str, expected: str, folder: Path, progress: Progress) -> Path:
    """The file at `url` in `folder`, complete and verified, or nothing. Raises DataError when it cannot be had."""
    name = url.rsplit("/", 1)[-1]
    if (folder / name).exists() and not (folder / name).is_file():
        raise DataError(f"{folder / name}: not a regular file")
    try:
        pooch.get_logger().setLevel("ERROR")
        path = pooch.retrieve(
            url,
            known_hash=f"md5:{expected}",
            fname=name,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=_Bar(f"downloading {name}", progress), timeout=CONNECT_SECONDS),
        )
    except PermissionError:
        raise OutputError(f"{folder}: not writable") from None
    except OSError as error:  # requests' errors are OSErrors too
        raise DataError(f"{name} cannot be downloaded: {_short(error)}") from None
    except ValueError:
        raise DataError(f"{name} as downloaded does not have the published MD5 sum") from None
    return Path(path)


def extract(archive: Path, names: Iterable[str], folder: Path) -> None:
    """The regular files `names` of the tar `archive`, into `folder`; nothing else is written, and nothing before all
    of them have been read.

    Raises DataError if the archive is damaged or lacks a file, OutputError if `folder` cannot be written.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.getmember(f"{folder.name}/{name}")
                file = tar.extractfile(member) if member.isreg() and member.size <= MEMBER_BYTES else None
                if file is None:
                    raise tarfile.ReadError(f"{name} is not a regular file of the published size")
                contents[name] = file.read()
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: damaged or not the published archive ({_short(error)})") from None
    make_folder(folder)
    for name, content in contents.items():
        write_atomically(folder / name, content)


class _Bar:
    """What pooch wants of a progress bar, passed on to `progress`."""

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress, self.total, self.done = what, progress, 0, 0

    def update(self, size: int) -> None:
        if not self.total or self.done < self.total:
            # pooch counts whole chunks, the last one too.
            self.done = min(self.done + size, self.total or self.done + size)
            self.progress(self.what, self.done, self.total)

    def close(self) -> None:
        """Nothing to do; pooch calls it, and `reset`."""

    reset = close


def _short(error: BaseException) -> str:
    """The innermost reason of a nested error, on one line."""
    reason: Any = error
    while getattr(reason, "reason", None) or (reason.args and isinstance(reason.args[0], BaseException)):
        reason = getattr(reason, "reason", None) or reason.args[0]
    text = " ".join(str(reason).split())
    return text.split("): ", 1)[-1].split(" ([Errno")[0] or type(reason).__name__
