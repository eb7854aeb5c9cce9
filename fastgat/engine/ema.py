"""An exponential moving average of the classifier's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.engine.optimizers import buffer_name, trainable_parameters


class Ema(nn.Module):
    """shadow <- d shadow + (1 - d) parameter after each step, with d = min(decay, (1 + n) / (10 + n)) at update n."""

    updates: Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.shadow = nn.Module()
        parameters = trainable_parameters(module)
        for name, parameter in parameters.items():
            self.shadow.register_buffer(buffer_name(name), parameter.detach().clone())
        device = next(iter(parameters.values())).device
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))

    def update(self, parameters: dict[str, Tensor]) -> None:
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        shadows = [self.shadow.get_buffer(buffer_name(name)) for name in parameters]
        for shadow, parameter in zip(shadows, parameters.values(), strict=True):
            shadow.lerp_(parameter, (1 - decay).to(shadow.dtype))
        self.updates.add_(1)

    def parameters_by_name(self, module: nn.Module) -> dict[str, Tensor]:
        """The averages under the names of `module`'s parameters."""
        return {name: self.shadow.get_buffer(buffer_name(name)) for name in trainable_parameters(module)}
