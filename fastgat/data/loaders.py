"""Which loader feeds a run, and why."""

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from fastgat.data.augmentation import Augmentation
from fastgat.data.bad_samples import BadSamples
from fastgat.data.dali import DaliLoader
from fastgat.data.dali import missing as dali_missing
from fastgat.data.dataloader import TorchLoader
from fastgat.data.decoding import BadSampleError, arrange
from fastgat.data.download import Progress
from fastgat.data.loader import Loader
from fastgat.data.prefetch import prefetch
from fastgat.data.resident import ResidentLoader
from fastgat.data.sampler import Sampler
from fastgat.data.sets import EncodedSet, Images, ImageSet
from fastgat.errors import ConfigError, DataError
from fastgat.processes import cores, kernel_figure, local_world_size

LOADERS = ("auto", "dali", "resident", "torch")
PLAIN = Augmentation()
WINDOW = 256  # images that are decoded between two reports


class Choice(NamedTuple):
    """A loader's name, and the reason for it."""

    name: str
    reason: str


def choose(name: str, images: Images, device: torch.device) -> Choice:
    """The loader called `name`; `auto` is DALI on a GPU and for images in files, otherwise resident."""
    in_files = isinstance(images, EncodedSet)
    if name != "auto":
        return Choice(name, "asked for")
    if device.type == "cpu" and not in_files:
        return Choice("resident", "the images are in memory")
    if absent := dali_missing():
        return Choice("torch" if in_files else "resident", absent)
    return Choice("dali", "the images are in files" if in_files else "on a GPU")


def create_loader(
    name: str,
    images: Images,
    batch_size: int,
    *,
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
    augmentation: Augmentation = PLAIN,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    workers: int | None = None,
    on_bad_sample: str = "error",
    extra: int = 0,
    extra_fraction: float = 0.0,
    progress: Progress = lambda what, done, total: None,
) -> Loader:
    """A loader of these images.

    Args:
        name: dali, resident or torch; auto as in `choose`.
        batch_size: samples in a batch of this rank.
        augmentation: what varies in training batches.
        workers: threads of DALI, processes of torch's DataLoader; by default as many as there are cores for images in
            files, none otherwise (DALI always has one).
        on_bad_sample: error or skip.
        extra, extra_fraction: how many of the images, the last ones, are extra, and their share of training batches.
        progress: told how far a resident loader has come with decoding.

    Raises DataError where the loader cannot be had, or a sample cannot be read; ConfigError for numbers that make no
    sense.
    """
    device = torch.device(device)
    name = choose(name, images, device).name
    if isinstance(images, ImageSet) and (images.images.dtype, images.labels.dtype) != (np.uint8, np.int64):
        raise DataError(f"images must be uint8, labels int64, got {images.images.dtype} and {images.labels.dtype}")
    if batch_size < 1 or not 0 <= rank < ranks or not 0 <= extra <= len(images):
        given = f"batch_size {batch_size}, rank {rank} of {ranks}, extra {extra} of {len(images)} images"
        raise ConfigError(f"a loader cannot be of {given}")
    sampler = Sampler(len(images) - extra, batch_size, seed, rank, ranks, augmentation, extra, extra_fraction)
    skipped = BadSamples(on_bad_sample)
    common: dict[str, Any] = {"device": device, "channels_last": channels_last, "skipped": skipped}
    if workers is None:
        workers = cores() if isinstance(images, EncodedSet) else 0
    if name == "dali":
        return DaliLoader(images, sampler, threads=max(workers, 1), **common)
    if name == "torch":
        return TorchLoader(images, sampler, workers=workers, **common)
    if isinstance(images, EncodedSet):
        what = f"{len(images):,} images of {images.size} x {images.size}"
        check_fits(what, len(images) * math.prod(images.shape), "use --loader dali, or torch", device)
        images = decode_all(images, skipped, progress)
    return ResidentLoader(images, sampler, **common)


def check_fits(what: str, needed: int, advice: str, device: torch.device) -> None:
    """Raises DataError if `needed` bytes, for each rank on this machine, are more than half of the memory that is free
    here or on the device."""
    needed, free = needed * local_world_size(), {"this machine": kernel_figure("meminfo", "MemAvailable:")}
    if device.type == "cuda":
        free[str(device)] = torch.cuda.mem_get_info(device)[0]
    for where, amount in free.items():
        if amount is not None and needed > amount / 2:
            raise DataError(
                f"{what} take {needed / 2**30:.1f} GiB as bytes, more than half of the {amount / 2**30:.1f} GiB that "
                f"are free on {where}: {advice}"
            )


def decode_all(images: EncodedSet, bad: BadSamples, progress: Progress) -> ImageSet:
    """Every image, decoded and scaled, in memory; a bad one is black and taken note of."""
    pixels = np.zeros((len(images), *images.shape), np.uint8)

    def keep(row: int) -> None:
        pixels[row] = arrange(images.decoded(row), PLAIN, None, images.shape[:2])

    _read_each(images, keep, bad, progress)
    return ImageSet(pixels, images.labels)


def unreadable(images: EncodedSet, progress: Progress) -> list[str]:
    """What is wrong with the images that cannot be decoded, a line each."""
    bad = BadSamples("skip")
    _read_each(images, images.decoded, bad, progress)
    return list(bad.reasons.values())


def _read_each(images: EncodedSet, read: Callable[[int], object], bad: BadSamples, progress: Progress) -> None:
    """Call `read` with the number of every image, in a thread a core; those that it cannot read are taken note of."""

    def one(row: int) -> None:
        try:
            read(row)
        except BadSampleError as error:
            bad.report(row, images.name(row), error)

    with closing(prefetch(one, range(len(images)), depth=WINDOW)) as results:
        for row, _ in enumerate(results):
            if row % WINDOW == WINDOW - 1 or row == len(images) - 1:
                progress("decoding", row + 1, len(images))
