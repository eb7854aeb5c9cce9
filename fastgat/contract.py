"""The contract of images, labels and logits, checked alike by loaders, steps, losses, attacks and evaluation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.errors import ConfigError, FastgatError, first_line, is_out_of_memory

ROUNDING = 1e-5
"""How far outside [0, 1] rounding may leave a pixel, such as one that was normalised and denormalised in float32."""
INTEGER_DTYPES = tuple(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


def checked_batch(
    images: Any,
    labels: Any,
    num_classes: int | None = None,
    *,
    values: bool = True,
    error: type[FastgatError] = ConfigError,
) -> Batch:
    """The batch as steps and attacks take it; tensors that need a change are copied, never changed.

    Args:
        images: (B, C, H, W), floating point, in [0, 1]; pixels that rounding has left just outside are clamped.
        labels: (B,), of any integer type, on the images' device, from 0 to `num_classes` - 1; they become int64.
        num_classes: None where it is not known.
        values: check the values too, which waits for the device.
        error: the class of the error.

    Raises `error`, saying what was given, where the batch is not as described.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise error(f"expected images (B, C, H, W), floating point in [0, 1], got {_described(images)}")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.dtype not in INTEGER_DTYPES:
        raise error(f"expected {len(images)} integer labels, one class an image, got {_described(labels)}")
    if labels.device != images.device:
        raise error(f"the labels are on {labels.device}, the images on {images.device}: bring them together")
    if images.is_inference() or labels.is_inference():  # which autograd does not take
        with torch.inference_mode(False):
            images, labels = images.clone(), labels.clone()
    labels = labels.to(torch.int64)
    if values and images.numel():
        check_labels(labels, num_classes, error)
        images = _within_bounds(images, error)
    return Batch(images, labels)


def check_labels(labels: Tensor, num_classes: int | None, error: type[FastgatError] = ConfigError) -> None:
    """Raises `error` unless every label (int64) is a class, from 0 to `num_classes` - 1."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or (num_classes is not None and high >= num_classes):
        known = "classes count from 0" if num_classes is None else f"the classifier has classes 0..{num_classes - 1}"
        raise error(f"labels from {low} to {high}, but {known}")


def _within_bounds(images: Tensor, error: type[FastgatError]) -> Tensor:
    low, high = (float(bound) for bound in images.detach().aminmax())
    if low >= 0 and high <= 1:
        return images
    slack = max(ROUNDING, 4 * torch.finfo(images.dtype).eps)
    if math.isnan(low):
        raise error("pixels from nan to nan; they must lie in [0, 1]")
    if not (low >= -slack and high <= 1 + slack):
        raise error(
            f"pixels from {low:.7g} to {high:.7g}; they must lie in [0, 1]: where they are normalised, let the "
            "network do that (fastgat.models.normalized)"
        )
    return images.clamp(0, 1)


@torch.no_grad()
def checked_logits(classifier: nn.Module, images: Tensor, num_classes: int | None = None) -> Tensor:
    """The classifier's logits (B, K) of a few images, in the mode that it is in.

    Raises ConfigError where it fails on them, changes them in place, returns something else than logits, or tells
    another number of classes apart than `num_classes`.
    """
    given = images.clone()
    untouched = given._version
    with network_errors_in_one_line(images):
        logits = classifier(given)
    if given._version != untouched or not torch.equal(given.nan_to_num(), images.nan_to_num()):
        raise ConfigError("the classifier changes its input in place: have it work on a copy")
    return check_logits(logits, len(images), num_classes)


def check_logits(logits: Any, samples: int, num_classes: int | None = None) -> Tensor:
    """`logits`, if they are logits (B, K) of so many samples; waits for the device.

    Raises ConfigError where they are not, and where they are probabilities, or of another number of classes.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != samples:
        raise ConfigError(f"the classifier must return logits (B, K), got {shape_of(logits)}")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ConfigError(f"the classifier tells {logits.shape[1]} classes apart, but the data have {num_classes}")
    if are_probabilities(logits.detach()):
        raise ConfigError("the classifier returns probabilities: take its softmax off, fastgat wants logits")
    return logits


def are_probabilities(outputs: Tensor) -> bool:
    """Whether the outputs (B, K) of a classifier are those of a softmax: each row is 0 or more and sums to 1."""
    sums = outputs.double().sum(1)
    rounding = max(1e-3, torch.finfo(outputs.dtype).eps * outputs.shape[1])
    return (
        len(outputs) > 0 and bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=rounding)
    )


@contextmanager
def network_errors_in_one_line(images: Tensor, what: str = "take") -> Iterator[None]:
    """Turn whatever a network raises on `images` into a ConfigError of one line; out of memory stays what it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FastgatError) or is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the networks do not {what} images of shape {tuple(images.shape)}: {first_line(error)}"
        ) from None


def check_perturbation(perturbation: Any, images: Tensor) -> None:
    """Raises ConfigError where what a generator has returned is no tensor of the shape of `images`."""
    if not isinstance(perturbation, Tensor) or perturbation.shape != images.shape:
        shapes = f"{shape_of(perturbation)} for {shape_of(images)}"
        raise ConfigError(f"the generator must return perturbations of the images' shape, got {shapes}")


def shape_of(value: Any) -> str:
    """The shape of a tensor, for an error; of anything else its type."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _described(value: Any) -> str:
    return f"{shape_of(value)} of {value.dtype}" if isinstance(value, Tensor) else shape_of(value)
