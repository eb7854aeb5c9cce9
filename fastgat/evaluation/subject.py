"""The networks of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastgat.attacks.base import Isolated, check_network, frozen
from fastgat.errors import ConfigError, FastgatError
from fastgat.evaluation.batches import Batches
from fastgat.evaluation.cache import model_fingerprint


class Subject(Isolated):
    """A network that is attacked, or that perturbations are made on, with its name and its digest."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__(network)
        self.name, self.digest = name, model_fingerprint(network)

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits (B, K) in eval mode."""
        with frozen(self), torch.no_grad():
            logits: Tensor = self(images)
        return logits


def as_subjects(networks: Mapping[str, nn.Module] | None) -> list[Subject]:
    """The networks as subjects; those that are subjects already stay what they are."""
    return [net if isinstance(net, Subject) else Subject(name, net) for name, net in (networks or {}).items()]


def count_classes(subjects: Sequence[Subject], batches: Batches) -> int:
    """The number of classes that all the networks tell apart.

    Raises ConfigError or NonFiniteError unless each returns logits of that many classes for such images.
    """
    counts = []
    for subject in subjects:
        try:
            with frozen(subject):
                counts.append(check_network(subject, batches.first.images, batches.labels))
        except FastgatError as error:
            raise type(error)(f"{subject.name}: {error}") from None
        if counts[-1] != counts[0]:
            both = f"{subject.name} tells {counts[-1]} classes apart, but {subjects[0].name} {counts[0]}"
            raise ConfigError(f"{both}: they do not compare")
    return counts[0]
