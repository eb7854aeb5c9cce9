"""Training images beside those of a data set, such as a generative model has made: `--extra-data FILE.npz`.

The file is what numpy.savez writes, as the EDM sets of Wang et al. (2023, "Better Diffusion Models Further Improve
Adversarial Training") are published: `image` (N, H, W, C) uint8 and `label` (N,) integers. Nothing in it is unpickled.
"""

import hashlib
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fastgat.data.download import Progress
from fastgat.data.loaders import check_fits
from fastgat.data.sets import ImageSet
from fastgat.errors import DataError, first_line, is_out_of_memory

CHUNK = 2**24  # bytes that are read at a time
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""numpy's readers of an array's header, by the version of its format."""


def extended(images: ImageSet, path: Path, num_classes: int, progress: Progress) -> tuple[ImageSet, str]:
    """`images` with those in a file behind them, and the SHA-256 sum of what is in the file.

    Pixels stay bytes: a million images of 32 x 32 take 3 GB of memory. Raises DataError, naming the file, where it is
    not as it must be, or too large.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _extended(images, archive, num_classes, progress)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive, or header, can fail in any way
        if is_out_of_memory(error):
            raise
        raise DataError(f"{path}: damaged, or not written by numpy.savez ({first_line(error)})") from None


def _extended(images: ImageSet, archive: zipfile.ZipFile, num_classes: int, progress: Progress) -> tuple[ImageSet, str]:
    with _opened(archive, "image") as file, _opened(archive, "label") as label_file:
        shape, dtype = _header("image", file)
        if len(shape) != 4 or shape[1:] != images.shape or dtype != np.uint8 or not shape[0]:
            wanted = ", ".join(map(str, images.shape))
            raise DataError(f"image must be (N, {wanted}) uint8, as the data set's are, got {shape} {dtype}")
        label_shape, label_dtype = _header("label", label_file)
        if label_shape != shape[:1] or label_dtype.kind not in "iu":
            raise DataError(f"label must be ({shape[0]},) integers, one an image, got {label_shape} {label_dtype}")
        check_fits("its images", math.prod(shape), "use a part of them", torch.device("cpu"))

        count, digest = len(images), hashlib.sha256(repr((shape, label_dtype.str)).encode())
        pixels, labels = np.empty((count + shape[0], *images.shape), np.uint8), np.empty(shape[0], label_dtype)
        pixels[:count] = images.images
        _fill(pixels[count:].data.cast("B"), file, digest, progress)
        _fill(labels.view(np.uint8).data, label_file, digest, progress)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(f"label {labels[outside[0]]} of image {outside[0]} is outside 0..{num_classes - 1}")
    return ImageSet(pixels, np.concatenate([images.labels, labels.astype(np.int64)])), digest.hexdigest()


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """The array of that name, as it is in the archive."""
    if f"{name}.npy" not in archive.namelist():
        there = ", ".join(each.removesuffix(".npy") for each in archive.namelist()[:8])
        raise DataError(f"has no {name!r}; it must hold image and label, and holds {there or 'nothing'}")
    return archive.open(f"{name}.npy")


def _header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of an .npy array from `file`: its shape and dtype."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"{name} is in version {version} of numpy's format")
    shape, by_column, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which would have to be unpickled: save an array of numbers")
    if by_column and len(shape) > 1:
        raise DataError(f"{name} lies column by column: save numpy.ascontiguousarray({name})")
    return shape, dtype


def _fill(target: memoryview, file: IO[bytes], digest: Any, progress: Progress) -> None:
    """Read all of an array into `target`; at its end zipfile compares the archive's checksum."""
    done = 0
    while chunk := file.read(CHUNK):
        target[done : done + len(chunk)] = chunk
        digest.update(chunk)
        done += len(chunk)
        progress("reading extra data", done, len(target))
    if done < len(target):
        raise EOFError(f"{done:,} bytes of an array of {len(target):,}")
