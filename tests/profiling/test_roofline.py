"""The arithmetic of each schedule, counted: what sharing backward passes saves, whatever the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgat.config import RunConfig, TrainConfig
from fastgat.methods import (
    GAT,
    TRADES,
    FastGradientL2,
    FGSMRandomStart,
    Free,
    GradientPenalty,
    Method,
    NoisyFGSM,
    PGDTraining,
)
from fastgat.profiling.roofline import work, work_of_kind
from fastgat.profiling.sides import Spec, build
from tests.support import BatchNormNet

BATCH = 2


def multiply_adds(implementation: str, method: Method) -> float:
    """Millions a sample, for the paper's networks on 32 x 32 images."""
    run = RunConfig(compile=implementation == "compiled", device="cpu")
    implementation = implementation.replace("compiled", "fastgat")
    side = build(Spec(implementation, TrainConfig(method=method, batch_size=BATCH, run=run)))
    return work(side)["flops"] / 2 / BATCH / 1e6


@pytest.mark.parametrize(
    ("implementation", "method", "expected"),
    [
        ("textbook", GAT(schedule="paper", delta="fixed"), 778),
        ("fastgat", GAT(schedule="paper", delta="fixed"), 724),
        ("fastgat", GAT(schedule="alternating", delta="fixed"), 667),
        ("fastgat", GAT(schedule="simultaneous", delta="fixed"), 500),
        ("textbook", FastGradientL2(), 226),
        ("fastgat", FastGradientL2(), 170),
        ("textbook", GAT(delta="through"), 1011),
        ("fastgat", GAT(delta="through"), 814),
        ("compiled", GAT(delta="through"), 694),
        ("compiled", GradientPenalty(), 170),
    ],
    ids=lambda value: getattr(value, "schedule", None) or str(getattr(value, "name", value)),
)
def test_multiply_adds_of_a_step(
    implementation: str, method: Method, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "compiled" is fastgat's step without what its graph leaves out."""
    monkeypatch.setattr("fastgat.profiling.sides.Stepper.prepare", lambda *_: None)
    assert multiply_adds(implementation, method) == pytest.approx(expected, abs=0.6)


def test_a_resting_generator_costs_a_forward_pass() -> None:
    """280 M on a step that skips the generator's update."""
    run = RunConfig(compile=False, device="cpu")
    method = GAT(schedule="simultaneous", generator_interval=2, delta="fixed")
    side = build(Spec("fastgat", TrainConfig(method=method, batch_size=BATCH, run=run)))
    resting = work_of_kind(side, "resting")["flops"] / 2 / BATCH / 1e6
    assert resting == pytest.approx(280, rel=0.01)
    every_other = work(side)["flops"] / 2 / BATCH / 1e6
    assert every_other == pytest.approx((500 + 280) / 2, rel=0.01)


@pytest.mark.slow
def test_under_batch_norm_the_second_pull_back_counts_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, four backward passes take F's gradients by its weights and by its images, of which each uses one."""
    method, counts = GAT(schedule="simultaneous", delta="fixed"), {}
    monkeypatch.setattr("fastgat.profiling.sides.create_classifier", lambda *_: BatchNormNet())
    for compiled in (False, True):
        monkeypatch.setattr("fastgat.profiling.sides.Stepper.prepare", lambda *_: None)
        config = TrainConfig(method=method, batch_size=BATCH, run=RunConfig(compile=compiled, device="cpu"))
        counts[compiled] = work(build(Spec("fastgat", config)))
    saved = {name: counts[False][name] - counts[True][name] for name in ("flops", "bytes")}
    convolution, head = 2 * BATCH * 32 * 32 * 8 * 3 * 9, 2 * BATCH * 8 * 10
    assert saved["flops"] == 4 * convolution + 2 * head  # the head's other gradients lead to the images
    weights, images, operands = 8 * 3 * 9, BATCH * 3 * 32 * 32, BATCH * 8 + BATCH * 10 + 8 * 10
    assert saved["bytes"] == 4 * (2 * weights + 2 * images + 2 * operands)


@pytest.mark.parametrize("side", ["textbook", "fastgat", pytest.param("compiled", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("method", "convolutions", "heads"),
    [
        (NoisyFGSM(), 2 + 2, 2 + 3),
        (FGSMRandomStart(), 2 + 2, 2 + 3),
        (PGDTraining(attack_steps=3), 3 * 2 + 2, 3 * 2 + 3),
        (Free(replays=3), 3 * 3, 3 * 3),
        (TRADES(attack_steps=3), 1 + 3 * 2 + 2 * 2, 1 + 3 * 2 + 2 * 3),
        (TRADES(attack_steps=3, attack_mode="eval"), 1 + 3 * 2 + 2 * 2, 1 + 3 * 2 + 2 * 3),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_passes_of_an_attack_under_batch_norm(
    side: str, method: Method, convolutions: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient step is a pass forward and one back to the images; the pass that is learnt from goes back to the
    weights alone, but for Free's, which serves both. The head's way back to its input is a product of its own."""
    monkeypatch.setattr("fastgat.profiling.sides.create_classifier", lambda *_: BatchNormNet())
    monkeypatch.setattr("fastgat.profiling.sides.Stepper.prepare", lambda *_: None)
    config = TrainConfig(method=method, batch_size=BATCH, run=RunConfig(compile=side == "compiled", device="cpu"))
    counted = work(build(Spec(side.replace("compiled", "fastgat"), config)))["flops"]
    assert counted == convolutions * 2 * BATCH * 32 * 32 * 8 * 3 * 9 + heads * 2 * BATCH * 8 * 10


def test_bytes_are_those_of_the_operands() -> None:
    config = TrainConfig(method=FastGradientL2(), batch_size=BATCH, run=RunConfig(compile=False, device="cpu"))
    spec = Spec("fastgat", config)
    double = replace(spec, config=replace(config, batch_size=2 * BATCH))
    weights = 240_058 * 4 * 8  # read or written by each of two forward passes and their backward passes, about
    once, twice = (work(build(each))["bytes"] for each in (spec, double))
    assert twice == pytest.approx(2 * once, abs=weights)
