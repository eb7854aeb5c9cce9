"""What a network still gets right under an attack, sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastgat.attacks.base import Attack, check_images, check_logits, frozen, right
from fastgat.batch import Batch
from fastgat.errors import ConfigError, FastgatError, NonFiniteError
from fastgat.evaluation.cache import Cache, batch_fingerprint, model_fingerprint

Outcomes = NDArray[np.bool_]
"""Of each sample, whether the network gets it right."""


class Subject(NamedTuple):
    """A network with a name, and a digest of it."""

    name: str
    model: nn.Module
    fingerprint: str

    @classmethod
    def of(cls, name: str, model: nn.Module) -> Subject:
        return cls(name, model, model_fingerprint(model))


def clean_outcomes(subject: Subject, batches: Iterable[Batch], cache: Cache) -> Outcomes:
    """Which samples the network gets right as they are."""
    return np.concatenate([_clean(subject, batch, cache) for batch, _ in numbered(batches)])


def outcomes(
    subject: Subject,
    attack: Attack,
    batches: Iterable[Batch],
    cache: Cache,
    *,
    among: Outcomes | None = None,
    made_on: Subject | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> Outcomes:
    """Which samples the network gets right both as they are and under the attack.

    Only samples that it gets right as they are get attacked, and of those only the ones in `among`: the others count
    as lost. So the mean is the accuracy that is left, and the worst case over attacks is the logical and.

    Args:
        made_on: the network that the attack works on (transfer); by default the subject itself.
        progress: told the number of samples of each batch that is done.
    """
    origin = made_on or subject
    results = []
    for batch, first in numbered(batches):
        wanted = _clean(subject, batch, cache)
        if among is not None:
            wanted = wanted & among[first : first + len(batch.labels)]
        key = {
            "what": "outcomes",
            "network": subject.fingerprint,
            "made on": origin.fingerprint,
            **described(attack),
            "batch": batch_fingerprint(batch),
            "first": first,
            "among": "".join("01"[int(value)] for value in wanted),
        }
        results.append(np.array(cache.numbers(key, _attacked(subject, attack, batch, first, wanted)), bool))
        progress(len(batch.labels))
    return np.concatenate(results)


def described(attack: Attack) -> dict[str, Any]:
    """The settings of an attack, and a digest of each network that it uses beside the one that it is made on."""
    others = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack) if f.name != "model"}
    networks = {name: model_fingerprint(value) for name, value in others.items() if isinstance(value, nn.Module)}
    return {**attack.settings(), **networks}


def numbered(batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """Each batch with the number of its first sample.

    Raises ConfigError where there are none, or where they could be read only once.
    """
    if iter(batches) is batches:
        raise ConfigError("batches are read several times: pass a list, or something else that can be iterated again")
    first = 0
    for images, labels in batches:
        yield Batch(images, labels), first
        first += len(labels)
    if not first:
        raise ConfigError("there are no images to evaluate on")


class Steady:
    """Batches that are the same, in the same order, whenever they are read: what is found of a sample by one attack is
    held against what another has found. Reading them raises ConfigError where they are not."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._known = [batch_fingerprint(batch) for batch, _ in numbered(batches)]

    def __iter__(self) -> Iterator[Batch]:
        found = 0
        for batch in self._batches:
            if self._known[found : found + 1] != [batch_fingerprint(batch)]:
                raise ConfigError("batches are not the same each time they are read: pass a list, or do not shuffle")
            yield batch
            found += 1
        if found < len(self._known):
            raise ConfigError(f"batches were {len(self._known)} when they were first read, and then {found}")


def check_subjects(subjects: Iterable[Subject], batch: Batch) -> int:
    """The number of classes; raises ConfigError or NonFiniteError unless each returns logits of that many for such
    images."""
    check_images(*batch)
    classes: dict[str, int] = {}
    for name, model, _ in subjects:
        with frozen(model):
            try:
                check_logits(model, batch.images[:2], batch.labels)
                with torch.no_grad():
                    classes[name] = model(batch.images[:1]).shape[1]
            except (FastgatError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
                reason = " ".join(str(error).split("\n")[0].split())
                shape = tuple(batch.images.shape)
                raise ConfigError(f"{name} does not take images of shape {shape}: {reason}") from None
    (first, expected), *others = classes.items()
    for name, found in others:
        if found != expected:
            raise ConfigError(f"{name} tells {found} classes apart, but {first} {expected}: they do not compare")
    return expected


def _clean(subject: Subject, batch: Batch, cache: Cache) -> Outcomes:
    key = {"what": "clean", "network": subject.fingerprint, "batch": batch_fingerprint(batch)}

    def compute() -> list[int]:
        with frozen(subject.model), torch.no_grad():
            logits = subject.model(batch.images)
        if not logits.isfinite().all():
            raise NonFiniteError(f"{subject.name} returns logits that are NaN or infinite")
        answers: list[int] = right(logits, batch.labels).tolist()
        return answers

    return np.array(cache.numbers(key, compute), bool)


def _attacked(subject: Subject, attack: Attack, batch: Batch, first: int, wanted: Outcomes) -> Callable[[], list[int]]:
    def compute() -> list[int]:
        rows = np.flatnonzero(wanted)
        standing = np.zeros(len(wanted), bool)
        if len(rows):
            at = torch.from_numpy(rows).to(batch.labels.device)
            labels = batch.labels[at]
            moved = attack(batch.images[at], labels, first + rows)
            with frozen(subject.model), torch.no_grad():
                standing[rows] = right(subject.model(moved), labels).cpu().numpy()
        values: list[int] = standing.tolist()
        return values

    return compute
