"""Classifiers by name: the paper's, those of robust training, timm's where installed, and a user's own factory's."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastgat.errors import ConfigError, first_line, is_out_of_memory
from fastgat.models.normalize import Normalization, Normalize, normalized
from fastgat.models.preact_resnet import PreActResNet18
from fastgat.models.table1 import Classifier
from fastgat.models.wide_resnet import WideResNet
from fastgat.options import suggestion

_CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "table1": Classifier,
    "preactresnet18": PreActResNet18,
    "preactresnet18-bn": partial(PreActResNet18, final_norm=True),
    "preactresnet18-v2": partial(PreActResNet18, late_shortcut=True),
    "preactresnet18-v2-bn": partial(PreActResNet18, final_norm=True, late_shortcut=True),
}
WIDE_RESNET = re.compile(r"wrn-([0-9]{1,3})-([0-9]{1,2})")  # the names wrn-DEPTH-WIDTH


def classifier_names() -> list[str]:
    """The names that need no other package."""
    return [*_CLASSIFIERS, "wrn-DEPTH-WIDTH"]


def is_factory(name: str) -> bool:
    """Whether `name` is that of a factory (`package.module:factory`): code to import, not one of the built-in names."""
    return ":" in name and not name.startswith("timm:")


def create_classifier(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.0,
    normalization: Normalization | None = None,
) -> nn.Module:
    """The classifier called `name`, freshly initialised: images (B, C, H, W) in [0, 1] -> logits (B, K).

    `timm:NAME` or a bare timm name takes timm's, behind the normalisation of the input that timm knows for it.
    `package.module:factory` calls that factory with num_classes, in_channels and dropout, as far as it takes them; its
    module is sought in the working directory too. `normalization`, a mean and a std for each channel, is a layer before
    all others.

    Raises ConfigError for a name that nobody knows, a timm name where timm is not installed, a factory that is not
    there or makes no module, and a normalization that does not fit.
    """
    classifier = _create(name, num_classes, in_channels, dropout)
    if normalization is None:
        return classifier
    if any(isinstance(module, Normalize) for module in classifier.modules()):
        raise ConfigError(f"classifier {name!r} has a normalisation of its own: leave out mean and std")
    if len(normalization[0]) != in_channels:
        raise ConfigError(f"mean has {len(normalization[0])} values, but the images have {in_channels} channels")
    return normalized(classifier, *normalization)


def _create(name: str, num_classes: int, in_channels: int, dropout: float) -> nn.Module:
    if wide := WIDE_RESNET.fullmatch(name):
        return WideResNet(int(wide[1]), int(wide[2]), num_classes, in_channels, dropout)
    if name in _CLASSIFIERS:
        options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
        if name == "table1":
            options["dropout"] = dropout
        elif dropout:
            raise ConfigError(f"classifier {name!r} has no dropout: choose another method, or a wrn-DEPTH-WIDTH")
        return _CLASSIFIERS[name](**options)
    if is_factory(name):
        return _made(name, {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout})
    timm_name = name.removeprefix("timm:")
    timm = _timm(required_by=name)
    if not timm.is_model(timm_name):
        raise ConfigError(
            f"unknown classifier {name!r}{suggestion(timm_name, [*classifier_names(), *timm.list_models()])}"
        )
    model = timm.create_model(timm_name, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout)
    mean, std = (_for_channels(model.pretrained_cfg[key], in_channels) for key in ("mean", "std"))
    return normalized(model, mean, std)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values for each of red, green and blue, or their mean for each of another number of channels."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def import_factory(name: str) -> Any:
    """The factory called `package.module:factory`; raises ConfigError where there is none."""
    place, _, attribute = name.partition(":")
    try:
        with _importing_from_here():
            factory = getattr(importlib.import_module(place), attribute)
    except ModuleNotFoundError as missing:
        raise ConfigError(f"classifier {name!r}: no module called {missing.name!r}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the module raises when it is imported
        raise _failure(name, error) from None
    if not callable(factory):
        raise ConfigError(f"classifier {name!r}: {attribute} cannot be called")
    return factory


def _made(name: str, options: dict[str, Any]) -> nn.Module:
    """What the factory called `package.module:factory` makes."""
    factory = import_factory(name)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:  # some of those that are written in C
        raise _failure(name, error) from None
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    taken = options if takes_all else {p.name: options[p.name] for p in parameters if p.name in options}
    if options["dropout"] and "dropout" not in taken:
        raise ConfigError(f"classifier {name!r}: a method with dropout needs a factory that takes `dropout`")
    try:
        with _importing_from_here():  # what it imports only now
            module = factory(**taken)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a user's code raises
        raise _failure(name, error) from None
    if not isinstance(module, nn.Module):
        raise ConfigError(f"classifier {name!r}: made a {type(module).__name__}, not a torch.nn.Module")
    return module


def _failure(name: str, error: BaseException) -> BaseException:
    """What to raise where the code of the factory `name` has raised `error`: one line, unless memory ran out."""
    if is_out_of_memory(error):
        return error
    return ConfigError(f"classifier {name!r}: {type(error).__name__}: {first_line(error)}")


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
        known = ", ".join(classifier_names())
        raise ConfigError(
            f"unknown classifier {required_by!r} (known: {known}, package.module:factory); names from timm need "
            f"`pip install timm` ({missing.name} is not installed)"
        ) from None
