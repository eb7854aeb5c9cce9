"""The networks of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgat.attacks.base import Isolated, check_network, frozen
from fastgat.batch import Batch
from fastgat.errors import ConfigError, FastgatError
from fastgat.evaluation.cache import model_fingerprint


class Subject(NamedTuple):
    """A network that is attacked, or that perturbations are made on: its name, itself, and a digest of it."""

    name: str
    model: nn.Module
    digest: str

    @classmethod
    def of(cls, name: str, model: nn.Module) -> Subject:
        return cls(name, Isolated(model), model_fingerprint(model))

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits (B, K) in eval mode."""
        with frozen(self.model), torch.no_grad():
            logits: Tensor = self.model(images)
        return logits


def subjects(networks: Mapping[str, nn.Module] | None) -> list[Subject]:
    return [Subject.of(name, model) for name, model in (networks or {}).items()]


def count_classes(networks: Iterable[Subject], batch: Batch) -> int:
    """The number of classes that all the networks tell apart.

    Raises ConfigError or NonFiniteError unless each returns logits of that many classes for such images.
    """
    classes: dict[str, int] = {}
    for name, model, _ in networks:
        try:
            with frozen(model):
                classes[name] = check_network(model, *batch)
        except FastgatError as error:
            raise type(error)(f"{name}: {error}") from None
    (first, expected), *others = classes.items()
    for name, count in others:
        if count != expected:
            raise ConfigError(f"{name} tells {count} classes apart, but {first} {expected}: they do not compare")
    return expected
