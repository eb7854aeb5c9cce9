"""fastgat's step in a training loop of one's own."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastgat.batch import Batch
from fastgat.config import ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig, TrainConfig
from fastgat.contract import check_labels, checked_batch
from fastgat.engine.assemble import assemble
from fastgat.engine.device import tf32
from fastgat.engine.random import step_draws
from fastgat.engine.ranks import current
from fastgat.engine.reduction import synchronised_batch_norm
from fastgat.engine.step import Stepper, missing_compiler
from fastgat.errors import CheckpointError, CompileError, ConfigError
from fastgat.functional import Modes, mixed_precision, modes, modes_kept, parametrizations_uncached, set_modes
from fastgat.methods import Method
from fastgat.methods.players import Draws
from fastgat.models import Generator
from fastgat.randomness import seed_torch
from fastgat.typed import shown


class TrainingStep:
    """fastgat's training step for any classifier, to be called in a loop of one's own, under the name `compile_step`:

        step = fastgat.compile_step(classifier, method="gat")
        for images, labels in loader:
            step(images, labels)

    Where torch.distributed connects several ranks, each brings its part of every batch, all of one size, and the step
    is that of the whole batch, from rank 0's weights: gradients and batch norm's statistics are taken over all ranks.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), trained in place, its modules in the modes (train,
            or eval for batch norm that is frozen) that they are in at the first step; where every layer with weights
            is in eval mode, in train mode.
        method: a method such as `fastgat.methods.GAT(cg=0.5)`, or the name of one.
        generator: input gradients -> perturbations, trained in place; by default Table 1's, for images of any size and
            number of channels.
        optimizer, precision: as in `fastgat.TrainConfig`; schedules and moving averages are the loop's own.
        batch_norm: which passes the classifier's running statistics see: "clean", "perturbed" or "both".
        compile: into one graph at the first step; without it the same step runs uncompiled.
        cuda_graph: on a GPU, replay the compiled step as one CUDA graph.
        winograd: on a CPU, channels last, compute 3 x 3 convolutions by Winograd's algorithm (bfloat16: without AMX).
        seed: of the generator's initial weights and of random draws.

    Attributes:
        classifier, generator: the players, trained in place; `generator` is None for methods without one, and until the
            first step where none was given.
        steps: how many have been taken.

    Raises ConfigError for settings that make no sense, CompileError where there is no compiler.
    """

    def __init__(
        self,
        classifier: nn.Module,
        method: Method | str = "gat",
        *,
        generator: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
        precision: PrecisionConfig | None = None,
        batch_norm: str = "both",
        compile: bool = True,
        cuda_graph: bool = True,
        winograd: bool = True,
        seed: int = 0,
    ) -> None:
        if not isinstance(classifier, nn.Module):
            raise ConfigError(f"the classifier must be a torch.nn.Module, got {shown(classifier)}")
        device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
        missing = missing_compiler(device) if compile else None
        if missing is not None:
            raise CompileError(f"compiling needs {missing}; none is installed (compile=False does without)")
        self._config = config = TrainConfig(
            method=method,
            seed=seed,
            select="last",  # no epoch is picked: another rule may ask for an epsilon
            model=ModelConfig(batch_norm=batch_norm),
            optimizer=optimizer or OptimizerConfig(),
            precision=precision or PrecisionConfig(),
            run=RunConfig(compile=compile, cuda_graph=cuda_graph, winograd=winograd),
        )
        self.method = config.chosen_method
        if config.optimizer.lr_schedule != "constant" or config.optimizer.warmup_epochs:
            raise ConfigError("a step has no learning-rate schedule: call scale_learning_rates from the loop")
        if config.optimizer.ema is not None:
            raise ConfigError("a step keeps no moving average: keep one in the loop, with torch.optim.swa_utils")
        if generator is not None and not self.method.needs_generator:
            raise ConfigError(f"method {self.method.name!r} has no generator")
        if batch_norm != "both" and not self.method.clean_and_perturbed:
            raise ConfigError(f"batch_norm is a choice of passes, and method {self.method.name!r} has one")
        self.classifier, self.generator = classifier, generator
        self.steps = 0
        self._lr_scale = 1.0
        self._num_classes: int | None = None
        self._check_values = True
        self._stepper: Stepper | None = None
        self._batch_spec: tuple[torch.Size, torch.dtype] | None = None
        self._modes: Modes = []
        self._restored: dict[str, Tensor] | None = None

    def __call__(
        self, images: Tensor, labels: Tensor, *, generator_batches: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """Take one step. The first one builds and compiles, for batches of its shape; none waits for the device.

        Every module is in the mode that it had at the first step, whatever it is in between, and torch's random state
        stays the loop's.

        Args:
            images: (B, C, H, W), floating point, in [0, 1], on the classifier's device. Their values are looked at in
                every step; on a GPU, where that waits for the device, in the first and in the first after each call of
                `metrics`.
            labels: (B,), of any integer type.
            generator_batches: with schedule "paper", k minibatches like this one, of the generator's own.

        Raises ConfigError for another shape or dtype than the first batch's, where the networks do not fit it, and
        where a parameter was frozen or made trainable since.
        """
        if torch.is_inference_mode_enabled():
            raise ConfigError("a step learns: take it outside of torch.inference_mode()")
        kind = self.method.kind(self.steps)
        owed = self.method.minibatches(kind) - 1
        if len(generator_batches) != owed:
            raise ConfigError(f"this step takes {owed} generator_batches, got {len(generator_batches)}")
        kind_of_batch = self._batch_spec or (images.shape, images.dtype)
        batches = [self._batch(*each, *kind_of_batch) for each in (*generator_batches, (images, labels))]
        device, on_gpu = images.device, images.is_cuda
        with (
            torch.random.fork_rng([device] if on_gpu else []),
            tf32(self._config.precision.tf32),
            mixed_precision(device, None),  # the loop's; the step has its own
            parametrizations_uncached(),
            torch.cuda.device(device) if on_gpu else nullcontext(),
        ):
            stepper = self._stepper or self._build(batches)
            stepper.state.check_trainable()
            stepper.state.set_learning_rates(self._lr_scale)
            with modes_kept(self.classifier, self.generator):  # the loop may have evaluated since the first step
                set_modes(self._modes)
                with self._across_ranks():
                    stepper(batches, self._draws(batches), kind)
        self.steps += 1
        self._check_values = False

    def metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, by name, empty where there were none; waits for the device.

        Of several ranks all must call it: the means are theirs together.

        Raises NonFiniteError, naming the player and the step, where a loss became NaN or infinite, or where float16
        overflows at any loss scale.
        """
        if self._stepper is None:
            return {}
        self._check_values = True
        sums, steps = self._stepper.state.metrics.read()
        self._stepper.state.check_loss_scale()
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def scale_learning_rates(self, factor: float) -> None:
        """Take the next steps at `factor` times the learning rates of the optimiser's settings.

        Raises ConfigError for a factor that is not a number of at least 0.
        """
        if not 0 <= factor < math.inf:
            raise ConfigError(f"the factor of the learning rates must be at least 0, got {factor}")
        self._lr_scale = factor

    def state_dict(self) -> dict[str, Any]:
        """Every tensor that steps change, how many steps there have been, and the scale of the learning rates; for
        `load_state_dict` of a step like this.

        Raises ConfigError before the first step.
        """
        tensors = self._stepper.state.state_dict() if self._stepper is not None else self._restored
        if tensors is None:
            raise ConfigError("take a step first: before it there is no state to keep")
        tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # steps write in place
        return {"steps": self.steps, "learning_rate_scale": self._lr_scale, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; before the first step too.

        Raises CheckpointError for the state of another step, here or at the first step.
        """
        if missing := {"steps", "learning_rate_scale", "tensors"} - set(state):
            raise CheckpointError(f"not the state of a step: it lacks {', '.join(sorted(missing))}")
        tensors = {name: tensor.detach().clone() for name, tensor in state["tensors"].items()}
        if self._stepper is not None:
            self._stepper.state.load_state_dict(tensors)
        else:
            self._restored = tensors
        self.steps, self._lr_scale = state["steps"], state["learning_rate_scale"]

    def _batch(self, images: Tensor, labels: Tensor, shape: torch.Size, dtype: torch.dtype) -> Batch:
        values = self._check_values or getattr(labels, "is_cpu", False)  # there nothing waits for it
        images, labels = checked_batch(images, labels, self._num_classes, values=values)
        if not len(images):
            raise ConfigError("an empty batch: a step takes at least one image")
        if images.shape != shape:
            raise ConfigError(
                f"the step is made for images of {tuple(shape)}, got {tuple(images.shape)}: leave a smaller last "
                "batch out"
            )
        if images.dtype != dtype:
            raise ConfigError(f"the step is made for images of {dtype}, got {images.dtype}")
        layout = torch.channels_last if self._config.precision.channels_last else torch.contiguous_format
        return Batch(images.contiguous(memory_format=layout), labels)

    @torch.no_grad()
    def _build(self, taken: Sequence[Batch]) -> Stepper:
        batch = taken[-1]
        device, ranks = batch.images.device, current()
        ranks.check_same({"the shape of their batches": tuple(batch.images.shape)})
        if self.method.needs_generator and self.generator is None:
            channels = batch.images.shape[1]
            seed_torch(self._config.seed, device)
            generator = Generator(channels=channels, in_channels=self.method.generator_channels(channels))
            self.generator = generator.to(device, batch.images.dtype)
        state = assemble(self._config, self.classifier, self.generator, batch, ranks=ranks)
        statistics = self._config.model.batch_norm
        if statistics != "both" and not state.has_statistics:
            raise ConfigError(f"batch_norm {statistics!r}: the classifier has no running statistics to update")
        self._num_classes = state.num_classes
        for minibatch in taken[:-1]:
            check_labels(minibatch.labels, self._num_classes)
        self._modes = modes(self.classifier, self.generator)
        if self._restored is not None:
            state.load_state_dict(self._restored)
        state.set_learning_rates(self._lr_scale)
        stepper = Stepper(state, self.method, self._config.run, compiled=bool(self._config.run.compile))
        batches = [batch] * self.method.minibatches()
        with self._across_ranks():
            stepper.prepare(batches, self._draws(batches))
        self._stepper, self._restored = stepper, None
        self._batch_spec = batch.images.shape, batch.images.dtype
        return stepper

    def _across_ranks(self) -> AbstractContextManager[None]:
        return synchronised_batch_norm(current(), self.classifier, self.generator)

    def _draws(self, batches: Sequence[Batch]) -> list[Draws]:
        return step_draws(self.method, self.classifier, batches, self._config.seed, self.steps, current())


compile_step = TrainingStep
