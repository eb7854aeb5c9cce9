"""What a checkpoint and a run folder keep of a run's images."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fastgat.data.identity import NAMES, Identity, split_rule
from fastgat.errors import CheckpointError, DataError

THREE = Identity("place", ["a/0.png (class a)", "a/1.png (class a)", "b/0.png (class b)"])
TWO = Identity("place", ["a/0.png (class a)", "b/\udcff.png (class b)"])


def test_the_rule_is_the_run_s() -> None:
    assert split_rule(None) == split_rule({"data": THREE.record()}) == "place"
    assert split_rule({}) == split_rule({"data": None}) == "position"  # of an earlier version


@pytest.mark.parametrize("record", [{"split": "neither"}, [1], "name", {"split": ["name"]}])
def test_a_record_that_is_none(record: object) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint's record of its data is not one of this version"):
        split_rule({"data": record})


def test_what_has_changed_is_said_by_name(tmp_path: Path) -> None:
    THREE.save(tmp_path)
    checkpoint, header = tmp_path / "last.safetensors", {"data": THREE.record()}
    THREE.check(checkpoint, header, changed=False)
    TWO.check(checkpoint, header, changed=True)
    with pytest.raises(DataError, match=r"2 gone, such as a/1\.png \(class a\) and 1 added, such as b/\udcff\.png"):
        TWO.check(checkpoint, header, changed=False)


def test_an_image_that_would_change_its_split_stops_a_run(tmp_path: Path) -> None:
    before, now = (
        Identity(THREE.rule, THREE.names + more, frozenset(held))
        for more, held in (([], THREE.names[:1]), (["c"], ["c"]))
    )
    before.save(tmp_path)
    with pytest.raises(DataError, match=r"1 images that are still there, such as a/0\.png \(class a\), would move"):
        now.check(tmp_path / "last.safetensors", {"data": before.record()}, changed=True)
    same = Identity(now.rule, now.names, before.validating | {"c"})
    same.check(tmp_path / "last.safetensors", {"data": before.record()}, changed=True)


BROKEN, HUGE = (gzip.compress(content, mtime=0) for content in (b"[1, 2", b"[" * 100_000))


@pytest.mark.parametrize("raw", [None, b"", b"no archive", BROKEN, HUGE])
def test_without_a_list_by_number(tmp_path: Path, raw: bytes | None) -> None:
    if raw is not None:
        (tmp_path / NAMES).write_bytes(raw)
    with pytest.raises(DataError, match="they were 3, and are 2; --changed-data goes on"):
        TWO.check(tmp_path / "last.safetensors", {"data": THREE.record()}, changed=False)


def test_a_list_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.data.identity.MAX_BYTES", 1000)
    (tmp_path / NAMES).write_bytes(gzip.compress(b'["a"' + b" " * 10**6 + b"]"))
    with pytest.raises(DataError, match="they were 3, and are 2"):
        TWO.check(tmp_path / "last.safetensors", {"data": THREE.record()}, changed=False)
