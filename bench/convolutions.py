"""What each of the things that fastgat does, or could do, about convolutions on a GPU is worth in a step.

    python bench/convolutions.py --batch-size 128 --json build/convolutions.json

The step without any of them, with each that is on by default, with both, and with those of `--convolutions` besides:
each way in a process of its own, compiled one after another, timed in turns. A way whose first gradients are not those
of the first one is refused. It wants a GPU, and about half a minute for each way.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import click
import torch
from torch import Tensor

from fastgat.config import PrecisionConfig, TrainConfig
from fastgat.engine import graph_passes, step
from fastgat.engine.graph_passes import GraphPasses
from fastgat.errors import FastgatError
from fastgat.methods import GAT
from fastgat.profiling.profile import check_parity
from fastgat.profiling.sides import Fastgat, Spec
from fastgat.profiling.worker import Worker, prepare, serve, steps
from fastgat.reporting.environment import environment

OFF: dict[str, tuple[object, str, Callable[..., object]]] = {
    "timed": (step, "fastest_convolutions", nullcontext),
    "filled": (graph_passes, "pad_channels", lambda graph: None),
}
"""What takes each of the defaults away: algorithms timed, channels filled up."""


class Way(NamedTuple):
    """Which of the defaults a step has, and its `--convolutions`."""

    defaults: tuple[str, ...] = tuple(OFF)
    convolutions: str = "cudnn"


BESIDES = ("forward", "backward", "stream", "backward+stream", "forward+backward", "forward+backward+stream")
NONE, DEFAULT = "none", "both"
WAYS = {
    NONE: Way(()),
    "algorithms timed": Way(("timed",)),
    "channels filled up": Way(("filled",)),
    DEFAULT: Way(),
    **{f"both, and {name}": Way(convolutions=name) for name in BESIDES},
}
STEPS = 40
Times = dict[str, list[float]]


@click.command()
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option(
    "--way", "names", multiple=True, type=click.Choice(list(WAYS)), help="beside none and both  [default: all]"
)
@click.option("--json", "output", type=Path)
def main(batch_size: int, rounds: int, names: tuple[str, ...], output: Path | None) -> None:
    """Time a captured step of GAT with Delta fixed in every way, and name the best; exits with 1 if one was refused.

    What is known so far lies in --json after each way and each round.
    """
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU here")
    precision = PrecisionConfig(amp=True, channels_last=True)
    config = TrainConfig(method=GAT(delta="fixed"), batch_size=batch_size, precision=precision)
    machine = environment()

    def write(times: Times, refused: Mapping[str, str]) -> None:
        content = {"batch_size": batch_size, "steps": STEPS, "step_ms": times, "refused": refused}
        if output is not None:
            output.write_text(json.dumps(content | {"environment": machine}, indent=2) + "\n")

    times, refused = measure(Spec("fastgat", config), rounds, names or tuple(WAYS), write)
    for line in report(times, refused):
        click.echo(line)
    sys.exit(bool(refused))


def measure(
    spec: Spec,
    rounds: int,
    names: Sequence[str] = tuple(WAYS),
    write: Callable[[Times, Mapping[str, str]], None] = lambda times, refused: None,
) -> tuple[Times, dict[str, str]]:
    """Milliseconds a step in every round, of the first way, the default and those called `names` that compute what the
    first does; why others were refused. `write` is given both as they come.

    Raises FastgatError where the first way fails.
    """
    workers, expected = {}, None
    times: Times = {}
    refused: dict[str, str] = {}
    asked = [name for name in WAYS if name in (NONE, DEFAULT, *names)]
    with ExitStack() as stack:
        for name in asked:  # one after another: what times algorithms must have the GPU to itself
            run = replace(spec.config.run, convolutions=WAYS[name].convolutions)
            one = replace(spec, config=replace(spec.config, run=run))
            try:
                worker = stack.enter_context(Worker(one, functools.partial(serve_with, name)))
                moments = worker.ask(prepare)["moments"]
                expected = moments if expected is None else expected
                check_parity(moments, expected, one)
                workers[name], times[name] = worker, []
            except (FastgatError, RuntimeError) as error:
                if expected is None:
                    raise
                refused[name] = str(error)
            write(times, refused)
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.ask(steps, STEPS))
            write(times, refused)
    return times, refused


def report(times: Mapping[str, list[float]], refused: Mapping[str, str]) -> list[str]:
    """A line for each way, over the first one; and the best of the default and those that beat it."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = [
        f"{name:40} {median:7.3f} ms ({min(times[name]):.3f} to {max(times[name]):.3f}), {median / medians[NONE]:.2f}"
        for name, median in medians.items()
    ]
    lines += [f"{name:40} refused: {why}" for name, why in refused.items()]
    if DEFAULT not in times:
        return [*lines, "no best: the default was refused"]
    best = min(
        (name for name in times if name == DEFAULT or beats(times[name], times[DEFAULT])), key=medians.__getitem__
    )
    saved = 1 - medians[best] / medians[DEFAULT]
    return [*lines, f"best: {best}" + (f", {saved:.1%} less than by default" if best != DEFAULT else ", the default")]


def beats(times: list[float], others: list[float]) -> bool:
    """Whether one way was faster in three of four of the rounds that both took side by side."""
    wins = sum(ours < theirs for ours, theirs in zip(times, others, strict=True))
    return 4 * wins >= 3 * len(times)


def serve_with(name: str, pipe: Connection, spec: Spec) -> None:
    """A side's process, without the defaults that the way lacks, and with the gradients of both players to compare."""
    with ExitStack() as stack:
        for default, (module, attribute, nothing) in OFF.items():
            if default not in WAYS[name].defaults:
                stack.enter_context(mock.patch.object(module, attribute, nothing))
        # Inductor's cache knows graphs by this.
        stack.enter_context(mock.patch.object(GraphPasses, "uuid", return_value=name))
        stack.enter_context(mock.patch.object(Fastgat, "moments", of_both_players))
        serve(pipe, spec)


def of_both_players(side: Fastgat) -> Tensor:
    """First moments of both players, each of length 1: G's gradient is much smaller than F's."""
    optimizers = (side.state.classifier_optimizer, side.state.generator_optimizer)
    found = [torch.cat([b.flatten() for b in each.exp_avg.buffers()]).float().cpu() for each in optimizers if each]  # type: ignore[union-attr]  # Adam's
    return torch.cat([moments / moments.norm() for moments in found])


if __name__ == "__main__":
    main()
