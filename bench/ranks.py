"""What several ranks gain and cost: communication a step by count, images a second here, and larger machines on paper.

    python bench/ranks.py --ranks 2 --batch-size 64 --json bench/results/ranks-MACHINE.json

counted: the collectives of a step and their bytes, for each method, with and without batch norm over all ranks.
measured: GAT compiled, the same whole batch on one process and on the ranks, one core (or GPU) for each.
on paper: 8 and 64 GPUs, from the counts and the assumptions below.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from fastgat.batch import Batch
from fastgat.config import PrecisionConfig, TrainConfig
from fastgat.engine import reduction
from fastgat.engine.assemble import assemble
from fastgat.engine.device import device_name, keep_freed_memory, pick_device
from fastgat.engine.random import step_draws
from fastgat.engine.ranks import Ranks, connected
from fastgat.engine.reduction import synchronised_batch_norm
from fastgat.engine.step import Stepper
from fastgat.methods import METHODS, Method
from fastgat.models import Classifier, Generator
from fastgat.reporting.environment import environment

STEPS = 6


BANDWIDTH = {8: 360e9, 64: 45e9}
"""Bytes a second of an all-reduce, assumed: NVLink in a machine of eight, 400 Gbit/s a GPU between machines."""
LATENCY = {8: 20e-6, 64: 50e-6}
"""Seconds of a small all-reduce, assumed."""


@dataclass(frozen=True)
class OnPaper:
    """A step of GAT on an H200, 128 images on each GPU (weak scaling), all assumed but the sizes and Table 1's step.

    Attributes:
        step_ms: on one GPU, in bf16.
        window: the share of the step in which the classifier's gradients can travel: the backward pass that is left
            when the first bucket is full, and the generator's.
        layers: of batch norm, with six collectives each: two forward passes, two pulls back through each.
    """

    step_ms: float
    classifier_bytes: int
    window: float
    layers: int = 0
    generator_bytes: int = 4 * 107_763

    def on(self, gpus: int) -> dict[str, float]:
        def all_reduce(size: int) -> float:
            return 1e3 * (LATENCY[gpus] + 2 * (gpus - 1) / gpus * size / BANDWIDTH[gpus])

        waited = max(0.0, all_reduce(self.classifier_bytes) - self.window * self.step_ms)
        waited += all_reduce(self.generator_bytes) + 6e3 * self.layers * LATENCY[gpus]
        sent = 2 * (gpus - 1) / gpus * (self.classifier_bytes + self.generator_bytes)
        total = self.step_ms + waited
        return {"step_ms": total, "bytes_sent": sent, "efficiency": self.step_ms / total}


RESNET18 = 4 * 11_173_962
PAPER = {
    # As measured. The generator's backward pass is 44 % of the arithmetic.
    "table1": OnPaper(1.66, 4 * 240_058, 0.44),
    # 9.5 GFLOP an image at 40 % of 790 TFLOP/s, 7.3 where frozen batch norm lets the players share a pass.
    "resnet18": OnPaper(3.9, RESNET18, 0.25, layers=20),
    "resnet18, frozen batch norm": OnPaper(3.0, RESNET18, 0.30),
}


@dataclass(frozen=True)
class Job:
    """What is run: a method on Table 1's networks, or on a small classifier with batch norm."""

    method: str
    batch_size: int
    network: str = "table1"
    compiled: bool = False
    rounds: int = 3

    def classifier(self) -> nn.Module:
        if self.network == "table1":
            return Classifier()
        return nn.Sequential(nn.Conv2d(3, 48, 3, 2), nn.BatchNorm2d(48), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def stepper(job: Job, ranks: Ranks, device: torch.device) -> tuple[Stepper, list[Batch], Method]:
    """A step ready to be taken, and this rank's minibatches."""
    torch.manual_seed(0)
    method = METHODS[job.method](**({"delta": "fixed"} if "gat" in job.method else {}))
    classifier = job.classifier().to(device)
    size = ranks.share_of(job.batch_size)
    batch = Batch(torch.rand(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device))
    batch = Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels)
    generator = Generator().to(device) if method.needs_generator else None
    config = TrainConfig(method=method, precision=PrecisionConfig(channels_last=True))
    state = assemble(config, classifier, generator, batch, ranks=ranks)
    return Stepper(state, method, compiled=job.compiled), [batch], method


def counted(job: Job, ranks: Ranks, device: torch.device) -> dict[str, int]:
    """The collectives of one step, and what they carry."""
    counts = {"collectives": 0, "bytes": 0}

    def start_sum(x: Tensor, group: str, start: Any = reduction.start_sum) -> Tensor:
        counts["collectives"] += 1
        counts["bytes"] += x.nbytes
        return start(x, group)

    step, batches, method = stepper(job, ranks, device)
    classifier = step.state.classifier
    with mock.patch.object(reduction, "start_sum", start_sum), synchronised_batch_norm(ranks, classifier):
        step(batches, step_draws(method, classifier, batches, 0, 0, ranks))
    return counts


def measured(job: Job, ranks: Ranks, device: torch.device) -> list[float]:
    """Images a second over all ranks, a figure a round."""
    step, batches, method = stepper(job, ranks, device)
    draws = step_draws(method, step.state.classifier, batches, 0, 0, ranks)
    step.prepare(batches, draws)
    rates = []
    for number in range(1 + job.rounds):
        ranks.gather(None)
        began = time.perf_counter()
        for _ in range(STEPS):
            step(batches, draws)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ranks.gather(None)
        if number:  # the first one warms up
            rates.append(STEPS * job.batch_size / (time.perf_counter() - began))
    return rates


def run(jobs: list[tuple[str, Job]], count: int) -> list[Any]:
    """What rank 0 of `count` finds, for each job and the function of this module that does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        spawn(_enter, (count, port, jobs, output), nprocs=count)
        return list(json.loads(output.read_text()))


def _enter(rank: int, count: int, port: int, jobs: list[tuple[str, Job]], output: Path) -> None:
    keep_freed_memory()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = pick_device("auto", rank)
    with connected(device) as ranks:
        results = [globals()[what](job, ranks, device) for what, job in jobs]
    if rank == 0:
        output.write_text(json.dumps(results))


@click.command()
@click.option("--ranks", type=click.IntRange(2), default=2, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True, help="over all ranks")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "output", type=Path)
def main(ranks: int, batch_size: int, rounds: int, output: Path | None) -> None:
    """Count, measure and project."""
    counts: dict[str, Any] = {}
    networks = ("table1", "batch norm")
    jobs = [(f"{name}, {network}", Job(name, 2 * ranks, network)) for network in networks for name in METHODS]
    for (label, _), amount in zip(jobs, run([("counted", job) for _, job in jobs], ranks), strict=True):
        counts[label] = amount
        click.echo(f"{label:26} {amount['collectives']:4} collectives, {amount['bytes'] / 1e6:8.3f} MB a step")
    job = Job("gat", batch_size, compiled=True, rounds=rounds)
    rates = {str(n): run([("measured", job)], n)[0] for n in (1, ranks)}
    one = statistics.median(rates["1"])
    for n, values in rates.items():
        median = statistics.median(values)
        share = median / one / int(n)
        click.echo(
            f"{n} ranks {median:8.1f} images/s ({min(values):.1f} to {max(values):.1f}), {share:.0%} of {n} x one"
        )
    paper = {f"{name}, {gpus} GPUs": network.on(gpus) for name, network in PAPER.items() for gpus in BANDWIDTH}
    for label, row in paper.items():
        click.echo(
            f"on paper: {label:38} {row['step_ms']:6.2f} ms a step, {row['bytes_sent'] / 1e6:6.1f} MB sent by a GPU, "
            f"{row['efficiency']:.0%} of perfect scaling"
        )
    if output is not None:
        settings = {"ranks": ranks, "batch_size": batch_size, "rounds": rounds, "steps": STEPS}
        where = {"device": device_name(pick_device("auto")), "environment": environment()}
        content = {"settings": settings, **where, "counted": counts, "images_per_second": rates, "on_paper": paper}
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
