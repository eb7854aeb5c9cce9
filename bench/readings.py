"""What a step of each reading of (10), and of the gradient penalty, costs: over GAT with Delta fixed, in one run.

    python bench/readings.py --channels-last --batch-size 32 --json bench/results/readings-MACHINE-32.json

The compiled steps take turns, one round after another, each in a process of its own. The first gradient of each must be
that of the textbook (float32, channels first) before anything is timed. Figures are medians over rounds of the ratio in
each round, with 20 % and 80 %.
"""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastgat import TrainConfig
from fastgat.config import PrecisionConfig, RunConfig
from fastgat.engine.device import device_name, keep_freed_memory, pick_device
from fastgat.errors import FastgatError
from fastgat.methods import GAT, FastGradientL2, GradientPenalty
from fastgat.profiling.profile import check_parity, turns_at_once
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, prepare, steps
from fastgat.reporting.environment import environment

METHODS = {
    "GAT, Delta fixed": GAT(delta="fixed"),
    "GAT, through Delta": GAT(delta="through"),
    "gradient penalty": GradientPenalty(),
    "fast gradient L2": FastGradientL2(),
}


def measure(specs: dict[str, Spec], rounds: int, on_gpu: bool) -> dict[str, dict[str, float]]:
    """Milliseconds and ratios of each side's steps, once its first gradient is right."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(spec)) for name, spec in specs.items()}
        for name, worker in workers.items():
            first = worker.ask(prepare)
            with Worker(replace(specs[name].in_plain_precision(), implementation="textbook")) as textbook:
                check_parity(first["moments"], textbook.ask(prepare)["moments"], specs[name])
        slowest = max(worker.ask(steps, 1) for worker in workers.values())
        count = turns_at_once(slowest) if on_gpu else 1
        taken = np.array([[worker.ask(steps, count) for worker in workers.values()] for _ in range(rounds)])
    over_fixed = taken / taken[:, :1]
    return {
        name: {
            "step_ms": statistics.median(taken[:, column]),
            "ratio": statistics.median(over_fixed[:, column]),
            "ratio_p20": float(np.percentile(over_fixed[:, column], 20)),
            "ratio_p80": float(np.percentile(over_fixed[:, column], 80)),
        }
        for column, name in enumerate(specs)
    }


@click.command()
@click.option("--batch-size", default=128, show_default=True)
@click.option("--amp", is_flag=True)
@click.option("--channels-last", is_flag=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "output", type=Path, help="write the figures here too")
def main(batch_size: int, amp: bool, channels_last: bool, device: str, rounds: int, output: Path | None) -> None:
    keep_freed_memory()
    precision = PrecisionConfig(amp=amp, channels_last=channels_last)
    run = RunConfig(device=device, compile=True)
    base = TrainConfig(method=GAT(), batch_size=batch_size, precision=precision, run=run)
    specs = {name: Spec("fastgat", replace(base, method=method)) for name, method in METHODS.items()}
    here = pick_device(device)
    try:
        sides = measure(specs, rounds, here.type == "cuda")
    except FastgatError as error:
        raise click.ClickException(str(error)) from None
    for name, side in sides.items():
        spread = f"{side['ratio_p20']:.2f} to {side['ratio_p80']:.2f}"
        click.echo(f"{name:20} {side['step_ms']:9.2f} ms {side['ratio']:6.2f} ({spread})")
    if output is not None:
        settings: dict[str, Any] = {"batch_size": batch_size, "amp": amp, "channels_last": channels_last}
        facts = {"device": device_name(here), **settings, "rounds": rounds, "environment": environment()}
        output.write_text(json.dumps({**facts, "sides": sides}, indent=2) + "\n")


if __name__ == "__main__":
    main()
