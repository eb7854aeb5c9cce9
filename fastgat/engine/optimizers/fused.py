"""Adam's update of all parameters as one operator, for a CPU: torch's fused kernel, which Inductor leaves alone.

Written out, the update is one loop for each parameter, which takes Inductor and the C++ compiler a third of the time
that a step of the paper's networks needs to be compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

NAME = "fastgat::adam_"


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
    """One update, in place, of `weights` and of their moments `m` and `v`, on a CPU.

    Args:
        m, v: each with the dtype and strides of its weight.
        gradients: each with the dtype of its weight.
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
    increment_version([*weights, *m, *v])  # which autograd checks before a backward pass that saved the old values


if not hasattr(torch.ops.fastgat, "adam_"):  # already defined where this module is reloaded
    # `torch.library.custom_op` would cost a quarter of a millisecond a call.
    torch.library.define(
        NAME,
        "(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] m, Tensor(c!)[] v, Tensor updates, "
        "Tensor learning_rate, float[] betas, float epsilon, float weight_decay, bool decoupled) -> ()",
    )
    torch.library.impl(NAME, "CPU", _adam)
    torch.library.register_fake(NAME, lambda *_: None)

adam_ = torch.ops.fastgat.adam_
"""The operator, as `_adam` says."""
