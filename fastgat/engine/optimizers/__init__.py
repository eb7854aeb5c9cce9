"""The optimisers of the classifier by name; the generator's is always Adam, as in the paper."""

from __future__ import annotations

from torch import nn

from fastgat.config import OptimizerConfig
from fastgat.engine.optimizers.adam import Adam, AdamW
from fastgat.engine.optimizers.base import Optimizer, buffer_name, trainable_parameters
from fastgat.engine.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def create_optimizer(player: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The classifier's optimiser, as the configuration has it."""
    return OPTIMIZERS[config.optimizer].of(player, config)


__all__ = ["OPTIMIZERS", "Adam", "Optimizer", "buffer_name", "create_optimizer", "trainable_parameters"]
