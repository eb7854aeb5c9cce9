"""FGSM-RS (Wong, Rice and Kolter 2020): one signed step of 1.25 eps from a random start, projected onto the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastgat.methods.adversarial import Adversarial
from fastgat.options import option


@dataclass(frozen=True)
class FGSMRandomStart(Adversarial):
    name: ClassVar[str] = "fgsm-rs"

    overshoot: float = option(1.25, "size of the step over epsilon", at_least=0)

    @property
    def size(self) -> float:
        return self.overshoot * self.epsilon
