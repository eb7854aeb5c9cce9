"""Samples that cannot be read: an error that names them, or skipped and counted, alike in every loader."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgat.data import create_loader
from fastgat.data.dali import DaliLoader, missing
from fastgat.data.folder import Folder
from fastgat.data.registry import silent
from fastgat.data.sets import PassedOver
from fastgat.errors import DataError
from tests.data.pictures import encoded, make_folder, picture
from tests.data.streams import NAMES, assert_same, folder, labels, names, take


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


@names
def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = damage(make_folder(tmp_path) / "bees" / "003.jpg")
    with pytest.raises(DataError, match=r"bees/003\.jpg: is truncated; --on-bad-sample skip goes on"):
        take(create_loader(name, folder(tmp_path), 4, workers=0), 12)
    assert path.exists()


@pytest.mark.parametrize("name", ["dali", "torch"])
def test_a_file_that_vanishes_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    images = folder(make_folder(tmp_path))
    loader = create_loader(name, images, 4, workers=0)
    (tmp_path / "cats" / "001.png").unlink()
    with pytest.raises(DataError, match=r"cats/001\.png: No such file"):
        take(loader, 6)


@pytest.mark.parametrize("name", NAMES)
def test_pipes_devices_and_images_that_are_too_large_are_bad_samples(tmp_path: Path, name: str) -> None:
    if name == "dali" and missing():
        pytest.skip(str(missing()))
    make_folder(tmp_path, each=4, size=(16, 16))
    os.mkfifo(tmp_path / "ants" / "pipe.jpg")
    (tmp_path / "ants" / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "ants" / "large.png").write_bytes(encoded(picture(0, 0, 16, 17), "png"))
    with (tmp_path / "ants" / "huge.png").open("wb") as file:
        file.truncate(2**33)
    images, _ = Folder(tmp_path, 16, max_pixels=256)._read("", silent, PassedOver(), False)
    loader = create_loader(name, images, 4, workers=0, on_bad_sample="skip")
    assert sum(len(batch.labels) for batch in loader.once()) == 12
    assert sorted(reason.removeprefix(f"{tmp_path}/ants/") for reason in loader.skipped.reasons.values()) == [
        "device.jpg: not a regular file",
        "huge.png: too large: 8,589,934,592 bytes",
        "large.png: is too large: 17 x 16 pixels; --max-pixels 256 at most",
        "pipe.jpg: not a regular file",
    ]


BROKEN = {
    "truncated.jpg": lambda raw: raw[:-200],
    "empty.png": lambda raw: b"",
    "text.webp": lambda raw: b"not an image",
    # Whole as far as shows without decoding it: its end is where it must be, its middle is missing.
    "middle.png": lambda raw: raw[: len(raw) // 3] + raw[-12:],
}


@names
def test_bad_samples_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, each=12, size=(16, 16))
    png = (tmp_path / "ants" / "001.png").read_bytes()
    for file, broken in BROKEN.items():
        (tmp_path / "ants" / file).write_bytes(
            broken(png if "png" in file else (tmp_path / "ants/000.jpg").read_bytes())
        )
    images = folder(tmp_path)
    bad = {row for row in range(len(images)) if Path(images.name(row)).name in BROKEN}  # type: ignore[union-attr]  # in files
    assert bad
    loader = create_loader(name, images, 4, workers=0, on_bad_sample="skip")
    batches = take(loader, 9)
    assert all(len(batch.labels) == 4 for batch in batches)
    seen = list(loader.once())
    assert sum(len(batch.labels) for batch in seen) == len(images) - len(bad)
    assert set(loader.skipped.reasons) == bad
    # The next good sample of the batch takes a bad one's place, in every loader.
    order = np.random.default_rng((0, 0, 0)).permutation(len(images))
    for number, batch in enumerate(batches[: loader.batches_per_epoch]):
        rows = order[4 * number : 4 * number + 4]
        good = [next(rows[(i + k) % 4] for k in range(4) if rows[(i + k) % 4] not in bad) for i in range(4)]
        assert batch.labels.tolist() == images.labels[good].tolist()
    if name != "dali":
        return
    resident = create_loader("resident", images, 4, on_bad_sample="skip")
    assert_same(batches, take(resident, 9))


@names
def test_evaluation_goes_on_past_a_batch_of_nothing_but_bad_samples(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, each=4, size=(16, 16), classes=["a", "b"])
    for file in (tmp_path / "a").glob("*"):
        file.write_bytes(b"")
    images = Folder(tmp_path, 16)._read("", silent, PassedOver(), False)[0]
    loader = create_loader(name, images, 2, workers=0, on_bad_sample="skip")
    assert labels(list(loader.once())) == [1, 1, 1, 1]
    for file in (tmp_path / "b").glob("*"):
        file.write_bytes(b"")
    loader = create_loader(name, images, 2, workers=0, on_bad_sample="skip")
    with pytest.raises(DataError, match=r"no sample of the whole set can be read; one of them: .* is empty"):
        list(loader.once())


@pytest.mark.usefixtures("needs_dali")
def test_a_file_that_vanishes_while_a_bad_one_is_looked_for(tmp_path: Path) -> None:
    """What Pillow and DALI cannot decode is found by trying each file of the batch again."""
    make_folder(tmp_path, each=4, size=(16, 16))
    images = folder(tmp_path)
    loader = create_loader("dali", images, 4, on_bad_sample="skip")
    assert isinstance(loader, DaliLoader)
    rows = loader.sampler.rows(0, 0)
    Path(images.name(rows[0])).unlink()  # type: ignore[union-attr]  # in files
    loader._find_bad(rows, RuntimeError("encountered:\n\nsomething"))
    assert list(loader.skipped.reasons) == [rows[0]]
    with pytest.raises(DataError, match=r"DALI: something, in one of .*ants"):
        loader._find_bad(rows[1:], RuntimeError("encountered:\n\nsomething"))


@pytest.mark.usefixtures("needs_dali")
def test_what_dali_alone_cannot_decode_is_decoded_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a WebP with EXIF, had its header not said so: DALI 2.4 does not skip the byte that fills a chunk up."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    rng = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        pixels = (rng.random((6, 6, 3)) * 255).astype(np.uint8)
        picture = Image.fromarray(pixels).resize((20, 18))
        picture.save(tmp_path / "ab"[number % 2] / f"{number:02}.webp", lossless=True, exif=exif)
    images = Folder(tmp_path, 16)._read("", silent, PassedOver(), False)[0]
    by_pillow, by_header = (create_loader("dali", images, 4, workers=0) for _ in range(2))
    assert isinstance(by_pillow, DaliLoader)
    expected = take(by_header, 6)
    with monkeypatch.context() as patch:
        patch.setattr("fastgat.data.decoding._is_plain", lambda image, raw: True)
        found = take(by_pillow, 6)
    assert 0 < len(by_pillow.by_pillow) < 12
    assert not by_pillow.skipped.reasons
    for one, other in zip(found, expected, strict=True):
        assert one.labels.equal(other.labels)
        assert (one.images - other.images).abs().max() < 12 / 255, "DALI scales a little differently"


@names
def test_a_batch_of_nothing_but_bad_samples_is_an_error(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, each=3, classes=["a", "b"])
    for file in tmp_path.glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no sample of a whole batch can be read; one of them: .* is empty"):
        take(create_loader(name, folder(tmp_path), 2, workers=0, on_bad_sample="skip"), 1)
