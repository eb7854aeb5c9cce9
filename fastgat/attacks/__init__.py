"""Attacks on a classifier: `Attack(model, epsilon=...)(images, labels) -> perturbed images`, one file each.

The threat model is in the constructor: the norm, its bound epsilon in pixel units of [0, 1], and whether the result
must be an image. None is targeted. Input normalisation belongs inside the model.
"""

from fastgat.attacks.apgd import APGD
from fastgat.attacks.autoattack import AutoAttack
from fastgat.attacks.base import Attack
from fastgat.attacks.fab import FAB
from fastgat.attacks.fast_gradient import FastGradient
from fastgat.attacks.generator import GeneratorAttack, GeneratorTraining, train_generator
from fastgat.attacks.noise import Noise
from fastgat.attacks.pgd import PGD
from fastgat.attacks.square import Square

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "Attack",
    "AutoAttack",
    "FastGradient",
    "GeneratorAttack",
    "GeneratorTraining",
    "Noise",
    "Square",
    "train_generator",
]
