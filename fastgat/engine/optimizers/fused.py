"""Adam's update of all parameters as one operator, for a CPU: torch's fused kernel, which Inductor leaves alone.

Written out, the update is one loop for each parameter, which takes Inductor and the C++ compiler a third of the time
that a step of the paper's networks needs to be compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

# `torch.library.custom_op` would cost a quarter of a millisecond a call.
torch.library.define(
    "fastgat::adam_",
    "(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] m, Tensor(c!)[] v, Tensor updates, Tensor learning_rate, "
    "float[] betas, float epsilon, float weight_decay, bool decoupled) -> ()",
)


@torch.library.impl("fastgat::adam_", "CPU")
def _adam(
    weights: list[Tensor],
    gradients: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    updates: Tensor,
    learning_rate: Tensor,
    betas: list[float],
    epsilon: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One update, in place, of `weights` and of their moments `m` and `v`: of one dtype, on a CPU, and each moment with
    the strides of its weight.

    Args:
        updates: how many there are with this one, a 0-d tensor.
        decoupled: weight decay of its own, as in AdamW; otherwise it is a part of the gradient.
    """
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    # The kernel walks through memory: a gradient must lie as its weight does.
    alike = [
        gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    kernel(
        weights,
        alike,
        m,
        v,
        [],
        [updates.float()] * len(weights),
        lr=learning_rate,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=epsilon,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


@torch.library.register_fake("fastgat::adam_")
def _nothing(*_: object) -> None:
    """It returns nothing."""


adam_ = torch.ops.fastgat.adam_
"""The operator, as `_adam` says."""
