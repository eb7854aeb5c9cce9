"""The paper in plain eager PyTorch, to be read beside it: the oracle of the tests and the baseline of the benchmarks.

Nothing is shared, fused or compiled here. Every step takes modules and their torch.optim optimisers, updates both in
place, and returns its losses as tensors, so that nothing waits for the device.
"""

from fastgat.textbook.adversarial import ball_step, free_step, trades_step
from fastgat.textbook.gat import algorithm1_step, classifier_step, generator_step, input_gradient
from fastgat.textbook.standard import (
    baseline_step,
    fast_gradient_step,
    gradient_penalty_step,
    random_perturbation_step,
)

__all__ = [
    "algorithm1_step",
    "ball_step",
    "baseline_step",
    "classifier_step",
    "fast_gradient_step",
    "free_step",
    "generator_step",
    "gradient_penalty_step",
    "input_gradient",
    "random_perturbation_step",
    "trades_step",
]
