"""Encoded images, one at a time on the CPU, by Pillow: what is wrong with them, their headers and their pixels."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastgat.data.augmentation import Augmentation, Uniforms

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000  # pixels of the largest image that is decoded, where nothing else is asked for
MAX_BYTES = 2**30  # bytes of the largest file of an image that is read
ORIENTATION = 0x0112  # the EXIF tag that says which way a camera was held
LATE = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")
"""Chunks of a PNG that may tell the orientation, and may follow the pixels."""
FLIPS = np.array([(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)], bool)
"""What makes an image of each orientation upright: whether it is flipped top to bottom, and left to right. From
orientation 5 on it is transposed before. (No image has orientation 0.)"""

# What is wrong with an image is said in one line; the limit of its size is an option.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadSampleError(Exception):
    """A sample that cannot be read; the message says what is wrong with it, but not which one it is."""


class Header(NamedTuple):
    """An image's header, read once by Pillow; every decoder goes by it.

    Attributes:
        size: height and width of the upright image.
        orientation: which way it is stored, 1 to 8 as EXIF counts.
        plain: whether all decoders give the same pixels. They differ for CMYK, which may lack the marker that tells its
            meaning; a JPEG with other bytes between its segments; a PNG of 16 bits a colour, which decoders round or
            cut off; and a WebP with EXIF, of which DALI 2.4 does not skip the byte that fills a chunk up.
    """

    size: tuple[int, int]
    orientation: int
    plain: bool


def flaw(raw: bytes) -> str | None:
    """Why these bytes cannot be a complete image, judged by their markers; None if nothing is wrong."""
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


def read_header(raw: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image. Raises BadSampleError where it is damaged, or (of a PNG) a checksum is not right."""
    with _opened(raw, max_pixels, "is damaged") as image:
        late = image.format == "PNG" and any(word in raw for word in LATE)
        if late:
            image.load()
        (width, height), orientation = image.size, _orientation(image)
        plain = image.mode != "CMYK" and _is_plain(image, raw)
        if not late:
            image.verify()
    return Header((width, height) if orientation >= 5 else (height, width), orientation, plain)


def decode(raw: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, upright. Raises BadSampleError."""
    with _opened(raw, max_pixels, "cannot be decoded") as image:
        image.load()
        if image.mode.startswith("I;16"):  # Pillow would cut these off at 255
            pixels = (np.asarray(image) / 257).round().astype(np.uint8)[..., None].repeat(3, axis=2)
        else:  # by way of RGBA, since Pillow warns of palettes with transparency
            opaque = image.mode != "P" or "transparency" not in image.info
            pixels = np.asarray((image if opaque else image.convert("RGBA")).convert("RGB"))
        return upright(pixels, _orientation(image))


@contextlib.contextmanager
def _opened(raw: bytes, max_pixels: int, otherwise: str) -> Iterator[Image.Image]:
    """The image, its header read. What fails inside the context is a BadSampleError that says `otherwise`."""
    if reason := flaw(raw):
        raise BadSampleError(reason)
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"is too large ({error})") from None
    except Exception:  # noqa: BLE001  # a damaged image can fail in any way
        raise BadSampleError("is damaged, or not a JPEG, PNG or WebP image") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width:,} x {image.height:,} pixels"
        raise BadSampleError(f"is too large: {size}; --max-pixels {max_pixels} at most")
    try:
        with image:
            yield image
    except Exception as error:  # noqa: BLE001  # as above
        raise BadSampleError(f"{otherwise} ({error})") from None


def _is_plain(image: Image.Image, raw: bytes) -> bool:
    """What `Header.plain` says of an image's format."""
    if image.format == "PNG":
        bits, kind = raw[24:26]
        return bits < 16 or not kind  # kind 0 is grey
    return "exif" not in image.info if image.format == "WEBP" else _is_tight(raw)


def _is_tight(raw: bytes) -> bool:
    """Whether the segments of a JPEG follow one another up to its pixels."""
    at = 2
    while raw[at : at + 1] == b"\xff" and len(raw) > at + 4:
        marker = raw[at + 1]
        if marker == 0xDA:
            return True
        at += 1 if marker == 0xFF else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return False


def _orientation(image: Image.Image) -> int:
    """1 to 8, from EXIF or, where that does not say, XMP; anything else counts as upright."""
    value = Image.Image.getexif(image).get(ORIENTATION)  # a PNG's own decodes it first
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Stored pixels (H, W, C), turned as `orientation` says."""
    turned = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    vertical, horizontal = FLIPS[orientation]
    return turned[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def stored_boxes(
    boxes: NDArray[np.int32], sizes: NDArray[np.int64], orientations: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Boxes (B, 4) in upright images of `sizes` (B, 2), as boxes in the pixels that are stored."""
    corners, lengths = boxes[:, :2], boxes[:, 2:]
    corners = np.where(FLIPS[orientations], sizes - corners - lengths, corners)
    across = (orientations >= 5)[:, None]
    return np.hstack([np.where(across, each[:, ::-1], each) for each in (corners, lengths)]).astype(np.int32)


def arrange(
    image: NDArray[np.uint8], augmentation: Augmentation, uniforms: Uniforms | None, output: tuple[int, int]
) -> NDArray[np.uint8]:
    """`image`, (H, W, C), in size `output`: augmented by the draws `uniforms` (of one sample), or as it is."""
    boxes, shifts, flips, holes = augmentation.place(uniforms, np.array([image.shape[:2]]), output)
    (top, left, height, width), (dy, dx) = boxes[0], shifts[0]
    part = image[top : top + height, left : left + width]
    if part.shape[:2] != output:
        part = _scaled(part, output)
    if dy or dx:
        part = _shifted(part, int(dy), int(dx))
    if flips[0]:
        part = part[:, ::-1]
    if uniforms is not None and augmentation.hole:
        first, last = holes[0].clip(0), (holes[0] + augmentation.hole).clip(0)
        part = part.copy()
        part[first[0] : last[0], first[1] : last[1]] = 0
    return np.ascontiguousarray(part)


def _scaled(part: NDArray[np.uint8], output: tuple[int, int]) -> NDArray[np.uint8]:
    channels = [part] if part.shape[2] == 3 else part.transpose(2, 0, 1)
    images = [Image.fromarray(np.ascontiguousarray(each)) for each in channels]
    scaled = [np.asarray(image.resize(output[::-1], Image.Resampling.BILINEAR)) for image in images]
    return scaled[0] if part.shape[2] == 3 else np.stack(scaled, axis=2)


def _shifted(image: NDArray[np.uint8], dy: int, dx: int) -> NDArray[np.uint8]:
    """out[i, j] = image[i + dy, j + dx], black where there is no such pixel."""
    height, width = image.shape[:2]
    dy, dx = max(-height, min(dy, height)), max(-width, min(dx, width))
    padded = np.pad(image, ((abs(dy), abs(dy)), (abs(dx), abs(dx)), (0, 0)))
    return padded[abs(dy) + dy :, abs(dx) + dx :][:height, :width]
