"""Single images: flaws that show, sizes, and pixels as their placement has them."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from fastgat.kernels.image_batch import image_batch
from PIL import Image, ImageFile

from fastgat.data import Augmentation
from fastgat.data.decoding import BadSampleError, arrange, decode, flaw, read_header
from tests.data.pictures import KINDS, encoded, picture

PIXELS = picture(0, 1, 30, 44)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_have_no_flaw_and_cut_ones_do(kind: str) -> None:
    raw = encoded(PIXELS, kind)
    assert flaw(raw) is None
    assert read_header(raw).size == (30, 44)
    assert decode(raw).shape == (30, 44, 3)
    for part in (raw[:-20], raw[: len(raw) // 2], raw[:30]):
        assert flaw(part) == "is truncated"
    with pytest.raises(BadSampleError, match="is truncated"):
        decode(raw[:-20])


@pytest.mark.parametrize(("raw", "message"), [(b"", "is empty"), (b"GIF89a" * 9, "is not a JPEG, PNG or WebP image")])
def test_what_is_no_image(raw: bytes, message: str) -> None:
    assert flaw(raw) == message
    for read in (read_header, decode):
        with pytest.raises(BadSampleError, match=message):
            read(raw)


def test_damage_within_is_found_by_decoding() -> None:
    raw = encoded(PIXELS, "png")
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        decode(raw[: len(raw) // 3] + raw[-12:])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    image, file = Image.fromarray(PIXELS).convert(mode), io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {}))
    assert decode(file.getvalue()).shape == (30, 44, 3)


def test_an_orientation_that_follows_the_pixels_is_seen() -> None:
    raw = encoded(PIXELS, "png")
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(content).to_bytes(4, "big") + b"eXIf" + content
    chunk += zlib.crc32(b"eXIf" + content).to_bytes(4, "big")
    raw = raw[:-12] + chunk + raw[-12:]
    assert read_header(raw).size == (44, 30)
    assert decode(raw).shape == (44, 30, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_too_large_is_not_decoded(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    raw = encoded(PIXELS, kind)
    assert decode(raw, max_pixels=30 * 44).shape == (30, 44, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for read in (read_header, decode):
        with pytest.raises(BadSampleError, match="is too large: 44 x 30 pixels; --max-pixels 1319 at most"):
            read(raw, max_pixels=1319)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # of Pillow, which has its own
    with pytest.raises(BadSampleError, match="is too large"):
        decode(raw)


def test_sixteen_bits_are_scaled_down() -> None:
    grey, file = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16), io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue())[..., 1].ravel(), np.arange(256))


def test_arranged_as_the_kernel_does_where_nothing_is_scaled() -> None:
    augmentation = Augmentation(flip=True, padded_crop=5, cutout=7)
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 13, 3), dtype=np.uint8)
    uniforms = augmentation.draw(0, 0, 0, 20)
    placement = augmentation.place(uniforms, np.full((20, 2), (9, 13)), (9, 13))
    kernel = image_batch(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.arange(20),
        torch.from_numpy(placement.table()),
        hole=augmentation.hole,
        resize=False,
    )
    arranged = np.stack([arrange(images[i], augmentation, uniforms[i : i + 1], (9, 13)) for i in range(20)])
    assert kernel.equal(torch.from_numpy(arranged).permute(0, 3, 1, 2).float() / 255)
