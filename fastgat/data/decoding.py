"""Encoded images, one at a time on the CPU, by Pillow: what is wrong with them, their sizes and their pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastgat.data.augmentation import Placement

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112
"""The EXIF tag that says which way a camera was held; from 5 on, the image lies on its side."""


class BadSampleError(Exception):
    """A sample that cannot be read; the message says what is wrong with it, but not which one it is."""


def flaw(raw: bytes) -> str | None:
    """What shows, without decoding, that `raw` is no whole JPEG, PNG or WebP image; None where nothing does."""
    if not raw:
        return "is empty"
    if raw.startswith(b"\xff\xd8\xff"):
        whole = raw.rfind(b"\xff\xd9") > 0
    elif raw.startswith(b"\x89PNG\r\n\x1a\n"):
        whole = raw.rfind(b"IEND") > 0
    elif raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        whole = len(raw) >= int.from_bytes(raw[4:8], "little") + 8
    else:
        return "is not a JPEG, PNG or WebP image"
    return None if whole else "is truncated"


def size_of(raw: bytes) -> tuple[int, int]:
    """Height and width of an image as it is to be seen, from its header.

    Raises BadSampleError for a header that is damaged, or (of a PNG) a checksum that is not right.
    """
    with _opened(raw) as image:
        try:
            late = image.format == "PNG" and b"eXIf" in raw  # a chunk that may follow the pixels
            if late:
                image.load()
            width, height = image.size
            on_its_side = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
            if not late:
                image.verify()
        except Exception as error:  # noqa: BLE001  # a damaged image can fail in any way
            raise BadSampleError(f"is damaged ({error})") from None
    return (width, height) if on_its_side else (height, width)


def decode(raw: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, upright. Raises BadSampleError."""
    with _opened(raw) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            if upright.mode.startswith("I;16"):  # Pillow would cut these off at 255
                upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
        except Exception as error:  # noqa: BLE001  # a damaged image can fail in any way
            raise BadSampleError(f"cannot be decoded ({error})") from None


def _opened(raw: bytes) -> Image.Image:
    if reason := flaw(raw):
        raise BadSampleError(reason)
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"is too large ({error})") from None
    except Exception:  # noqa: BLE001  # a damaged image can fail in any way
        raise BadSampleError("is damaged, or not a JPEG, PNG or WebP image") from None


def arrange(
    image: NDArray[np.uint8], placement: Placement, output: tuple[int, int], hole: int = 0
) -> NDArray[np.uint8]:
    """`image`, (H, W, C), as its placement (of one sample) has it, in an image of size `output`."""
    (top, left, height, width), (dy, dx) = placement.boxes[0], placement.shifts[0]
    part = image[top : top + height, left : left + width]
    if part.shape[:2] != output:
        part = _scaled(part, output)
    if dy or dx:
        part = _shifted(part, int(dy), int(dx))
    if placement.flips[0]:
        part = part[:, ::-1]
    if hole:
        first, last = placement.holes[0].clip(0), (placement.holes[0] + hole).clip(0)
        part = part.copy()
        part[first[0] : last[0], first[1] : last[1]] = 0
    return np.ascontiguousarray(part)


def _scaled(part: NDArray[np.uint8], output: tuple[int, int]) -> NDArray[np.uint8]:
    if part.shape[2] == 3:
        return _resize(part, output)
    return np.stack([_resize(channel, output) for channel in part.transpose(2, 0, 1)], axis=2)


def _resize(pixels: NDArray[np.uint8], output: tuple[int, int]) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(output[::-1], Image.Resampling.BILINEAR))


def _shifted(image: NDArray[np.uint8], dy: int, dx: int) -> NDArray[np.uint8]:
    """out[i, j] = image[i + dy, j + dx], black where there is no such pixel."""
    moved = np.zeros_like(image)
    height, width = image.shape[:2]
    rows, columns = slice(max(-dy, 0), min(height - dy, height)), slice(max(-dx, 0), min(width - dx, width))
    sources = slice(max(dy, 0), min(height + dy, height)), slice(max(dx, 0), min(width + dx, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        moved[rows, columns] = image[sources]
    return moved
