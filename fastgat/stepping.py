"""fastgat's step in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.config import ModelConfig, OptimizerConfig, PrecisionConfig
from fastgat.data.batch import Batch
from fastgat.engine.compiled import Stepper, missing_compiler
from fastgat.engine.device import autocast_dtype
from fastgat.engine.fitting import check_networks
from fastgat.engine.interaction import samples_interact
from fastgat.engine.random import seed_step
from fastgat.engine.state import TrainState
from fastgat.errors import CompileError, ConfigError
from fastgat.methods import Method, create_method
from fastgat.methods.players import Draws
from fastgat.models import Generator


class TrainingStep:
    """A method's whole step for a classifier: gradients, updates and all, compiled into one graph; see `compile_step`.

    Attributes:
        classifier, generator: the players, trained in place; `generator` is None for methods without one.
        steps: how many have been taken.
    """

    def __init__(
        self,
        classifier: nn.Module,
        method: Method,
        generator: nn.Module | None,
        optimizer: OptimizerConfig,
        precision: PrecisionConfig,
        batch_norm: str,
        compiled: bool,
        cuda_graph: bool,
        seed: int,
    ) -> None:
        self.classifier, self.method, self.generator = classifier, method, generator
        self.steps = 0
        self._settings = optimizer, precision, batch_norm, compiled, cuda_graph
        self._seed = seed
        self._stepper: Stepper | None = None
        self._shape: torch.Size | None = None
        self._restored: dict[str, Any] | None = None

    def __call__(
        self, images: Tensor, labels: Tensor, *, generator_batches: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """Take one step. The first one builds and compiles, for batches of its shape; none waits for the device.

        Args:
            images: (B, C, H, W), floating point, in [0, 1], on the classifier's device.
            labels: (B,) int64.
            generator_batches: with schedule "paper", k minibatches like this one, of the generator's own.

        Raises ConfigError for another shape than the first batch's, and where the networks do not fit it.
        """
        batches = [Batch(*each) for each in (*generator_batches, (images, labels))]
        stepper = self._stepper or self._build(batches[-1])
        kind = self.method.kind(self.steps)
        owed = self.method.generator_minibatches if kind == "full" else 0
        if len(generator_batches) != owed:
            raise ConfigError(f"this step takes {owed} generator_batches, got {len(generator_batches)}")
        for batch in batches:
            if batch.images.shape != self._shape or batch.labels.shape != self._shape[:1]:
                raise ConfigError(
                    f"the step is made for images of {tuple(self._shape or ())}, one label each, got "
                    f"{tuple(batch.images.shape)} and {tuple(batch.labels.shape)}: leave a smaller last batch out"
                )
        with self._own_random_state(images.device):
            stepper(batches, self._draws(batches), kind)
        self.steps += 1

    def metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, by name; waits for the device.

        Raises NonFiniteError, naming the player and the step, where a loss became NaN or infinite.
        """
        if self._stepper is None:
            return {}
        sums, steps = self._stepper.state.metrics.read()
        return {name: value / max(steps, 1) for name, value in sums.items()}

    def scale_learning_rates(self, factor: float) -> None:
        """Take the next steps at `factor` times the learning rates of the optimiser's settings."""
        if self._stepper is None:
            raise ConfigError("take a step first: before it there is no optimiser")
        self._stepper.state.set_learning_rates(factor)

    def state_dict(self) -> dict[str, Any]:
        """Every tensor that steps change, and how many there have been; for `load_state_dict` of a step like this."""
        if self._stepper is None:
            raise ConfigError("take a step first: before it there is no optimiser")
        return {"steps": self.steps, "tensors": self._stepper.state.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; before the first step too."""
        self.steps, self._restored = state["steps"], state["tensors"]
        if self._stepper is not None:
            self._stepper.state.load_state_dict(self._restored)

    @torch.no_grad()
    def _build(self, batch: Batch) -> Stepper:
        optimizer, precision, statistics, compiled, cuda_graph = self._settings
        device = batch.images.device
        check_networks(self.classifier, self.generator, batch, self.method)
        if self.method.needs_generator and self.generator is None:
            channels = batch.images.shape[1]
            with self._own_random_state(device):
                torch.manual_seed(self._seed)
                generator = Generator(channels=channels, in_channels=self.method.generator_channels(channels))
            self.generator = generator.to(device, batch.images.dtype)
        for module in (self.classifier, self.generator):
            if module is not None:
                module.train()
                if precision.channels_last:
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        state = TrainState(
            self.classifier,
            self.generator,
            optimizer,
            self.method.metrics,
            autocast_dtype(precision.amp_dtype, device) if precision.amp else None,
            interacts=samples_interact(self.classifier, batch.images),
            statistics=statistics,
            memory=torch.zeros_like(batch.images) if self.method.remembers else None,
        )
        state.set_learning_rates(1.0)
        if self._restored is not None:
            state.load_state_dict(self._restored)
        self._shape = batch.images.shape
        stepper = Stepper(state, self.method, compiled=compiled, cuda_graph=cuda_graph)
        batches = [batch] * (1 + self.method.generator_minibatches)
        with self._own_random_state(device):
            stepper.prepare(batches, self._draws(batches))
        self._stepper = stepper
        return stepper

    def _draws(self, batches: Sequence[Batch]) -> list[Draws]:
        source = seed_step(self._seed, self.steps, batches[0].images.device)
        return [self.method.draw(self.classifier, batch.images, source) for batch in batches]

    @staticmethod
    def _own_random_state(device: torch.device) -> AbstractContextManager[None]:
        """Leaves torch's random state, which is the loop's, as it was."""
        return torch.random.fork_rng([device] if device.type == "cuda" else [])


def compile_step(
    classifier: nn.Module,
    method: Method | str = "gat",
    *,
    generator: nn.Module | None = None,
    optimizer: OptimizerConfig | None = None,
    precision: PrecisionConfig | None = None,
    batch_norm: str = "both",
    compile: bool = True,
    cuda_graph: bool = True,
    seed: int = 0,
) -> TrainingStep:
    """fastgat's training step for any classifier, to be called in a loop of one's own:

        step = fastgat.compile_step(classifier, method="gat")
        for images, labels in loader:
            step(images, labels)

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), trained in place, in train mode.
        method: a method such as `fastgat.methods.GAT(cg=0.5)`, or the name of one.
        generator: input gradients -> perturbations, trained in place; by default Table 1's, for images of any size and
            number of channels.
        optimizer, precision: as in `fastgat.TrainConfig`; learning-rate schedules are the loop's own.
        batch_norm: which passes the classifier's running statistics see: "clean", "perturbed" or "both".
        compile: into one graph at the first step; without it the same step runs as it is written.
        cuda_graph: on a GPU, replay the compiled step as one CUDA graph.
        seed: of the generator's initial weights and of random draws.

    Raises ConfigError for settings that make no sense, CompileError where there is no compiler.
    """
    chosen = create_method(method) if isinstance(method, str) else method
    device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
    missing = missing_compiler(device) if compile else None
    if missing is not None:
        raise CompileError(f"compiling needs {missing}; none is installed (compile=False does without)")
    statistics = ModelConfig(batch_norm=batch_norm).batch_norm
    optimizer = optimizer or OptimizerConfig()
    if optimizer.lr_schedule != "constant":
        raise ConfigError("a step has no learning-rate schedule: call scale_learning_rates from the loop")
    if generator is not None and not chosen.needs_generator:
        raise ConfigError(f"method {chosen.name!r} has no generator")
    return TrainingStep(
        classifier, chosen, generator, optimizer, precision or PrecisionConfig(), statistics, compile, cuda_graph, seed
    )
