"""The report card: checks that a claim of robustness must survive (Athalye et al. 2018, Carlini et al. 2019).

A network can look robust because its gradients are of no use to an attack. Each check compares two numbers that such a
network gets the wrong way round, and is PASS, WARN or FAIL.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastgat.evaluation.outcomes import Outcomes

VERDICTS = ("PASS", "WARN", "FAIL")
LEAST = 20  # fewer samples than this show nothing


@dataclass(frozen=True)
class Check:
    """One line of the card.

    Attributes:
        name: what should hold.
        figures: what was measured, by name.
        threshold: when it is a WARN and when a FAIL, in words.
        meaning: what it says about the network when it does not hold.
    """

    name: str
    verdict: str
    figures: dict[str, Any]
    threshold: str
    meaning: str


class Limit(NamedTuple):
    """The shares of samples above which a check is a WARN and a FAIL; one sample is no WARN, up to three no FAIL."""

    warn: float
    fail: float

    def judge(self, share: float, samples: int) -> str:
        slack = 1e-9  # shares are quotients of whole numbers
        if share > max(self.fail, 3 / samples) + slack:
            return "FAIL"
        return "WARN" if share > max(self.warn, 1 / samples) + slack else "PASS"

    def __str__(self) -> str:
        return f"WARN above {self.warn:.0%}, FAIL above {self.fail:.0%}"


CLOSE, SIMILAR, GONE, DEAD = Limit(0.01, 0.03), Limit(0.05, 0.15), Limit(0.01, 0.05), Limit(0.01, 0.10)
Named = tuple[str, Outcomes]


def at_least_as_strong(
    name: str, one: Named, other: Named, meaning: str, limit: Limit = CLOSE, words: str = "excess of {0} over {1}"
) -> Check:
    """The check that `one` leaves no more accuracy than `other`; `words` say what a difference is."""
    accuracies = {key: float(outcomes.mean()) for key, outcomes in (one, other)}
    verdict = limit.judge(accuracies[one[0]] - accuracies[other[0]], len(one[1]))
    return Check(name, verdict, accuracies, f"{words.format(one[0], other[0])}: {limit}", meaning)


def monotone(epsilons: Sequence[float], accuracies: Sequence[float], samples: int) -> Check:
    """The check that accuracy never rises above the lowest at a smaller epsilon."""
    lowest = itertools.accumulate(accuracies, min)
    rise = max(accuracy - before for accuracy, before in zip(accuracies, lowest, strict=True))
    return Check(
        "Accuracy falls as epsilon grows",
        CLOSE.judge(rise, samples),
        {f"epsilon {epsilon:.4g}": accuracy for epsilon, accuracy in zip(epsilons, accuracies, strict=True)},
        f"largest rise above the lowest accuracy before: {CLOSE}",
        "the attack optimises worse in a larger ball, although that holds every perturbation of the smaller one",
    )


def zero_at_large_epsilon(epsilon: float, left: float, samples: int) -> Check:
    """The check that an attack with a large epsilon leaves nothing."""
    return Check(
        "Accuracy reaches 0 at a large epsilon",
        GONE.judge(left, samples),
        {f"PGD, epsilon {epsilon:.4g}": left},
        f"what is left: {GONE}",
        "this epsilon allows almost any image, so an attack that works must succeed: the attack is broken",
    )


def gradients_are_there(zero: float, non_finite: float, entries: float, samples: int) -> Check:
    """The check that input gradients are there, and finite."""
    return Check(
        "The input gradient is there and finite",
        "FAIL" if non_finite else DEAD.judge(zero, samples),
        {"samples with none": zero, "samples with NaN or infinity": non_finite, "entries that are 0": entries},
        f"samples whose gradient is 0: {DEAD}; FAIL for any that is not finite",
        "attacks by gradient get no signal: the network quantises, its logits saturate, or gradients overflow",
    )


def deterministic(changed: float, apart: bool, samples: int) -> Check:
    """The check that the network answers alike each time; `apart`: logits differ by more than rounding."""
    verdict = CLOSE.judge(changed, samples)
    return Check(
        "The network answers alike each time",
        "WARN" if apart and verdict == "PASS" else verdict,
        {"answers changed": changed, "logits changed": "yes" if apart else "no"},
        f"answers that differ between passes: {CLOSE}; WARN for logits that differ by more than rounding",
        "the network is random, or depends on the images beside it: one pass says little, and attacks would have to "
        "average over many",
    )


def enough_classes(classes: int, aimed_at: int) -> Check:
    """The check that there are as many wrong classes as AutoAttack aims at."""
    return Check(
        "There are as many wrong classes as AutoAttack aims at",
        "PASS" if classes > aimed_at else "WARN",
        {"wrong classes": classes - 1, "aimed at": aimed_at},
        f"WARN below {aimed_at} wrong classes",
        "AutoAttack aims at all of them, but in published figures at nine: they do not compare",
    )


def same_in_other_precisions(changed: Mapping[str, float], missing: Mapping[str, str], samples: int) -> Check:
    """The check that faster forms answer as eager float32 does; `missing` says which could not be tried, and why."""
    verdict = CLOSE.judge(max(changed.values(), default=0.0), samples)
    return Check(
        "Compiled and mixed-precision answers are those of eager float32",
        "WARN" if missing and verdict == "PASS" else verdict,
        {**{f"answers changed, {name}": share for name, share in changed.items()}, **missing},
        f"answers that differ: {CLOSE}",
        "accuracies measured in one precision, or uncompiled, do not carry over to another",
    )


def enough_samples(clean: Outcomes) -> Check:
    """The check that there are more than a handful of samples."""
    right = int(clean.sum())
    return Check(
        "There are enough samples to judge by",
        "PASS" if right >= LEAST else "WARN",
        {"right as they are": right, "attacked": len(clean)},
        f"WARN below {LEAST} samples that are right as they are",
        "the other lines compare too few samples to tell: give it more --samples, or a better network",
    )


def not_checked(name: str, reason: str) -> Check:
    """A line that could not be checked."""
    return Check(name, "WARN", {"not checked": reason}, "WARN where it is not checked", "nothing is known of it")


def overall(checks: Sequence[Check]) -> str:
    """The worst verdict."""
    return VERDICTS[max(VERDICTS.index(check.verdict) for check in checks)]


def worst_case(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Which samples the network gets right under every attack."""
    return np.logical_and.reduce(outcomes)
