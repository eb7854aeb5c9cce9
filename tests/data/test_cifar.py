"""CIFAR on disk: extracted, archived, damaged, altered. The files are small copies with MD5 sums of their own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastgat.data import cifar, download, registry
from fastgat.data.cifar import CIFAR10, CIFAR100, Cifar
from fastgat.data.digits import DIGITS
from fastgat.data.registry import load_dataset, silent
from fastgat.errors import DataError
from fastgat.files import read_file
from tests.data.test_pickles import published

ROWS = 40


def rows(seed: int, count: int = ROWS) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(256, size=(count, 3072), dtype=np.uint8), random.integers(10, size=count).tolist()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cifar, Path]:
    """CIFAR-10 of 5 x 40 and 40 images, extracted under a folder, and known to the registry under its own name."""
    root = tmp_path / "data"
    folder = root / CIFAR10.folder
    folder.mkdir(parents=True)
    for seed, name in enumerate(CIFAR10.train | CIFAR10.test):
        data, labels = rows(seed)
        (folder / name).write_bytes(published({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(published({"label_names": [f"class {i}".encode() for i in range(10)]}))

    def sums(names: dict[str, str]) -> dict[str, str]:
        return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}

    archive = root / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.folder)
    source = replace(
        CIFAR10,
        train=sums(CIFAR10.train),
        test=sums(CIFAR10.test),
        meta=sums(CIFAR10.meta),
        archive_md5=hashlib.md5(archive.read_bytes()).hexdigest(),
        url="https://nowhere.invalid/cifar-10-python.tar.gz",
    )
    monkeypatch.setattr(cifar, "VALIDATION", 20)
    monkeypatch.setitem(registry.DATASETS, "cifar10", source)
    monkeypatch.setattr(registry, "CIFAR10", source)
    return source, root


def test_extracted_files_are_read(small: tuple[Cifar, Path]) -> None:
    source, root = small
    images = source.load(root, 0, silent)
    assert (len(images.train), len(images.validation), len(images.test)) == (180, 20, 40)
    assert images.classes[3] == "class 3"
    data, labels = rows(5)
    np.testing.assert_array_equal(images.test.labels, labels)
    # The files hold the red plane first, then green, then blue, each row by row.
    assert images.test.images[7, 2, 30, 1] == data[7, 1 * 1024 + 2 * 32 + 30]


@pytest.mark.parametrize("how", ["the folder itself", "FASTGAT_DATA", "the user's cache"])
def test_places(small: tuple[Cifar, Path], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    source, root = small
    folder: Path | None = None
    if how == "the folder itself":
        folder = root / source.folder
    elif how == "FASTGAT_DATA":
        monkeypatch.setenv("FASTGAT_DATA", str(root))
    else:
        download.cache_folder().parent.mkdir(parents=True, exist_ok=True)
        root.rename(download.cache_folder())
    assert len(load_dataset("cifar10", folder).test) == 40


def test_the_archive_is_verified_and_extracted(small: tuple[Cifar, Path], tmp_path: Path) -> None:
    source, root = small
    target = tmp_path / "elsewhere"
    target.mkdir()
    (root / "made.tar.gz").rename(target / "cifar-10-python.tar.gz")
    assert len(load_dataset("cifar10", target).train) == 180
    assert {path.name for path in (target / source.folder).iterdir()} == set(source.files)


@pytest.fixture
def server(small: tuple[Cifar, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cifar]:
    """The archive on a web server of this machine, and nowhere else."""
    source, root = small
    (root / "made.tar.gz").rename(root / "cifar-10-python.tar.gz")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield replace(source, url=f"http://127.0.0.1:{web.server_address[1]}/cifar-10-python.tar.gz")
        web.shutdown()


def test_it_is_downloaded_with_progress_verified_and_extracted(server: Cifar, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = server.fetch(None, lambda *step: steps.append(step))
    assert found == download.cache_folder() / server.folder
    assert {path.name for path in found.iterdir()} == set(server.files)
    assert {what for what, _, _ in steps} == {"downloading cifar-10-python.tar.gz"}
    assert steps[-1][1] == steps[-1][2] > 0
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_a_download_that_is_not_the_published_file_is_not_kept(server: Cifar, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DataError, match="as downloaded does not have the published MD5 sum"):
        replace(server, archive_md5="0" * 32).fetch(target, silent)
    assert not list(target.iterdir())


def test_the_split_is_seeded_and_covers_every_image_once(small: tuple[Cifar, Path]) -> None:
    source, root = small
    first, again, other = (source.load(root, seed, silent) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.validation.images, other.validation.images)
    seen = {image.tobytes() for part in (first.train, first.validation) for image in part.images}
    assert len(seen) == 200


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, "data_batch_3: damaged or altered"),
        (truncate, "data_batch_3: damaged or altered"),
        (Path.unlink, "data_batch_3: No such file"),
    ],
)
def test_a_wrong_file_is_named(small: tuple[Cifar, Path], change: Callable[[Path], None], message: str) -> None:
    source, root = small
    load_dataset("cifar10", root)
    change(root / source.folder / "data_batch_3")
    for name in ("cifar10", "auto"):
        with pytest.raises(DataError, match=message):
            load_dataset(name, root)


def test_a_pipe_in_place_of_a_file_is_named(small: tuple[Cifar, Path]) -> None:
    source, root = small
    path = root / source.folder / "data_batch_3"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="data_batch_3: not a regular file"):
        source.fetch(root, silent)


def test_a_folder_in_place_of_a_file_is_named(small: tuple[Cifar, Path]) -> None:
    source, root = small
    (root / source.folder / "data_batch_3").unlink()
    (root / source.folder / "data_batch_3").mkdir()
    with pytest.raises(DataError, match="data_batch_3: Is a directory"):
        load_dataset("cifar10", root)


def test_an_extraction_that_was_cut_short_is_done_again(small: tuple[Cifar, Path]) -> None:
    source, root = small
    (root / "made.tar.gz").rename(root / "cifar-10-python.tar.gz")
    (root / source.folder / "test_batch").unlink()
    assert len(load_dataset("cifar10", root).test) == 40


def test_a_damaged_archive_is_named(small: tuple[Cifar, Path], tmp_path: Path) -> None:
    _, root = small
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "cifar-10-python.tar.gz").write_bytes((root / "made.tar.gz").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: damaged or altered"):
        load_dataset("cifar10", target)


@pytest.mark.parametrize("kind", ["path outside", "link", "missing"])
def test_an_archive_writes_nothing_but_the_files_asked_for(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        if kind == "path outside":
            member = tarfile.TarInfo("../evil")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        elif kind == "link":
            member = tarfile.TarInfo("set/wanted")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(member)
    with pytest.raises(DataError, match="damaged or not the published archive"):
        download.extract(archive, ["wanted"], tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]


def test_verified_files_are_not_read_again_unless_they_change(
    small: tuple[Cifar, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = small
    source.fetch(root, silent)
    read: list[str] = []

    def counted(path: Path) -> bytes:
        if path.suffix != ".json":
            read.append(path.name)
        return read_file(path)

    monkeypatch.setattr(download, "read_file", counted)
    source.fetch(root, silent)
    assert read == []
    os.utime(root / source.folder / "test_batch", (1, 1))
    source.fetch(root, silent)
    assert read == ["test_batch"]
    source.fetch(root, silent, again=True)
    assert len(read) == 1 + len(source.files)


def test_a_wrong_sum_is_not_remembered(small: tuple[Cifar, Path]) -> None:
    """A file may be put right from a copy that has its size and time."""
    source, root = small
    path = root / source.folder / "data_batch_3"
    right = path.read_bytes()
    damage(path)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="data_batch_3: damaged or altered"):
        source.fetch(root, silent)
    path.write_bytes(right)
    os.utime(path, (1, 1))
    source.fetch(root, silent)


def test_a_cache_that_cannot_be_written_does_not_matter(
    small: tuple[Cifar, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert len(load_dataset("cifar10", small[1]).train) == 180


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100], ids=lambda source: source.name)
def test_a_folder_that_is_not_a_data_set(source: Cifar, tmp_path: Path) -> None:
    source = replace(source, url="https://nowhere.invalid/x.tar.gz")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=rf"holds neither {source.folder}/ nor .* cannot be downloaded"):
        source.fetch(tmp_path, silent)


def test_a_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder \(from --data-dir\)"):
        load_dataset("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("FASTGAT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="FASTGAT_DATA"):
        load_dataset("auto")


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    content = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [99, 0], "coarse_labels": [3, 4]}
    (tmp_path / "train").write_bytes(published(content))
    assert CIFAR100._read(tmp_path, ["train"]).labels.tolist() == [99, 0]


def test_damaged_digits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "digits.csv.gz"
    damaged.write_bytes(b"damaged")
    monkeypatch.setattr(type(DIGITS), "find", lambda self, data_dir: damaged)
    for read in (lambda: DIGITS.fetch(None, silent, again=True), lambda: DIGITS.load(None, 0, silent)):
        with pytest.raises(DataError, match="damaged or altered"):
            read()
