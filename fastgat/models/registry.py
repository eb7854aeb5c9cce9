"""Classifiers by name: the paper's own, and any of timm's when timm is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from fastgat.errors import ConfigError
from fastgat.models.table1 import Classifier
from fastgat.options import suggestion

_CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {"table1": Classifier}


def classifier_names() -> list[str]:
    """The names that need no other package."""
    return list(_CLASSIFIERS)


def create_classifier(name: str, num_classes: int, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """The classifier called `name`, freshly initialised; `timm:NAME` or a bare timm name takes timm's.

    Raises ConfigError for a name that nobody knows, or a timm name where timm is not installed.
    """
    if name in _CLASSIFIERS:
        return _CLASSIFIERS[name](num_classes=num_classes, in_channels=in_channels, dropout=dropout)
    timm_name = name.removeprefix("timm:")
    timm = _timm(required_by=name)
    if not timm.is_model(timm_name):
        raise ConfigError(f"unknown classifier {name!r}{suggestion(timm_name, [*_CLASSIFIERS, *timm.list_models()])}")
    return timm.create_model(timm_name, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout)


def _timm(required_by: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as missing:
        known = ", ".join(_CLASSIFIERS)
        raise ConfigError(
            f"unknown classifier {required_by!r} (known: {known}); names from timm need "
            f"`pip install timm` ({missing.name} is not installed)"
        ) from None
