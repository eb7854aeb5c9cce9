"""Attacks: a sweep over epsilons against its parts, and PGD against torchattacks, on the paper's classifier."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import DEVICE
from fastgat.attacks import PGD
from fastgat.attacks.base import frozen, loss_gradient
from fastgat.data import Batch
from fastgat.evaluation.sweep import fast_gradient_sweep
from fastgat.models import Classifier

EPSILONS = [0.1 * number for number in range(12)]
IMAGES = 1024


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = Classifier().to(DEVICE).eval()
    return model, torch.rand(IMAGES, 3, 32, 32, device=DEVICE), torch.randint(10, (IMAGES,), device=DEVICE)


def compare(
    benchmark: BenchmarkFixture, ours: Callable[[], object], theirs: Callable[[], object], images: int, rounds: int = 5
) -> None:
    """Time `ours` and `theirs` alternately on so many images."""
    their_times: list[float] = []

    def setup() -> None:
        began = time.perf_counter()
        theirs()
        synchronize()
        their_times.append(time.perf_counter() - began)

    def call() -> None:
        ours()
        synchronize()

    benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=1)
    assert benchmark.stats is not None
    our_median, their_median = benchmark.stats.stats.median, statistics.median(their_times[1:])
    ratio = our_median / their_median
    benchmark.extra_info |= {"other_ms": their_median * 1e3, "over_other": ratio, "images": images}


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def bench_sweep(benchmark: BenchmarkFixture) -> None:
    """Twelve epsilons; the other side is one input gradient and twelve forward passes, and nothing else."""
    model, images, labels = problem()
    batches = [Batch(*part) for part in zip(images.split(256), labels.split(256), strict=True)]

    def parts() -> None:
        with frozen(model):
            for x, y in batches:
                loss_gradient(model, x, y)
                with torch.no_grad():
                    for _ in EPSILONS:
                        model(x)

    compare(benchmark, lambda: fast_gradient_sweep({"f": model}, batches, EPSILONS), parts, IMAGES)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def bench_pgd(benchmark: BenchmarkFixture, norm: str) -> None:
    """Ten steps from x; parity with torchattacks first."""
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = problem()
    images, labels = images[:256], labels[:256]
    epsilon = {"linf": 0.03, "l2": 0.5}[norm]
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    exactly = {"eps_for_division": 1e-30} if norm == "l2" else {}
    theirs = kind(model, eps=epsilon, alpha=epsilon / 4, steps=10, random_start=False, **exactly)
    ours = PGD(model, epsilon=epsilon, norm=norm, steps=10, step_size=epsilon / 4, random_start=False)
    perturbed, expected = ours(images, labels), theirs(images, labels)
    error = (perturbed - expected).norm() / (expected - images).norm()
    assert error < 0.05, f"the two do not compute the same (relative error {error:.3g}): no figure is reported"
    compare(benchmark, lambda: ours(images, labels), lambda: theirs(images, labels), len(images))
