"""What attacks share: the threat model, its checks, randomness by sample, and a model that comes back as it was."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.engine.modes import in_eval_mode
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.options import Options, option

NORMS = ("linf", "l2")
AT_A_TIME = {"cpu": 64, "cuda": 256}
"""Images in a pass. On a CPU a pass of the paper's classifier over 64 takes a fifth less time an image than over 256
(2 cores of an AMD EPYC with AVX2, torch 2.13.0, forward and input gradient, 256 images: 454 and 572 ms, n = 4)."""


@dataclass(frozen=True)
class Attack(Options, ABC):
    """Finds x' with ||x' - x|| <= epsilon for which the model errs.

    Attributes:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).

    What an attack returns depends on the sample, its label, its number and the seed, not on the samples beside it.
    """

    model: nn.Module
    epsilon: float = option(8 / 255, "bound of the perturbation's norm, in pixel units", at_least=0)
    norm: str = option("linf", "linf: of each pixel; l2: of each image", choices=NORMS)
    clamp: bool = option(True, "keep pixels in [0, 1]; the paper's own figures do not")
    batch_size: int | None = option(None, "images at a time  [default: 64 on a CPU, 256 on a GPU]", at_least=1)
    seed: int = option(0, "of what is drawn", at_least=0)

    def __call__(self, images: Tensor, labels: Tensor, numbers: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Perturbed images; a sample whose gradients are all NaN is left where it is.

        Args:
            images: x, (N, C, H, W), floating point in [0, 1], on the model's device.
            labels: y, (N,) integers.
            numbers: of the samples in their data set, by which they draw; by default 0, 1, ...

        Raises ConfigError for images or labels that are not as described, and for a model that does not return logits;
        NonFiniteError for one that returns NaN.
        """
        check_images(images, labels)
        numbers = np.arange(len(images)) if numbers is None else np.asarray(numbers, np.int64)
        size = self.batch_size or AT_A_TIME["cuda" if images.is_cuda else "cpu"]
        results = []
        with frozen(self.model):
            if len(images):
                check_logits(self.model, images[:2], labels)
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                x = images[part].detach()
                moved = self.perturb(x, labels[part], numbers[part]).detach()
                lost = moved.flatten(1).isnan().any(1)
                results.append(torch.where(wide(lost), x, moved))
        return torch.cat(results) if results else images.clone()

    def settings(self) -> dict[str, Any]:
        """The attack's name and options: what decides, with the model, what it finds. The batch size does not."""
        chosen = (f.name for f in fields(self) if "constraint" in f.metadata and f.name != "batch_size")
        return {"attack": type(self).__name__, **{name: getattr(self, name) for name in chosen}}

    @abstractmethod
    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        """Perturbed images of one batch, whose samples have `numbers` in their data set."""

    def moved(self, images: Tensor, perturbation: Tensor) -> Tensor:
        """x + p, as an image where it must be one."""
        moved = images + perturbation
        return moved.clamp_(0, 1) if self.clamp else moved

    def around(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes a point, which it may overwrite, into the ball of radius epsilon and then to where images are."""
        if self.norm == "linf":
            low, high = images - self.epsilon, images + self.epsilon
            if self.clamp:
                low, high = low.clamp_(0, 1), high.clamp_(0, 1)
            return lambda x: x.clamp_(low, high)

        def projected(x: Tensor) -> Tensor:
            perturbation = x.sub_(images)
            perturbation *= (self.epsilon / length(perturbation).clamp_(min=1e-12)).clamp_(max=1)
            return self.moved(images, perturbation)

        return projected

    def drawn(self, images: Tensor, numbers: np.ndarray, start: int = 0) -> Tensor:
        """A random perturbation of each sample: uniform in the box of norm epsilon, or in the ball."""
        shape = tuple(images.shape[1:])
        draws = []
        for number in numbers:
            source = np.random.default_rng((self.seed, start, int(number)))
            if self.norm == "linf":
                draws.append(source.uniform(-self.epsilon, self.epsilon, shape))
            else:
                direction = source.standard_normal(shape)
                radius = source.random() ** (1 / direction.size)
                draws.append(self.epsilon * radius * direction / np.linalg.norm(direction))
        return torch.from_numpy(np.stack(draws)).to(images.device, images.dtype)


def length(perturbation: Tensor) -> Tensor:
    """The L2 norm of each sample, (B, 1, 1, 1)."""
    return perturbation.flatten(1).norm(dim=1).view(-1, *[1] * (perturbation.dim() - 1))


def wide(of_samples: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return of_samples[:, None, None, None]


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right, (B,); one among logits that are NaN or infinite is not."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its parameters without gradients; everything is put back."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with in_eval_mode(model), torch.enable_grad():
            yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, K), and dJ/dx of each sample's cross entropy."""
    x = images.detach().requires_grad_()
    logits = model(x)
    return logits.detach(), gradient_of(functional.cross_entropy(logits, labels, reduction="sum"), x)


def gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """d value / dx; zero where the model is piecewise constant and says so by having no derivative."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
    return gradient


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raises ConfigError unless these are images in [0, 1] and their labels."""
    if images.dim() != 4 or not images.is_floating_point():
        raise ConfigError(f"expected images (N, C, H, W), floating point, got {tuple(images.shape)} of {images.dtype}")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ConfigError(f"expected {len(images)} integer labels, got {tuple(labels.shape)} of {labels.dtype}")
    if not images.numel():
        return
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ConfigError(f"pixels from {low:.4g} to {high:.4g}; an attack works on images in [0, 1]")


@torch.no_grad()
def check_logits(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Raises ConfigError or NonFiniteError unless the model returns finite logits of classes that hold `labels`."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"the model must return logits (B, K), got {found}")
    if not logits.isfinite().all():
        raise NonFiniteError("the model returns logits that are NaN or infinite")
    sums = logits.double().sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ConfigError("the model returns probabilities; attacks need logits, from before the softmax")
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ConfigError(f"labels from {low} to {high}, but the model tells {logits.shape[1]} classes apart")
