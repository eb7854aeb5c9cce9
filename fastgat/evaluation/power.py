"""A generator against fast gradient at equal power: the paper's Figure 2."""

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from torch import nn

from fastgat.attacks.base import Isolated, ascent, frozen, loss_gradient
from fastgat.attacks.generator import generated
from fastgat.batch import Batch
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.fingerprint import model_fingerprint
from fastgat.evaluation.inputs import Batches, NumberedBatch, Subject
from fastgat.evaluation.results import EqualPower
from fastgat.kernels.images import per_sample

PERTURBATIONS = ("generator", "fg-l2 per sample", "fg-l2 on average", "fg-linf per sample", "fg-linf on average")


def equal_power(
    subject: Subject, generators: Mapping[float, nn.Module], batches: Iterable[Batch], cache: Cache
) -> list[EqualPower]:
    """For each generator, by its c_g, the accuracy under it and under fast gradient of the same power, unclamped.

    The power of a perturbation p is ||p||_2^2. "Per sample", fast gradient gives each sample the power that the
    generator gave that sample; "on average", every sample the mean. Pixels are in units of [0, 1].

    Raises NonFiniteError where the network returns logits that are NaN or infinite.
    """
    images = Batches.of(batches)
    return [_compare(subject, cg, generator, images, cache) for cg, generator in sorted(generators.items())]


def _compare(subject: Subject, cg: float, generator: nn.Module, batches: Batches, cache: Cache) -> EqualPower:
    networks = {"network": subject.digest, "generator": model_fingerprint(generator)}
    generator = Isolated(generator)
    norms: list[float] = []
    for batch in batches.numbered():
        key = {"what": "generated norms", **networks, "batch": batch.digest}
        norms += cache.numbers(key, partial(_norms, subject, generator, batch))
    power = float(np.square(norms).mean())
    counts = np.zeros(len(PERTURBATIONS), np.int64)
    for batch in batches.numbered():
        key = {"what": "equal power", **networks, "power": f"{power:.17g}", "batch": batch.digest}
        counts += cache.numbers(key, partial(_count_correct, subject, generator, batch, math.sqrt(power)))
    accuracy = dict(zip(PERTURBATIONS, (counts / batches.samples).tolist(), strict=True))
    return EqualPower(cg, power, math.sqrt(power / batches.first.images[0].numel()), accuracy)


def _norms(subject: Subject, generator: nn.Module, batch: NumberedBatch) -> list[float]:
    with frozen(subject, generator):
        p = generated(subject, generator, batch.images, batch.labels)
    return p.double().flatten(1).norm(dim=1).tolist()


def _count_correct(subject: Subject, generator: nn.Module, batch: NumberedBatch, mean_norm: float) -> list[int]:
    """How many answers are right under each of PERTURBATIONS; `mean_norm` is the root of the mean power."""
    images, labels = batch.images, batch.labels
    with frozen(subject, generator):
        p = generated(subject, generator, images, labels)
        gradient = loss_gradient(subject, images, labels)[1]
        norms, root_pixels = p.flatten(1).norm(dim=1), math.sqrt(images[0].numel())
        l2, linf = ascent(gradient, "l2", 1), ascent(gradient, "linf", 1) / root_pixels  # both of L2 norm 1
    perturbations = {
        "generator": p,
        "fg-l2 per sample": per_sample(norms) * l2,
        "fg-l2 on average": mean_norm * l2,
        "fg-linf per sample": per_sample(norms) * linf,
        "fg-linf on average": mean_norm * linf,
    }
    when = " under perturbations of the generator's power (their pixels are not clamped to [0, 1])"
    return [int(subject.right(images + perturbations[name], labels, when).sum()) for name in PERTURBATIONS]
