"""What attacks share: the threat model, its checks, randomness by sample, and a model that comes back as it was."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastgat.contract import check_labels, checked_batch, checked_logits
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.functional import buffers_kept, in_eval_mode
from fastgat.kernels.backend import runs_kernel
from fastgat.kernels.images import per_sample
from fastgat.kernels.input_gradient import input_gradient, relative
from fastgat.options import Options, check_unit, option
from fastgat.randomness import point_in_ball

NORMS = ("linf", "l2")
BATCH_SIZE = {"cpu": 64, "cuda": 256}
"""On a CPU a pass of the paper's classifier over 64 images takes a fifth less time an image than over 256
(2 cores of an AMD EPYC with AVX2, torch 2.13.0, forward and input gradient, 256 images: 454 and 572 ms, n = 4)."""


@dataclass(frozen=True)
class Attack(Options, ABC):
    """Looks for x' with ||x' - x|| <= epsilon for which the model errs.

    Attributes:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).

    The result for a sample depends on that sample, its label, its number and the seed, not on the samples beside it.
    """

    model: nn.Module
    epsilon: float = option(8 / 255, "bound of the perturbation's norm, in pixel units", at_least=0)
    norm: str = option("linf", "linf: of each pixel; l2: of each image", choices=NORMS)
    clamp: bool = option(True, "keep pixels in [0, 1]; the paper's own figures do not")
    batch_size: int | None = option(None, "images at a time  [default: 64 on a CPU, 256 on a GPU]", at_least=1)
    seed: int = option(0, "seed of the random draws", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("epsilon", self.epsilon, self.norm)
        if not isinstance(self.model, nn.Module):
            raise ConfigError(f"the model must be a torch.nn.Module, got {type(self.model).__name__}")

    def __call__(self, images: Tensor, labels: Tensor, numbers: Sequence[int] | np.ndarray | None = None) -> Tensor:
        """Perturbed images, in the dtype of `images`; a sample whose perturbation is NaN keeps its image.

        The attack computes in float32 (float64 for float64 images) and rounds towards the images, so that epsilon, norm
        and box hold in every dtype.

        Args:
            images: x, (N, C, H, W), floating point in [0, 1], in the model's dtype and on its device.
            labels: y, (N,) integers.
            numbers: of the samples in their data set, by which they draw; by default 0, 1, ...

        Raises ConfigError for images or labels that are not as described, and for a model that does not return logits;
        NonFiniteError for one that returns NaN.
        """
        images, labels = (tensor.detach() for tensor in checked_batch(images, labels))
        numbers = np.arange(len(images)) if numbers is None else np.asarray(numbers)
        if numbers.shape != labels.shape or (len(numbers) and numbers.dtype.kind not in "iu"):
            given = f"{numbers.shape} of {numbers.dtype}"
            raise ConfigError(f"expected a number, an integer, for each of {len(images)} images, got {given}")
        if len(numbers) and numbers.min() < 0:
            raise ConfigError(f"samples are numbered from 0, got {numbers.min()}")
        size = self.batch_size or BATCH_SIZE["cuda" if images.is_cuda else "cpu"]
        networks = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), nn.Module)}
        isolated: dict[str, Any] = {name: Isolated(network) for name, network in networks.items()}
        attack = replace(self, **{**isolated, "model": Isolated(self.model, images.dtype)})
        results = [images[:0]]
        with frozen(*networks.values()):
            if len(images):
                check_network(attack.model, images, labels)
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                x = images[part].to(torch.promote_types(images.dtype, torch.float32), copy=True)
                with buffers_kept(*networks.values()):  # each batch meets those that the network came with
                    perturbed = attack.perturb(x, labels[part].clone(), numbers[part])
                results.append(self._within_bounds(perturbed.detach(), images[part]))
            return torch.cat(results)

    def settings(self) -> dict[str, Any]:
        """The attack's name and options: with the model they decide the result. The batch size does not."""
        chosen = (f.name for f in fields(self) if "constraint" in f.metadata and f.name != "batch_size")
        return {"attack": type(self).__name__, **{name: getattr(self, name) for name in chosen}}

    @abstractmethod
    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        """Perturbed images of one batch, whose samples have `numbers` in their data set."""

    def add(self, images: Tensor, perturbation: Tensor) -> Tensor:
        """x + p, clamped to [0, 1] unless the attack leaves that out."""
        perturbed = images + perturbation
        return perturbed.clamp_(0, 1) if self.clamp else perturbed

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """An in-place projection onto the ball of radius epsilon around `images`, and onto [0, 1] if it clamps."""
        if self.norm == "linf":
            low, high = images - self.epsilon, images + self.epsilon
            if self.clamp:
                low, high = low.clamp_(0, 1), high.clamp_(0, 1)
            return lambda x: x.clamp_(low, high)
        return lambda x: self.add(images, clip_l2_norm_(x.sub_(images), self.epsilon))

    def length(self, perturbation: Tensor) -> Tensor:
        """The norm of each sample's perturbation: (B, C, H, W) to (B,), in pixel units."""
        flat = perturbation.flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(dim=1)

    def random_perturbation(self, images: Tensor, numbers: np.ndarray, start: int = 0) -> Tensor:
        """A perturbation of each sample, (B, C, H, W), uniform in the box of norm epsilon, or in the ball.

        Sample n draws from (seed, start, n), whatever is beside it in the batch.
        """
        sources = [np.random.default_rng((self.seed, start, int(number))) for number in numbers]
        draws = [point_in_ball(source, self.norm, self.epsilon, tuple(images.shape[1:])) for source in sources]
        return torch.from_numpy(np.stack(draws)).to(images.device, images.dtype)

    def _within_bounds(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Images projected onto the ball, in the dtype of `images`, rounded towards them; the clean one for a NaN."""
        x = images.double()
        p = perturbed.double() - x
        p = p.clamp_(-self.epsilon, self.epsilon) if self.norm == "linf" else clip_l2_norm_(p, self.epsilon)
        rounded = self.add(x, p).to(images.dtype)
        outward = (rounded.double() - x).abs() > p.abs()
        rounded = torch.where(outward, rounded.nextafter(images), rounded)
        return torch.where(per_sample(rounded.flatten(1).isnan().any(1)), images, rounded)


class Isolated(nn.Module):
    """A network on a copy of its input, so that what it does in place stays with it; `dtype` is its parameters'."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype or next((p.dtype for p in network.parameters() if p.is_floating_point()), None)

    def forward(self, x: Tensor) -> Any:
        output = self.network(x.to(self.dtype or x.dtype, copy=True))
        return output.to(x.dtype) if isinstance(output, Tensor) else output


def ascent(gradient: Tensor, norm: str, size: float) -> Tensor:
    """A step of this size uphill: size * sign(gradient) (1) for "linf", size * gradient / ||gradient|| (3) for "l2".

    `gradient` is (B, C, H, W), floating point, and so is the step; a zero gradient gives none. NaN counts as 0 and
    infinity as the largest finite value, so that a broken gradient does not end an attack.
    """
    gradient = gradient.nan_to_num()
    if runs_kernel(gradient):
        return input_gradient(gradient, norm, epsilon=size).value
    # In half as many passes over the images as the kernel's reference makes.
    if norm == "linf":
        return gradient.sign().mul_(size)
    direction, length = relative(gradient)
    return direction.mul_(per_sample(size / length.where(length > 0, 1)))


def l2_norm(perturbation: Tensor) -> Tensor:
    """The L2 norm of each sample, (B, 1, 1, 1)."""
    return per_sample(perturbation.flatten(1).norm(dim=1))


def clip_l2_norm_(perturbation: Tensor, norm: float) -> Tensor:
    """The perturbation, in place, scaled down to an L2 norm of at most `norm` a sample."""
    return perturbation.mul_((norm / l2_norm(perturbation).clamp_(min=1e-12)).clamp_(max=1))


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right, (B,); none is where a logit is NaN or +inf, or all are -inf."""
    return (logits.argmax(1) == labels) & meaningful(logits)


def meaningful(logits: Tensor) -> Tensor:
    """Which rows of logits have neither NaN nor +inf, (B,), and a class that the network does not rule out by -inf."""
    return (logits.amax(1) > -torch.inf) & (logits < torch.inf).all(1)


@contextlib.contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode and their own precision, whatever autocast is around, their parameters without gradients;
    everything is put back afterwards, and so are buffers that a forward pass has changed."""
    before = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        with (
            ExitStack() as plain,
            in_eval_mode(*models),
            torch.inference_mode(False),
            buffers_kept(*models),
            torch.enable_grad(),
        ):
            for kind in ("cpu", "cuda"):
                plain.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, K), and dJ/dx (B, C, H, W) of each sample's cross entropy; both detached."""
    x = images.detach().requires_grad_()
    logits = model(x)
    return logits.detach(), gradient_of(functional.cross_entropy(logits, labels, reduction="sum"), x)


def gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """d value / dx; zero where autograd finds no path from x, as through a model that is piecewise constant."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
    return gradient


@torch.no_grad()
def check_network(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Run the model, in eval mode, on at most two images, and return its number of classes.

    Raises ConfigError unless it returns logits of classes that hold `labels`, NonFiniteError for NaN or +inf.
    """
    logits = checked_logits(Isolated(model), images[:2])
    if not meaningful(logits).all():
        raise NonFiniteError("the classifier returns logits that are NaN or infinite")
    check_labels(labels, logits.shape[1])
    return logits.shape[1]
