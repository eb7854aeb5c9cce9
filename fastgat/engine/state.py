"""Every tensor that a training step changes, in one module: its `state_dict()` is the checkpoint."""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgat.config import OptimizerConfig
from fastgat.engine.checkpoint import check_match
from fastgat.engine.metrics import SMALLEST, LossScale, RunningMetrics, all_finite
from fastgat.engine.optimizer import Adam, Ema, buffer_name, create_optimizer, overwrite, trainable_parameters
from fastgat.engine.ranks import ALONE, Ranks
from fastgat.engine.reduction import GradientMean, true_on_all_ranks
from fastgat.errors import ConfigError, NonFiniteError
from fastgat.functional import tensor_paths
from fastgat.methods.players import Metrics, Network, Players, Tensors
from fastgat.phases import phase


class TrainState(nn.Module):
    """Both players, their optimisers, the moving average, the step counter and the running metrics.

    The players come as modules on their device, in train mode, and stay the same objects. Their buffers that are not
    persistent, which their own state_dict lacks, are in this one's under `transient`.

    Args:
        autocast: the dtype of mixed precision; float16 brings a loss scale along.
        interacts: whether the classifier's samples influence each other; by default, whether it has batch norm.
        statistics: which forward passes change the classifier's buffers: "clean", "perturbed" or "both".
        memory: a tensor that the method carries from step to step, for this rank's part of a batch; its first value,
            which steps change in place.
        ranks: those that train together, each on its part of every batch.

    Attributes:
        num_classes: the classes that the classifier tells apart, where `assemble` has looked.
    """

    num_classes: int | None = None
    step: Tensor
    memory: Tensor | None

    def __init__(
        self,
        classifier: nn.Module,
        generator: nn.Module | None,
        optimizer: OptimizerConfig,
        metrics: tuple[str, ...],
        autocast: torch.dtype | None = None,
        *,
        interacts: bool | None = None,
        statistics: str = "both",
        memory: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        players = {"classifier": classifier} | ({"generator": generator} if generator is not None else {})
        for name, player in players.items():
            if not trainable_parameters(player):
                raise ConfigError(f"the {name} has no trainable parameters")
        self._trainable = [
            (player, name, parameter, parameter.requires_grad)
            for player, module in players.items()
            for name, parameter in module.named_parameters()
        ]
        _refuse_extra_state(players)
        device = next(classifier.parameters()).device
        self.optimizer, self.autocast, self.ranks = optimizer, autocast, ranks
        self.interacts = has_batch_norm(classifier) if interacts is None else interacts
        self.has_statistics = True  # forward passes change buffers of the classifier, as batch norm's statistics
        self.statistics = statistics
        self.classifier, self.generator = classifier, generator
        self.transient = _transient(players)
        self._tensor_paths = {name: tensor_paths(player) for name, player in players.items()}
        self._means = {name: GradientMean(trainable_parameters(player), ranks) for name, player in players.items()}
        self.classifier_optimizer = create_optimizer(classifier, optimizer)
        self.generator_optimizer = Adam(generator, optimizer.generator_lr) if generator is not None else None
        self.ema = Ema(classifier, optimizer.ema) if optimizer.ema is not None else None
        self.loss_scale = LossScale(device) if autocast == torch.float16 else None
        self.metrics = RunningMetrics(metrics, device, ranks)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("memory", memory)
        self.learning_rate_factor = math.nan

    @property
    def device(self) -> torch.device:
        return self.step.device

    def players(self) -> Players:
        generator = self._network("generator") if self.generator is not None else None
        return Players(self._network("classifier"), generator, self.memory)

    def check_trainable(self, *, may_freeze: bool = False) -> None:
        """Raises ConfigError where a parameter was made trainable since this state was made, or frozen."""
        for player, name, parameter, before in self._trainable:
            if parameter.requires_grad != before and not (may_freeze and before):
                change = "frozen" if before else "made trainable"
                raise ConfigError(
                    f"{name} of the {player} was {change} after the first step: begin a new run, or make a new step"
                )

    def snapshot(self) -> list[Tensor]:
        """Copies that a skipped float16 step restores; none where no step is skipped."""
        return [tensor.clone() for tensor in self._restorable()]

    def update(
        self, players: Players, *, classifier: Tensors | None = None, generator: Tensors | None = None
    ) -> Players:
        """Apply gradients to the players' parameters, in place (`fastgat.methods.players.Update`)."""
        with phase("updates"):
            gradients = {"classifier": classifier, "generator": generator}
            under_way = [(name, self._means[name].start(each)) for name, each in gradients.items() if each is not None]
            for name, finish in reversed(under_way):  # the classifier's are the most: begun first, awaited last
                optimizer = getattr(self, f"{name}_optimizer")
                optimizer.update(getattr(players, name).parameters, self._clipped(finish()))
            if self.ema is not None and classifier is not None:
                self.ema.update(players.classifier.parameters)
        return players

    def finish(self, metrics: Metrics, before: list[Tensor]) -> None:
        """Count the step and its metrics; take it back where a float16 gradient has overflowed."""
        with phase("updates"):
            finite = None
            if self.loss_scale is not None:
                finite = true_on_all_ranks(
                    all_finite([*self._learned(), *self._memories(), *metrics.values()]), self.ranks
                )
                self.loss_scale.commit_or_restore(finite, self._restorable(), before)
            self.step.add_(1)
            self.metrics.add(metrics, self.step, finite)

    def write_buffers(self, players: Players) -> None:
        """Copy the buffers that a step has left (batch-norm statistics) into the networks, and keep its memory."""
        if self.memory is not None:
            assert players.memory is not None
            self.memory.copy_(players.memory)
        for network in (players.classifier, players.generator):
            if network is not None:
                for name, buffer in network.module.named_buffers():
                    overwrite(buffer, network.buffers[name])

    def set_learning_rates(self, factor: float) -> None:
        """Scale both players' learning rates for the next step."""
        if factor == self.learning_rate_factor:
            return
        self.learning_rate_factor = factor
        self.classifier_optimizer.learning_rate.fill_(self.optimizer.lr * factor)
        if self.generator_optimizer is not None:
            self.generator_optimizer.learning_rate.fill_(self.optimizer.generator_lr * factor)

    def evaluation_parameters(self) -> Tensors:
        """The tensors that evaluation puts in place of the classifier's: the moving average where there is one."""
        return self.ema.averages() if self.ema is not None else {}

    def check_loss_scale(self) -> None:
        """Raises NonFiniteError where float16 gradients overflow whatever they are scaled by; waits for the device."""
        if self.loss_scale is not None and float(self.loss_scale.scale) < SMALLEST:
            step = int(self.step)
            raise NonFiniteError(f"gradients overflow float16 at any loss scale, up to step {step}: train in bfloat16")

    def not_finite(self) -> list[str]:
        """The players with a parameter or a moment that is NaN or infinite; waits for the device."""
        bad = [name for name in self._means if not bool(all_finite(self._learned(name)))]
        return bad if bad or self.memory is None or bool(all_finite([self.memory])) else ["memory of the method"]

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        """Load as torch does, also what earlier versions have saved; the next step sets the learning rates anew.

        Raises CheckpointError for the tensors of another model.
        """
        # Earlier versions saved no transient tensors, and no averages of running statistics.
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("transient.")}
        for name in self.ema.statistic_names if self.ema is not None else ():
            if f"classifier.{name}" in state_dict:
                tensors[f"ema.shadow.{buffer_name(name)}"] = state_dict[f"classifier.{name}"]
        tensors |= state_dict
        check_match(tensors, self)
        self.learning_rate_factor = math.nan
        return super().load_state_dict(tensors, *arguments, **options)

    def gathered_state_dict(self) -> Tensors:
        """The `state_dict` with the memory of all ranks in one, so that any number of ranks can go on from it."""
        tensors: Tensors = self.state_dict()
        if self.memory is not None:
            tensors["memory"] = torch.cat(self.ranks.gather(self.memory.cpu()))
        return tensors

    def local_state_dict(self, whole: Tensors) -> Tensors:
        """This rank's part of what `whole` has returned."""
        if "memory" not in whole:
            return whole
        return {**whole, "memory": whole["memory"][self.ranks.part(len(whole["memory"]))]}

    def fingerprint(self) -> int:
        """A checksum of what the players have learnt; it is the same on every rank."""
        checksum = 0
        for tensor in self._learned():
            bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            checksum = zlib.crc32(bits.numpy().tobytes(), checksum)
        return checksum

    def structure(self) -> int:
        """A checksum of the networks' layers, their modes, and their tensors' names, shapes and dtypes."""
        structure = [
            [(name, type(module).__name__, module.training) for name, module in self.named_modules()],
            [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in self.state_dict().items()],
        ]
        return zlib.crc32(repr(structure).encode())

    def _memories(self) -> list[Tensor]:
        return [] if self.memory is None else [self.memory]

    def _network(self, name: str) -> Network:
        module, is_classifier = getattr(self, name), name == "classifier"
        buffers = dict(module.named_buffers())
        if not torch.compiler.is_compiling():  # gradient checkpointing runs passes again, which change the module's own
            buffers = {buffer: tensor.clone() for buffer, tensor in buffers.items()}
        return Network(
            name,
            module,
            dict(trainable_parameters(module)),
            buffers,
            self._tensor_paths[name],
            self.autocast,
            self.loss_scale.scale if self.loss_scale is not None else None,
            interacts=is_classifier and self.interacts,
            statistics=self.statistics if is_classifier else "both",
        )

    def _restorable(self) -> list[Tensor]:
        """The tensors that a skipped step leaves as they were; none where no step is skipped."""
        if self.loss_scale is None:
            return []
        changing = (self.classifier, self.generator, self.classifier_optimizer, self.generator_optimizer, self.ema)
        modules = [module for module in changing if module is not None]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*tensors, *self._memories()]

    def _learned(self, *players: str) -> list[Tensor]:
        """The players' trainable parameters, and moments. Not the rest: a mask, say, may be infinite by right."""
        both = ((getattr(self, name), getattr(self, f"{name}_optimizer")) for name in players or self._means)
        return [
            tensor
            for player, optimizer in both
            for tensor in (*trainable_parameters(player).values(), *optimizer.buffers())
        ]

    def _clipped(self, gradients: Tensors) -> Tensors:
        limit = self.optimizer.clip_grad
        if limit is None:
            return gradients
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        scale = (limit / (norm + 1e-6)).clamp(max=1)
        return {name: gradient * scale for name, gradient in gradients.items()}


def _transient(players: dict[str, nn.Module]) -> nn.Module:
    """A module whose buffers are those of the players that are not persistent."""
    holder = nn.Module()
    for player, module in players.items():
        for prefix, layer in module.named_modules(prefix=player):
            for name in sorted(layer._non_persistent_buffers_set):
                holder.register_buffer(buffer_name(f"{prefix}.{name}"), layer._buffers[name])
    return holder


def _refuse_extra_state(players: dict[str, nn.Module]) -> None:
    for player, module in players.items():
        for name, layer in module.named_modules(prefix=player):
            if type(layer).get_extra_state is not nn.Module.get_extra_state:
                raise ConfigError(
                    f"{name} ({type(layer).__name__}) has extra state, which no checkpoint keeps: make it buffers"
                )


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a layer of batch norm is in train mode, so that the samples of a batch influence each other."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Put every tensor of `modules`, and torch's random state, back to what they were, in place."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with torch.random.fork_rng({tensor.device for tensor in tensors if tensor.is_cuda}):
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            yield
        finally:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.detach().copy_(value)
