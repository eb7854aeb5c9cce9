"""Whether networks fit the images, and each other, before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from fastgat.batch import Batch
from fastgat.contract import checked_logits, explained
from fastgat.engine.modes import in_eval_mode
from fastgat.errors import ConfigError
from fastgat.methods.base import Method


@torch.no_grad()
def check_networks(
    classifier: nn.Module,
    generator: nn.Module | None,
    batch: Batch | None,
    method: Method | None = None,
    num_classes: int | None = None,
) -> int:
    """The number of classes that the classifier tells apart, found on two images in eval mode.

    `method` says what the generator is given; by default something like the images.

    Raises ConfigError where the networks do not fit the images, or each other, or the number of classes, where the
    classifier changes its input, and where it returns probabilities.
    """
    if batch is None:
        raise ConfigError("a loader is empty: it must yield at least one batch")
    images = batch.images[:2]
    with in_eval_mode(classifier, generator):
        logits = checked_logits(classifier, images, num_classes)
        with explained(images):
            feed = method.generator_feed(images, images) if method is not None else images
            perturbation = generator(feed) if generator is not None else images
    if perturbation.shape != images.shape:
        shapes = f"{tuple(perturbation.shape)} for {tuple(images.shape)}"
        raise ConfigError(f"the generator must return perturbations of the images' shape, got {shapes}")
    return logits.shape[1]
