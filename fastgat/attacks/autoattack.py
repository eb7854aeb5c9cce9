"""AutoAttack (Croce and Hein 2020) by torchattacks: a robust accuracy to compare with published ones."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgat.attacks.base import Attack
from fastgat.errors import ConfigError


@dataclass(frozen=True)
class AutoAttack(Attack):
    """APGD-CE, APGD-T, FAB-T and Square, one after the other, each on what the others left. Needs torchattacks.

    torchattacks draws for a whole batch: unlike those of the other attacks, its result depends on the batch size.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clamp:
            raise ConfigError("AutoAttack keeps pixels in [0, 1]: it has no clamp=False")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "batch_size": self.batch_size}

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        with torch.no_grad():
            classes = self.model(images[:1]).shape[1]
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        attack = _torchattacks().AutoAttack(self.model, norm=norm, eps=self.epsilon, n_classes=classes, seed=self.seed)
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            perturbed: Tensor = attack(images, labels)
        return perturbed


def check_autoattack(classes: int) -> None:
    """Raises ConfigError where torchattacks is missing, or the classifier has too few classes for it."""
    _torchattacks()
    if classes < 4:
        raise ConfigError(f"AutoAttack needs at least 4 classes, and the network tells {classes} apart")


def _torchattacks() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchattacks uses deprecated functions of other packages
            return importlib.import_module("torchattacks")
    except ImportError as missing:
        raise ConfigError(
            f"AutoAttack needs {missing.name}, which is not installed: pip install 'fastgat-trainer[autoattack]'"
        ) from None
