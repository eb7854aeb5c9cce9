"""Whether networks fit the images, and each other, before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
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
    given = images.clone()
    try:
        with in_eval_mode(classifier, generator):
            logits = classifier(given)
            feed = method.generator_feed(images, images) if method is not None else images
            perturbation = generator(feed) if generator is not None else images
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a network may raise
        shape = tuple(images.shape)
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise ConfigError(f"the networks do not take images of shape {shape}: {reason}") from None
    if not torch.equal(given.nan_to_num(), images.nan_to_num()):
        raise ConfigError("the classifier changes its input in place: have it work on a copy")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"the classifier must return logits (B, K), got {found}")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ConfigError(f"the classifier tells {logits.shape[1]} classes apart, but the data have {num_classes}")
    if bool((logits >= 0).all()) and torch.allclose(logits.float().sum(1), logits.new_ones(()).float(), atol=1e-4):
        raise ConfigError("the classifier returns probabilities: take its softmax off, fastgat wants logits")
    if perturbation.shape != images.shape:
        shapes = f"{tuple(perturbation.shape)} for {tuple(images.shape)}"
        raise ConfigError(f"the generator must return perturbations of the images' shape, got {shapes}")
    return logits.shape[1]
