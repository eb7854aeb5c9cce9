"""The two implementations of one method, ready to step: plain eager PyTorch, and fastgat's."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastgat import methods, textbook
from fastgat.batch import Batch
from fastgat.config import PrecisionConfig, RunConfig, TrainConfig
from fastgat.engine.assemble import assemble, to_channels_last
from fastgat.engine.checks import check_networks
from fastgat.engine.device import autocast_dtype, keep_freed_memory, pick_device, tf32
from fastgat.engine.optimizer import Adam
from fastgat.engine.step import Stepper
from fastgat.errors import ConfigError
from fastgat.methods.players import Draws
from fastgat.models import Generator, create_classifier
from fastgat.profiling.feeding import Feeder

CHANNELS = 3
INPUT_SETS = 4  # steps rotate among as many sets of minibatches, so that no cache holds all that is measured


@dataclass(frozen=True)
class Spec:
    """One side of a comparison on random images; `implementation` is "textbook" or "fastgat".

    With `as_it_comes` PyTorch's own choice of TF32 is left alone.
    """

    implementation: str
    config: TrainConfig
    image_size: int = 32
    num_classes: int = 10
    as_it_comes: bool = False

    @property
    def method(self) -> methods.Method:
        return self.config.chosen_method

    def in_plain_precision(self) -> Self:
        """This side in float32, channels first: PyTorch as it comes."""
        return replace(self, config=replace(self.config, precision=PrecisionConfig()), as_it_comes=True)


class Side(ABC):
    """Networks, optimisers and inputs of a side; the same weights and inputs for the same seed on every side."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.method = spec, spec.method
        self.device = pick_device(spec.config.run.device)
        torch.manual_seed(spec.config.seed)
        precision = spec.config.precision
        self.build_seconds = 0.0
        self._settings = ExitStack()  # until `close`: mostly for good, the process being this side's
        if not spec.as_it_comes:
            self._settings.enter_context(tf32(precision.tf32))
        self._draws = torch.Generator(self.device).manual_seed(spec.config.seed)
        self.layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        self.autocast = autocast_dtype(precision.amp_dtype, self.device) if precision.amp else None
        self.classifier = self._placed(
            create_classifier(spec.config.model.classifier, spec.num_classes, CHANNELS, self.method.classifier_dropout)
        )
        self.generator = None
        if self.method.needs_generator:
            fed = self.method.generator_channels(CHANNELS)
            self.generator = self._placed(Generator(spec.config.model.generator_width, CHANNELS, fed))
        sets = [self._minibatches() for _ in range(INPUT_SETS)]
        self.first_images = sets[0][0][-1].images
        self.inputs: Iterator[tuple[list[Batch], list[Draws]]] = itertools.cycle(sets)

    def close(self) -> None:
        """Restore the TF32 setting of the process."""
        self._settings.close()

    @abstractmethod
    def step(self) -> None:
        """One step on the next set of minibatches; nothing waits for the device."""

    @abstractmethod
    def moments(self) -> Tensor:
        """The classifier's first moments, flat: after one step, a tenth of its gradient."""

    def double(self) -> None:
        """Go over to float64, before the first step."""
        for module in (self.classifier, self.generator):
            if module is not None:
                module.double()
        self.inputs = (
            tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, each) for each in self.inputs
        )

    def seconds(self, action: Callable[[], object], count: int = 1) -> float:
        """How long a call of `action` takes, over `count` calls with a synchronised clock."""
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(count):
            action()
        synchronize(self.device)
        return (time.perf_counter() - began) / count

    def _placed(self, module: nn.Module) -> nn.Module:
        if self.layout == torch.channels_last:
            to_channels_last(module)
        return module.to(self.device).train()

    def _minibatches(self) -> tuple[list[Batch], list[Draws]]:
        """Random minibatches and draws for one step of Algorithm 1; schedules on one minibatch take the last."""
        spec = self.spec
        owed = self.method.generator_steps if isinstance(self.method, methods.GAT) else 0
        batches, draws = [], []
        for _ in range(owed + 1):
            shape = (spec.config.batch_size, CHANNELS, spec.image_size, spec.image_size)
            images = torch.rand(shape).to(self.device).contiguous(memory_format=self.layout)
            labels = torch.randint(spec.num_classes, shape[:1]).to(self.device)
            batches.append(Batch(images, labels))
            draws.append(self.method.draw(self.classifier, images, self._draws))
        return batches, draws


class Textbook(Side):
    """Algorithm 1, or the method's plain step, with torch.optim.Adam; nothing is shared, fused or compiled."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        check_networks(self.classifier, self.generator, self.first_images, self.method, spec.num_classes)
        optimizer = spec.config.optimizer
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), lr=optimizer.lr)
        if self.generator is not None:
            self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=optimizer.generator_lr)
        self.memory = torch.zeros_like(self.first_images)

    def double(self) -> None:
        super().double()
        self.memory = self.memory.double()

    def step(self) -> None:
        batches, draws = next(self.inputs)
        # Without its cache, which would outlive the optimisers' steps within.
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None, cache_enabled=False):
            self._step(batches, draws)

    def _step(self, batches: list[Batch], draws: list[Draws]) -> None:
        method, draw = self.method, draws[-1]
        players = (self.classifier, self.optimizer, batches[-1])
        match method:
            case methods.GAT():
                assert self.generator is not None
                if method.generator_input != "gradient":
                    raise ConfigError("no textbook has this generator_input: the paper's is the gradient")
                both = self.classifier, self.generator, self.optimizer, self.generator_optimizer
                masks, through = [(each.clean, each.perturbed) for each in draws], method.delta == "through"
                textbook.algorithm1_step(*both, batches, method.alpha, method.cg, masks, through, method.clamp)
            case methods.FastGradientL2() | methods.FastGradientLinf():
                textbook.fast_gradient_step(*players, method.epsilon, method.norm, method.alpha, method.clamp)
            case methods.RandomPerturbation():
                textbook.random_perturbation_step(*players, drawn(draw), method.epsilon, method.alpha, method.clamp)
            case methods.Adversarial():
                textbook.ball_step(
                    *players,
                    drawn(draw),
                    method.epsilon,
                    **method.ascent._asdict(),
                    project=method.projects,
                    label_smoothing=method.label_smoothing,
                )
            case methods.Free():
                textbook.free_step(*players, self.memory, method.epsilon, method.replays)
            case methods.GradientPenalty():
                textbook.gradient_penalty_step(*players, method.penalty)
            case methods.TRADES():
                ascent, in_eval = (method.epsilon, method.step_size, method.attack_steps), method.attack_mode == "eval"
                losses = method.beta, method.label_smoothing
                textbook.trades_step(*players, drawn(draw), *ascent, *losses, attack_in_eval_mode=in_eval)
            case _:
                assert isinstance(method, methods.Baseline)
                textbook.baseline_step(*players, draw.clean, method.label_smoothing)

    def moments(self) -> Tensor:
        states = (self.optimizer.state[parameter] for parameter in self.classifier.parameters())
        return torch.cat([state["exp_avg"].flatten() for state in states]).float().cpu()


class Fastgat(Side):
    """The engine's step, as `fastgat train` takes it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        batches, draws = self.next_inputs()
        self.state = assemble(spec.config, self.classifier, self.generator, batches[-1], num_classes=spec.num_classes)
        run = spec.config.run
        self.stepper = Stepper(self.state, self.method, run, compiled=run.compile is not False)
        self.stepper.prepare(batches, draws)
        self.inputs = itertools.chain([(batches, draws)], self.inputs)
        self.number = 0

    def double(self) -> None:
        super().double()
        self.state.double()

    @cached_property
    def feeder(self) -> Feeder:
        """The loader that `fed_step` takes minibatches from."""
        spec = self.spec
        shape = (spec.image_size, spec.image_size, CHANNELS)
        return Feeder(spec.config, shape, spec.num_classes, self.device)

    def step(self) -> None:
        self.stepper(*self._next_step())

    def fed_step(self) -> None:
        """One step whose minibatches come from a loader."""
        _, draws, kind = self._next_step()
        self.stepper(self.feeder.minibatches(len(draws)), draws, kind)

    def _next_step(self) -> tuple[list[Batch], list[Draws], str]:
        """Minibatches, draws and kind of the next step."""
        kind = self.method.kind(self.number)
        self.number += 1
        return *self.next_inputs(kind), kind

    def moments(self) -> Tensor:
        adam = self.state.classifier_optimizer
        assert isinstance(adam, Adam)
        return torch.cat([buffer.flatten() for buffer in adam.exp_avg.buffers()]).float().cpu()

    def next_inputs(self, kind: str = "full") -> tuple[list[Batch], list[Draws]]:
        """The minibatches and draws of a next step of `kind`."""
        batches, draws = next(self.inputs)
        taken = self.method.minibatches(kind)
        return batches[-taken:], draws[-taken:]


def synchronize(device: torch.device) -> None:
    """Wait for what `device` has been given to do."""
    torch.get_device_module(device).synchronize(device)


class InFloat64(NamedTuple):
    """First moments: of both sides in float64 on the CPU, each step uncompiled; and of the textbook on the sides' own
    device, in float64 and in fastgat's precision."""

    ours: Any
    theirs: Any
    here: Any
    rounded: Any


def in_float64(side: Side, spec: Spec) -> InFloat64:
    """What tells whether sides that differ differ by rounding alone; `spec` is fastgat's."""
    plain = spec.in_plain_precision()
    on_cpu = replace(plain, config=replace(plain.config, run=RunConfig(device="cpu", compile=False)))
    ours, theirs = (_first_moments(kind(on_cpu), double=True) for kind in (Fastgat, Textbook))
    here = theirs if side.device.type == "cpu" else _first_moments(Textbook(plain), double=True)
    return InFloat64(ours, theirs, here, _first_moments(Textbook(spec), double=False))


def _first_moments(side: Side, *, double: bool) -> Any:
    if double:
        side.double()
    side.step()
    side.close()
    return side.moments().numpy()


def drawn(draws: Draws) -> Tensor:
    assert draws.noise is not None
    return draws.noise


def build(spec: Spec) -> Side:
    """The side, in a process of its own: on a CPU fastgat's keeps what it frees, as `fastgat train` does."""
    if spec.implementation == "textbook":
        return Textbook(spec)
    if pick_device(spec.config.run.device).type == "cpu":
        keep_freed_memory()
    return Fastgat(spec)
