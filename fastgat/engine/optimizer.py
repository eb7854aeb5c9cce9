"""Updates of parameters: the optimisers by name, learning-rate schedules, and a moving average.

An optimiser is a module that holds every tensor it changes: its `state_dict()` is its checkpoint, and a compiled step
finds its state at fixed addresses. torch's own keep theirs in dictionaries, and break the graph.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.batchnorm import _NormBase

from fastgat.config import OptimizerConfig

NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm)
WARM_UP, START, END = 0.3, 1 / 25, 1 / 250_000
"""The schedule one-cycle: the share of steps that rise, and the factors at the start and at the end."""


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step updates, by name; a shared one appears once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def buffer_name(name: str) -> str:
    """A dotted name in the form that a buffer may have."""
    return name.replace(".", "/")


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """`tensor.copy_(value)`, through a view where it is 0-d: Inductor drops writes to a 0-d float64 on the CPU."""
    if tensor.dim() == 0:
        tensor, value = tensor.view(1), value.view(1)
    tensor.copy_(value)


class PerParameter(nn.Module):
    """Buffers of zeros, one like each trainable parameter of `player`."""

    def __init__(self, player: nn.Module) -> None:
        super().__init__()
        for name, parameter in trainable_parameters(player).items():
            self.register_buffer(buffer_name(name), torch.zeros_like(parameter, requires_grad=False))

    def for_parameters(self, parameters: dict[str, Tensor]) -> list[Tensor]:
        """The buffers of these parameters, in their order."""
        return [self.get_buffer(buffer_name(name)) for name in parameters]


class Optimizer(nn.Module):
    """Base of the optimisers, each for the trainable parameters of one `player`; `_update` is what they add.

    Attributes:
        no_decay: the names of parameters that have no weight decay.
        learning_rate: of the next update, a 0-d buffer of the parameters' dtype, or of float32 where that is wider.
    """

    no_decay: frozenset[str] = frozenset()
    learning_rate: Tensor

    def __init__(self, player: nn.Module, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.weight_decay = weight_decay
        some = next(iter(trainable_parameters(player).values()))
        dtype = torch.promote_types(some.dtype, torch.float32)
        self.register_buffer("learning_rate", torch.tensor(learning_rate, dtype=dtype, device=some.device))

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """One step, in place; `gradients` are those of `parameters`, by name."""
        for decay, names in (
            (self.weight_decay, [name for name in parameters if name not in self.no_decay]),
            (0.0, [name for name in parameters if name in self.no_decay]),
        ):
            if names:
                self._update({name: parameters[name] for name in names}, gradients, decay)

    def _update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], weight_decay: float) -> None:
        """A step of these parameters, whose gradients are among `gradients`."""
        raise NotImplementedError


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with weight decay as a part of the gradient: torch's arithmetic, on all parameters at
    once. On a CPU that is torch's fused kernel where it can take them; otherwise, as on a GPU, it is written out, for
    Inductor to fuse with what comes before it.

    Attributes:
        updates: how many there have been, a 0-d buffer.
    """

    decoupled: ClassVar[bool] = False
    betas = (0.9, 0.999)
    epsilon = 1e-8
    updates: Tensor

    def __init__(self, player: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> None:
        super().__init__(player, learning_rate, weight_decay)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=self.learning_rate.device))
        self.exp_avg, self.exp_avg_sq = PerParameter(player), PerParameter(player)

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.updates.add_(1)
        super().update(parameters, gradients)

    def _update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], weight_decay: float) -> None:
        weights, g = list(parameters.values()), [gradients[name] for name in parameters]
        m, v = self.exp_avg.for_parameters(parameters), self.exp_avg_sq.for_parameters(parameters)
        if self._can_fuse(weights, g, m, v):
            decay = weight_decay, self.decoupled
            adam_(weights, g, m, v, self.updates, self.learning_rate, list(self.betas), self.epsilon, *decay)
            return
        if weight_decay and self.decoupled:
            torch._foreach_mul_(weights, 1 - self.learning_rate * weight_decay)
        elif weight_decay:
            g = list(torch._foreach_add(g, weights, alpha=weight_decay))
        corrections = [1 - beta ** self.updates.double() for beta in self.betas]
        rate = (self.learning_rate / corrections[0]).to(g[0].dtype)
        spread = corrections[1].sqrt().to(g[0].dtype)
        torch._foreach_lerp_(m, g, 1 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, g, g, 1 - self.betas[1])
        divisors = torch._foreach_div(torch._foreach_sqrt(v), spread)
        torch._foreach_add_(divisors, self.epsilon)
        torch._foreach_sub_(weights, torch._foreach_mul(torch._foreach_div(m, divisors), rate))

    @staticmethod
    def _can_fuse(weights: list[Tensor], gradients: list[Tensor], m: list[Tensor], v: list[Tensor]) -> bool:
        """Whether torch's fused kernel takes them: on a CPU, all of a weight's dtype, its moments with its strides."""
        return all(
            weight.device.type == "cpu"
            and weight.dtype == gradient.dtype == first.dtype == second.dtype
            and weight.stride() == first.stride() == second.stride()
            for weight, gradient, first, second in zip(weights, gradients, m, v, strict=True)
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    decoupled: ClassVar[bool] = True


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's too (Sutskever et al. 2013): torch's arithmetic.

    v <- mu v + g + decay w,      w <- w - lr v      or, with Nesterov,  w <- w - lr (g + decay w + mu v)
    """

    def __init__(
        self, player: nn.Module, learning_rate: float, momentum: float, weight_decay: float, *, nesterov: bool
    ) -> None:
        super().__init__(player, learning_rate, weight_decay)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = PerParameter(player)

    def _update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], weight_decay: float) -> None:
        weights, g = list(parameters.values()), [gradients[name] for name in parameters]
        v = self.velocity.for_parameters(parameters)
        if weight_decay:
            g = list(torch._foreach_add(g, weights, alpha=weight_decay))
        torch._foreach_mul_(v, self.momentum)
        torch._foreach_add_(v, g)
        directions = torch._foreach_add(g, v, alpha=self.momentum) if self.nesterov else v
        torch._foreach_sub_(weights, torch._foreach_mul(directions, self.learning_rate))


def create_optimizer(player: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The classifier's optimiser, as the configuration has it; the generator's is always Adam, as in the paper."""
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(player, config.lr, config.momentum, config.decay, nesterov=config.nesterov)
    elif config.optimizer == "adamw":
        optimizer = AdamW(player, config.lr, config.decay)
    else:
        optimizer = Adam(player, config.lr, config.decay)
    if not config.decay_norm:
        layers = (module for module in player.modules() if isinstance(module, NORMALISATION))
        learnt = {parameter for layer in layers for parameter in layer.parameters()}
        optimizer.no_decay = frozenset(name for name, p in player.named_parameters() if p in learnt)
    return optimizer


class Ema(nn.Module):
    """An exponential moving average of a network's parameters, with running statistics of its normalisation.

    shadow <- d shadow + (1 - d) parameter after each step, with d = min(decay, (1 + n) / (10 + n)) at update n. The
    statistics are those of the last epoch's end (`engine/average.py`).
    """

    updates: Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.shadow = nn.Module()
        parameters, statistics = trainable_parameters(module), running_statistics(module)
        for name, value in {**parameters, **statistics}.items():
            self.shadow.register_buffer(buffer_name(name), value.detach().clone())
        self.parameter_names, self.statistic_names = tuple(parameters), tuple(statistics)
        device = next(iter(parameters.values())).device
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))

    def update(self, parameters: dict[str, Tensor]) -> None:
        """Follow these parameters, which have just been updated."""
        updates = self.updates.double()
        decay = ((1 + updates) / (10 + updates)).clamp(max=self.decay)
        for name, parameter in parameters.items():
            shadow = self.shadow.get_buffer(buffer_name(name))
            overwrite(shadow, shadow.lerp(parameter, (1 - decay).to(shadow.dtype)))
        self.updates.add_(1)

    def averages(self) -> dict[str, Tensor]:
        """Averages and statistics by the names that their tensors have in the network."""
        names = (*self.parameter_names, *self.statistic_names)
        return {name: self.shadow.get_buffer(buffer_name(name)) for name in names}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of a network's layers of normalisation, by name."""
    layers = [(prefix, layer) for prefix, layer in module.named_modules() if isinstance(layer, _NormBase)]
    names = {f"{prefix}.{name}".lstrip(".") for prefix, _ in layers for name in ("running_mean", "running_var")}
    return {name: buffer for name, buffer in module.named_buffers() if name in names}


def learning_rate_factor(config: OptimizerConfig, step: int, epochs: int, steps_per_epoch: int) -> float:
    """The factor on the base learning rate for step `step` of a run.

    constant    1
    cosine      from 1 to 0 (Loshchilov and Hutter 2017, without restarts), after the warm-up
    one-cycle   from 1/25 up to 1 over 30 % of the steps, then down to 1/250000, both along a cosine (Smith 2018)
    multistep   1, times the decay at each milestone
    cyclic      from 0 up to 1 over half of the steps, then down to 0, both along a line (Smith 2017)

    In the W steps of the warm-up it is 1/W, 2/W, ... up to 1.
    """
    schedule, total = config.lr_schedule, epochs * steps_per_epoch
    warm_up = round(config.warmup_epochs * steps_per_epoch)
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return _cosine(1.0, 0.0, (step - warm_up) / (total - warm_up))
    if schedule == "multistep":
        passed = (step >= round(epoch * steps_per_epoch) for epoch in config.milestones_of(epochs))
        return config.lr_decay ** sum(passed)
    if schedule == "cyclic":
        return 1.0 - abs(2 * step / total - 1)
    assert schedule == "one-cycle"
    peak = WARM_UP * total - 1
    if step <= peak:
        return _cosine(START, 1.0, step / peak)
    return _cosine(1.0, END, (step - peak) / (total - 1 - peak)) if total > 1 else 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


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
    """Adam's update, in place, of `weights` and of their moments `m` and `v`, by torch's fused kernel for CPUs."""
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    # The kernel walks through memory: a gradient must lie as its weight does.
    gradients = [
        gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    steps = [updates.float()] * len(weights)
    options: dict[str, Any] = {"beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay, "eps": epsilon}
    kernel(weights, gradients, m, v, [], steps, lr=learning_rate, amsgrad=False, maximize=False, **options)
    increment_version([*weights, *m, *v])  # which autograd checks before a backward pass that saved the old values


# One operator, which Inductor leaves alone: written out, the update is one loop for each parameter, a third of the time
# that a step of the paper's networks needs to be compiled. `torch.library.custom_op` costs 0.25 ms a call.
if not hasattr(torch.ops.fastgat, "adam_"):  # already defined where this module is reloaded
    torch.library.define(
        "fastgat::adam_",
        "(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] m, Tensor(c!)[] v, Tensor updates, "
        "Tensor learning_rate, float[] betas, float epsilon, float weight_decay, bool decoupled) -> ()",
    )
    torch.library.impl("fastgat::adam_", "CPU", _adam)
    torch.library.register_fake("fastgat::adam_", lambda *_: None)

adam_ = torch.ops.fastgat.adam_
