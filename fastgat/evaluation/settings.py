"""What a network is tested with."""

from __future__ import annotations

from dataclasses import dataclass

from fastgat.attacks.base import NORMS
from fastgat.options import Options, option

EPSILON = {"linf": 8 / 255, "l2": 0.5}
CURVES = {
    "l2": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
    "linf": tuple(step / 255 for step in (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)),
}
"""The epsilons of the fast-gradient curves."""


@dataclass(frozen=True)
class EvaluationSettings(Options):
    """The threat model, and how hard the attacks try."""

    norm: str = option("linf", "of the threat model", choices=NORMS)
    epsilon: float | None = option(None, "its bound, in pixel units  [default: linf 8/255, l2 0.5]", at_least=0)
    steps: int = option(50, "gradient steps of PGD", at_least=1)
    restarts: int = option(10, "starts of PGD", at_least=2)
    apgd_steps: int = option(100, "steps of APGD", at_least=1)
    queries: int = option(5000, "of the Square attack", at_least=1)
    autoattack: bool = option(False, "run torchattacks' AutoAttack too (the extra autoattack)")
    seed: int = option(0, "of everything that is drawn", at_least=0)
    batch_size: int | None = option(None, "images at a time  [default: 64 on a CPU, 256 on a GPU]", at_least=1)

    @property
    def bound(self) -> float:
        """Epsilon, or the default of the norm."""
        return EPSILON[self.norm] if self.epsilon is None else self.epsilon
