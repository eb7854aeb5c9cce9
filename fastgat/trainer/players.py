"""The networks of a run, on its device, and the state that trains them."""

from __future__ import annotations

import torch
from torch import nn

from fastgat.batch import Batch
from fastgat.config import TrainConfig
from fastgat.engine.device import autocast_dtype
from fastgat.engine.fitting import check_networks
from fastgat.engine.interaction import samples_interact
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
            _settle(module, device, config.precision.channels_last)
    state = TrainState(
        classifier,
        generator,
        config.optimizer,
        method.metrics,
        autocast_dtype(config.precision.amp_dtype, device) if config.precision.amp else None,
        statistics=config.model.batch_norm,
        memory=torch.zeros_like(batch.images) if method.remembers else None,
        ranks=ranks,
    )
    validation = next(feed.validation.once(), None)
    for each in (batch, validation):
        if each is not None or ranks.alone:  # a rank may have no image to validate
            check_networks(state.classifier, state.generator, each, method, feed.num_classes)
    state.interacts = samples_interact(state.classifier, batch.images)
    return state


def _settle(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Bring `module` to its device and layout, in train mode as far as nobody froze a part of it on purpose."""
    module.to(device)
    if not module.training:  # as pretrained networks come; else layers in eval mode are frozen on purpose
        module.train()
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
