"""folder:PATH, a folder of class folders of JPEG, PNG or WebP images; or one with such folders as train/ and val/."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgat.data.decoding import EXTENSIONS, MAX_BYTES, MAX_PIXELS
from fastgat.data.encoded import EncodedSet
from fastgat.data.sets import PARTS, DataSet, PassedOver, assemble
from fastgat.data.store import Progress
from fastgat.errors import DataError
from fastgat.files import read_file

NO_CLASSES = frozenset({"@eadir", "__macosx", "thumbs", "thumbnails", "lost+found", "$recycle.bin"})
"""Folders that systems and viewers make, in lower case: no classes, and no part of one."""


@dataclass(frozen=True)
class ImageFiles:
    """Files below `root`, by their relative paths."""

    root: Path
    paths: list[str]

    def key(self, number: int) -> str:
        return self.paths[number]

    def name(self, number: int) -> str:
        return str(self.root / self.paths[number])

    def read(self, number: int) -> bytes:
        return read_file(self.root / self.paths[number], MAX_BYTES)


@dataclass(frozen=True)
class Folder:
    """The images below `path`, scaled to `size`.

    With train/ and val/ or test/ below it, under any of the names in PARTS, those are the splits. Without val/ a tenth
    of the training images is held out.
    """

    path: Path
    size: int
    max_pixels: int = MAX_PIXELS

    @property
    def name(self) -> str:
        return f"folder:{self.path}"

    def load(self, split_seed: int, progress: Progress, rule: str = "name") -> DataSet[EncodedSet]:
        """Raises DataError, naming the folder, for anything that is not as described."""
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        passed_over = PassedOver()
        parts: dict[str, EncodedSet] = {}
        classes: tuple[str, ...] = ()
        folders = self._parts(passed_over)
        for part, folder in folders.items():
            parts[part], names = self._read(folder, progress, passed_over, rule)
            classes = classes or names
            if names != classes:
                self._complain(folders["train"], folder, classes, names)
        named = f" ({', '.join(f'{folder}/' for folder in folders.values())})" if len(folders) > 1 else ""
        return assemble(self.name, parts, classes, f"{self.path}{named}", split_seed, rule, passed_over)

    def _parts(self, passed_over: PassedOver) -> dict[str, str]:
        """The folders of the splits, by part; one part, all of `path`, where there are class folders at once."""
        folders = sorted(entry.name for entry in _scan(self.path) if entry.is_dir() and not entry.name.startswith("."))
        called = {part: [name for name in folders if name.lower() in names] for part, names in PARTS.items()}
        for part, names in called.items():
            if len(names) > 1:
                raise DataError(f"{self.path}: {names[0]}/ and {names[1]}/ both look like {part}/: which one is it?")
        splits = {part: names[0] for part, names in called.items() if names}
        if "train" in splits and len(splits) > 1:
            for entry in _scan(self.path):
                if entry.name not in splits.values() and not entry.name.startswith("."):
                    passed_over.add("beside the splits", entry.name)
            return splits
        for name in splits.values():  # a class of this name has images, and other classes beside it
            if (
                len(splits) > 1
                or len(folders) < 2
                or not any(_is_image(entry.name) for entry in _scan(self.path / name))
            ):
                raise DataError(
                    f"{self.path}: has {name}/ but not both train/ and val/ (or test/); without them, name a folder of "
                    "class folders"
                )
        words = {name: re.split(r"[\W\d_]", name.lower())[0] for name in folders}
        alike = {part: name for part, names in PARTS.items() for name, word in words.items() if word in names}
        if len(alike) > 1:
            first, second, *_ = alike.values()
            raise DataError(
                f"{self.path}: {first}/ and {second}/ look like splits, not classes: call them train/, val/, test/"
            )
        return {"train": ""}

    def _read(
        self, part: str, progress: Progress, passed_over: PassedOver, rule: str
    ) -> tuple[EncodedSet, tuple[str, ...]]:
        """The images of the class folders in the folder `part`, in the order of their names."""
        root, prefix, lenient = self.path / part, f"{part}/" if part else "", rule == "position"
        folders: dict[str, str] = {}
        for entry in _scan(root):
            kind = _no_class(entry.name, lenient) if entry.is_dir() else "beside the class folders"
            if kind is None:
                # A Mac writes accents as characters of their own, which look the same.
                name = unicodedata.normalize("NFC", entry.name)
                if name in folders:
                    raise DataError(f"{root}: two folders are called {name}, in different Unicode forms: rename one")
                folders[name] = entry.name
            elif not entry.name.startswith(".") or entry.is_dir():
                passed_over.add(kind, prefix + entry.name)
        classes = tuple(sorted(folders))
        if len(classes) < 2:
            raise DataError(f"{root}: expected a folder for each class, found {len(classes)}: {', '.join(classes)}")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            files = sorted(_images(self.path, prefix + folders[name], passed_over, lenient))
            if not files:
                others = f"; passed over: {passed_over}" if passed_over.kinds else ""
                raise DataError(f"{root / name}: no JPEG, PNG or WebP image, and so an empty class{others}")
            paths += files
            labels += [label] * len(files)
            progress(f"listing {root.name}", label + 1, len(classes))
        numbers, files_below = np.arange(len(paths)), ImageFiles(self.path, paths)
        return EncodedSet(files_below, numbers, np.array(labels, np.int64), self.size, self.max_pixels), classes

    def _complain(self, train: str, part: str, classes: tuple[str, ...], names: tuple[str, ...]) -> None:
        for here, there, missing in (
            (train, part, sorted(set(classes) - set(names))),
            (part, train, sorted(set(names) - set(classes))),
        ):
            if missing:
                listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                raise DataError(f"{self.path}: {here}/ has classes that {there}/ has not: {listed}")


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names. Raises DataError where it cannot be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def _no_class(name: str, lenient: bool) -> str | None:
    """Of which other kind a folder is; None where it is a class, or part of one. Earlier versions were `lenient`."""
    if name.startswith("."):
        return "hidden"
    return "made by a system or viewer" if name.lower() in NO_CLASSES and not lenient else None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _images(root: Path, name: str, passed_over: PassedOver, lenient: bool) -> Iterator[str]:
    """Relative paths of the images of a class, however deep, through links too.

    Raises DataError for a folder that cannot be read.
    """
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        folder = waiting.pop()
        place = os.path.join(root, folder)  # noqa: PTH118  # half the time of Path, a million times
        real = os.path.realpath(place)
        if real in seen:
            continue  # a link to where we come from
        seen.add(real)
        for entry in _scan(place):
            where = f"{folder}/{entry.name}"
            if entry.is_dir():
                kind = None if lenient else _no_class(entry.name, lenient)
                if kind is None:
                    waiting.append(where)
                else:
                    passed_over.add(kind, where)
            elif _is_image(entry.name):
                yield where
            else:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                passed_over.add("hidden" if entry.name.startswith(".") else suffix or "without extension", where)
