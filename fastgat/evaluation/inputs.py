"""What is evaluated: images, which are read many times, and networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import Isolated, check_network, correct, frozen, loss_gradient, meaningful
from fastgat.batch import Batch
from fastgat.contract import checked_batch
from fastgat.data.sets import Images
from fastgat.errors import ConfigError, FastgatError, NonFiniteError
from fastgat.evaluation.fingerprint import batch_fingerprint, model_fingerprint

PROBES = 16
"""Probe images in a network's digest: fewer than are attacked, so that attacking more leaves it unchanged."""
NOISE = 0.25
"""The bound of the uniform noise on them, which exposes networks that treat differently what looks attacked."""


class NumberedBatch(NamedTuple):
    """A batch with its digest, and the number of its first sample."""

    images: Tensor
    labels: Tensor
    digest: str
    first: int


class Batches:
    """Batches that are the same whenever they are read, since outcomes of attacks are compared sample by sample.

    Args:
        read: begins a new pass, as a loader's `once` does.
        constant: whether passes cannot differ, so that one digest a batch serves them all.

    Raises ConfigError for images and labels that an attack does not take.
    """

    def __init__(self, read: Callable[[], Iterable[Batch]], *, constant: bool = False) -> None:
        self._read, self._constant = read, constant
        self.digests: list[str] = []
        labels = [torch.empty(0, dtype=torch.int64)]
        first: Batch | None = None
        for batch in self:
            if first is None or not len(first.labels):
                self.first = first = batch
            self.digests.append(batch_fingerprint(batch))
            labels.append(batch.labels.cpu())
        self.labels = torch.cat(labels)
        self.samples = len(self.labels)

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Batches:
        """Raises ConfigError where there are none, or where they can be read only once."""
        if isinstance(batches, list | tuple):
            checked = [checked_batch(*batch) for batch in batches]
            made = cls(lambda: checked, constant=True)
        elif isinstance(batches, cls):
            made = batches
        elif iter(batches) is batches:
            raise ConfigError(
                "batches are read several times: pass a list, or something else that can be iterated again"
            )
        else:
            made = cls(lambda: batches)
        if not made.samples:
            raise ConfigError("there are no images to evaluate on")
        return made

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._read():
            yield checked_batch(images, labels)

    def sample(self, most: int) -> Batch:
        """The first `most` samples (all, if fewer) whose images have the first image's shape, as one batch."""
        alike, count = [], 0
        for batch in self:
            if batch.images.shape[1:] == self.first.images.shape[1:]:
                alike.append(batch)
                count += len(batch.labels)
            if count >= most:
                break
        images, labels = (torch.cat(parts)[:most] for parts in zip(*alike, strict=True))
        return Batch(images, labels)

    def numbered(self) -> Iterator[NumberedBatch]:
        """One pass. Raises ConfigError where a batch is not what it was in the first pass."""
        first = passed = 0
        for passed, batch in enumerate(self, 1):
            digest = self.digests[passed - 1] if self._constant else batch_fingerprint(batch)
            if self.digests[passed - 1 : passed] != [digest]:
                raise ConfigError("batches are not the same each time they are read: pass a list, or do not shuffle")
            yield NumberedBatch(*batch, digest, first)
            first += len(batch.labels)
        if passed < len(self.digests):
            raise ConfigError(f"batches were {len(self.digests)} when they were first read, and then {passed}")


def random_subset(images: Images, count: int | None, seed: int) -> Images:
    """`count` images, or all, in a random order, since folders list theirs class by class.

    A larger count begins with the same images.
    """
    order = np.random.default_rng((seed, len(images))).permutation(len(images))
    return images.take(order[: count or len(order)])


class Subject(Isolated):
    """A network that is attacked, or that perturbations are made on, with its name.

    Args:
        probe: images and labels, on whose first ones its answers count in its digest.
    """

    def __init__(self, name: str, network: nn.Module, probe: Batch | None = None) -> None:
        super().__init__(network)
        self.name, self.probe = name, probe

    @cached_property
    def digest(self) -> str:
        """The cache key of this network: the digest of what it is made of, then those of its logits and input gradients
        on PROBES images, clean and noisy."""
        made_of = model_fingerprint(self.network)
        if self.probe is None:
            return made_of
        images, labels = (tensor[:PROBES] for tensor in self.probe)
        with frozen(self), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
            noisy = (images + NOISE * (2 * noise - 1)).clamp(0, 1)
            answers = [Batch(*loss_gradient(self, each, labels)) for each in (images, noisy)]
        return made_of + "".join(map(batch_fingerprint, answers))

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits (B, K) in eval mode."""
        with frozen(self), torch.no_grad():
            return self(images)

    def right(self, images: Tensor, labels: Tensor, when: str = "") -> Tensor:
        """Which samples (B,), bool, the network gets right.

        Raises NonFiniteError, whose text ends in `when`, where logits are NaN or +inf, or all are -inf.
        """
        logits = self.logits(images)
        if not meaningful(logits).all():
            raise NonFiniteError(f"{self.name} returns logits that are NaN or infinite{when}")
        return correct(logits, labels)


def as_subjects(networks: Mapping[str, nn.Module] | None, probe: Batch) -> list[Subject]:
    """The networks as subjects; those that are subjects already stay what they are."""
    return [net if isinstance(net, Subject) else Subject(name, net, probe) for name, net in (networks or {}).items()]


def check_classes(subjects: Sequence[Subject], batches: Batches) -> None:
    """Raises ConfigError or NonFiniteError unless each returns logits for such images, all of as many classes."""
    counts = []
    for subject in subjects:
        try:
            with frozen(subject):
                counts.append(check_network(subject, batches.first.images, batches.labels))
        except FastgatError as error:
            raise type(error)(f"{subject.name}: {error}") from None
        if counts[-1] != counts[0]:
            both = f"{subject.name} has {counts[-1]} classes, but {subjects[0].name} has {counts[0]}"
            raise ConfigError(f"{both}: networks that are compared must have the same")
