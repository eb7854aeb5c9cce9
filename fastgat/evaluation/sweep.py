"""Accuracy against the size of a perturbation: the curves of the paper's Figures 3 and 4, network by source.

Direct (white-box) where a network is its own source, indirect where the perturbation was made on another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import Attack, correct, frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.evaluation.batches import Batches, NumberedBatch
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.outcomes import outcomes
from fastgat.evaluation.subject import Subject, count_classes, subjects
from fastgat.kernels.input_gradient import ascent

Curves = dict[tuple[str, str], list[float]]
"""Accuracies, one for each epsilon, by (network attacked, network that the perturbation was made on)."""
Pair = tuple[Subject, Subject]
"""A network, and the source of its perturbations."""
NO_CACHE = Cache()


def fast_gradient_sweep(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    epsilons: Sequence[float],
    norm: str = "l2",
    *,
    sources: Mapping[str, nn.Module] | None = None,
    cache: Cache = NO_CACHE,
    progress: Callable[[int], None] = lambda samples: None,
) -> Curves:
    """The accuracy of each network on x + eps d, d the fast gradient (1) or (3) of each source, for every eps.

    All samples are perturbed, as in the paper, also those that a network gets wrong as they are, and pixels are not
    clamped. The clean input gradient of a source is computed once a batch, for all networks and epsilons.

    Args:
        networks: by name, images in [0, 1] -> logits; they come back as they were.
        batches: of the images to be perturbed, the same whenever they are iterated.
        epsilons: sizes in pixel units; 0 gives the clean accuracy.
        norm: "l2" or "linf".
        sources: by name; by default each network is its own, and its only, source.
        progress: told the number of samples of each batch that is done.

    Raises ConfigError for a negative epsilon, and for networks or images that do not fit.
    """
    images, pairs = _checked(networks, sources, batches, epsilons)
    return fast_gradient_curves(pairs, images, epsilons, norm, cache, progress)


def attack_sweep(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    epsilons: Sequence[float],
    attack: Callable[[nn.Module, float], Attack],
    *,
    sources: Mapping[str, nn.Module] | None = None,
    cache: Cache = NO_CACHE,
    progress: Callable[[int], None] = lambda samples: None,
) -> Curves:
    """The accuracy of each network under `attack(source, epsilon)`, for every source and eps.

    Samples that a network gets wrong as they are count as wrong. The rest is as in `fast_gradient_sweep`.
    """
    images, pairs = _checked(networks, sources, batches, epsilons)
    return attack_curves(pairs, images, epsilons, attack, cache, progress)


def pair(networks: Sequence[Subject], sources: Sequence[Subject] | None) -> list[Pair]:
    """Every network with every source, or with itself alone."""
    if sources is None:
        return [(network, network) for network in networks]
    return [(network, source) for source in sources for network in networks]


def fast_gradient_curves(
    pairs: Sequence[Pair],
    batches: Batches,
    epsilons: Sequence[float],
    norm: str,
    cache: Cache,
    progress: Callable[[int], None],
) -> Curves:
    """`fast_gradient_sweep` of subjects that have been checked."""
    counts = {(network.name, source.name): np.zeros(len(epsilons), np.int64) for network, source in pairs}
    for batch in batches.numbered():
        direction = functools.cache(partial(_direction, batch, norm))
        for network, source in pairs:
            key = {
                "what": "fast gradient",
                "network": network.digest,
                "source": source.digest,
                "norm": norm,
                "epsilons": list(epsilons),
                "batch": batch.digest,
            }
            compute = partial(_count_correct, network, source, batch, epsilons, direction)
            counts[network.name, source.name] += cache.numbers(key, compute)
        progress(len(batch.labels))
    return {names: (count / batches.samples).tolist() for names, count in counts.items()}


def attack_curves(
    pairs: Sequence[Pair],
    batches: Batches,
    epsilons: Sequence[float],
    attack: Callable[[nn.Module, float], Attack],
    cache: Cache,
    progress: Callable[[int], None],
) -> Curves:
    """`attack_sweep` of subjects that have been checked."""

    def accuracy(network: Subject, source: Subject, epsilon: float) -> float:
        made = attack(source.model, epsilon)
        return float(outcomes(network, made, batches, cache, made_on=source, progress=progress).mean())

    return {(n.name, s.name): [accuracy(n, s, epsilon) for epsilon in epsilons] for n, s in pairs}


def _checked(
    networks: Mapping[str, nn.Module],
    sources: Mapping[str, nn.Module] | None,
    batches: Iterable[Batch],
    epsilons: Sequence[float],
) -> tuple[Batches, list[Pair]]:
    if not epsilons or min(epsilons) < 0:
        raise ConfigError(f"epsilons must be at least 0, and some, got {list(epsilons)}")
    images, attacked = Batches.of(batches), subjects(networks)
    made_on = None if sources is None else subjects(sources)
    count_classes([*attacked, *(made_on or [])], images.first)
    return images, pair(attacked, made_on)


def _direction(batch: NumberedBatch, norm: str, source: Subject) -> Tensor:
    """The source's fast gradient, of norm 1."""
    with frozen(source.model):
        return ascent(loss_gradient(source.model, batch.images, batch.labels)[1], norm, 1)


def _count_correct(
    network: Subject,
    source: Subject,
    batch: NumberedBatch,
    epsilons: Sequence[float],
    direction: Callable[[Subject], Tensor],
) -> list[int]:
    """How many answers are right at each epsilon."""
    perturbation, counts = direction(source), []
    with frozen(network.model), torch.no_grad():
        for epsilon in epsilons:
            logits = network.model(torch.add(batch.images, perturbation, alpha=epsilon))
            counts.append(correct(logits, batch.labels).sum())
    numbers: list[int] = torch.stack(counts).tolist()
    return numbers
