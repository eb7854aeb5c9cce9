"""folder:PATH, found and complained about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgat.data.folder import Folder
from fastgat.data.registry import load_dataset, silent
from fastgat.errors import ConfigError, DataError
from tests.data.pictures import CLASSES, make_folder


def test_a_tenth_validates_where_nobody_says_which(tmp_path: Path) -> None:
    make_folder(tmp_path, each=10)
    data = load_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 0)
    assert data.classes == CLASSES
    assert data.name == f"folder:{tmp_path}"
    assert data.train.shape == (32, 32, 3)
    numbers = [*data.train.numbers, *data.validation.numbers]  # type: ignore[union-attr]  # in files
    assert sorted(numbers) == list(range(30))
    again, other = (Folder(tmp_path, 32).load(seed, silent) for seed in (0, 1))
    np.testing.assert_array_equal(again.validation.numbers, data.validation.numbers)  # type: ignore[union-attr]
    assert not np.array_equal(other.validation.numbers, again.validation.numbers)


def test_splits_that_have_folders_are_taken(tmp_path: Path) -> None:
    for part, each in (("train", 6), ("val", 2), ("test", 3)):
        make_folder(tmp_path / part, each)
    data = Folder(tmp_path, 16).load(0, silent)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 9)
    assert "val" in data.validation.name(0)
    # In random order, so that the first images are of all classes.
    assert len(set(data.train.first(9).labels)) == 3


def test_labels_are_the_folders_of_the_images(tmp_path: Path) -> None:
    train = Folder(make_folder(tmp_path), 16).load(0, silent).train
    assert [Path(train.name(row)).parent.name for row in range(len(train))] == [CLASSES[i] for i in train.labels]


def test_deep_folders_count_and_other_files_do_not(tmp_path: Path) -> None:
    make_folder(tmp_path, each=2)
    (tmp_path / "ants" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "ants" / "000.jpg").rename(tmp_path / "ants" / "deep" / "deeper" / "X.JPG")
    for other in ("Thumbs.db", ".hidden.jpg", "notes.txt"):
        (tmp_path / "ants" / other).write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    data = Folder(tmp_path, 16).load(0, silent)
    assert len(data.train) + len(data.validation) == 6
    assert data.classes == CLASSES


def test_links_are_followed_and_not_for_ever(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", each=2)
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "images" / "ants").iterdir():
        path.rename(tmp_path / "elsewhere" / path.name)
    (tmp_path / "images" / "ants" / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "ants" / "loop").symlink_to(tmp_path / "images" / "ants")
    data = Folder(tmp_path / "images", 16).load(0, silent)
    assert len(data.train) + len(data.validation) == 6


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_an_image_to_train_on(tmp_path: Path, seed: int) -> None:
    make_folder(tmp_path, each=10)
    for path in list((tmp_path / "bees").iterdir())[1:]:
        path.unlink()
    data = Folder(tmp_path, 16).load(seed, silent)
    assert np.bincount(data.train.labels).tolist() == [9, 1, 9]
    assert np.bincount(data.validation.labels, minlength=3).tolist() == [1, 0, 1]


def test_two_images_are_too_few(tmp_path: Path) -> None:
    make_folder(tmp_path, each=1, classes=["a", "b"])
    with pytest.raises(DataError, match="2 images of 2 classes are too few to hold any out"):
        Folder(tmp_path, 16).load(0, silent)


def empty_class(path: Path) -> None:
    make_folder(path, 2)
    (path / "dogs").mkdir()


def only_train(path: Path) -> None:
    make_folder(path / "train", 2)


def other_classes(path: Path) -> None:
    make_folder(path / "train", 2)
    make_folder(path / "val", 2, classes=["ants", "bees"])


def unknown_class(path: Path) -> None:
    make_folder(path / "train", 2)
    make_folder(path / "val", 2, classes=[*CLASSES, "dogs"])


def one_class(path: Path) -> None:
    make_folder(path, 2, classes=["ants"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (Path.mkdir, "expected a folder for each class, found 0"),
        (one_class, "expected a folder for each class, found 1: ants"),
        (empty_class, r"dogs: no JPEG, PNG or WebP image, and so an empty class"),
        (only_train, r"has train/ but not both train/ and val/"),
        (other_classes, r"train/ has classes that val/ has not: cats"),
        (unknown_class, r"val/ has classes that train/ has not: dogs"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "images"
    make(path)
    with pytest.raises(DataError, match=message) as raised:
        Folder(path, 16).load(0, silent)
    assert str(path) in str(raised.value)


def test_a_path_is_needed_and_a_size_must_fit() -> None:
    with pytest.raises(ConfigError, match="'folder:' does not say where"):
        load_dataset("folder:")
    with pytest.raises(ConfigError, match="image_size 64: digits has images of 32 x 32"):
        load_dataset("digits", image_size=64)
