"""The joints of a step as methods call them: the kernels' public functions, each marked as part of that phase."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import Tensor
from torch.nn import functional

from fastgat.kernels import dual_loss
from fastgat.kernels import input_gradient as _input_gradient
from fastgat.kernels import perturbation as _perturbation
from fastgat.kernels import projected_step as _projected_step
from fastgat.phases import phase

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _joint(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    @functools.wraps(function)
    def marked(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with phase("joints"):
            return function(*arguments, **options)

    return marked


input_gradient = _joint(_input_gradient.input_gradient)
perturbation = _joint(_perturbation.perturbation)
perturbation_gradient = _joint(_perturbation.perturbation_gradient)
projected_step = _joint(_projected_step.projected_step)
sample_loss = _joint(dual_loss.sample_loss)
perturbed_loss = _joint(dual_loss.perturbed_loss)


@_joint
def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> dual_loss.SampleLoss:
    """As `sample_loss`, of (1 - s) J plus s times the mean of -log F_k over the classes, s the smoothing."""
    plain = dual_loss.sample_loss(logits, labels)
    if not smoothing:
        return plain
    gradient = plain.gradient + smoothing * (functional.one_hot(labels, logits.shape[1]) - 1 / logits.shape[1])
    label_logit = logits.gather(1, labels[:, None]).squeeze(1)
    return plain._replace(loss=plain.loss + smoothing * (label_logit - logits.mean(1)), gradient=gradient)


__all__ = [
    "input_gradient",
    "perturbation",
    "perturbation_gradient",
    "perturbed_loss",
    "projected_step",
    "sample_loss",
    "smoothed_loss",
]
