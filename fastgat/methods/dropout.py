"""Dropout: the baseline on a classifier with dropout, its masks drawn from the step's seeded stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.methods.base import dropout_masks, dropout_option
from fastgat.methods.baseline import Baseline
from fastgat.methods.players import Draws


@dataclass(frozen=True)
class Dropout(Baseline):
    name: ClassVar[str] = "dropout"

    dropout: float = dropout_option()

    @property
    def classifier_dropout(self) -> float:
        return self.dropout

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(clean=dropout_masks(classifier, images, source))
