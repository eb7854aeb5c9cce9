"""The networks of a run, on its device, and the state that trains them."""

from __future__ import annotations

import torch
from torch import nn

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
    device: torch.device,
    ranks: Ranks,
) -> TrainState:
    """The state, once its networks, the user's or new ones, are known to fit the images.

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
        memory=torch.zeros_like(next(feed.train.stream(0)).images) if method.remembers else None,
        ranks=ranks,
    )
    for loader in (feed.train, feed.validation):
        batch = next(loader.once(), None)
        if batch is None and not ranks.alone:
            continue  # fewer images than ranks
        check_networks(state.classifier, state.generator, batch, method, feed.num_classes)
    state.interacts = samples_interact(state.classifier, next(feed.train.once()).images)
    return state


def _settle(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Bring `module` to its device and layout, in train mode as far as nobody froze a part of it on purpose."""
    module.to(device)
    if not module.training:  # as pretrained networks come; else layers in eval mode are frozen on purpose
        module.train()
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
