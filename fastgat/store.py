"""A keyed store: values that were computed once, kept as JSON in a folder that processes and machines may share."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastgat.errors import DataError, OutputError
from fastgat.files import make_folder, read_file, write_atomically
from fastgat.typed import MAX_TEXT_BYTES, check_type, parse_json

Key = Mapping[str, Any]  # settings that decide a value, as JSON has them


class Store:
    """JSON objects by name, one small file each: NAME.json.

    Without a folder nothing is kept, nor where an `optional` store cannot be written. With `fresh`, `remember` ignores
    what was there before this store was made.
    """

    def __init__(self, folder: Path | None = None, *, fresh: bool = False, optional: bool = False) -> None:
        self.folder, self.fresh, self.optional = folder, fresh, optional
        self._written: set[str] = set()

    def load(self, name: str, kind: Any = dict[str, Any]) -> Any:
        """The object called `name`, of the type `kind`, or None where there is none. Raises DataError if its file is
        damaged or holds something else."""
        return None if self.folder is None else read_object(self.folder / f"{name}.json", kind)

    def save(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep `value` under `name`. Raises OutputError if it cannot be written."""
        self.save_file(f"{name}.json", as_json(value))

    def save_file(self, filename: str, content: bytes) -> None:
        """Keep a file of any kind beside the objects, whole or not at all."""
        if self.folder is None:
            return
        try:
            make_folder(self.folder)
            write_atomically(self.folder / filename, content)
            self._written.add(filename)
        except OutputError:
            if not self.optional:
                raise

    def usable(self, filename: str) -> bool:
        """Whether `remember` may read this file: with `fresh`, only if this store wrote it."""
        return self.folder is not None and (not self.fresh or filename in self._written)

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        return [] if self.folder is None else sorted(path.stem for path in self.folder.glob(f"{prefix}*.json"))

    def remember(self, key: Key, compute: Callable[[], Any], valid: Callable[[Any], bool] = lambda value: True) -> Any:
        """The value of `compute()`, read from disk where it was computed for the same key before.

        A damaged entry, told by a digest of its value, one of another key, or one whose value is not `valid`, is
        computed again.
        """
        name, text = key_digest(key), key_text(key)
        if self.usable(f"{name}.json"):
            with contextlib.suppress(DataError):
                entry = self.load(name)
                if entry is not None and entry == _entry(text, entry.get("value")) and valid(entry["value"]):
                    return entry["value"]
        value = compute()
        self.save_file(f"{name}.json", json.dumps(_entry(text, value)).encode())
        return value


def _entry(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value, "digest": key_digest({"value": value})}


def key_text(key: Key) -> str:
    """The JSON of `key`, the same for equal keys."""
    return json.dumps(key, sort_keys=True)


def key_digest(key: Key, digits: int = 32) -> str:
    """A name for `key`: the first hexadecimal digits of the SHA-256 of its text."""
    return hashlib.sha256(key_text(key).encode()).hexdigest()[:digits]


def as_json(value: Mapping[str, Any]) -> bytes:
    """The content of a JSON file that people can read too."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_object(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The JSON object in `path`, of the type `kind`, or None where there is no file. Raises DataError if it holds
    anything else."""
    try:
        content = parse_json(read_file(path, MAX_TEXT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: damaged; remove it, or the run's whole folder, to have it made again") from None
    try:
        check_type(content, kind, "the file")
    except ValueError as error:
        raise DataError(f"{path}: not what fastgat writes there ({error}); remove it to have it made again") from None
    return content
