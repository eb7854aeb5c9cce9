"""Accuracy against the size of a fast-gradient perturbation: the curves of the paper's Figures 3 and 4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from fastgat.attacks.base import check_images, check_logits, frozen, loss_gradient
from fastgat.data.batch import Batch
from fastgat.errors import ConfigError
from fastgat.kernels.input_gradient import input_gradient

Curves = dict[tuple[str, str], list[float]]
"""Accuracies, one for each epsilon, by (network attacked, network that the perturbation was made on)."""


def fast_gradient_sweep(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    epsilons: Sequence[float],
    norm: str = "l2",
    *,
    sources: Mapping[str, nn.Module] | None = None,
    clamp: bool = False,
) -> Curves:
    """The accuracy of each network on x + eps d, d the fast gradient (1) or (3) of each source, for every eps.

    Direct (white-box) where a network is its own source, indirect where it is not. The clean input gradient of a source
    is computed once a batch, whatever the number of networks and epsilons.

    Args:
        networks: by name, images in [0, 1] -> logits; they come back as they were.
        batches: of the images to be perturbed.
        epsilons: sizes in pixel units; 0 gives the clean accuracy.
        norm: "l2" or "linf".
        sources: by name; by default each network is its own, and its only, source.
        clamp: keep x + eps d in [0, 1]; the paper does not.

    Raises ConfigError for a negative epsilon, and for networks or images that do not fit.
    """
    if not epsilons or min(epsilons) < 0:
        raise ConfigError(f"epsilons must be at least 0, and some, got {list(epsilons)}")
    pairs = [(name, name) for name in networks] if sources is None else [(n, s) for n in networks for s in sources]
    origins = networks if sources is None else sources
    right = {pair: torch.zeros(len(epsilons), dtype=torch.int64) for pair in pairs}
    samples = 0
    with ExitStack() as stack:
        for model in {id(model): model for model in (*networks.values(), *origins.values())}.values():
            stack.enter_context(frozen(model))
        for images, labels in batches:
            if not samples:
                for model in (*networks.values(), *origins.values()):
                    check_logits(model, images[:2], labels)
            check_images(images, labels)
            samples += len(labels)
            for source, model in origins.items():
                gradient = loss_gradient(model, images, labels)[1]
                direction = input_gradient(gradient, norm).value
                for name, by in pairs:
                    if by == source:
                        right[name, by] += _right(networks[name], images, labels, direction, epsilons, clamp)
    return {pair: [int(count) / max(samples, 1) for count in counts] for pair, counts in right.items()}


@torch.no_grad()
def _right(
    model: nn.Module, images: Tensor, labels: Tensor, direction: Tensor, epsilons: Sequence[float], clamp: bool
) -> Tensor:
    """How many answers are right at each epsilon."""
    counts = []
    for epsilon in epsilons:
        moved = images + epsilon * direction
        counts.append((model(moved.clamp(0, 1) if clamp else moved).argmax(1) == labels).sum())
    return torch.stack(counts).cpu()
