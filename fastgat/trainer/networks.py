"""A run's networks: the user's, or new ones by name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgat.config import ModelConfig
from fastgat.data.registry import CUSTOM
from fastgat.engine.weights import load_weights
from fastgat.errors import ConfigError
from fastgat.functional import has_lazy_layers, size_lazy_layers
from fastgat.methods import Method
from fastgat.models import Generator, create_classifier, normalization
from fastgat.trainer.feed import Feed


class Networks(NamedTuple):
    """Both players, on their device; `weights` says what the classifier's began as, where it was given some."""

    classifier: nn.Module
    generator: nn.Module | None
    weights: str | None


def make_networks(
    model: ModelConfig,
    method: Method,
    feed: Feed,
    device: torch.device,
    own: tuple[nn.Module | None, nn.Module | None] = (None, None),
    *,
    fresh: bool = True,
) -> Networks:
    """The classifier and generator of a run, each the user's `own` or a new one for the images of `feed`.

    A `fresh` run begins with the weights that the settings name; others have theirs in a checkpoint.

    Raises ConfigError for settings that a network of the user's cannot have, CheckpointError for weights that do not
    fit.
    """
    classifier, generator = own
    if classifier is None:
        normalized = normalization(model.mean, model.std, feed.name)
        classifier = create_classifier(
            model.classifier, feed.num_classes, feed.channels, method.classifier_dropout, normalized
        )
    elif (model.mean, model.std) != (None, None):
        raise ConfigError("mean and std are for classifiers by name: give yours as fastgat.models.normalized(...)")
    if not method.needs_generator:
        generator = None
    elif generator is None:
        generator = Generator(model.generator_width, feed.channels, method.generator_channels(feed.channels))
    weights = None
    if model.init_from is not None:
        if fresh and has_lazy_layers(classifier) and (batch := next(feed.validation.once(), None)) is not None:
            size_lazy_layers(classifier, feed.channels, batch.images.shape[2:])
        names_changed = load_weights(classifier, model.init_from) if fresh else []
        weights = "; ".join([f"from {model.init_from}", *names_changed])
    classifier.to(device)
    if generator is not None:
        generator.to(device)
    return Networks(classifier, generator, weights)


def model_header(
    model: ModelConfig, method: Method, feed: Feed, image_size: Sequence[int], *, own: bool
) -> dict[str, Any]:
    """The part of a checkpoint's header by which `load_classifier` builds the classifier again.

    `own`: it is the user's.
    """
    return {
        "classifier": None if own else model.classifier,
        "normalization": normalization(model.mean, model.std, feed.name),
        "num_classes": feed.num_classes,
        "classes": list(feed.classes) if feed.name != CUSTOM else None,
        "in_channels": feed.channels,
        "image_size": list(image_size),
        "dropout": method.classifier_dropout,
    }
