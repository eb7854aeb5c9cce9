"""folder:PATH, found and complained about."""

from __future__ import annotations

import itertools
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fastgat.data import Images
from fastgat.data.folder import Folder
from fastgat.data.registry import load_dataset, silent
from fastgat.engine.run_checkpoints import check_same_classes
from fastgat.errors import ConfigError, DataError
from tests.data.pictures import CLASSES, encoded, make_folder, picture


def test_a_tenth_validates_where_nobody_says_which(tmp_path: Path) -> None:
    make_folder(tmp_path, each=10)
    data = load_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (25, 5, 0)
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
    assert len(set(data.train.take(slice(9)).labels)) == 3


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
    tree(tmp_path, "bees/0.png", *(f"{name}/{i}.png" for name in ("ants", "cats") for i in range(10)))
    data = Folder(tmp_path, 16).load(seed, silent)
    assert np.bincount(data.train.labels)[1] == 1
    assert 1 <= len(data.validation) < 10


def names(images: Images) -> set[str]:
    return {images.name(row) for row in range(len(images))}  # type: ignore[union-attr]  # in files


def test_other_images_do_not_move_an_image_to_another_split(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{i:03}.jpg" for name in CLASSES for i in range(60)))
    before = Folder(tmp_path, 16).load(0, silent)
    assert 10 <= len(before.validation) <= 26  # 18 of 180, give or take two standard deviations
    for name in ("zzz", "000a", "031a"):
        shutil.copy(tmp_path / "ants" / "000.jpg", tmp_path / "ants" / f"{name}.jpg")
    for path in (tmp_path / "bees").glob("00*"):
        path.unlink()
    after = Folder(tmp_path, 16).load(0, silent)
    assert len(after.train) + len(after.validation) == 173
    assert not names(after.validation) & names(before.train)
    assert not names(after.train) & names(before.validation)


def test_earlier_versions_held_out_by_position(tmp_path: Path) -> None:
    """What they did for this folder and seed, so that their runs go on."""
    data = Folder(make_folder(tmp_path, each=10, size=(8, 8)), 16).load(3, silent, "position")
    assert data.validation.numbers.tolist() == [3, 12, 26]
    assert data.train.numbers.tolist() == [
        20,
        23,
        27,
        17,
        28,
        18,
        10,
        0,
        25,
        11,
        13,
        8,
        15,
        9,
        6,
        1,
        2,
        29,
        16,
        14,
        4,
        7,
        22,
        5,
        21,
        19,
        24,
    ]


def test_two_images_are_too_few(tmp_path: Path) -> None:
    make_folder(tmp_path, each=1, classes=["a", "b"])
    with pytest.raises(DataError, match="2 images of 2 classes are too few to hold any out"):
        Folder(tmp_path, 16).load(0, silent)


def tree(root: Path, *places: str) -> Path:
    """An image at each place."""
    raw = encoded(picture(0, 0, 8, 8), "png")
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(raw)
    return root


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "valid", None),
        ("Training", None, "Testing"),
    ],
)
def test_splits_by_any_of_their_names(tmp_path: Path, train: str, val: str | None, test: str | None) -> None:
    parts = {part: [f"{part}/{name}/{i}.png" for name in "ab" for i in range(9)] for part in (train, val, test) if part}
    data = Folder(tree(tmp_path, *itertools.chain(*parts.values())), 16).load(0, silent)
    assert data.classes == ("a", "b")
    if val is None:
        assert names(data.validation) | names(data.train) == {str(tmp_path / place) for place in parts[train]}
        assert len(data.validation) >= 1
    else:
        assert names(data.validation) == {str(tmp_path / place) for place in parts[val]}
    assert names(data.test) == {str(tmp_path / place) for place in parts.get(test or "", [])}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    places = [f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(9)]
    assert Folder(tree(tmp_path, *places), 16).load(0, silent).classes == ("bus", "car", "train")


def test_what_is_passed_over_is_counted_with_an_example(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(5)))
    tree(
        tmp_path,
        "a/x.bmp",
        "a/y.bmp",
        "b/z.tif",
        "a/.git/0.png",
        "b/.x.png",
        "b/@eaDir/0.png",
        "thumbnails/0.png",
        "0.png",
    )
    data = Folder(tmp_path, 16).load(0, silent)
    assert data.classes == ("a", "b")
    assert len(names(data.train) | names(data.validation)) == 10
    assert data.passed_over == (
        "2 made by a system or viewer (such as thumbnails), 2 hidden (such as a/.git), 2 .bmp (such as a/x.bmp), "
        "1 beside the class folders (such as 0.png), 1 .tif (such as b/z.tif)"
    )


def test_the_same_name_in_two_unicode_forms(tmp_path: Path) -> None:
    """A Mac writes an accent as a character of its own."""
    forms: list[tuple[str, Literal["NFC", "NFD"]]] = [("train", "NFC"), ("val", "NFD")]
    for part, form in forms:
        tree(tmp_path / part, *(f"{unicodedata.normalize(form, name)}/0.png" for name in ("café", "tea")))
    data = Folder(tmp_path, 16).load(0, silent)
    assert data.classes == ("café", "tea")
    assert Path(data.validation.name(0)).exists()
    learnt = [unicodedata.normalize("NFD", name) for name in data.classes]
    check_same_classes(tmp_path, {"model": {"classes": learnt}}, data.classes)  # of an earlier version
    tree(tmp_path / "train", f"{unicodedata.normalize('NFD', 'café')}/0.png")
    with pytest.raises(DataError, match="train: two folders are called café, in different Unicode forms"):
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


def only_other_images(path: Path) -> None:
    tree(path, "a/0.png", "b/0.bmp")


def two_of_a_kind(path: Path) -> None:
    tree(path, *(f"{part}/{name}/0.png" for part in ("train", "Training", "val") for name in "ab"))


def splits_as_classes(path: Path) -> None:
    tree(path, "train_images/0.png", "test_images/0.png")


def no_train(path: Path) -> None:
    tree(path, "val/0.png", "test/0.png")


def one_class(path: Path) -> None:
    make_folder(path, 2, classes=["ants"])


def link_to_itself(path: Path) -> None:
    make_folder(path, 2)
    (path / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (Path.mkdir, "expected a folder for each class, found 0$"),
        (one_class, "expected a folder for each class, found 1: ants"),
        (empty_class, r"dogs: no JPEG, PNG or WebP image, and so an empty class"),
        (
            only_other_images,
            r"b: no JPEG, PNG or WebP image, and so an empty class; passed over: 1 \.bmp \(such as b/0\.bmp\)",
        ),
        (two_of_a_kind, r"Training/ and train/ both look like train/"),
        (splits_as_classes, r"train_images/ and test_images/ look like splits, not classes"),
        (no_train, r"has val/ but lacks its partner"),
        (only_train, r"has train/ but lacks its partner"),
        (link_to_itself, "Too many levels of symbolic links"),
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
