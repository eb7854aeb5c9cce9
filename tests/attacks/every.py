"""Every attack, made small, and both norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from fastgat.attacks import APGD, FAB, PGD, Attack, AutoAttack, FastGradient, GeneratorAttack, Noise, Square
from fastgat.models import Generator

Make = Callable[..., Attack]


def some_generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Generator(width=4)


ATTACKS: dict[str, Make] = {
    "fast gradient": FastGradient,
    "pgd": partial(PGD, steps=4),
    "pgd, restarts": partial(PGD, steps=3, restarts=3),
    "apgd-ce": partial(APGD, steps=6),
    "apgd-t": partial(APGD, steps=5, loss="dlr-t", targets=3),
    "fab-t": partial(FAB, steps=5, targets=3),
    "square": partial(Square, queries=30),
    "autoattack": partial(AutoAttack, steps=4, targets=2, queries=10),
    "generator": lambda model, **settings: GeneratorAttack(model, generator=some_generator(), **settings),
    "noise": Noise,
    "uniform noise": partial(Noise, distribution="uniform"),
}


EPSILON = {"linf": 0.05, "l2": 1.0}


attacks = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


norms = pytest.mark.parametrize("norm", ["linf", "l2"])
