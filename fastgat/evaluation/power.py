"""A generator against fast gradient at equal power: the paper's Figure 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.attacks.base import frozen, loss_gradient, right, wide
from fastgat.attacks.generator import generated
from fastgat.batch import Batch
from fastgat.evaluation.cache import Cache, batch_fingerprint, model_fingerprint
from fastgat.evaluation.outcomes import Subject, numbered
from fastgat.kernels.input_gradient import ascent

SIDES = ("generator", "fg-l2 per sample", "fg-l2 on average", "fg-linf per sample", "fg-linf on average")


def equal_power(
    subject: Subject,
    generators: Mapping[float, nn.Module],
    batches: Iterable[Batch],
    cache: Cache,
    progress: Callable[[int], None] = lambda samples: None,
) -> list[dict[str, Any]]:
    """For each generator, by its c_g, the accuracy under it and under fast gradient of the same power, unclamped.

    The power of a perturbation p is ||p||_2^2. "Per sample", fast gradient gives each sample the power that the
    generator gave that sample; "on average", every sample the mean.

    Returns a row for each c_g: `cg`, `power` (the mean), `rms` (per pixel), and `accuracy` by side.
    """
    return [_row(subject, cg, generator, batches, cache, progress) for cg, generator in sorted(generators.items())]


def _row(
    subject: Subject,
    cg: float,
    generator: nn.Module,
    batches: Iterable[Batch],
    cache: Cache,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    networks = {"network": subject.fingerprint, "generator": model_fingerprint(generator)}
    norms: list[int] = []
    for batch, _ in numbered(batches):
        key = {"what": "generated norms", **networks, "batch": batch_fingerprint(batch)}
        norms += cache.numbers(key, partial(_norms, subject, generator, batch))
        elements = batch.images[0].numel()
    power = float(((np.array(norms) / SCALE) ** 2).mean())
    counts, samples = np.zeros(len(SIDES), np.int64), 0
    for batch, _ in numbered(batches):
        mean = {"power": f"{power:.17g}", "batch": batch_fingerprint(batch)}
        counts += cache.numbers(
            {"what": "equal power", **networks, **mean}, partial(_right, subject, generator, batch, math.sqrt(power))
        )
        samples += len(batch.labels)
        progress(len(batch.labels))
    accuracy = dict(zip(SIDES, (counts / samples).tolist(), strict=True))
    return {"cg": cg, "power": power, "rms": math.sqrt(power / elements), "accuracy": accuracy}


SCALE = 10**9
"""Norms are kept as whole numbers of this fraction of a unit."""


def _norms(subject: Subject, generator: nn.Module, batch: Batch) -> list[int]:
    with frozen(subject.model), frozen(generator):
        p = generated(subject.model, generator, *batch)
    scaled: list[int] = (p.double().flatten(1).norm(dim=1) * SCALE).round().long().tolist()
    return scaled


def _right(subject: Subject, generator: nn.Module, batch: Batch, mean: float) -> list[int]:
    """How many answers are right on each side; `mean` is the root of the mean power."""
    images, labels = batch
    with frozen(subject.model), frozen(generator):
        p = generated(subject.model, generator, images, labels)
        gradient = loss_gradient(subject.model, images, labels)[1]
        own, pixel = p.flatten(1).norm(dim=1), math.sqrt(images[0].numel())
        l2, linf = ascent(gradient, "l2", 1), ascent(gradient, "linf", 1)
        moves: list[Tensor] = [p, wide(own) * l2, mean * l2, wide(own / pixel) * linf, mean / pixel * linf]
        with torch.no_grad():
            return [int(right(subject.model(images + move), labels).sum()) for move in moves]
