"""webdataset:PATTERN, tar shards of images (NAME.jpg, .png or .webp) and labels (NAME.cls), read by their offsets."""

import glob
import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgat.data.decoding import EXTENSIONS, MAX_BYTES, MAX_PIXELS
from fastgat.data.download import Progress, remembered
from fastgat.data.sets import PARTS, DataSet, EncodedSet, PassedOver, assemble
from fastgat.errors import DataError
from fastgat.files import read_file

INDEX = "shards-2"  # the kind of what is kept of a shard: bump where other shards are refused, or read otherwise
BLOCK = 512
LABELS = 10**6  # more classes than any classifier has
LABEL, LABEL_BYTES = ".cls", 64
SHARDS = 100_000  # more shards than any data set has
HEADER_BYTES = 2**20
"""The longest header, such as one with a long name, that is read of a shard; and the longest padding at its end."""


Sample = tuple[str, int, int, int]  # the name of an image in a shard, its offset and length in bytes, and its label


class ShardIndex(NamedTuple):
    """The images of a shard, and what else it holds."""

    samples: list[Sample]
    passed_over: dict[str, tuple[int, str]]


@dataclass(frozen=True, eq=False)
class Shards:
    """Images inside the tar files of the split `part`, known by their names, `by_shard` or alone."""

    part: str
    images: list[tuple[Path, Sample]]
    by_shard: bool = True

    def key(self, number: int) -> str:
        path, (name, *_) = self.images[number]
        return f"{self.part}{path.name}/{name}" if self.by_shard else f"{self.part}{name}"

    def name(self, number: int) -> str:
        path, (name, *_) = self.images[number]
        return f"{path}: {name}"

    def read(self, number: int) -> bytes:
        path, (_, offset, length, _) = self.images[number]
        return read_file(path, MAX_BYTES, offset, length)


@dataclass(frozen=True)
class WebDataset:
    """The shards that `pattern` names, their images scaled to `size`.

    A pattern may have wildcards and ranges, as in `data/{split}-{000..031}.tar`; `{split}` stands for train, val and
    test, or another of the names in PARTS. Without val a tenth of the training images is held out.
    """

    pattern: str
    size: int
    max_pixels: int = MAX_PIXELS

    def load(self, split_seed: int, progress: Progress, rule: str = "place") -> DataSet[EncodedSet]:
        """Raises DataError, naming the shard, for anything that is not as described."""
        passed_over = PassedOver()
        parts = {
            part: self._read(
                paths, f"{part}/" if "{split}" in self.pattern else "", progress, passed_over, rule == "place"
            )
            for part, paths in self._shards().items()
        }
        classes = _classes(parts["train"], self.pattern)
        for images in parts.values():
            if (highest := int(images.labels.max())) >= len(classes):
                name = images.name(int(images.labels.argmax()))
                raise DataError(f"{name}: label {highest}, but the training shards have 0..{len(classes) - 1}")
        return assemble(f"webdataset:{self.pattern}", parts, classes, self.pattern, split_seed, rule, passed_over)

    def _shards(self) -> dict[str, list[Path]]:
        """The shards of each split; all of them train where the pattern has no `{split}`."""
        if "{split}" not in self.pattern:
            return {"train": expand(self.pattern)}
        shards: dict[str, list[Path]] = {}
        for part, words in PARTS.items():
            named = [expand(self.pattern.replace("{split}", word)) for word in words]
            named = [paths for paths in named if any(path.exists() for path in paths)]
            if len(named) > 1:
                raise DataError(f"{self.pattern}: {named[0][0]} and {named[1][0]} both look like {part}: which is it?")
            if named:
                shards[part] = named[0]
        if "train" not in shards or len(shards) == 1:
            missing = self.pattern.replace("{split}", "val" if "train" in shards else "train")
            raise DataError(f"{missing}: no such shard")
        return shards

    def _read(
        self, paths: list[Path], part: str, progress: Progress, passed_over: PassedOver, by_shard: bool
    ) -> EncodedSet:
        if not paths:
            raise DataError(f"{self.pattern}: no such shard")
        images: list[tuple[Path, Sample]] = []
        for done, path in enumerate(paths):
            progress("indexing shards", done, len(paths))
            index = shard_index(path)
            images += [(path, sample) for sample in index.samples]
            for kind, (count, example) in index.passed_over.items():
                passed_over.add(kind, f"{path.name}: {example}", count)
        progress("indexing shards", len(paths), len(paths))
        labels = np.array([label for _, (*_, label) in images], np.int64)
        return EncodedSet(Shards(part, images, by_shard), np.arange(len(labels)), labels, self.size, self.max_pixels)


def expand(pattern: str) -> list[Path]:
    """The files that a pattern names: ranges as {000..031} and choices as {a,b} first, then wildcards.

    Raises DataError for a pattern that names more than any data set has.
    """
    if len(pattern) > os.pathconf("/", "PC_PATH_MAX"):
        raise DataError(f"{pattern[:40]}...: a pattern of {len(pattern):,} characters, longer than a path can be")
    if os.path.exists(pattern):  # noqa: PTH110  # brackets and all; a Path raises for names that are too long
        return [Path(pattern)]
    choices, count = [], 1
    for part in re.split(r"(\{[^{}]*\})", pattern):
        choices.append(_choices(part))
        count *= max(1, len(choices[-1]))
        if count > SHARDS:
            raise DataError(f"{pattern}: names more than {SHARDS:,} shards")
    found = [(each, _matches(each)) for each in map("".join, itertools.product(*choices))]
    paths = [path for _, matches in found for path in matches]
    if paths and (missing := [each for each, matches in found if not matches]):
        raise DataError(f"{missing[0]}: no such shard")
    files = [os.path.realpath(path) for path in paths]  # a link is not another shard
    if len(files) > len(set(files)):
        twice = next(path for path, file in zip(paths, files, strict=True) if files.count(file) > 1)
        raise DataError(f"{pattern}: names {twice} twice")
    return paths


def _matches(pattern: str) -> list[Path]:
    """The file of that name, whether it is there or not, or those that its wildcards find."""
    if glob.has_magic(pattern) and not os.path.exists(pattern):  # noqa: PTH110  # brackets and all
        return list(map(Path, sorted(glob.glob(pattern))))  # noqa: PTH207
    return [Path(pattern)]


def _choices(part: str) -> list[str]:
    """What a part of a pattern stands for: the numbers of {000..031}, or one more than are allowed; {a,b}; itself."""
    if ends := re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", part):
        numbers = range(int(ends[1]), int(ends[2]) + 1)[: SHARDS + 1]
        return [str(number).zfill(len(ends[1])) for number in numbers]
    return part[1:-1].split(",") if part.startswith("{") and part.endswith("}") else [part]


def shard_index(path: Path) -> ShardIndex:
    """The index of one shard, kept in the user's cache until the shard changes.

    Raises DataError if it is not a tar file of images with labels.
    """
    return ShardIndex(*remembered(INDEX, path, lambda: _read_samples(path)))


class _Headers(io.FileIO):
    """A tar file of which no more than HEADER_BYTES are read at a time, whatever a header says of its length."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size) or b""


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """What a tar file holds. Raises DataError where it is damaged, truncated, or not one tar file, OSError where it is
    no regular file."""
    read_file(path, length=0)
    size = path.stat().st_size
    end = 0
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # of which it keeps every one
                if member.size < 0 or member.offset_data < end:
                    raise tarfile.ReadError(f"{member.name} has a size of {member.size}")
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                if end > size:
                    raise DataError(f"{path}: truncated within {member.name}")
                yield member
        tail = read_file(path, offset=end, length=HEADER_BYTES + 1)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  # a damaged archive can fail in any way
        raise DataError(f"{path}: not a whole, uncompressed tar file ({error})") from None
    if tail[: 2 * BLOCK] != bytes(2 * BLOCK) or size % BLOCK:  # tarfile takes any end for one
        raise DataError(f"{path}: truncated, or never closed: a tar file's end mark is missing")
    if len(tail) > HEADER_BYTES or tail.strip(b"\0"):
        raise DataError(f"{path}: {size - end:,} bytes follow its end mark: it is not one tar file")


def _read_samples(path: Path) -> ShardIndex:
    """The images of a shard, whose files follow one another sample by sample."""
    passed_over = PassedOver()
    samples: list[Sample] = []
    keys: set[str] = set()
    for key, group in itertools.groupby(_files(path, passed_over), lambda file: _key(file[0])):
        files = list(group)
        images = [file for file in files if not file[0].lower().endswith(LABEL)]
        if len(images) > 1:
            raise DataError(f"{path}: {images[1][0]} is a second image of its sample")
        labels = [file for file in files if file not in images]
        if not images or not labels:
            raise _incomplete(path, key, (LABEL,) if images else EXTENSIONS)
        if len(labels) > 1:
            raise DataError(f"{path}: {labels[1][0]} is a second label of its sample")
        if key in keys:
            raise DataError(f"{path}: sample {key} appears twice")
        keys.add(key)
        samples.append((*images[0], _label(path, *labels[0])))
    if not samples:
        others = f"; it holds {passed_over}" if passed_over.kinds else ""
        raise DataError(f"{path}: no image in this shard{others}")
    return ShardIndex(samples, passed_over.kinds)


def _key(name: str) -> str:
    """The name of a sample, which ends at the first dot of its files' names."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _files(path: Path, passed_over: PassedOver) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of each image and label of a shard; hard links are followed."""
    places: dict[str, tuple[int, int]] = {}
    for member in _members(path):
        name, file = member.name, member.name.rpartition("/")[2]
        if member.isdir():
            continue
        if file.startswith(".") or name[len(_key(name)) :].lower() not in (*EXTENSIONS, LABEL):
            dotted = file.lower().endswith((*EXTENSIONS, LABEL))
            other = "with a second dot in their names" if dotted else Path(file).suffix.lower() or "without extension"
            passed_over.add("hidden" if file.startswith(".") else other, name)
        elif member.isreg() or (member.islnk() and member.linkname in places):
            places[name] = (member.offset_data, member.size) if member.isreg() else places[member.linkname]
            yield name, *places[name]
        else:
            raise DataError(
                f"{path}: {name} is neither a file nor a hard link to an earlier one: pack the shard with "
                "`tar --dereference --hard-dereference`"
            )


def _incomplete(path: Path, key: str, missing: tuple[str, ...]) -> DataError:
    """The error of a sample that lacks its label, or all of the `missing` kinds of images."""
    if any(member.name in [key + extension for extension in missing] for member in _members(path)):
        apart = f"image and label of sample {key} are not side by side: pack the shard with `tar --sort=name`"
        return DataError(f"{path}: {apart}")
    what = f"label ({key}.cls)" if missing == (LABEL,) else ".jpg, .png or .webp"
    return DataError(f"{path}: sample {key} has no {what}")


def _label(path: Path, name: str, offset: int, length: int) -> int:
    raw = read_file(path, offset=offset, length=min(length, LABEL_BYTES))
    label = int(raw) if length <= LABEL_BYTES and raw.strip().isdigit() else -1
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
