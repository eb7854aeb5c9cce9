"""What each of the things that fastgat does about cuDNN's convolutions is worth in a step.

    python bench/convolutions.py --batch-size 128 --json build/convolutions.json

The step without any of them, with each, and with both, each in a process of its own; all must take the same
first gradient, and their steps take turns. It wants a GPU.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import click
import torch

from fastgat.config import PrecisionConfig, TrainConfig
from fastgat.engine import graph, step
from fastgat.engine.graph import GraphPasses
from fastgat.methods import GAT
from fastgat.profiling.profile import check_parity
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, serve
from fastgat.reporting.environment import environment

OFF: dict[str, tuple[object, str, Callable[..., object]]] = {
    "timed": (step, "fastest_convolutions", nullcontext),
    "filled": (graph, "pad_channels", lambda graph: None),
}
"""What takes each of them away: algorithms timed, channels filled up."""
WAYS = {
    "none": (),
    "algorithms timed": ("timed",),
    "channels filled up": ("filled",),
    "both": tuple(OFF),
}
STEPS = 40


@click.command()
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option("--json", "output", type=Path)
def main(batch_size: int, rounds: int, output: Path | None) -> None:
    """Time a captured step of GAT with and without each of them."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU here")
    config = TrainConfig(method=GAT(), batch_size=batch_size, precision=PrecisionConfig(amp=True, channels_last=True))
    spec = Spec("fastgat", config)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        workers, expected = {}, None
        for way in WAYS:  # one after another: what times algorithms must have the GPU to itself
            workers[way] = stack.enter_context(Worker(spec, functools.partial(serve_with, way)))
            moments = workers[way].ask("prepare")["moments"]
            expected = moments if expected is None else expected
            check_parity(moments, expected, spec)
        for _ in range(rounds):
            for way, worker in workers.items():
                times[way].append(worker.ask("steps", STEPS))
    for way, values in times.items():
        median = statistics.median(values)
        share = median / statistics.median(times["none"])
        click.echo(f"{way:40} {median:7.3f} ms ({min(values):.3f} to {max(values):.3f}), {share:.2f}")
    if output is not None:
        content = {"batch_size": batch_size, "steps": STEPS, "step_ms": times, "environment": environment()}
        output.write_text(json.dumps(content, indent=2) + "\n")


def serve_with(way: str, pipe: Connection, spec: Spec) -> None:
    """A side's process, without what is not in `way`."""
    with ExitStack() as stack:
        for name, (module, attribute, nothing) in OFF.items():
            if name not in WAYS[way]:
                stack.enter_context(mock.patch.object(module, attribute, nothing))
        # Inductor's cache knows graphs by this.
        stack.enter_context(mock.patch.object(GraphPasses, "uuid", return_value=way))
        serve(pipe, spec)


if __name__ == "__main__":
    main()
