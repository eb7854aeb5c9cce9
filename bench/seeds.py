"""The cheapest way to train n seeds of one method on one device.

    python bench/seeds.py --seeds 4 --method gat --batch-size 128 --json bench/results/seeds-MACHINE.json

one by one: n runs one after another, each with all cores. processes: as many at a time as there are cores (or, on a
GPU, n), each with its share: what `fastgat reproduce --jobs` does. vectorised: one process, one step for all n,
`torch.vmap` over networks and minibatches. streams: on a GPU, one process, n captured steps on n streams.

Every way starts from the same weights and minibatches, and its first gradients must be those of single runs before
anything is timed. The ways take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from fastgat import TrainConfig
from fastgat.batch import Batch
from fastgat.config import PrecisionConfig
from fastgat.engine.device import device_name, keep_freed_memory, pick_device
from fastgat.engine.optimizer import Adam
from fastgat.errors import FastgatError
from fastgat.functional import tensor_paths
from fastgat.methods import create_method
from fastgat.methods.players import Draws, Network, Players, Tensors
from fastgat.profiling.sides import Fastgat, Spec
from fastgat.reporting.environment import environment
from fastgat.worker import WorkerProcess

FLOAT32_ERROR, BFLOAT16_ERROR = 1e-3, 0.05
WARM_UP = 3


class Alone:
    """Runs of some seeds in this process: each step advances them all by one, one after another."""

    def __init__(self, spec: Spec, seeds: Sequence[int]) -> None:
        self.sides = [Fastgat(seeded(spec, seed)) for seed in seeds]

    def step(self) -> None:
        for side in self.sides:
            side.step()

    def moments(self) -> list[Tensor]:
        """The classifier's first moments of each seed: after one step, a tenth of its gradient."""
        return [side.moments() for side in self.sides]


class Streams(Alone):
    """The same on a GPU, each seed's captured step on a stream of its own."""

    def __init__(self, spec: Spec, seeds: Sequence[int]) -> None:
        super().__init__(spec, seeds)
        self.streams = [torch.cuda.Stream() for _ in seeds]

    def step(self) -> None:
        for side, stream in zip(self.sides, self.streams, strict=True):
            with torch.cuda.stream(stream):
                side.step()


class Vectorised:
    """All seeds in one step: parameters, moments and minibatches stacked, gradients by `torch.vmap`."""

    def __init__(self, spec: Spec, seeds: Sequence[int]) -> None:
        uncompiled = replace(spec, config=replace(spec.config, run=replace(spec.config.run, compile=False)))
        sides = [Fastgat(seeded(uncompiled, seed)) for seed in seeds]
        self.method, self.autocast, config = spec.method, sides[0].autocast, spec.config
        self.classifier, self.generator = sides[0].classifier, sides[0].generator
        networks = [self.classifier] if self.generator is None else [self.classifier, self.generator]
        self.tensor_paths = [tensor_paths(network) for network in networks]
        self.parameters = [stacked([side.classifier for side in sides])]
        rates = [config.optimizer.lr]
        if self.generator is not None:
            self.parameters.append(stacked([side.generator for side in sides if side.generator is not None]))
            rates.append(config.optimizer.generator_lr)
        self.adams = [Adam(as_module(tensors), rate) for tensors, rate in zip(self.parameters, rates, strict=True)]
        self.batches = [
            Batch(*(torch.stack(each) for each in zip(*minibatches, strict=True)))
            for minibatches in zip(*([side.next_inputs()[0][-1] for _ in range(4)] for side in sides), strict=True)
        ]
        self.number, self.seeds = 0, len(seeds)
        self.run = torch.compile(self._run, fullgraph=True, dynamic=False)

    def step(self) -> None:
        with torch.no_grad():
            self.run(self.batches[self.number % len(self.batches)])
        self.number += 1

    def moments(self) -> list[Tensor]:
        buffers = list(self.adams[0].exp_avg.buffers())
        return [torch.cat([buffer[i].flatten() for buffer in buffers]).float() for i in range(self.seeds)]

    def _run(self, batch: Batch) -> None:
        gradients = torch.vmap(self._gradients)(*self.parameters, batch.images, batch.labels)
        for adam, parameters, gradient in zip(self.adams, self.parameters, gradients, strict=True):
            adam.update(parameters, gradient)

    def _gradients(self, *stacks: Any) -> tuple[Tensors, ...]:
        """What one seed's step would update its networks by."""
        *parameters, images, labels = stacks
        classifier = Network("classifier", self.classifier, parameters[0], {}, self.tensor_paths[0], self.autocast)
        generator = None
        if self.generator is not None:
            generator = Network("generator", self.generator, parameters[1], {}, self.tensor_paths[1], self.autocast)
        batch, collected = Batch(images, labels), {}

        def update(players: Players, **gradients: Tensors | None) -> Players:
            collected.update(gradients)
            return players

        self.method.step(Players(classifier, generator), [batch], [Draws()], update)
        return tuple(each for name in ("classifier", "generator") if (each := collected.get(name)) is not None)


def stacked(modules: list[nn.Module]) -> Tensors:
    parameters, _ = stack_module_state(modules)
    return {name: value.detach() for name, value in parameters.items()}


def as_module(tensors: Tensors) -> nn.Module:
    """A module that holds these as its parameters."""
    holder = nn.Module()
    holder.named_parameters = lambda *_, **__: iter((k, nn.Parameter(v)) for k, v in tensors.items())  # type: ignore[method-assign]  # all that Adam asks for
    return holder


def seeded(spec: Spec, seed: int) -> Spec:
    return replace(spec, config=replace(spec.config, seed=seed))


ALONE = "one by one"
WAYS: dict[str, Callable[..., Any]] = {
    ALONE: Alone,
    "processes": Alone,
    "vectorised": Vectorised,
    "streams": Streams,
}


def serve(pipe: Connection, way: str, spec: Spec, seeds: Sequence[int], cores: Sequence[int]) -> None:
    """Some seeds in a process of their own, on some of the cores.

    Answers first with the moments after one step, then each number by taking as many.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    keep_freed_memory()
    runs = WAYS[way](spec, seeds)
    settle()  # streams wait neither for what has built the sides, nor anything for them
    runs.step()
    settle()
    pipe.send([moments.cpu().numpy() for moments in runs.moments()])
    with contextlib.suppress(EOFError):
        while True:
            for _ in range(pipe.recv()):
                runs.step()
            settle()
            pipe.send(None)


def settle() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start(way: str, spec: Spec, seeds: int, cores: list[int], on_gpu: bool) -> list[WorkerProcess]:
    """The processes of a way; process p of n has the seeds p, p + n, ..."""
    count = 1 if way != "processes" else seeds if on_gpu else min(seeds, len(cores))
    shares = [(range(p, seeds, count), cores if on_gpu else cores[p::count]) for p in range(count)]
    return [WorkerProcess(serve, way, spec, *share, advice="try fewer --seeds") for share in shares]


@click.command()
@click.option("--seeds", type=click.IntRange(2), default=4, show_default=True)
@click.option("--method", type=click.Choice(["gat", "baseline", "fg-l2"]), default="gat", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--amp", is_flag=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="of every seed, in a turn")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(list(WAYS)),
    help="beside one by one  [default: all that can run here]",
)
@click.option("--json", "output", type=Path)
def main(
    seeds: int,
    method: str,
    batch_size: int,
    amp: bool,
    steps: int,
    rounds: int,
    ways: tuple[str, ...],
    output: Path | None,
) -> None:
    """Compare the ways to train several seeds, in images a second over all of them."""
    precision = PrecisionConfig(amp=amp, channels_last=True)
    options = {"delta": "fixed"} if method == "gat" else {}
    config = TrainConfig(method=create_method(method, **options), batch_size=batch_size, precision=precision)
    spec = Spec("fastgat", config)
    device = pick_device("auto")
    on_gpu, cores = device.type == "cuda", sorted(os.sched_getaffinity(0))
    # Under vmap the joints would hand stacked tensors to their Triton kernels, which take plain ones.
    possible = tuple(way for way in WAYS if way != ("vectorised" if on_gpu else "streams"))
    ways = (ALONE, *(way for way in ways or possible if way != ALONE))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    settings = {"seeds": seeds, "method": method, "batch_size": batch_size, "amp": amp, "rounds": rounds}
    content = {"settings": settings, "device": device_name(device), "images_per_second": rates}
    with ExitStack() as stack:
        running, expected = {}, None
        for way in ways:
            processes = [stack.enter_context(process) for process in start(way, spec, seeds, cores, on_gpu)]
            first_steps = [process.receive() for process in processes]
            count = len(first_steps)
            moments = {seed: first_steps[seed % count][seed // count] for seed in range(seeds)}
            expected = expected or moments
            check(way, moments, expected, BFLOAT16_ERROR if amp else FLOAT32_ERROR)
            running[way] = processes
            take(processes, WARM_UP)
        for _ in range(rounds):
            for way, processes in running.items():
                began = time.perf_counter()
                take(processes, steps)
                rates[way].append(seeds * steps * batch_size / (time.perf_counter() - began))
            if output is not None:  # after each round: the process may be stopped
                output.write_text(json.dumps(content | {"environment": environment()}, indent=2) + "\n")
    first = statistics.median(rates[ways[0]])
    for way, values in rates.items():
        median = statistics.median(values)
        click.echo(f"{way:12} {median:8,.1f} images/s ({min(values):,.1f} to {max(values):,.1f}), {median / first:.2f}")


def take(processes: list[WorkerProcess], steps: int) -> None:
    """`steps` steps of every seed."""
    for process in processes:
        process.send(steps)
    for process in processes:
        process.receive()


def check(way: str, moments_of: dict[int, Any], expected: dict[int, Any], allowed: float) -> None:
    """Raises FastgatError unless each seed's first gradient is that of its single run, to rounding."""
    for seed, moments in expected.items():
        one, other = torch.from_numpy(moments), torch.from_numpy(moments_of[seed])
        error = float((one - other).norm() / one.norm())
        if not error <= allowed:
            raise FastgatError(
                f"{way}: seed {seed} has another gradient (relative error {error:.3g}); nothing is timed"
            )


if __name__ == "__main__":
    main()
