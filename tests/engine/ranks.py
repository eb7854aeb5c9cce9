"""What the tests of several ranks run in each: this module is imported by processes of their own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from fastgat.batch import Batch
from fastgat.config import OptimizerConfig
from fastgat.engine.random import step_draws
from fastgat.engine.ranks import ALONE, Ranks, connected
from fastgat.engine.reduction import synchronised_batch_norm
from fastgat.engine.state import TrainState
from fastgat.engine.step import Stepper
from fastgat.methods import GAT, METHODS, DropoutGAT, GradientPenalty, Method
from tests.support import DOUBLE, BatchNormNet, SmallGenerator, compiled_by, minibatch, players

STEPS, BATCH = 5, 4


@dataclass(frozen=True)
class Case:
    """A method and its networks, and how its steps are taken."""

    method: Method
    batch_norm: str | None = None
    generator: Callable[[], nn.Module] | None = None
    """Table 1's, where it is None."""
    optimizer: OptimizerConfig = OptimizerConfig(generator_lr=1e-3)
    compiled: bool = False
    backend: str = "inductor"
    """What compiles it."""

    @property
    def name(self) -> str:
        options = [
            str(getattr(self.method, key, "")) for key in ("schedule", "delta", "generator_steps", "generator_interval")
        ]
        extra = [self.backend] if self.compiled else []
        return "-".join(filter(None, [self.method.name, *options, self.batch_norm or "", *extra]))


SCHEDULES = ("paper", "alternating", "simultaneous")
CASES = [
    *(Case(method()) for method in METHODS.values() if not method.needs_generator),
    *(Case(GAT(cg=0.3, schedule=schedule, delta="fixed")) for schedule in SCHEDULES),
    Case(GAT(cg=0.3, schedule="paper", generator_steps=2, delta="fixed")),
    Case(GAT(cg=0.3, generator_interval=2, delta="fixed"), optimizer=OptimizerConfig(clip_grad=0.1, ema=0.9)),
    Case(DropoutGAT(cg=0.3, dropout=0.4, schedule="paper", delta="fixed")),
    Case(GAT(cg=0.3, delta="through")),
    *(Case(METHODS[name](), "both") for name in ("baseline", "fg-l2", "free", "gradient-penalty")),
    Case(GAT(cg=0.3, delta="through"), "both"),
    *(Case(GAT(cg=0.3, schedule=schedule, delta="fixed"), "both") for schedule in SCHEDULES),
    *(Case(GAT(cg=0.3), statistics) for statistics in ("clean", "perturbed", "frozen")),
    Case(GAT(cg=0.3), "both", SmallGenerator, compiled=True, backend="aot_eager"),
    Case(GradientPenalty(penalty=1.0), "both", compiled=True, backend="aot_eager"),
]
COMPILED = Case(GAT(cg=0.3), "both", partial(SmallGenerator, layers=4), compiled=True)


def train(case: Case, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """What some steps leave behind, from the same start and on the same whole batches for any number of ranks."""
    torch.manual_seed(0)
    method = case.method
    classifier: nn.Module
    classifier, generator = players(dropout=method.classifier_dropout)
    if case.generator is not None:
        generator = case.generator().to(DOUBLE)
    if case.batch_norm:
        classifier = BatchNormNet().to(DOUBLE)
    if case.batch_norm == "frozen":
        classifier.norm.eval()  # type: ignore[union-attr]  # BatchNormNet's
    part = ranks.part(BATCH)
    state = TrainState(
        classifier,
        generator if method.needs_generator else None,
        case.optimizer,
        method.metrics,
        statistics=case.batch_norm if case.batch_norm in ("clean", "perturbed") else "both",
        memory=torch.zeros(BATCH // ranks.count, 3, 8, 8, dtype=DOUBLE) if method.remembers else None,
        ranks=ranks,
    )
    stepper = Stepper(state, method, compiled=case.compiled)
    counts = [method.minibatches(method.kind(n)) for n in range(STEPS)]
    batches = [[minibatch(BATCH) for _ in range(count)] for count in counts]
    with synchronised_batch_norm(ranks, classifier, generator):
        for number, whole in enumerate(batches):
            mine = [Batch(images[part], labels[part]) for images, labels in whole]
            draws = step_draws(method, classifier, mine, 0, number, ranks)
            if number == 0:
                with compiled_by(case.backend):
                    stepper.prepare(mine, draws)
            stepper(mine, draws, method.kind(number))
    sums, _ = state.metrics.read()
    return {**state.gathered_state_dict(), **{f"sum of {name}": torch.tensor(value) for name, value in sums.items()}}


def run(count: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """`work(ranks, folder, *arguments)` in `count` processes; what one of them raises is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everything = (count, port, work, folder, *arguments)
    spawn(_enter, everything, nprocs=count)


def _enter(rank: int, count: int, port: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.chdir(folder)
    with connected(torch.device("cpu")) as ranks:
        work(ranks, folder, *arguments)
