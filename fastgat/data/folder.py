"""folder:PATH, a folder of class folders of JPEG, PNG or WebP images; or one with such folders as train/ and val/."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgat.data.decoding import EXTENSIONS
from fastgat.data.encoded import EncodedSet
from fastgat.data.sets import DataSet, hold_out, shuffled
from fastgat.data.store import Progress
from fastgat.errors import DataError


@dataclass(frozen=True)
class ImageFiles:
    """Files below `root`, by their relative paths."""

    root: Path
    paths: list[str]

    def name(self, number: int) -> str:
        return str(self.root / self.paths[number])

    def read(self, number: int) -> bytes:
        return (self.root / self.paths[number]).read_bytes()


@dataclass(frozen=True)
class Folder:
    """The images below `path`, scaled to `size`.

    With train/ and val/ below it, those are the splits, and test/ if there is one. Otherwise a tenth of the images,
    chosen by the split's seed, validates, and there is no test set.
    """

    path: Path
    size: int

    @property
    def name(self) -> str:
        return f"folder:{self.path}"

    def load(self, split_seed: int, progress: Progress) -> DataSet[EncodedSet]:
        """Raises DataError, naming the folder, for anything that is not as described."""
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        named = [part for part in ("train", "val", "test") if (self.path / part).is_dir()]
        if "train" not in named or "val" not in named:
            if named:
                raise DataError(f"{self.path}: has {named[0]}/ but not both train/ and val/")
            everything, classes = self._read(self.path, progress)
            return DataSet(self.name, *hold_out(everything, split_seed), classes, str(self.path))
        parts: dict[str, EncodedSet] = {}
        classes = ()
        for part in named:
            parts[part], found = self._read(self.path / part, progress)
            classes = classes or found
            if found != classes:
                self._complain(part, classes, found)
        train = shuffled(parts["train"], split_seed)
        test = parts.get("test", train.first(0))
        return DataSet(self.name, train, parts["val"], test, classes, str(self.path))

    def _read(self, root: Path, progress: Progress) -> tuple[EncodedSet, tuple[str, ...]]:
        """The images of the class folders below `root`, in the order of their names."""
        classes = tuple(sorted(entry.name for entry in os.scandir(root) if _is_class(entry)))
        if len(classes) < 2:
            raise DataError(f"{root}: expected a folder for each class, found {len(classes)}: {', '.join(classes)}")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(_images(root, name))
            if not found:
                raise DataError(f"{root / name}: no JPEG, PNG or WebP image, and so an empty class")
            paths += found
            labels += [label] * len(found)
            progress(f"listing {root.name}", label + 1, len(classes))
        files = ImageFiles(root, paths)
        return EncodedSet(files, np.arange(len(paths)), np.array(labels, np.int64), self.size), classes

    def _complain(self, part: str, classes: tuple[str, ...], found: tuple[str, ...]) -> None:
        for here, there, names in (
            ("train", part, sorted(set(classes) - set(found))),
            (part, "train", sorted(set(found) - set(classes))),
        ):
            if names:
                listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                raise DataError(f"{self.path}: {here}/ has classes that {there}/ has not: {listed}")


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images(root: Path, name: str) -> list[str]:
    """Relative paths of the images of a class, however deep, through links too; hidden files are none.

    Raises DataError for a folder that cannot be read.
    """

    def complain(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}")

    found: list[str] = []
    seen: set[str] = set()
    for folder, below, files in os.walk(root / name, followlinks=True, onerror=complain):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()  # a link to where we come from
            continue
        seen.add(real)
        where = os.path.relpath(folder, root)  # half the time of Path, a million times
        found += [f"{where}/{file}" for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")]
    return found
