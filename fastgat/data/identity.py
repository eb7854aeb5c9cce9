"""Which images a run was made with: a digest in its checkpoints, their names beside them.

So a run that goes on, or is evaluated, can tell that its images have changed.
"""

import gzip
import hashlib
import io
import json
import unicodedata
import zlib
from collections.abc import Mapping
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
    """The names and classes of a data set's images, in order, and the rule by which some of them are held out."""

    rule: str
    names: list[str]

    @classmethod
    def of(cls, data: DataSet[Images], rule: str) -> Self | None:
        """That of images in files; None for a published data set, whose files have sums of their own."""
        names = [
            f"{unicodedata.normalize('NFC', key)} (class {data.classes[label]})"
            for part in (data.train, data.validation, data.test)
            if isinstance(part, EncodedSet)
            for key, label in zip(part.keys(), part.labels.tolist(), strict=True)
        ]
        return cls(rule, sorted(names)) if names else None

    def record(self) -> dict[str, Any]:
        """What a checkpoint's header keeps."""
        digest = hashlib.sha256(json.dumps(self.names).encode()).hexdigest()
        return {"split": self.rule, "images": len(self.names), "digest": digest}

    def save(self, folder: Path) -> None:
        """Write the names into a run folder. Raises OutputError."""
        write_atomically(folder / NAMES, gzip.compress(json.dumps(self.names).encode(), compresslevel=1, mtime=0))

    def check(self, checkpoint: Path, header: Mapping[str, Any], *, changed: bool) -> None:
        """Raises DataError if the images are others than those of the run, unless they may have `changed`."""
        before, now = header.get("data"), self.record()
        if not before or before.get("digest") == now["digest"] or (changed and self.rule != "position"):
            return
        advice = "--changed-data goes on, and leaves every image that is still there in its split"
        if self.rule == "position":
            advice = "this run, begun by an earlier version, cannot go on with others"
        told = f"they were {before.get('images')}, and are {now['images']}"
        if known := _names(checkpoint.parent / NAMES):
            differences = {"gone": known - {*self.names}, "added": {*self.names} - known}
            listed = [f"{len(names):,} {what}, such as {min(names)}" for what, names in differences.items() if names]
            told = " and ".join(listed) or told
        raise DataError(f"{checkpoint}: its images have changed since it was made: {told}; {advice}")


def _names(path: Path) -> set[str]:
    """What a run folder lists; nothing where it has no such list, or a damaged one."""
    try:
        with gzip.open(io.BytesIO(read_file(path, MAX_BYTES))) as file:
            names = json.loads(file.read(MAX_BYTES))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
