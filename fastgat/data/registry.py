"""Data sets by name. A new one is a file with an object like those here, and a line in DATASETS.

A user's own images are named by where they lie, as folder:PATH or webdataset:PATTERN.
"""

import os
from pathlib import Path

from fastgat.data.cifar import CIFAR10, CIFAR100, Cifar
from fastgat.data.decoding import MAX_PIXELS
from fastgat.data.digits import DIGITS, Digits
from fastgat.data.download import Progress
from fastgat.data.folder import Folder
from fastgat.data.sets import DataSet, Images, ImageSet
from fastgat.data.webdataset import WebDataset
from fastgat.errors import ConfigError, DataError, OutputError
from fastgat.options import suggestion

DATASETS: dict[str, Cifar | Digits] = {source.name: source for source in (CIFAR10, CIFAR100, DIGITS)}
USERS = {"folder": "folder:PATH", "webdataset": "webdataset:PATTERN"}
"""The kinds of a user's own images, and how they are named."""
CUSTOM = "custom"  # what a run calls loaders of one's own
IMAGE_SIZE = 32
"""What images in files are scaled to, if nothing is said: the size that the paper's networks are made for."""


def silent(what: str, done: int, total: int) -> None:
    """A progress report that nobody reads."""


def load_dataset(
    name: str = "auto",
    data_dir: Path | None = None,
    split_seed: int = 0,
    progress: Progress = silent,
    image_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    rule: str = "place",
) -> DataSet[Images]:
    """The data set called `name`; `auto` is CIFAR-10 where it is on disk or can be downloaded, otherwise digits.

    Args:
        name: auto, one of DATASETS, folder:PATH or webdataset:PATTERN.
        data_dir: the folder of a data set of DATASETS.
        split_seed: of the split into train and validation.
        image_size: what the images of folder: and webdataset: are scaled to, pixels a side (default 32).
        max_pixels: of the largest of those images that is decoded.
        rule: how some of those are held out: by "place", or by "name" or "position", as runs of earlier versions did.

    Raises ConfigError for an unknown name, a size that the data set does not have, or a `data_dir` for images that are
    named by where they are, DataError for data that are missing or not what they should be.
    """
    if images := users_images(name, image_size, max_pixels):
        if data_dir is not None:
            raise ConfigError(f"{name!r} says itself where the images are: leave out --data-dir")
        return images.load(split_seed, progress, rule)
    if name != "auto" and name not in DATASETS:
        known = ["auto", *DATASETS, *USERS.values()]
        raise ConfigError(f"unknown data set {name!r}{suggestion(name, known)}")
    load = _auto if name == "auto" else DATASETS[name].load
    data = load(data_dir, split_seed, progress)
    side = data.train.shape[0]
    if image_size not in (None, side):
        raise ConfigError(f"image_size {image_size}: {data.name} has images of {side} x {side} pixels, and no others")
    return data


def users_images(name: str, image_size: int | None = None, max_pixels: int = MAX_PIXELS) -> Folder | WebDataset | None:
    """The source of images named folder:PATH or webdataset:PATTERN; None for another name."""
    kind, _, where = name.partition(":")
    if kind not in USERS:
        return None
    if not where:
        raise ConfigError(f"{name!r} does not say where the images are: {USERS[kind]}")
    size = image_size or IMAGE_SIZE
    place = os.path.abspath(os.path.expanduser(where))  # noqa: PTH100, PTH111  # may be a pattern
    return Folder(Path(place), size, max_pixels) if kind == "folder" else WebDataset(place, size, max_pixels)


def _auto(data_dir: Path | None, split_seed: int, progress: Progress) -> DataSet[ImageSet]:
    here = CIFAR10.find(data_dir) is not None
    try:
        data = CIFAR10.load(data_dir, split_seed, progress)
    except (DataError, OutputError) as error:
        if here or data_dir is not None:
            raise
        return DIGITS.load(None, split_seed, progress)._replace(reason=f"for want of CIFAR-10: {error}")
    return data._replace(reason="found on this machine" if here else "downloaded")
