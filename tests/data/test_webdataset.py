"""webdataset:PATTERN: shards found, indexed by offset, and complained about."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from fastgat.data import webdataset
from fastgat.data.download import cache_folder
from fastgat.data.registry import load_dataset, silent
from fastgat.data.webdataset import WebDataset, expand, shard_index
from fastgat.errors import DataError
from tests.data.pictures import encoded, make_shard, members, picture


def labels(path: Path) -> list[int]:
    return [label for *_, label in shard_index(path).samples]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{x,y}-{0..1}.tar", ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == [Path(name) for name in names]


def test_wildcards(tmp_path: Path) -> None:
    for name in ("b-1.tar", "a-1.tar", "a-1.txt"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [tmp_path / "a-1.tar", tmp_path / "b-1.tar"]
    with pytest.raises(DataError, match=r"/c-\*\.tar: no such shard"):
        expand(f"{tmp_path}/{{a,c}}-*.tar")
    with pytest.raises(DataError, match=r"names .*/a-1\.tar twice"):
        expand(f"{tmp_path}/{{a-1,a-*}}.tar")
    with pytest.raises(DataError, match=r"names .*/a-1\.tar twice"):
        expand(f"{tmp_path}/{{a,a}}-1.tar")
    (tmp_path / "c-1.tar").symlink_to("a-1.tar")
    with pytest.raises(DataError, match=r"names .*/a-1\.tar twice"):
        expand(f"{tmp_path}/{{a,c}}-1.tar")
    (tmp_path / "c-1.tar").unlink()
    other = tmp_path / "d[1]"
    other.mkdir()
    (tmp_path / "d1").mkdir()
    for place in (other, tmp_path / "d1"):
        (place / "s-1.tar").touch()
    assert expand(f"{other}/s-{{1..1}}.tar") == [other / "s-1.tar"], "a folder with brackets, not what they match"


def test_every_image_is_read_at_its_offset(tmp_path: Path) -> None:
    content = [members(7), members(6, 7)]
    for number, each in enumerate(content):
        make_shard(tmp_path / f"s-{number}.tar", each)
    data = load_dataset(f"webdataset:{tmp_path}/s-{{0..1}}.tar", image_size=40)
    assert (len(data.train) + len(data.validation), len(data.test)) == (13, 0)
    assert len(data.validation) >= 1
    assert data.classes == ("0", "1", "2")
    by_name = {name: raw for part in content for name, raw in part}
    for part in (data.train, data.validation):
        for row in range(len(part)):
            name = part.name(row).rsplit(": ")[-1]  # type: ignore[union-attr]  # in files
            assert part.read(row) == by_name[name]  # type: ignore[union-attr]
            assert int(by_name[name.replace("jpg", "cls")]) == part.labels[row]


def test_splits(tmp_path: Path) -> None:
    make_shard(tmp_path / "train-0.tar", members(9))
    make_shard(tmp_path / "val-0.tar", members(6))
    pattern = f"{tmp_path}/{{split}}-*.tar"
    data = WebDataset(pattern, 16).load(0, silent)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 6, 0)
    make_shard(tmp_path / "testing-0.tar", members(3))
    assert len(WebDataset(pattern, 16).load(0, silent).test) == 3
    (tmp_path / "val-0.tar").unlink()
    data = WebDataset(pattern, 16).load(0, silent)
    assert (len(data.train) + len(data.validation), len(data.test)) == (9, 3)
    make_shard(tmp_path / "test-0.tar", members(3))
    with pytest.raises(DataError, match=r"test-0\.tar and .*testing-0\.tar both look like test"):
        WebDataset(pattern, 16).load(0, silent)


def test_long_names_and_folders_inside_a_shard(tmp_path: Path) -> None:
    long = "deep/" * 30 + "name"
    jpeg = encoded(picture(0, 0, 20, 20), "jpg")
    path = make_shard(tmp_path / "s.tar", [(f"{long}.jpg", jpeg), (f"{long}.cls", b"1"), (f"{long}.json", b"{}")])
    index = shard_index(path)
    ((name, offset, length, label),) = index.samples
    assert path.read_bytes()[offset : offset + length] == jpeg
    assert (name, label) == (f"{long}.jpg", 1)
    assert index.passed_over == {".json": (1, f"{long}.json")}


def test_an_index_is_made_once_and_again_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_shard(tmp_path / "s.tar", members(5))
    first = shard_index(path)
    calls: list[Path] = []
    inner = webdataset._read_samples

    def counted(path: Path) -> object:
        calls.append(path)
        return inner(path)

    monkeypatch.setattr(webdataset, "_read_samples", counted)
    assert [tuple(sample) for sample in shard_index(path).samples] == first.samples
    assert not calls
    make_shard(path, members(6))
    assert len(labels(path)) == 6
    assert calls


JPEG = encoded(picture(0, 0, 20, 20), "jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([("a.jpg", JPEG)], r"sample a has no label \(a.cls\)"),
        ([("a.cls", b"1")], "sample a has no .jpg, .png or .webp"),
        ([("a.jpg", JPEG), ("a.cls", b"cat")], "a.cls is no label: expected a number from 0 to 999,999, got b'cat'"),
        ([("a.jpg", JPEG), ("a.cls", b"-1")], "a.cls is no label"),
        ([("a.jpg", JPEG), ("a.cls", b"1_0")], "a.cls is no label"),
        ([], "no image in this shard"),
        ([("a.txt", b"")], "no image in this shard"),
        ([("a.jpg", JPEG), ("a.cls", b"9" * 30)], "a.cls is no label"),
        ([("a.jpg", JPEG), ("a.png", JPEG), ("a.cls", b"1")], "a.png is a second image of its sample"),
        ([("a.jpg", JPEG), ("a.cls", b"1"), ("a.cls", b"2")], "a.cls is a second label of its sample"),
        (
            [(f"{name}{end}", JPEG if end == ".jpg" else b"0") for name in "aba" for end in (".jpg", ".cls")],
            "sample a appears twice",
        ),
        ([("a.cls", b"1" + b" " * 9999), ("a.jpg", JPEG)], "a.cls is no label"),
        ([("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"1")], "image and label of sample a are not side by side"),
        ([("a.cls", b"1"), ("b.cls", b"1"), ("a.jpg", JPEG)], "image and label of sample a are not side by side"),
        ([("a.bmp", JPEG)], r"no image in this shard; it holds 1 \.bmp \(such as a\.bmp\)"),
    ],
)
def test_a_shard_that_is_not_as_it_must_be(tmp_path: Path, content: list[tuple[str, bytes]], message: str) -> None:
    path = make_shard(tmp_path / "s.tar", content)
    with pytest.raises(DataError, match=message) as raised:
        shard_index(path)
    assert str(path) in str(raised.value)


def test_a_shard_that_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(b"hello " * 1000)
    with pytest.raises(DataError, match=r"s\.tar: not a whole, uncompressed tar file"):
        shard_index(path)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    with pytest.raises(DataError, match=r"s\.tar: not a whole, uncompressed tar file"):
        shard_index(path)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77])
def test_a_truncated_shard(tmp_path: Path, keep: float) -> None:
    path = make_shard(tmp_path / "s.tar", members(20))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(DataError, match=r"s.tar: (truncated|not a whole|sample \d+ has no label)"):
        shard_index(path)


@pytest.mark.parametrize("lost", [1, 511, 512, 513, 1000, 1023])
def test_a_shard_cut_within_its_end_mark(tmp_path: Path, lost: int) -> None:
    path = make_shard(tmp_path / "s.tar", members(3))
    raw = path.read_bytes().rstrip(b"\0")
    end = -(-len(raw) // 512) * 512 + 1024
    path.write_bytes(raw.ljust(end, b"\0"))
    assert len(labels(path)) == 3
    path.write_bytes(raw.ljust(end - lost, b"\0"))
    with pytest.raises(DataError, match="truncated, or never closed: a tar file's end mark is missing"):
        shard_index(path)


def test_what_stands_behind_the_end_mark(tmp_path: Path) -> None:
    first, second = (make_shard(tmp_path / name, members(3)).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "s.tar").write_bytes(first + second)
    with pytest.raises(DataError, match="bytes follow its end mark: it is not one tar file"):
        shard_index(tmp_path / "s.tar")


def test_hard_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"

    def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> None:
        with tarfile.open(path, "a") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)

    make_shard(path, members(3))
    link("9.jpg", "00001.jpg")
    link("9.cls", "00002.cls")
    samples = shard_index(path).samples
    assert labels(path) == [0, 1, 2, 2]
    assert samples[3][1:3] == samples[1][1:3]
    for name, target, kind in (("x.jpg", "x.jpg", tarfile.LNKTYPE), ("x.jpg", "00001.jpg", tarfile.SYMTYPE)):
        make_shard(path, members(3))
        link(name, target, kind)
        with pytest.raises(DataError, match=r"x\.jpg is neither a file nor a hard link to an earlier one"):
            shard_index(path)


def header_of(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo("a.jpg")
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header_of(2**40), "truncated within a.jpg"),
        (header_of(2**32, tarfile.XHDTYPE), "a header of 4,294,967,296 bytes"),
        (header_of(2**32, tarfile.GNUTYPE_LONGNAME), "a header of 4,294,967,296 bytes"),
        ((header_of(512, tarfile.XHDTYPE) + b"\0" * 512) * 2000, "not a whole, uncompressed tar file"),
        (header_of(-512, tarfile.REGTYPE) + b"\0" * 2048, "not a whole, uncompressed tar file"),
    ],
    ids=["a terabyte", "a long pax header", "a long name", "a chain of headers", "a negative size"],
)
def test_headers_that_lie_take_neither_time_nor_memory(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    with path.open("ab") as file:
        file.truncate(2**33)  # a hole
    with pytest.raises(DataError, match=message):
        shard_index(path)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{0..99999999}.tar", "names more than 100,000 shards"),
        ("{0..9}" * 30, "names more than 100,000 shards"),
        ("{a,b}" * 700, "names more than 100,000 shards"),
        ("s-{0.." + "9" * 5000 + "}.tar", "a pattern of 5,011 characters, longer than a path can be"),
    ],
)
def test_patterns_that_name_too_much(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand(pattern)


def test_headers_of_a_sparse_file_that_end(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    raw[482] = 1  # more of them follow
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:]) + 8 * 32)
    (tmp_path / "s.tar").write_bytes(bytes(raw))
    with pytest.raises(DataError, match="not a whole, uncompressed tar file"):
        shard_index(tmp_path / "s.tar")


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    with pytest.raises(DataError, match=r"s\.tar: not a regular file"):
        shard_index(tmp_path / "s.tar")


def test_what_is_passed_over_is_counted_with_an_example(tmp_path: Path) -> None:
    dotted = [(f"img_v1.0_{name}", content) for name, content in members(2)]
    path = make_shard(tmp_path / "s.tar", [*members(20), *dotted, ("x.json", b"{}"), ("._x.jpg", b"")])
    data = load_dataset(f"webdataset:{path}")
    assert len(data.train) + len(data.validation) == 20
    assert data.passed_over == (
        "4 with a second dot in their names (such as s.tar: img_v1.0_00000.jpg), 1 .json (such as s.tar: x.json), "
        "1 hidden (such as s.tar: ._x.jpg)"
    )


def test_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.tar: no such shard"):
        load_dataset(f"webdataset:{tmp_path}/*.tar")
    with pytest.raises(DataError, match=r"a\.tar: No such file"):
        load_dataset(f"webdataset:{tmp_path}/a.tar")


def test_labels_out_of_range(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.tar", members(6))
    make_shard(tmp_path / "val.tar", [("x.jpg", JPEG), ("x.cls", b"3")])
    with pytest.raises(DataError, match=r"val.tar: x.jpg: label 3, but the training shards have 0\.\.2"):
        load_dataset(f"webdataset:{tmp_path}/{{split}}.tar")
    make_shard(tmp_path / "train.tar", [*members(6), ("y.jpg", JPEG), ("y.cls", b"99")])
    with pytest.raises(DataError, match=r"labels go up to 99 \(.*train.tar: y.jpg\), but class 3 is empty"):
        load_dataset(f"webdataset:{tmp_path}/{{split}}.tar")
    make_shard(tmp_path / "train.tar", members(6, classes=1))
    with pytest.raises(DataError, match="all labels are 0"):
        load_dataset(f"webdataset:{tmp_path}/{{split}}.tar")


def test_folders_links_and_files_that_are_no_samples_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    make_shard(path, [("README.txt", b"hello"), *members(3), ("._00003.jpg", b"a Mac was here")])
    for last in ("empty", "link"):
        with tarfile.open(path, "a") as tar:
            tar.add(tmp_path / last, last)
        assert labels(path) == [0, 1, 2]


def test_an_index_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "s.tar", members(3))
    shard_index(path)
    (cached,) = (cache_folder() / webdataset.INDEX).iterdir()
    for content in (b"", b"nonsense"):
        cached.write_bytes(content)
        assert len(labels(path)) == 3


def test_patterns_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    make_shard(tmp_path / "s[1].tar", members(9))
    for pattern in ("s[1].tar", "~/s[1].tar"):
        assert load_dataset(f"webdataset:{pattern}").name == f"webdataset:{tmp_path}/s[1].tar"


def test_samples_that_every_shard_counts_from_0(tmp_path: Path) -> None:
    """A sample is known by its shard and its name: another shard moves none of them."""
    for shard in range(40):
        make_shard(tmp_path / f"{shard}.tar", members(5))
    for seed in range(4):
        data = WebDataset(f"{tmp_path}/*.tar", 16).load(seed, silent)
        assert 5 <= len(data.validation) <= 40
        held = set(data.validation.keys())
        assert len(set(data.train.keys()) | held) == 200
        fewer = WebDataset(f"{tmp_path}/[0-2]*.tar", 16).load(seed, silent)
        there = set(fewer.train.keys()) | set(fewer.validation.keys())
        assert set(fewer.validation.keys()) == held & there
    (tmp_path / "one").mkdir()
    make_shard(tmp_path / "one" / "0.tar", members(30))
    data = WebDataset(f"{tmp_path}/one/0.tar", 16).load(0, silent, "name")
    assert not any("0.tar" in key for key in data.train.keys()), "as runs of earlier versions have it"  # noqa: SIM118
