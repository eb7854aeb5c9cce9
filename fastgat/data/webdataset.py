"""webdataset:PATTERN, tar shards of images (NAME.jpg, .png or .webp) and labels (NAME.cls), read by their offsets."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgat.data.decoding import EXTENSIONS
from fastgat.data.encoded import EncodedSet
from fastgat.data.sets import DataSet, hold_out, shuffled
from fastgat.data.store import Progress, cache_folder
from fastgat.errors import DataError, OutputError
from fastgat.files import write_atomically

SPLITS = {"train": "train", "validation": "val", "test": "test"}
BLOCK = 512
LABELS = 10**6
"""More classes than any classifier has."""


class ShardIndex(NamedTuple):
    """Where the images of one shard lie, in bytes, and their labels; (N,) int64 each."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shards:
    """Images inside tar files."""

    paths: list[Path]
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def name(self, number: int) -> str:
        path = self.paths[self.shard[number]]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(int(self.offsets[number]) - BLOCK)
                member = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape").name
        except (OSError, tarfile.TarError):
            member = f"the image at byte {self.offsets[number]}"
        return f"{path}: {member}"

    def read(self, number: int) -> bytes:
        with self.paths[self.shard[number]].open("rb", buffering=0) as file:
            file.seek(int(self.offsets[number]))
            return file.read(int(self.lengths[number]))


@dataclass(frozen=True)
class WebDataset:
    """The shards that `pattern` names, their images scaled to `size`.

    A pattern may have wildcards and ranges, as in `data/{split}-{000..031}.tar`; `{split}` stands for train, val and
    (if there are any) test. Without it a tenth of the images, chosen by the split's seed, validates, and there is no
    test set.
    """

    pattern: str
    size: int

    @property
    def name(self) -> str:
        return f"webdataset:{self.pattern}"

    def load(self, split_seed: int, progress: Progress) -> DataSet[EncodedSet]:
        """Raises DataError, naming the shard, for anything that is not as described."""
        if "{split}" not in self.pattern:
            everything = self._read(self.pattern, progress)
            classes = _classes(everything, self.pattern)
            return DataSet(self.name, *hold_out(everything, split_seed), classes, self.pattern)
        parts = {}
        for part, word in SPLITS.items():
            pattern = self.pattern.replace("{split}", word)
            if part != "test" or any(path.exists() for path in expand(pattern)):
                parts[part] = self._read(pattern, progress)
        classes = _classes(parts["train"], self.pattern)
        for part in ("validation", "test"):
            if part in parts and (highest := int(parts[part].labels.max())) >= len(classes):
                row = int(parts[part].labels.argmax())
                name = parts[part].name(row)
                raise DataError(f"{name}: label {highest}, but the training shards have 0..{len(classes) - 1}")
        train = shuffled(parts["train"], split_seed)
        test = parts.get("test", train.first(0))
        return DataSet(self.name, train, parts["validation"], test, classes, self.pattern)

    def _read(self, pattern: str, progress: Progress) -> EncodedSet:
        paths = expand(pattern)
        if not paths:
            raise DataError(f"{pattern}: no such shard")
        indices = []
        for done, path in enumerate(paths):
            progress("indexing shards", done, len(paths))
            indices.append(shard_index(path))
        progress("indexing shards", len(paths), len(paths))
        shard = np.repeat(np.arange(len(paths), dtype=np.int32), [len(index.labels) for index in indices])
        offsets, lengths, labels = (np.concatenate(columns) for columns in zip(*indices, strict=True))
        files = Shards(paths, shard, offsets, lengths)
        return EncodedSet(files, np.arange(len(labels)), labels, self.size)


def expand(pattern: str) -> list[Path]:
    """The files that a pattern names: ranges as {000..031} and choices as {a,b} first, then wildcards."""
    if Path(pattern).exists():  # brackets and all
        return [Path(pattern)]
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207
        return [Path(path) for path in found]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if ends:
        width = len(ends[1])
        words = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        words = braces[1].split(",")
    return [path for word in words for path in expand(pattern[: braces.start()] + word + pattern[braces.end() :])]


def shard_index(path: Path) -> ShardIndex:
    """The index of one shard, kept in the user's cache until the shard changes.

    Raises DataError if it is not a tar file of images with labels.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    cached = cache_folder() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    try:
        kept = np.load(cached)
        if kept.dtype != np.int64 or kept.shape[1:] == (0,):
            raise ValueError("not an index")
        return ShardIndex(*kept)
    except (OSError, ValueError, TypeError, EOFError):
        index = ShardIndex(*np.array(list(_samples(path, stat.st_size)), np.int64).reshape(-1, 3).T)
    if not len(index.labels):
        raise DataError(f"{path}: no image in this shard")
    _keep(cached, index)
    return index


def _keep(cached: Path, index: ShardIndex) -> None:
    content = io.BytesIO()
    np.save(content, np.stack(index))
    # A cache that cannot be written costs another reading of the headers, nothing else.
    with contextlib.suppress(OSError, OutputError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content.getvalue())


def _samples(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """Offset, length and label of each image of a shard, whose files follow one another sample by sample."""
    key, image, label, end = None, None, None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stored = member.size if member.isreg() else 0
                end = member.offset_data + -(-stored // BLOCK) * BLOCK
                if end > size:
                    raise DataError(f"{path}: truncated within {member.name}")
                folder, _, file = member.name.rpartition("/")
                if not member.isreg() or file.startswith("."):
                    continue
                stem, _, extension = file.partition(".")
                if key is not None and key != (folder, stem):
                    yield from _complete(path, key, image, label)
                    image, label = None, None
                key = (folder, stem)
                if f".{extension.lower()}" in EXTENSIONS:
                    if image is not None:
                        raise DataError(f"{path}: {member.name} is a second image of its sample")
                    image = (member.offset_data, member.size)
                elif extension.lower() == "cls":
                    label = _label(path, member.name, tar.extractfile(member).read())  # type: ignore[union-attr]  # a regular file
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a whole, uncompressed tar file ({error})") from None
    with path.open("rb") as whole:
        whole.seek(end)
        if whole.read(BLOCK) != bytes(BLOCK):  # which tarfile takes for an end
            raise DataError(f"{path}: truncated, or never closed: a tar file's end mark is missing")
    if key is not None:
        yield from _complete(path, key, image, label)


def _complete(
    path: Path, key: tuple[str, str], image: tuple[int, int] | None, label: int | None
) -> Iterator[tuple[int, int, int]]:
    """A sample as the index has it; nothing for files that are none."""
    if image is None and label is None:
        return
    name = "/".join(part for part in key if part)
    if image is None:
        raise DataError(f"{path}: sample {name} has no .jpg, .png or .webp")
    if label is None:
        raise DataError(f"{path}: sample {name} has no label ({name}.cls)")
    yield *image, label


def _label(path: Path, name: str, raw: bytes) -> int:
    try:
        label = int(raw)
    except ValueError:
        label = -1
    if not 0 <= label < LABELS:
        raise DataError(f"{path}: {name} is no label: expected a number from 0 to {LABELS - 1:,}, got {raw[:20]!r}")
    return label


def _classes(images: EncodedSet, pattern: str) -> tuple[str, ...]:
    """The numbers from 0 to the highest label; each must have an image."""
    present = np.unique(images.labels)
    highest = int(present[-1])
    if len(present) <= highest:
        missing = int(np.setdiff1d(np.arange(len(present) + 1), present)[0])
        name = images.name(int(images.labels.argmax()))
        raise DataError(f"{pattern}: labels go up to {highest} ({name}), but class {missing} is empty")
    if highest == 0:
        raise DataError(f"{pattern}: all labels are 0; there is nothing to classify")
    return tuple(str(label) for label in range(highest + 1))
