"""Small images in files, made for the tests: every class has a mean colour of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("ants", "bees", "cats")
KINDS = ("jpg", "png", "webp")


def picture(seed: int, label: int, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3): coarse noise, upscaled as a photograph is smooth, over the class's colour."""
    noise = np.random.default_rng(seed).integers(0, 128, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + np.roll([127, 60, 0], label)).clip(0, 255).astype(np.uint8)


def encoded(image: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[kind], quality=90)
    return file.getvalue()


def make_folder(
    root: Path, each: int = 8, size: tuple[int, int] | None = None, classes: Iterable[str] = CLASSES
) -> Path:
    """`each` images a class, of random sizes or of one, in all formats."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            seed = 1000 * label + i
            height, width = size or np.random.default_rng(seed).integers(20, 80, 2)
            kind = KINDS[i % 3]
            (root / name / f"{i:03}.{kind}").write_bytes(encoded(picture(seed, label, int(height), int(width)), kind))
    return root


def make_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(count: int, first: int = 0, classes: int = 3) -> list[tuple[str, bytes]]:
    """A JPEG and its label for each of `count` samples."""
    found = []
    for i in range(first, first + count):
        label = i % classes
        found.append((f"{i:05}.jpg", encoded(picture(i, label, 40, 48), "jpg")))
        found.append((f"{i:05}.cls", str(label).encode()))
    return found
