"""The three loaders: one stream, whatever makes it; from any position, on any number of ranks."""

from __future__ import annotations

import gc
import io
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastgat.batch import Batch
from fastgat.data import Augmentation, create_loader
from fastgat.data.dali import missing
from fastgat.data.decoding import decode, read_header
from fastgat.data.folder import Folder
from fastgat.data.loaders import choose
from fastgat.data.registry import silent
from fastgat.data.sampler import Sampler
from fastgat.data.webdataset import WebDataset
from fastgat.errors import ConfigError, DataError
from tests.data.pictures import encoded, make_folder, make_shard, members, picture
from tests.data.streams import NAMES, assert_same, folder, labels, names, noise, take

both_layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
MOVING = Augmentation(flip=True, padded_crop=3, cutout=5)
SCALING = Augmentation(flip=True, padded_crop=2, cutout=4, random_resized_crop=0.25)
WHOLE_BYTES = 1.01 / 255
"""The resident loader interpolates in float32; the others round to bytes, Pillow once an axis."""


@names
@both_layouts
def test_batches_are_scaled_and_laid_out(name: str, channels_last: bool) -> None:
    loader = create_loader(name, noise(), 5, channels_last=channels_last)
    for images, numbers in [*take(loader, 3), *loader.once()]:
        expected = torch.from_numpy(noise().images[numbers.numpy()]).permute(0, 3, 1, 2).float() / 255
        assert images.equal(expected)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)


@names
def test_an_epoch_shows_no_image_twice_and_each_has_its_own_order(name: str) -> None:
    loader = create_loader(name, noise(), 5, seed=1)
    assert loader.batches_per_epoch == 4
    batches = take(loader, 12)
    epochs = [labels(batches[i : i + 4]) for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_players_and_seeds_have_their_own_permutations() -> None:
    orders = [
        tuple(labels(take(create_loader("resident", noise(), 5, seed=seed), 4, player)))
        for seed in (0, 1)
        for player in (0, 1)
    ]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("name", NAMES[1:])
@both_layouts
@pytest.mark.parametrize(("augmentation", "tolerance"), [(Augmentation(), 0), (MOVING, 0), (SCALING, WHOLE_BYTES)])
def test_all_loaders_give_one_stream(
    name: str, augmentation: Augmentation, tolerance: float, channels_last: bool
) -> None:
    these, those = (
        create_loader(each, noise(), 5, seed=3, augmentation=augmentation, channels_last=channels_last)
        for each in ("resident", name)
    )
    assert_same(take(these, 9, 1), take(those, 9, 1), tolerance)
    assert_same(list(these.once()), list(those.once()))


@names
@pytest.mark.parametrize("augmentation", [Augmentation(), MOVING], ids=["plain", "augmented"])
def test_ranks_share_the_batches_of_one_rank(name: str, augmentation: Augmentation) -> None:
    alone = create_loader(name, noise(), 6, seed=2, augmentation=augmentation)
    ranks = [
        create_loader(name, noise(), 2, seed=2, augmentation=augmentation, rank=rank, ranks=3) for rank in range(3)
    ]
    assert {loader.batches_per_epoch for loader in (alone, *ranks)} == {3}
    together = [
        Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        for batches in zip(*(take(loader, 7) for loader in ranks), strict=True)
    ]
    assert_same(together, take(alone, 7))
    assert sorted(label for loader in ranks for label in labels(list(loader.once()))) == list(range(23))


@names
@pytest.mark.parametrize("start", [1, 3, 4, 7, 40])
def test_a_stream_can_start_anywhere(name: str, start: int) -> None:
    whole = take(create_loader("resident", noise(), 5, augmentation=MOVING), 44, 1)
    assert_same(take(create_loader(name, noise(), 5, augmentation=MOVING), 4, 1, start), whole[start : start + 4])


def test_a_stream_does_not_read_what_came_before(tmp_path: Path) -> None:
    images = Folder(make_folder(tmp_path), 16).load(0, silent).train
    read: list[int] = []

    class Watched:
        def name(self, number: int) -> str:
            return images.files.name(number)

        def key(self, number: int) -> str:
            return images.files.key(number)

        def read(self, number: int) -> bytes:
            read.append(number)
            return images.files.read(number)

    for name in ("dali", "torch"):
        if name == "dali" and missing():
            continue
        read.clear()
        loader = create_loader(name, replace(images, files=Watched()), 4, workers=0)
        start = 2
        batch = next(iter(loader.stream(0, start)))
        assert read[:4] != []
        order = np.random.default_rng((0, 0, 0)).permutation(len(images))
        assert batch.labels.tolist() == images.labels[order[8:12]].tolist()
        assert not set(read[:4]) & set(images.numbers[order[:8]])


@names
def test_once_shows_every_image_in_order_without_augmentation(name: str) -> None:
    batches = list(create_loader(name, noise(), 5, augmentation=SCALING).once())
    assert labels(batches) == list(range(23))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 3]
    assert_same(batches, list(create_loader("resident", noise(), 5).once()))


@names
def test_batches_are_not_overwritten_by_later_ones(name: str) -> None:
    stream = create_loader(name, noise(), 5).stream(0)
    first = next(stream)
    before = first.images.clone(), first.labels.clone()
    for _ in range(12):
        next(stream)
    assert first.images.equal(before[0])
    assert first.labels.equal(before[1])


@pytest.mark.usefixtures("needs_dali")
@pytest.mark.parametrize("augmentation", [Augmentation(), SCALING], ids=["plain", "augmented"])
def test_images_in_files_give_one_stream_too(tmp_path: Path, augmentation: Augmentation) -> None:
    """DALI and Pillow decode alike, but scale with filters of their own, which differ where much is scaled away."""
    images = folder(make_folder(tmp_path))
    loaders = [create_loader(name, images, 4, augmentation=augmentation, workers=0) for name in ("dali", "torch")]
    for these, those in zip(take(loaders[0], 7), take(loaders[1], 7), strict=True):
        assert these.labels.equal(those.labels)
        difference = (these.images - those.images).abs()
        assert difference.mean() < 0.5 / 255
        assert difference.max() < 12 / 255


@pytest.mark.usefixtures("needs_dali")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_images_of_the_right_size_are_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for i in range(6):
            (tmp_path / name / f"{i}.{kind}").write_bytes(encoded(picture(i, label, 24, 24), kind))
    images = folder(tmp_path, 24)
    streams = [take(create_loader(name, images, 3, workers=0), 5) for name in NAMES]
    assert_same(streams[0], streams[1])
    assert_same(streams[0], streams[2])


PIXELS = picture(0, 0, 24, 40)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def saved(kind: str, orientation: object = None, xmp: int | None = None, mode: str = "RGB", **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010F] = "a camera"
    if orientation is not None:
        exif[0x0112] = orientation
    options |= {"xmp": XMP % xmp} if xmp else {}
    with warnings.catch_warnings():  # of two numbers where one should be
        warnings.simplefilter("ignore")
        Image.fromarray(PIXELS).convert(mode).save(file, kind, quality=95, exif=exif, lossless=True, **options)
    return file.getvalue()


def without_adobe(raw: bytes) -> bytes:
    """A CMYK JPEG without the marker that says how its values are meant."""
    at = raw.index(b"\xff\xee")
    return raw[:at] + raw[at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big") :]


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def sixteen_bits() -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""
    height, width, _ = PIXELS.shape
    pixels = (PIXELS.astype(">u2") * 256 + 200).reshape(height, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


ODD = {
    **{f"{kind}, EXIF {i}": saved(kind, i) for kind in ("JPEG", "PNG", "WEBP") for i in (*range(1, 9), 0, 9, 65535)},
    **{f"XMP {i}": saved("JPEG", xmp=i) for i in range(1, 10)},
    "EXIF 6 and XMP 3": saved("JPEG", 6, xmp=3),
    "an orientation of two numbers": saved("JPEG", (6, 6)),
    "16 bits a colour": sixteen_bits(),
    "CMYK": saved("JPEG", mode="CMYK"),
    "CMYK without Adobe's marker": without_adobe(saved("JPEG", mode="CMYK")),
    "CMYK on its side": without_adobe(saved("JPEG", 6, mode="CMYK")),
    **{mode: saved("PNG", 6, mode=mode) for mode in ("L", "LA", "P", "RGBA", "1")},
    "bytes between two segments": (plain := saved("JPEG"))[:20] + b"junk" + plain[20:],
    "fill bytes": plain[:20] + b"\xff\xff" + plain[20:],
    "a palette with transparency": saved("PNG", mode="P", transparency=bytes(range(256))),
}


@pytest.mark.usefixtures("needs_dali")
@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("augmentation", [Augmentation(), SCALING], ids=["plain", "augmented"])
def test_loaders_agree_on_orientation_and_colour_space(tmp_path: Path, augmentation: Augmentation) -> None:
    for number, raw in enumerate(ODD.values()):
        (tmp_path / "val" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / "ab"[number % 2] / f"{number:03}.img.jpg").write_bytes(raw)
    (tmp_path / "train").symlink_to(tmp_path / "val")
    images = Folder(tmp_path, 24).load(0, silent).train
    loaders = [
        create_loader(name, images, len(ODD), augmentation=augmentation, workers=0) for name in ("dali", "torch")
    ]
    these, those = (next(loader.stream(0)) for loader in loaders)
    for row, difference in zip(
        Sampler(len(images), len(ODD)).rows(0, 0), (these.images - those.images).abs(), strict=True
    ):
        name = list(ODD)[int(Path(images.name(row)).name[:3])]
        assert difference.mean() < (0.5 if augmentation.active else 0.05) / 255, name
        assert difference.max() < (12 if augmentation.active else 1.1) / 255, name


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.filterwarnings("ignore:Palette images")  # Pillow's own way
def test_orientations_are_those_of_pillow() -> None:
    for name, raw in ODD.items():
        with Image.open(io.BytesIO(raw)) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_array_equal(decode(raw), np.asarray(expected), err_msg=name)
        assert read_header(raw).size == decode(raw).shape[:2], name


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    images = folder(make_folder(tmp_path))
    here, there = (take(create_loader("torch", images, 4, augmentation=SCALING, workers=w), 6, 1, 2) for w in (0, 2))
    assert_same(here, there)


@pytest.mark.usefixtures("needs_dali")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dali_without_the_gpu_that_it_is_asked_for() -> None:
    loader = create_loader("dali", noise(), 5, device="cuda")
    with pytest.raises(DataError, match=r"DALI cannot run on cuda: .* \(install fastgat-trainer"):
        next(iter(loader.stream(0)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@names
@both_layouts
@pytest.mark.parametrize(("augmentation", "tolerance"), [(Augmentation(), 0), (MOVING, 0), (SCALING, WHOLE_BYTES)])
def test_a_gpu_gives_the_stream_of_a_cpu(
    name: str, augmentation: Augmentation, tolerance: float, channels_last: bool
) -> None:
    here, there = (
        create_loader(each, noise(), 5, augmentation=augmentation, channels_last=channels_last, device=device)
        for each, device in (("resident", "cpu"), (name, "cuda"))
    )
    for cpu, gpu in zip(take(here, 9, 1), take(there, 9, 1), strict=True):
        assert gpu.images.is_cuda
        assert gpu.labels.is_cuda
        assert_same([cpu], [Batch(gpu.images.cpu(), gpu.labels.cpu())], tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or missing() is not None, reason="needs a GPU and DALI")
@pytest.mark.parametrize(("kind", "mean"), [("jpg", 2 / 255), ("png", 1 / 255), ("webp", 1 / 255)])
def test_a_gpu_decodes_like_a_cpu(tmp_path: Path, kind: str, mean: float) -> None:
    """To about one of 255: the decoders of a GPU, and its scaling, round in other places."""
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for i in range(6):
            (tmp_path / name / f"{i}.{kind}").write_bytes(encoded(picture(i, label, 40, 48), kind))
    images = folder(tmp_path, 24)
    for cpu, gpu in zip(*(take(create_loader("dali", images, 3, device=d), 5) for d in ("cpu", "cuda")), strict=True):
        assert cpu.labels.equal(gpu.labels.cpu())
        assert (cpu.images - gpu.images.cpu()).abs().mean() <= mean


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "a loader cannot be of batch_size 0"),
        ({"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1 of 1"),
        ({"extra": 24}, "extra 24 of 23 images"),
    ],
)
def test_numbers_that_make_no_sense(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_loader("torch", noise(), **{"batch_size": 4, **changes})  # type: ignore[arg-type]


@names
def test_pixels_that_are_no_bytes(name: str) -> None:
    images = replace(noise(), images=noise().images / 255)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(DataError, match="images must be uint8, labels int64, got float64 and int64"):
        create_loader(name, images, 4)


@names
def test_too_few_samples_for_a_batch(name: str) -> None:
    with pytest.raises(DataError, match="23 samples are too few for a batch of 24"):
        take(create_loader(name, noise(), 12, ranks=2), 1)


@pytest.mark.usefixtures("needs_dali")
def test_shards_are_loaded_like_files(tmp_path: Path) -> None:
    for number in range(3):
        make_shard(tmp_path / f"s-{number}.tar", members(10, 10 * number))
    images = WebDataset(f"{tmp_path}/s-{{0..2}}.tar", 40).load(0, silent).train
    these, those = (take(create_loader(name, images, 4, workers=0), 8) for name in ("dali", "torch"))
    assert labels(these) == labels(those)
    assert {int(number) % 3 == label for number, label in zip(images.numbers, images.labels, strict=True)} == {True}


def test_auto_takes_what_suits_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu, files = torch.device("cpu"), torch.device("cuda"), folder(make_folder(tmp_path, each=2))
    assert choose("auto", noise(), cpu) == ("resident", "the images are in memory")
    monkeypatch.setattr("fastgat.data.loaders.dali_missing", lambda: None)
    assert choose("auto", noise(), gpu).name == "dali"
    assert choose("auto", files, cpu).name == "dali"
    monkeypatch.setattr("fastgat.data.loaders.dali_missing", lambda: "DALI is not installed")
    assert choose("auto", noise(), gpu) == ("resident", "DALI is not installed")
    assert choose("auto", files, gpu) == ("torch", "DALI is not installed")
    monkeypatch.setattr("fastgat.data.dali.missing", lambda: "DALI is not installed")
    with pytest.raises(DataError, match="DALI is not installed"):
        create_loader(choose("dali", noise(), cpu).name, noise(), 2)


def test_resident_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder(make_folder(tmp_path, each=2))
    monkeypatch.setattr("fastgat.data.loaders.kernel_figure", lambda *name: 6 * 16 * 16 * 3)
    with pytest.raises(DataError, match="use --loader dali"):
        create_loader("resident", images, 2)


@pytest.mark.usefixtures("needs_dali")
def test_memory_does_not_grow_with_what_has_been_read(tmp_path: Path) -> None:
    """What a loader has read is given back: after many batches there are no more tensors than after a few."""
    stream = create_loader("dali", folder(make_folder(tmp_path), 64), 4, workers=1).stream(0)

    def resident_kib() -> int:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    for _ in range(50):
        next(stream)
    before = resident_kib()
    for _ in range(400):
        next(stream)
    assert resident_kib() - before < 16 * 1024
