"""Accuracy against the size of a perturbation: the curves of the paper's Figures 3 and 4, network by source.

Direct (white-box) where a network is its own source, indirect where the perturbation was made on another.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import NORMS, Attack, ascent, frozen, loss_gradient
from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.inputs import Batches, NumberedBatch, Subject, as_subjects, check_classes
from fastgat.evaluation.outcomes import outcomes
from fastgat.options import Constraint, check_unit, convert

Curves = dict[tuple[str, str], list[float]]
"""Accuracies, one for each epsilon, by (network attacked, network that the perturbation was made on)."""
NO_CACHE = Cache()


def fast_gradient_sweep(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    epsilons: Sequence[float],
    norm: str = "l2",
    *,
    sources: Mapping[str, nn.Module] | None = None,
    cache: Cache = NO_CACHE,
    progress: Callable[[int, int], None] = lambda done, total: None,
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
        progress: told how many samples are done, and how many there are, for every epsilon of an attack.

    Raises ConfigError for another norm, an epsilon that makes no sense in it, and networks or images that do not fit;
    NonFiniteError for logits that are NaN or infinite.
    """
    Constraint("", choices=NORMS).check("norm", norm)
    epsilons = _sizes(epsilons)
    for epsilon in epsilons:
        check_unit("epsilon", epsilon, norm)
    images, pairs = _checked(networks, sources, batches)
    counts = [np.zeros(len(epsilons), np.int64) for _ in pairs]
    progress(0, images.samples)
    for batch in images.numbered():
        direction = functools.cache(partial(_direction, batch, norm))
        common = {"what": "fast gradient", "norm": norm, "epsilons": epsilons, "batch": batch.digest}
        for count, (network, source) in zip(counts, pairs, strict=True):
            key = {**common, "network": network.digest, "source": source.digest}
            count += cache.numbers(key, partial(_count_correct, network, batch, epsilons, partial(direction, source)))
        progress(batch.first + len(batch.labels), images.samples)
    accuracies = [(count / images.samples).tolist() for count in counts]
    return {(network.name, source.name): curve for (network, source), curve in zip(pairs, accuracies, strict=True)}


def attack_sweep(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    epsilons: Sequence[float],
    attack: Callable[[nn.Module, float], Attack],
    *,
    sources: Mapping[str, nn.Module] | None = None,
    cache: Cache = NO_CACHE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """The accuracy of each network under `attack(source, epsilon)`, for every source and eps.

    `attack` makes the attack on a network at an epsilon in pixel units. Samples that a network gets wrong as they are
    count as wrong. The rest, errors too, is as in `fast_gradient_sweep`.
    """
    epsilons = _sizes(epsilons)
    images, pairs = _checked(networks, sources, batches)

    def accuracy(network: Subject, source: Subject, epsilon: float) -> float:
        made, before = attack(source, epsilon), epsilons.index(epsilon) * images.samples

        def told(done: int, total: int) -> None:
            progress(before + done, len(epsilons) * total)

        return float(outcomes(network, made, images, cache, made_on=source, progress=told).mean())

    return {(n.name, s.name): [accuracy(n, s, epsilon) for epsilon in epsilons] for n, s in pairs}


def _sizes(epsilons: Iterable[float]) -> list[float]:
    """The epsilons as plain numbers. Raises ConfigError where there are none, or one is negative or no number."""
    sizes = [convert("epsilon", epsilon, float) for epsilon in epsilons]
    if not sizes or min(sizes) < 0:
        raise ConfigError(f"epsilons must be one or more numbers of at least 0, got {sizes}")
    return sizes


def _checked(
    networks: Mapping[str, nn.Module], sources: Mapping[str, nn.Module] | None, batches: Iterable[Batch]
) -> tuple[Batches, list[tuple[Subject, Subject]]]:
    """The images, and every network with every source, or with itself alone."""
    images = Batches.of(batches)
    attacked, origins = (as_subjects(each, images.first) for each in (networks, sources))
    check_classes([*attacked, *origins], images)
    if sources is None:
        return images, [(network, network) for network in attacked]
    return images, [(network, source) for source in origins for network in attacked]


def _direction(batch: NumberedBatch, norm: str, source: Subject) -> Tensor:
    """The source's fast gradient, of norm 1."""
    with frozen(source):
        return ascent(loss_gradient(source, batch.images, batch.labels)[1], norm, 1)


def _count_correct(
    network: Subject, batch: NumberedBatch, epsilons: Sequence[float], direction: Callable[[], Tensor]
) -> list[int]:
    """How many answers are right at each epsilon. Raises NonFiniteError for logits that are NaN, or infinite."""
    perturbation, counts = direction(), []
    for epsilon in epsilons:
        perturbed = torch.add(batch.images, perturbation, alpha=epsilon)
        when = f" under fast gradient, epsilon {epsilon:g} (its pixels are not clamped to [0, 1])"
        counts.append(int(network.right(perturbed, batch.labels, when).sum()))
    return counts
