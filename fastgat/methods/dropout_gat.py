"""Dropout + GAT: the clean pass and Delta share one mask, the perturbed pass has its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgat.methods.base import dropout_masks, dropout_option
from fastgat.methods.gat import GAT
from fastgat.methods.players import Draws


@dataclass(frozen=True)
class DropoutGAT(GAT):
    name: ClassVar[str] = "dropout-gat"

    dropout: float = dropout_option()

    @property
    def classifier_dropout(self) -> float:
        return self.dropout

    def draw(self, classifier: nn.Module, images: Tensor, source: torch.Generator) -> Draws:
        return Draws(dropout_masks(classifier, images, source), dropout_masks(classifier, images, source))
