"""Classifiers by name: the paper's, timm's where that is installed, and those that a user's factory makes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from fastgat.errors import ConfigError
from fastgat.models.normalize import normalized
from fastgat.models.table1 import Classifier
from fastgat.options import suggestion

_CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {"table1": Classifier}


def classifier_names() -> list[str]:
    """The names that need no other package."""
    return list(_CLASSIFIERS)


def is_factory(name: str) -> bool:
    """Whether `name` is that of a factory (`package.module:factory`): code to import, not one of the built-in names."""
    return ":" in name and not name.startswith("timm:")


def create_classifier(name: str, num_classes: int, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """The classifier called `name`, freshly initialised: images (B, C, H, W) in [0, 1] -> logits (B, K).

    `timm:NAME` or a bare timm name takes timm's, behind the normalisation of the input that timm knows for it.
    `package.module:factory` calls that factory with num_classes, in_channels and dropout, as far as it takes them; its
    module is sought in the working directory too.

    Raises ConfigError for a name that nobody knows, a timm name where timm is not installed, and a factory that is not
    there or makes no module.
    """
    if name in _CLASSIFIERS:
        return _CLASSIFIERS[name](num_classes=num_classes, in_channels=in_channels, dropout=dropout)
    if is_factory(name):
        return _made(name, {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout})
    timm_name = name.removeprefix("timm:")
    timm = _timm(required_by=name)
    if not timm.is_model(timm_name):
        raise ConfigError(f"unknown classifier {name!r}{suggestion(timm_name, [*_CLASSIFIERS, *timm.list_models()])}")
    model = timm.create_model(timm_name, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout)
    mean, std = (_for_channels(model.pretrained_cfg[key], in_channels) for key in ("mean", "std"))
    return normalized(model, mean, std)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values for each of red, green and blue, or their mean for each of another number of channels."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _made(name: str, options: dict[str, Any]) -> nn.Module:
    """What the factory called `package.module:factory` makes."""
    place, _, attribute = name.partition(":")
    try:
        with _importing_from_here():
            factory = getattr(importlib.import_module(place), attribute)
    except ModuleNotFoundError as missing:
        raise ConfigError(f"classifier {name!r}: no module called {missing.name!r}") from None
    except Exception as error:  # noqa: BLE001  # whatever the module raises when it is imported
        raise ConfigError(f"classifier {name!r}: {error}") from None
    if not callable(factory):
        raise ConfigError(f"classifier {name!r}: {attribute} cannot be called")
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    taken = options if takes_all else {p.name: options[p.name] for p in parameters if p.name in options}
    if options["dropout"] and "dropout" not in taken:
        raise ConfigError(f"classifier {name!r}: a method with dropout needs a factory that takes `dropout`")
    try:
        with _importing_from_here():  # what it imports only now
            module = factory(**taken)
    except (TypeError, ImportError) as error:
        raise ConfigError(f"classifier {name!r}: {error}") from None
    if not isinstance(module, nn.Module):
        raise ConfigError(f"classifier {name!r}: made a {type(module).__name__}, not a torch.nn.Module")
    return module


@contextlib.contextmanager
def _importing_from_here() -> Iterator[None]:
    """Seek modules in the working directory too, after everywhere else."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _timm(required_by: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as missing:
        known = ", ".join(_CLASSIFIERS)
        raise ConfigError(
            f"unknown classifier {required_by!r} (known: {known}, package.module:factory); names from timm need "
            f"`pip install timm` ({missing.name} is not installed)"
        ) from None
