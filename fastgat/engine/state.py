"""Every tensor that a training step changes, in one module: its `state_dict()` is the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgat.config import OptimizerConfig
from fastgat.engine.adam import Adam, trainable_parameters
from fastgat.engine.ema import Ema
from fastgat.engine.metrics import RunningMetrics
from fastgat.errors import ConfigError
from fastgat.methods.players import Network, Players, Tensors


class TrainState(nn.Module):
    """Both players, their optimisers, the moving average, the step counter and the running metrics.

    The players come as modules on their device, in train mode, and stay the same objects.
    """

    step: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        generator: nn.Module | None,
        optimizer: OptimizerConfig,
        metrics: tuple[str, ...],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not trainable_parameters(classifier):
            raise ConfigError("the classifier has no trainable parameters")
        device = next(classifier.parameters()).device
        self.optimizer, self.autocast = optimizer, autocast
        self.classifier, self.generator = classifier, generator
        self.classifier_adam = Adam(classifier, optimizer.lr)
        self.generator_adam = Adam(generator, optimizer.generator_lr) if generator is not None else None
        self.ema = Ema(classifier, optimizer.ema) if optimizer.ema is not None else None
        self.metrics = RunningMetrics(metrics, device)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def device(self) -> torch.device:
        return self.step.device

    def players(self) -> Players:
        generator = self.generator
        return Players(self._network(self.classifier), self._network(generator) if generator is not None else None)

    def update(
        self, players: Players, *, classifier: Tensors | None = None, generator: Tensors | None = None
    ) -> Players:
        """Apply gradients to the players' parameters, in place (`fastgat.methods.players.Update`)."""
        if generator is not None:
            assert players.generator is not None
            assert self.generator_adam is not None
            self.generator_adam.update(players.generator.parameters, self._clipped(generator))
        if classifier is not None:
            self.classifier_adam.update(players.classifier.parameters, self._clipped(classifier))
            if self.ema is not None:
                self.ema.update(players.classifier.parameters)
        return players

    def keep_buffers(self, players: Players) -> None:
        """Make the buffers that a step has left (batch-norm statistics) the networks' own."""
        for network in (players.classifier, players.generator):
            if network is not None:
                for name, buffer in network.module.named_buffers():
                    buffer.copy_(network.buffers[name])

    def set_learning_rates(self, factor: float) -> None:
        """Scale both players' learning rates for the next step."""
        self.classifier_adam.learning_rate.fill_(self.optimizer.lr * factor)
        if self.generator_adam is not None:
            self.generator_adam.learning_rate.fill_(self.optimizer.generator_lr * factor)

    def evaluation_parameters(self) -> Tensors:
        """The classifier's parameters to judge it by: the moving average where there is one."""
        if self.ema is not None:
            return self.ema.parameters_by_name(self.classifier)
        return dict(trainable_parameters(self.classifier))

    def not_finite(self) -> list[str]:
        """The players of whom a parameter or a moment is NaN or infinite; waits for the device."""
        players: dict[str, tuple[nn.Module | None, nn.Module | None]] = {
            "classifier": (self.classifier, self.classifier_adam),
            "generator": (self.generator, self.generator_adam),
        }
        return [name for name, modules in players.items() if not _all_finite([m for m in modules if m is not None])]

    def _network(self, module: nn.Module) -> Network:
        return Network(module, dict(trainable_parameters(module)), dict(module.named_buffers()), self.autocast)

    def _clipped(self, gradients: Tensors) -> Tensors:
        limit = self.optimizer.clip_grad
        if limit is None:
            return gradients
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        scale = (limit / (norm + 1e-6)).clamp(max=1)
        return {name: gradient * scale for name, gradient in gradients.items()}


def _all_finite(modules: list[nn.Module]) -> bool:
    # Of the networks only the parameters: a buffer, such as a mask, may be infinite by right.
    tensors = [p for m in modules for p in (m.buffers() if isinstance(m, Adam) else m.parameters())]
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
