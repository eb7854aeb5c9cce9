"""Extra training images: their share of each batch, the same for every loader and number of ranks; and files that are
not as they must be."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgat.batch import Batch
from fastgat.data import Augmentation, ImageSet, Loader, create_loader
from fastgat.data import extra as module
from fastgat.data.extra import extended
from fastgat.data.registry import silent
from fastgat.data.sampler import Sampler, share_of
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.errors import DataError
from tests.cli.conftest import Run, run  # noqa: F401  # a fixture
from tests.data.streams import NAMES, assert_same, labels, names, noise, take

EXTRA = 50
MOVING = Augmentation(flip=True, padded_crop=3)


def both() -> ImageSet:
    """noise(), and behind its 23 images EXTRA more, whose labels are their numbers too."""
    more = np.random.default_rng(1).integers(0, 256, (EXTRA, *noise().shape), dtype=np.uint8)
    pixels = np.concatenate([noise().images, more])
    return ImageSet(pixels, np.arange(len(pixels)))


def loader(name: str, size: int, fraction: float = 0.7, **options: Any) -> Loader:
    return create_loader(name, both(), size, extra=EXTRA, extra_fraction=fraction, **options)


@pytest.mark.parametrize(("fraction", "drawn"), [(0.7, 3), (0.2, 1), (1.0, 5)])
def test_a_share_of_each_batch_is_extra(fraction: float, drawn: int) -> None:
    """5 x 0.7 = 3.5 is rounded down. The rest shows nothing twice within an epoch, which keeps its batches."""
    stream = loader("resident", 5, fraction)
    assert stream.batches_per_epoch == 4
    batches = take(stream, 40)
    extra = [[label for label in batch.labels.tolist() if label >= 23] for batch in batches]
    assert {len(each) for each in extra} == {drawn}
    for epoch in range(10):
        own = [label for label in labels(batches[4 * epoch : 4 * epoch + 4]) if label < 23]
        assert len(set(own)) == len(own) == 4 * (5 - drawn)
    assert len({label for each in extra for label in each}) > 0.5 * EXTRA
    if drawn == 3:
        assert len({tuple(label < 23 for label in batch.labels.tolist()) for batch in batches}) > 5, "they are shuffled"
    assert labels(list(stream.once())) == list(range(23))


def test_a_share_is_not_an_image_short() -> None:
    """0.58 x 50 is 28.999... in float64."""
    assert [share_of(50, 0.58), share_of(100, 0.29), share_of(100, 0.57), share_of(5, 0.7)] == [29, 29, 57, 3]
    assert len(Sampler(1000, 50, extra=500, extra_fraction=0.58).rows(0, 0)) == 50


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("augmentation", [Augmentation(), MOVING], ids=["plain", "augmented"])
def test_every_loader_gives_that_stream_from_anywhere(name: str, augmentation: Augmentation) -> None:
    whole = take(loader("resident", 5, augmentation=augmentation, seed=3), 9)
    assert_same(take(loader(name, 5, augmentation=augmentation, seed=3), 4, 0, 5), whole[5:])
    for batch in take(loader(name, 5, seed=3), 3):
        assert batch.images.equal(torch.from_numpy(both().images[batch.labels.numpy()]).permute(0, 3, 1, 2) / 255)


@names
def test_ranks_share_the_batches_of_one_rank(name: str) -> None:
    alone = take(loader(name, 6, augmentation=MOVING), 7)
    ranks = [take(loader(name, 2, augmentation=MOVING, rank=rank, ranks=3), 7) for rank in range(3)]
    together = [Batch(*map(torch.cat, zip(*batches, strict=True))) for batches in zip(*ranks, strict=True)]
    assert_same(together, alone)


def test_without_extra_images_the_order_is_what_it_was() -> None:
    order = np.random.default_rng((0, 0, 1)).permutation(23)
    assert Sampler(23, 5).rows(0, 4).tolist() == order[:5].tolist()


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
LABELS = np.arange(6) % 4


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i4"])
def test_what_a_file_holds(
    save: Callable[..., None], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)
    save(tmp_path / "e.npz", image=IMAGES, label=LABELS.astype(dtype), more=np.arange(3))
    images, digest = extended(noise(), tmp_path / "e.npz", 4, silent)
    assert len(images) == 23 + 6
    assert np.array_equal(images.images[:23], noise().images)
    assert np.array_equal(images.images[23:], IMAGES)
    assert images.labels.tolist() == [*range(23), *LABELS]
    assert images.labels.dtype == np.int64
    other = IMAGES.copy()
    other[3, 2, 1, 0] ^= 1
    save(tmp_path / "e.npz", image=other, label=LABELS.astype(dtype))
    assert extended(noise(), tmp_path / "e.npz", 4, silent)[1] != digest


def cut(path: Path) -> None:
    saved(path, image=IMAGES, label=LABELS)
    path.write_bytes(path.read_bytes()[:1500])


def flipped(path: Path) -> None:
    raw = bytearray(saved(path, image=IMAGES, label=LABELS).read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)


def shorter_than_it_says(path: Path) -> None:
    saved(path, image=IMAGES, label=LABELS)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content[:-10])


def with_header(header: bytes) -> Callable[[Path], None]:
    """A file whose image has this text as its header."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(saved(path, label=LABELS), "a") as archive:
            archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)

    return make


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "no such file"),
    "a pipe": (os.mkfifo, "no such file"),
    "empty": (lambda path: path.touch(), "damaged, or not written by numpy.savez"),
    "text": (lambda path: path.write_text("hello"), "damaged, or not written by numpy.savez"),
    "cut short": (cut, "damaged, or not written by numpy.savez"),
    "a byte changed": (flipped, "damaged, or not written by numpy.savez .Bad CRC-32"),
    "a header cut short": (with_header(b"{'descr': ("), "damaged, or not written by numpy.savez"),
    "a header without a dtype": (
        with_header(b"{'descr': (), 'fortran_order': False, 'shape': (1,)}"),
        "damaged, or not written by numpy.savez",
    ),
    "less than it says": (shorter_than_it_says, "2,150 bytes of an array of 2,160"),
    "no label": (
        lambda path: saved(path, image=IMAGES),
        "has no 'label'; it must hold image and label, and holds image",
    ),
    "other names": (lambda path: saved(path, x=IMAGES, y=LABELS), "has no 'image'; .* holds x, y"),
    "floats": (lambda path: saved(path, image=IMAGES / 255, label=LABELS), r"image must be \(N, 12, 10, 3\) uint8"),
    "channels first": (
        lambda path: saved(path, image=IMAGES.transpose(0, 3, 1, 2), label=LABELS),
        r"as the data set's are, got \(6, 3, 12, 10\) uint8",
    ),
    "by column": (lambda path: saved(path, image=np.asfortranarray(IMAGES), label=LABELS), "numpy.ascontiguousarray"),
    "none": (lambda path: saved(path, image=IMAGES[:0], label=LABELS[:0]), r"got \(0, 12, 10, 3\)"),
    "objects": (
        lambda path: saved(path, image=IMAGES, label=np.array([None] * 6)),
        "label holds Python objects, which would have to be unpickled",
    ),
    "fewer labels": (lambda path: saved(path, image=IMAGES, label=LABELS[:5]), r"label must be \(6,\) integers"),
    "float labels": (lambda path: saved(path, image=IMAGES, label=LABELS / 1), r"got \(6,\) float64"),
    "a class too many": (
        lambda path: saved(path, image=IMAGES, label=LABELS + 1),
        "label 4 of image 3 is outside 0..3",
    ),
    "below 0": (lambda path: saved(path, image=IMAGES, label=LABELS - 1), "label -1 of image 0 is outside 0..3"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_not_right_is_one_line(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    path = tmp_path / "e.npz"
    make(path)
    with pytest.raises(DataError, match=message) as raised:
        extended(noise(), path, 4, silent)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_more_than_fits_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.data.loaders.kernel_figure", lambda *name: 4000)
    with pytest.raises(DataError, match=r"its images take 0\.0 GiB as bytes, more than half of the 0\.0 GiB"):
        extended(noise(), saved(tmp_path / "e.npz", image=IMAGES, label=LABELS), 4, silent)


SMALL = ("--classifier", "tests.support:SmallClassifier")
ARGUMENTS = ("--dataset", "digits", "--train-images", 32, "--batch-size", 8, "--epochs", 2, "--no-compile", *SMALL)


def test_a_run_with_them(run: Run) -> None:  # noqa: F811  # the fixture
    """Stopped and continued it is what it is in one go; another content of the file is noticed."""
    rng = np.random.default_rng(0)
    digits: dict[str, Any] = {
        "image": rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 40),
    }
    np.savez("e.npz", **digits)
    common = ("train", "--method", "baseline", "--extra-data", "e.npz", "--extra-fraction", 0.5)
    whole = run(*common, *ARGUMENTS, "--output", "whole")
    assert whole.code == 0, whole.err
    assert "0.5 of each batch from 40 in e.npz" in " ".join(whole.out.split())
    assert run(*common, *ARGUMENTS, "--epochs", 1, "--output", "parts").code == 0
    assert run(*common, *ARGUMENTS, "--resume", "auto", "--output", "parts").code == 0
    (these, header), (those, _) = (load_checkpoint(Path(name, "last.safetensors")) for name in ("whole", "parts"))
    assert all(tensor.equal(those[name]) for name, tensor in these.items())
    assert header["position"]["step"] == 8, "an epoch keeps its steps"

    Path("elsewhere").mkdir()
    Path("e.npz").rename("elsewhere/e.npz")
    more = ("train", "--resume", "parts", "--epochs", 3, *SMALL)
    assert run(*more, "--extra-data", "elsewhere/e.npz").code == 0
    digits["label"][0] = (digits["label"][0] + 1) % 10
    np.savez("e.npz", **digits)
    changed = run(*more, "--extra-data", "e.npz")
    assert changed.code == 1
    assert changed.err.endswith("what e.npz holds has changed since it was made\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--extra-fraction", 0.5), "extra_fraction is a share of extra_data: name that file, --extra-data FILE.npz"),
        (("--extra-data", "e.npz", "--extra-fraction", 0.1), "a batch of 8 rounds down to no image"),
        (("--extra-data", "e.npz", "--extra-fraction", 1.1), "extra_fraction must be at most 1, got 1.1"),
        (("--extra-data", "none.npz"), "none.npz: no such file"),
    ],
)
def test_options_that_do_not_fit(run: Run, arguments: tuple[object, ...], message: str) -> None:  # noqa: F811
    result = run("train", "--method", "baseline", *ARGUMENTS, *arguments)
    assert result.code != 0
    assert message in result.err
    assert len(result.err.splitlines()) == 1
