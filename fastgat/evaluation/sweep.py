"""Accuracy against the size of a perturbation: the curves of the paper's Figures 3 and 4, network by source.

Direct (white-box) where a network is its own source, indirect where the perturbation was made on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import Attack, check_images, frozen, loss_gradient, right
from fastgat.batch import Batch
from fastgat.errors import ConfigError
from fastgat.evaluation.cache import Cache, batch_fingerprint
from fastgat.evaluation.outcomes import Subject, check_subjects, numbered, outcomes
from fastgat.kernels.input_gradient import ascent

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
    clamp: bool = False,
    cache: Cache = NO_CACHE,
    progress: Callable[[int], None] = lambda samples: None,
) -> Curves:
    """The accuracy of each network on x + eps d, d the fast gradient (1) or (3) of each source, for every eps.

    All samples are perturbed, as in the paper, also those that a network gets wrong as they are. The clean input
    gradient of a source is computed once a batch, whatever the number of networks and epsilons.

    Args:
        networks: by name, images in [0, 1] -> logits; they come back as they were.
        batches: of the images to be perturbed.
        epsilons: sizes in pixel units; 0 gives the clean accuracy.
        norm: "l2" or "linf".
        sources: by name; by default each network is its own, and its only, source.
        clamp: keep x + eps d in [0, 1]; the paper does not.
        progress: told the number of samples of each batch that is done.

    Raises ConfigError for a negative epsilon, and for networks or images that do not fit.
    """
    check_epsilons(epsilons)
    pairs = pair(networks, sources)
    counts = {names: np.zeros(len(epsilons), np.int64) for names in pairs}
    samples = 0
    for batch, first in numbered(batches):
        if not first:
            check_subjects({id(s.model): s for names in pairs.values() for s in names}.values(), batch)
        check_images(*batch)
        directions: dict[str, Tensor] = {}
        for names, (network, source) in pairs.items():
            key = {
                "what": "fast gradient",
                "network": network.fingerprint,
                "source": source.fingerprint,
                "norm": norm,
                "clamp": clamp,
                "epsilons": list(epsilons),
                "batch": batch_fingerprint(batch),
            }
            counts[names] += cache.numbers(key, _counting(network, source, batch, norm, epsilons, clamp, directions))
        samples += len(batch.labels)
        progress(len(batch.labels))
    return {names: (count / samples).tolist() for names, count in counts.items()}


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
    check_epsilons(epsilons)
    return {
        names: [
            float(
                outcomes(
                    network, attack(source.model, epsilon), batches, cache, made_on=source, progress=progress
                ).mean()
            )
            for epsilon in epsilons
        ]
        for names, (network, source) in pair(networks, sources).items()
    }


def check_epsilons(epsilons: Sequence[float]) -> None:
    if not epsilons or min(epsilons) < 0:
        raise ConfigError(f"epsilons must be at least 0, and some, got {list(epsilons)}")


def pair(
    networks: Mapping[str, nn.Module], sources: Mapping[str, nn.Module] | None
) -> dict[tuple[str, str], tuple[Subject, Subject]]:
    """Every network with every source, or with itself alone."""
    attacked = {name: Subject.of(name, model) for name, model in networks.items()}
    if sources is None:
        return {(name, name): (subject, subject) for name, subject in attacked.items()}
    origins = {name: Subject.of(name, model) for name, model in sources.items()}
    return {(n, s): (attacked[n], origins[s]) for s in origins for n in attacked}


def _counting(
    network: Subject,
    source: Subject,
    batch: Batch,
    norm: str,
    epsilons: Sequence[float],
    clamp: bool,
    directions: dict[str, Tensor],
) -> Callable[[], list[int]]:
    """How many answers are right at each epsilon; the direction is kept for the other networks."""
    images, labels = batch

    def compute() -> list[int]:
        if source.name not in directions:
            with frozen(source.model):
                directions[source.name] = ascent(loss_gradient(source.model, images, labels)[1], norm, 1)
        counts = []
        with frozen(network.model), torch.no_grad():
            for epsilon in epsilons:
                moved = torch.add(images, directions[source.name], alpha=epsilon)
                logits = network.model(moved.clamp_(0, 1) if clamp else moved)
                counts.append(right(logits, labels).sum())
        values: list[int] = torch.stack(counts).tolist()
        return values

    return compute
