"""The networks of a run, on its device, and the state that trains them."""

from __future__ import annotations

import torch
from torch import nn

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.engine.assemble import assemble, check_networks
from fastgat.engine.ranks import Ranks
from fastgat.engine.state import TrainState
from fastgat.methods import Method
from fastgat.models import Generator, create_classifier
from fastgat.trainer.feed import Feed


def fitting_state(
    config: TrainConfig,
    method: Method,
    classifier: nn.Module | None,
    generator: nn.Module | None,
    feed: Feed,
    batch: Batch,
    device: torch.device,
    ranks: Ranks,
) -> TrainState:
    """The state, once its networks, the user's or new ones, are known to fit the images, of which `batch` is some.

    Raises ConfigError, naming the cause, where they do not.
    """
    if classifier is None:
        dropout = method.classifier_dropout
        classifier = create_classifier(config.model.classifier, feed.num_classes, feed.channels, dropout)
    if not method.needs_generator:
        generator = None
    elif generator is None:
        given = method.generator_channels(feed.channels)
        generator = Generator(config.model.generator_width, feed.channels, given)
    for module in (classifier, generator):
        if module is not None:
            module.to(device)
    validation = next(feed.validation.once(), None)
    if validation is not None or ranks.alone:  # a rank may have no image to validate
        images = validation.images if validation is not None else None
        check_networks(classifier, generator, images, method, feed.num_classes)
    return assemble(
        method,
        classifier,
        generator,
        batch,
        optimizer=config.optimizer,
        precision=config.precision,
        statistics=config.model.batch_norm,
        num_classes=feed.num_classes,
        ranks=ranks,
    )
