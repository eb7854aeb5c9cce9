"""AutoAttack (Croce and Hein 2020), the standard version: a robust accuracy to compare with published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgat.attacks.apgd import APGD
from fastgat.attacks.base import Attack, correct
from fastgat.attacks.fab import FAB
from fastgat.attacks.square import Square
from fastgat.options import option


@dataclass(frozen=True)
class AutoAttack(Attack):
    """APGD-CE, APGD-T, FAB-T and Square, one after the other, each on what the others left; one start each.

    The defaults are those of the standard version, to which published figures belong.
    """

    steps: int = option(100, "gradient steps of APGD-CE, and with each class of APGD-T and FAB-T", at_least=1)
    targets: int = option(9, "classes to aim at with APGD-T and FAB-T", at_least=1)
    queries: int = option(5000, "forward passes of Square", at_least=1)

    def parts(self) -> dict[str, Attack]:
        """The four attacks by name, in their order."""
        common: dict[str, Any] = {"epsilon": self.epsilon, "norm": self.norm, "clamp": self.clamp, "seed": self.seed}
        common |= {"model": self.model, "batch_size": self.batch_size}
        return {
            "APGD-CE": APGD(**common, steps=self.steps),
            "APGD-T": APGD(**common, steps=self.steps, loss="dlr-t", targets=self.targets),
            "FAB-T": FAB(**common, steps=self.steps, targets=self.targets),
            "Square": Square(**common, queries=self.queries),
        }

    def perturb(self, images: Tensor, labels: Tensor, numbers: np.ndarray) -> Tensor:
        result = images.clone()
        for attack in self.parts().values():
            with torch.no_grad():
                left = correct(self.model(result), labels).nonzero().flatten()
            if len(left):
                result[left] = attack.perturb(images[left], labels[left], numbers[left.cpu().numpy()])
        return result
