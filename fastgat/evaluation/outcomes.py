"""Outcomes: which samples a network gets right, as they are and under an attack, and some of them to look at."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastgat.attacks.base import Attack
from fastgat.batch import Batch
from fastgat.evaluation.cache import Cache
from fastgat.evaluation.fingerprint import model_fingerprint
from fastgat.evaluation.inputs import Batches, NumberedBatch, Subject

Outcomes = NDArray[np.bool_]  # for each sample, whether the network gets it right
EXAMPLES = 6


def clean_outcomes(subject: Subject, batches: Batches, cache: Cache) -> Outcomes:
    """Which samples the network gets right as they are. Raises NonFiniteError for a logit that is NaN or +inf."""
    return np.concatenate([_clean(subject, batch, cache) for batch in batches.numbered()])


def outcomes(
    subject: Subject,
    attack: Attack,
    batches: Batches,
    cache: Cache,
    *,
    among: Outcomes | None = None,
    made_on: Subject | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcomes:
    """Which samples the network gets right both as they are and under the attack.

    Only samples that are classified correctly, and are in `among`, are attacked; all others count as wrong. So the mean
    is the accuracy under attack, and the logical and over several attacks is their worst case.

    Args:
        made_on: the network that the attack works on (transfer); by default the subject itself.
        progress: told how many samples are done, and how many there are.

    Raises NonFiniteError where the network returns NaN or +inf.
    """
    networks = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack) if f.name != "model"}
    common = {
        "what": "outcomes",
        "network": subject.digest,
        "made on": (made_on or subject).digest,
        **attack.settings(),
        **{name: model_fingerprint(value) for name, value in networks.items() if isinstance(value, nn.Module)},
    }
    results = []
    progress(0, batches.samples)
    for batch in batches.numbered():
        wanted = _clean(subject, batch, cache)
        if among is not None:
            wanted = wanted & among[batch.first : batch.first + len(wanted)]
        samples = {"batch": batch.digest, "first": batch.first, "among": "".join(map(str, wanted.astype(int)))}
        results.append(cache.numbers({**common, **samples}, partial(_attacked, subject, attack, batch, wanted)))
        progress(batch.first + len(wanted), batches.samples)
    return np.concatenate(results).astype(bool)


def _clean(subject: Subject, batch: NumberedBatch, cache: Cache) -> Outcomes:
    key = {"what": "clean", "network": subject.digest, "batch": batch.digest}
    return np.array(cache.numbers(key, lambda: subject.right(batch.images, batch.labels).int().tolist()), bool)


def _attacked(subject: Subject, attack: Attack, batch: NumberedBatch, wanted: Outcomes) -> list[int]:
    rows = np.flatnonzero(wanted)
    right = np.zeros(len(wanted), int)
    if len(rows):
        on_device = torch.from_numpy(rows).to(batch.labels.device)
        labels = batch.labels[on_device]
        perturbed = attack(batch.images[on_device], labels, batch.first + rows)
        when = f" under {type(attack).__name__}, epsilon {attack.epsilon:g}"
        right[rows] = subject.right(perturbed, labels, when).cpu().numpy()
    return right.tolist()


class PerturbedImage(NamedTuple):
    """A perturbed image (C, H, W), and the class that the network sees in it."""

    image: Tensor
    answer: int


class Example(NamedTuple):
    """An image (C, H, W) in [0, 1], its class, the network's answer, and the perturbed images by attack."""

    image: Tensor
    label: int
    answer: int
    perturbed: dict[str, PerturbedImage]


def examples(subject: Subject, batch: Batch, attacks: Mapping[str, Attack]) -> list[Example]:
    """The first images that the network gets right (or, where it gets none right, the first)."""
    answers = subject.logits(batch.images).argmax(1)
    right = (answers == batch.labels).nonzero().flatten()
    rows = (right if len(right) else torch.arange(len(batch.labels), device=answers.device))[:EXAMPLES]
    images, labels = batch.images[rows], batch.labels[rows]
    shown = [Example(*each, {}) for each in zip(images.cpu(), labels.tolist(), answers[rows].tolist(), strict=True)]
    for name, attack in attacks.items():
        perturbed = attack(images, labels, rows.cpu().numpy())
        for example, image, answer in zip(shown, perturbed.cpu(), subject.logits(perturbed).argmax(1), strict=True):
            example.perturbed[name] = PerturbedImage(image, int(answer))
    return shown
