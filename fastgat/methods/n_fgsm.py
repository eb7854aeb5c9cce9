"""N-FGSM (de Jorge et al. 2022): noise of up to k eps, then one signed step of eps, and no projection onto the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastgat.methods.adversarial import Adversarial
from fastgat.options import option


@dataclass(frozen=True)
class NoisyFGSM(Adversarial):
    name: ClassVar[str] = "n-fgsm"
    projects: ClassVar[bool] = False

    noise_factor: float = option(2.0, "k, the noise over epsilon", at_least=0)

    @property
    def start(self) -> float:
        return self.noise_factor * self.epsilon

    @property
    def size(self) -> float:
        return self.epsilon
