"""The report card: checks that a claim of robustness must survive (Athalye et al. 2018, Carlini et al. 2019).

A network can look robust because its gradients are of no use to an attack. Each check compares two figures that such a
network gets the wrong way round, and is PASS, WARN or FAIL.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgat.evaluation.outcomes import Outcomes

VERDICTS = ("PASS", "WARN", "FAIL")


class Check(NamedTuple):
    """One line of the card.

    Attributes:
        name: what should hold.
        verdict: PASS, WARN or FAIL.
        figures: what was found, by name.
        threshold: from where on it is a WARN and a FAIL, in words.
        meaning: what it says about the network when it does not hold.
    """

    name: str
    verdict: str
    figures: dict[str, Any]
    threshold: str
    meaning: str


class Limit(NamedTuple):
    """From where on a share of samples is a WARN, and a FAIL; up to one sample, and three, are neither."""

    warn: float
    fail: float

    def judge(self, share: float, samples: int) -> str:
        slack = 1e-9  # shares are quotients of whole numbers
        if share > max(self.fail, 3 / samples) + slack:
            return "FAIL"
        return "WARN" if share > max(self.warn, 1 / samples) + slack else "PASS"

    def __str__(self) -> str:
        return f"WARN above {self.warn:.0%}, FAIL above {self.fail:.0%}"


CLOSE, AGREE, GONE, DEAD = Limit(0.01, 0.03), Limit(0.05, 0.15), Limit(0.01, 0.05), Limit(0.01, 0.10)


LEAST = 20


def stronger(name: str, strong: tuple[str, Outcomes], weak: tuple[str, Outcomes], meaning: str) -> Check:
    """`strong` must leave no more accuracy than `weak`."""
    (one, left), (other, more) = strong, weak
    excess = float(left.mean() - more.mean())
    figures = {one: float(left.mean()), other: float(more.mean())}
    return Check(name, CLOSE.judge(excess, len(left)), figures, f"excess of {one} over {other}: {CLOSE}", meaning)


def settled(name: str, less: tuple[str, Outcomes], more: tuple[str, Outcomes], meaning: str) -> Check:
    """`more` effort must find little more than `less`."""
    (one, before), (other, after) = less, more
    gain = float(before.mean() - after.mean())
    figures = {one: float(before.mean()), other: float(after.mean())}
    return Check(name, CLOSE.judge(gain, len(before)), figures, f"what {other} gains: {CLOSE}", meaning)


def losses_agree(ce: Outcomes, other: tuple[str, Outcomes]) -> Check:
    name, left = other
    gap = float(ce.mean() - left.mean())
    return Check(
        "Attacks on the cross entropy find what attacks on the logits' differences find",
        AGREE.judge(gap, len(ce)),
        {"PGD": float(ce.mean()), name: float(left.mean())},
        f"what {name} finds more: {AGREE}",
        "the cross entropy saturates (large logits), so that its gradient says nothing",
    )


def falls(epsilons: Sequence[float], accuracies: Sequence[float], samples: int) -> Check:
    """Accuracy must not rise with epsilon."""
    rise = max((b - a for a, b in itertools.pairwise(accuracies)), default=0.0)
    return Check(
        "Accuracy falls as epsilon grows",
        CLOSE.judge(rise, samples),
        {f"epsilon {epsilon:.4g}": accuracy for epsilon, accuracy in zip(epsilons, accuracies, strict=True)},
        f"largest rise: {CLOSE}",
        "the attack loses its way in a larger ball, where there is more to find",
    )


def vanishes(epsilon: float, left: float, samples: int) -> Check:
    """At a large epsilon nothing may stand."""
    return Check(
        "Accuracy reaches 0 at a large epsilon",
        GONE.judge(left, samples),
        {f"PGD, epsilon {epsilon:.4g}": left},
        f"what is left: {GONE}",
        "images may change beyond recognition, and still the attack does not succeed: it is the attack that fails",
    )


def gradients(zero: float, non_finite: float, entries: float, samples: int) -> Check:
    """Input gradients must be there, and finite."""
    verdict = "FAIL" if non_finite else DEAD.judge(zero, samples)
    figures = {"samples with none": zero, "samples with NaN or infinity": non_finite, "entries that are 0": entries}
    return Check(
        "The input gradient is there and finite",
        verdict,
        figures,
        f"samples whose gradient is 0: {DEAD}; FAIL for any that is not finite",
        "attacks by gradient start from nothing: a staircase in the network, saturated logits, or overflow",
    )


def precisions(changed: Mapping[str, float], missing: Mapping[str, str], samples: int) -> Check:
    """What runs faster must answer as eager float32 does; `missing` says what could not be tried, and why."""
    worst = max(changed.values(), default=0.0)
    verdict = CLOSE.judge(worst, samples)
    if missing and verdict == "PASS":
        verdict = "WARN"
    return Check(
        "Compiled and mixed-precision answers are those of eager float32",
        verdict,
        {**{f"answers changed, {name}": share for name, share in changed.items()}, **missing},
        f"answers that differ: {CLOSE}",
        "figures of one form of the network say nothing about another",
    )


def enough(clean: Outcomes) -> Check:
    """Shares of a handful of samples say nothing."""
    right = int(clean.sum())
    return Check(
        "There are enough samples to judge by",
        "PASS" if right >= LEAST else "WARN",
        {"right as they are": right, "attacked": len(clean)},
        f"WARN below {LEAST} samples that are right as they are",
        "the other lines compare too few samples to tell: give it more --samples, or a better network",
    )


def not_checked(name: str, reason: str) -> Check:
    return Check(name, "WARN", {"not checked": reason}, "WARN where it is not checked", "nothing is known of it")


def overall(checks: Sequence[Check]) -> str:
    """The worst verdict."""
    return VERDICTS[max(VERDICTS.index(check.verdict) for check in checks)]


def worst_case(outcomes: Mapping[str, Outcomes]) -> Outcomes:
    """What stands under every attack: of each sample the minimum."""
    return np.logical_and.reduce(list(outcomes.values()))
