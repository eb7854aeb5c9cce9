"""The feed of a run: loaders of a data set, or the user's own, and what the networks must fit."""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.data import Images, IterableLoader, Loader, choose, create_loader, load_dataset
from fastgat.data.download import Progress
from fastgat.data.extra import extended
from fastgat.data.identity import Identity
from fastgat.data.registry import CUSTOM
from fastgat.data.sampler import share_of
from fastgat.data.sets import DataSet, ImageSet
from fastgat.engine.checks import check_networks
from fastgat.engine.ranks import Ranks
from fastgat.errors import ConfigError


class Feed(NamedTuple):
    """Where a run's batches come from, and what the networks must fit.

    Attributes:
        name: of the data set, as `--dataset` takes it; CUSTOM for loaders of one's own.
        description, reason: what it is, and why this one, for people.
        loader: what feeds the step, and why.
        passed_over: which files were not taken for images, for people.
        fingerprint: the same on ranks that have the same data.
        identity: digests by which a resumed run notices changed images.
        extra: a checksum of the extra images, for the same purpose.
        sample: the batch that has been taken from the user's loader to look at.
    """

    name: str
    description: str
    reason: str
    train: Loader
    validation: Loader
    test: Loader | None
    classes: tuple[str, ...]
    channels: int
    loader: str
    fingerprint: int
    passed_over: str = ""
    identity: Identity | None = None
    extra: str | None = None
    sample: Batch | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def training_batches(self, start: int) -> tuple[Batch, Iterator[Batch]]:
        """A batch like those to come, and the classifier's batches from number `start` on."""
        batches = self.train.stream(0, start)
        if self.sample is not None:
            return self.sample, batches
        first = next(batches)
        return first, itertools.chain([first], batches)


def dataset_feed(
    config: TrainConfig, batch_size: int, device: torch.device, ranks: Ranks, progress: Progress, rule: str
) -> Feed:
    """Loaders of the configured data set; `batch_size` is this rank's share, `rule` how images are held out.

    Raises DataError, ConfigError.
    """
    data = config.data
    images = load_dataset(
        data.dataset, data.data_dir, data.split_seed, progress, data.image_size, data.max_pixels, rule
    )
    identity = Identity.of(images, rule)
    choice = choose(data.loader, images.train, device)
    images = images._replace(train=images.train.take(slice(data.train_images)))
    description, extra, own = f"{images.name}: {images.contents()}; from {images.source}", None, len(images.train)
    if data.extra_data is not None:
        both, extra = _with_extra(config, images, data.extra_data, progress)
        images = images._replace(train=both)
        description += f"; {data.extra_fraction:g} of each batch from {len(both) - own:,} in {data.extra_data}"
    config.augmentation.check(*images.train.shape[:2])
    parts = [images.train, images.validation, *([images.test] if len(images.test) else [])]

    def loader(part: Images, extra: int = 0) -> Loader:
        return create_loader(
            choice.name,
            part,
            batch_size,
            seed=config.seed,
            rank=ranks.rank,
            ranks=ranks.count,
            augmentation=config.augmentation,
            device=device,
            channels_last=config.precision.channels_last,
            workers=data.workers,
            on_bad_sample=data.on_bad_sample,
            extra=extra,
            extra_fraction=data.extra_fraction or 0.0,
            progress=progress,
        )

    train = loader(images.train, len(images.train) - own)
    validation, *test = map(loader, parts[1:])
    return Feed(
        name=images.name,
        description=description,
        reason=images.reason,
        train=train,
        validation=validation,
        test=test[0] if test else None,
        classes=images.classes,
        channels=images.train.shape[2],
        loader=f"{choice.name}: {choice.reason}",
        fingerprint=zlib.crc32(b"".join(map(_sample, parts)) + (extra or "").encode()),
        passed_over=images.passed_over,
        identity=identity,
        extra=extra,
    )


def _with_extra(config: TrainConfig, images: DataSet[Images], file: Path, progress: Progress) -> tuple[ImageSet, str]:
    """The training images with the extra ones of `file` behind them, and the checksum of what is in the file."""
    if not isinstance(images.train, ImageSet):
        raise ConfigError(f"extra_data goes with images in memory, as those of cifar10 are, not with {images.name}")
    fraction = config.data.extra_fraction or 0
    if not share_of(config.batch_size, fraction):
        share = f"extra_fraction {fraction:g} of a batch of {config.batch_size}"
        raise ConfigError(f"{share} rounds down to no image: raise one of them")
    return extended(images.train, file, len(images.classes), progress)


def _sample(images: Images) -> bytes:
    """Enough of a set to tell it from another: its labels, and some pixels where they are in memory."""
    some = images.images[:: len(images) // 64 + 1].tobytes() if isinstance(images, ImageSet) else b""
    return images.labels.tobytes() + some


def own_feed(
    classifier: nn.Module, train: Iterable[Any], validation: Iterable[Any], device: torch.device, channels_last: bool
) -> Feed:
    """Loaders of one's own; the classifier's output tells how many classes there are, its batches how many channels."""
    sample = next(IterableLoader(train, None, device=device, channels_last=channels_last).once(), None)
    num_classes = check_networks(classifier.to(device), None, sample.images if sample else None)
    what = "loaders of your own"
    return Feed(
        name=CUSTOM,
        description=what,
        reason="asked for",
        train=IterableLoader(train, num_classes, device=device, channels_last=channels_last),
        validation=IterableLoader(validation, num_classes, device=device, channels_last=channels_last),
        test=None,
        classes=tuple(map(str, range(num_classes))),
        channels=sample.images.shape[1] if sample else 0,
        loader=what if sample is None else f"{what}, {len(sample.labels)} images a batch",
        fingerprint=0,
        sample=sample,
    )
