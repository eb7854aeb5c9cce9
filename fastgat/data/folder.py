"""folder:PATH, a folder of class folders of JPEG, PNG or WebP images; or one with such folders as train/ and val/."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgat.data.decoding import EXTENSIONS, MAX_BYTES, MAX_PIXELS
from fastgat.data.download import Progress
from fastgat.data.sets import PARTS, DataSet, EncodedSet, PassedOver, assemble
from fastgat.errors import DataError, FastgatError
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

    def load(self, split_seed: int, progress: Progress, rule: str = "place") -> DataSet[EncodedSet]:
        """Raises DataError, naming the folder, for anything that is not as described."""
        try:
            return self._load(split_seed, progress, rule)
        except OSError as error:  # such as a link to itself, or a path that is too long
            if isinstance(error, FastgatError):
                raise
            raise DataError(f"{self.path}: {error.strerror or error}") from None

    def _load(self, split_seed: int, progress: Progress, rule: str) -> DataSet[EncodedSet]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        passed_over = PassedOver()
        parts: dict[str, EncodedSet] = {}
        classes: tuple[str, ...] = ()
        folders = self._splits(passed_over)
        for part, folder in folders.items():
            parts[part], names = self._read(folder, progress, passed_over, rule == "position")
            classes, train = classes or names, folders["train"]
            for here, there, more in (
                (train, folder, sorted({*classes} - {*names})),
                (folder, train, sorted({*names} - {*classes})),
            ):
                if more:
                    listed = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
                    raise DataError(f"{self.path}: {here}/ has classes that {there}/ has not: {listed}")
        named = f" ({', '.join(f'{folder}/' for folder in folders.values())})" if len(folders) > 1 else ""
        name, source = f"folder:{self.path}", f"{self.path}{named}"
        return assemble(name, parts, classes, source, split_seed, rule, passed_over)

    def _splits(self, passed_over: PassedOver) -> dict[str, str]:
        """The folders of the splits, by part; one part, all of `path`, where there are class folders at once."""
        visible = [entry for entry in _scan(self.path) if not entry.name.startswith(".")]
        folders = [entry.name for entry in visible if entry.is_dir()]
        called = {part: [name for name in folders if name.lower() in names] for part, names in PARTS.items()}
        for part, names in called.items():
            if len(names) > 1:
                raise DataError(f"{self.path}: {names[0]}/ and {names[1]}/ both look like {part}/: which one is it?")
        splits = {part: names[0] for part, names in called.items() if names}
        if "train" in splits and len(splits) > 1:
            for entry in visible:
                if entry.name not in splits.values():
                    passed_over.add("beside the splits", entry.name)
            return splits
        for name in splits.values():  # a class of this name has images, and other classes beside it
            alone = len(splits) == 1 and len(folders) > 1
            if not (alone and any(_is_image(entry.name) for entry in _scan(self.path / name))):
                raise DataError(
                    f"{self.path}: has {name}/ but lacks its partner: train/ goes with val/ or test/. Add it, or "
                    "name the folder that holds the class folders"
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
        self, part: str, progress: Progress, passed_over: PassedOver, lenient: bool
    ) -> tuple[EncodedSet, tuple[str, ...]]:
        """The images of the class folders in the folder `part`, in the order of their names, and the classes."""
        root, prefix = self.path / part, f"{part}/" if part else ""
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
            found = ": ".join([str(len(classes)), *classes])
            raise DataError(f"{root}: expected a folder for each class, found {found}")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            below = _images(self.path, prefix + folders[name], passed_over, lenient)
            if not below:
                others = f"; passed over: {passed_over}" if passed_over.kinds else ""
                raise DataError(f"{root / name}: no JPEG, PNG or WebP image, and so an empty class{others}")
            paths += below
            labels += [label] * len(below)
            progress(f"listing {root.name}", label + 1, len(classes))
        files, numbers = ImageFiles(self.path, paths), np.arange(len(paths))
        return EncodedSet(files, numbers, np.array(labels, np.int64), self.size, self.max_pixels), classes


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names. Raises DataError where it cannot be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def _no_class(name: str, lenient: bool) -> str | None:
    """Why a folder is not a class, nor part of one; None if it is. Earlier versions were `lenient`."""
    if name.startswith("."):
        return "hidden"
    return "made by a system or viewer" if name.lower() in NO_CLASSES and not lenient else None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _images(root: Path, name: str, passed_over: PassedOver, lenient: bool) -> list[str]:
    """Sorted relative paths of the images of a class, however deep, through links too.

    Raises DataError for a folder that cannot be read.
    """
    paths: list[str] = []
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
            elif _is_image(entry.name):
                kind = None
                paths.append(where)
            else:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                kind = "hidden" if entry.name.startswith(".") else suffix or "without extension"
            if kind is not None:
                passed_over.add(kind, where)
    return sorted(paths)
