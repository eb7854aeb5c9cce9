"""Which images a run was made with: a digest in its checkpoints, their names beside them.

So a run that goes on, or is evaluated, can tell that its images have changed.
"""

import gzip
import hashlib
import io
import json
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastgat.data.sets import DataSet, EncodedSet, Images
from fastgat.errors import CheckpointError, DataError
from fastgat.files import read_file, write_atomically

NAMES = "images.json.gz"  # the file of a run folder that lists its images
MAX_BYTES = 2**27  # bytes of that list, unpacked, at most


def split_rule(header: Mapping[str, Any] | None) -> str:
    """How the run of a checkpoint holds images out: by "place", their names in shards and folders. Earlier versions did
    by "name", of a shard's sample without the shard, or by "position"."""
    record = {"split": "place"} if header is None else header.get("data") or {"split": "position"}
    rule = record.get("split") if isinstance(record, Mapping) else None
    if rule not in ("place", "name", "position"):
        raise CheckpointError(f"the checkpoint's record of its data is not one of this version: {str(record)[:80]!r}")
    return rule


@dataclass(frozen=True)
class Identity:
    """The names and classes of a data set's images, in order, the rule by which some of them are held out, and those
    that validate."""

    rule: str
    names: list[str]
    validating: frozenset[str] = frozenset()

    @classmethod
    def of(cls, data: DataSet[Images], rule: str) -> Self | None:
        """That of images in files; None for a published data set, whose files have sums of their own."""
        parts = [_described(part, data.classes) for part in (data.train, data.validation, data.test)]
        names = [name for part in parts for name in part]
        return cls(rule, sorted(names), frozenset(parts[1])) if names else None

    def record(self) -> dict[str, Any]:
        """What a checkpoint's header keeps."""
        digest = hashlib.sha256(json.dumps(self.names).encode()).hexdigest()
        return {"split": self.rule, "images": len(self.names), "digest": digest}

    def save(self, folder: Path) -> None:
        """Write the names into a run folder. Raises OutputError."""
        content = json.dumps({"names": self.names, "validating": sorted(self.validating)})
        write_atomically(folder / NAMES, gzip.compress(content.encode(), compresslevel=1, mtime=0))

    def check(self, checkpoint: Path, header: Mapping[str, Any], *, changed: bool) -> None:
        """Raises DataError if the images are others than those of the run, unless they may have `changed`, and if an
        image that is still there validates where it trained before, or the other way round."""
        before, now = header.get("data"), self.record()
        if not before or before.get("digest") == now["digest"]:
            return
        known, validated = _listed(checkpoint.parent / NAMES)
        if changed and self.rule != "position":
            same = known & {*self.names}
            moved = {name for name in same if (name in validated) != (name in self.validating)} if validated else set()
            if moved:
                raise DataError(
                    f"{checkpoint}: {len(moved):,} images that are still there, such as {min(moved)}, would move "
                    "between training and validation, as happens in classes of few images: the run cannot go on"
                )
            return
        advice = "--changed-data goes on, and leaves every image that is still there in its split"
        if self.rule == "position":
            advice = "this run, begun by an earlier version, cannot go on with others"
        told = f"they were {before.get('images')}, and are {now['images']}"
        if known:
            differences = {"gone": known - {*self.names}, "added": {*self.names} - known}
            listed = [f"{len(names):,} {what}, such as {min(names)}" for what, names in differences.items() if names]
            told = " and ".join(listed) or told
        raise DataError(f"{checkpoint}: its images have changed since it was made: {told}; {advice}")


def _described(images: Images, classes: Sequence[str]) -> list[str]:
    """The names and classes of images in files; none of others."""
    if not isinstance(images, EncodedSet):
        return []
    pairs = zip(images.keys(), images.labels.tolist(), strict=True)
    return [f"{unicodedata.normalize('NFC', key)} (class {classes[label]})" for key, label in pairs]


def _listed(path: Path) -> tuple[set[str], set[str]]:
    """What a run folder lists, and those that validate, which earlier versions did not say; nothing where it has no
    such list, or a damaged one."""
    try:
        with gzip.open(io.BytesIO(read_file(path, MAX_BYTES))) as file:
            content = json.loads(file.read(MAX_BYTES))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return set(), set()
    content = content if isinstance(content, dict) else {"names": content}
    lists = content.get("names"), content.get("validating")
    names, validating = (
        {name for name in each if isinstance(name, str)} if isinstance(each, list) else set() for each in lists
    )
    return names, validating
