"""PGD adversarial training (Madry et al. 2018): k projected signed steps from a random start in the L-inf ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastgat.methods.adversarial import Adversarial, attack_steps_option, step_size_option


@dataclass(frozen=True)
class PGDTraining(Adversarial):
    name: ClassVar[str] = "pgd"

    attack_steps: int = attack_steps_option(7)
    step_size: float = step_size_option(2 / 255, "size of a gradient step in each pixel")

    @property
    def steps(self) -> int:
        return self.attack_steps

    @property
    def size(self) -> float:
        return self.step_size
