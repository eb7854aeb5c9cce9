"""fastgat profile as a person types it, on small networks; and that it reports nothing of a wrong result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fastgat.cli import main
from fastgat.config import ModelConfig, PrecisionConfig, RunConfig, TrainConfig
from fastgat.errors import FastgatError
from fastgat.methods import GAT, METHODS, create_method
from fastgat.phases import PHASES, listening, phase
from fastgat.profiling import phases
from fastgat.profiling.phases import Clock
from fastgat.profiling.profile import check_parity, fed_count, turns_at_once
from fastgat.profiling.sides import Fastgat, Spec, build, in_float64

SMALL = ("--batch-size", "8", "--image-size", "16", "--rounds", "2", "--no-compile")


def profile(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    narrow = () if "--method" in arguments else ("--generator-width", "4")
    monkeypatch.setattr("sys.argv", ["fastgat", "profile", *SMALL, *narrow, "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_the_figures_of_a_gat_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    assert profile(monkeypatch, "--schedule", "simultaneous", "--json", "--trace", str(trace)) == 0
    result = json.loads(capfd.readouterr().out)
    textbook, fastgat = result["textbook"], result["fastgat"]
    assert result["speedup"] == pytest.approx(textbook["step_ms"] / fastgat["step_ms"])
    for side in ("textbook", "fastgat"):
        assert result["overhead"][side] == pytest.approx(
            result[side]["step_ms"] / result["fast_gradient"][f"{side}_step_ms"]
        )
        assert result[side]["peak_memory_bytes"] > 0
        assert 0 < result[side]["fraction_of_floor"] < 1.2
        assert result[side]["images_per_second"] == pytest.approx(8 / result[side]["step_ms"] * 1e3)
    assert textbook["flops"] > fastgat["flops"]
    assert set(PHASES) <= result["phases_ms"].keys()
    assert all(result["phases_ms"][name] > 0 for name in PHASES)
    loader = fastgat["loader"]
    assert loader["name"] == "resident"
    assert loader["over_step"] == pytest.approx(loader["step_ms"] / loader["bare_step_ms"])
    assert 0 < loader["data_wait"] < 0.5
    named = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert set(PHASES) <= named


@pytest.mark.slow
@pytest.mark.long
def test_the_table_of_another_method(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert profile(monkeypatch, "--method", "fg-l2", "--like-for-like", "--loader", "torch", "--flip") == 0
    out = capfd.readouterr().out
    assert "fg-l2, batch 8, on " in out
    assert "speed-up" in out
    assert "with its loader (torch) " in out
    assert "classifier backward" in out


def made_for_larger_images(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 64), nn.Flatten(), nn.Linear(4, num_classes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trace", "missing/trace.json"), "missing/trace.json: cannot be written: No such file or directory"),
        (
            ("--method", "baseline", "--classifier", f"{__name__}:made_for_larger_images"),
            "the networks do not take images of shape",
        ),
    ],
    ids=["trace", "classifier"],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert profile(monkeypatch, *arguments) != 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"fastgat: error: {message}")


@pytest.mark.parametrize("name", METHODS)
def test_both_sides_of_every_method_compute_the_same(name: str) -> None:
    model = ModelConfig(generator_width=4)
    method = create_method(name, **({"schedule": "paper"} if issubclass(METHODS[name], GAT) else {}))
    ours = Spec("fastgat", TrainConfig(method=method, batch_size=4, model=model, run=RunConfig(compile=False)), 16)
    first = []
    for spec in (ours, replace(ours, implementation="textbook")):
        side = build(spec)
        side.step()
        first.append(side.moments().numpy())
        side.close()
    check_parity(first[0], first[1], ours)
    assert np.linalg.norm(first[1]) > 1e-6


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (1e9, phases.STEPS)])
def test_fewer_steps_are_looked_at_where_they_are_slow(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(phases, "SECONDS", seconds)
    monkeypatch.setattr(phases, "train_step", lambda *_: taken.append(1))
    side = build(Spec("fastgat", TrainConfig(method="baseline", batch_size=4, run=RunConfig(compile=False)), 16))
    assert isinstance(side, Fastgat)
    assert sum(phases.phase_times(side).values()) > 0
    assert len(taken) == 2 + expected, "two to warm up"


@pytest.mark.parametrize(("turn_ms", "expected"), [(0.5, 20), (13.0, 15), (90.0, 2), (3_000.0, 1)])
def test_on_a_gpu_fewer_turns_are_timed_at_once_where_they_are_slow(turn_ms: float, expected: int) -> None:
    assert turns_at_once(turn_ms) == expected


@pytest.mark.parametrize(
    ("step_ms", "block", "expected"), [(1.0, 1, 8), (2_000, 1, 5), (60_000, 1, 1), (1.0, 20, 160), (1_000, 20, 20)]
)
def test_fewer_steps_with_a_loader_are_timed_where_they_are_slow(step_ms: float, block: int, expected: int) -> None:
    assert fed_count(step_ms, block) == expected


def test_no_figure_of_a_wrong_result() -> None:
    spec = Spec("fastgat", TrainConfig())
    low = Spec("fastgat", TrainConfig(precision=PrecisionConfig(amp=True)))
    right = np.ones(100)
    check_parity(right * (1 + 1e-4), right, spec)
    check_parity(right * 1.01, right, low)
    with pytest.raises(FastgatError, match="no speed-up is reported"):
        check_parity(right * 1.01, right, spec)
    with pytest.raises(FastgatError, match="no speed-up is reported"):
        check_parity(right * np.nan, right, low)


@pytest.mark.parametrize("name", ["pgd", "fgsm-rs", "n-fgsm", "free", "trades", "gat"])
def test_a_deep_network_s_rounding_is_told_from_another_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 both sides compute one gradient; a side that differs there, or by more than rounding, is refused. The
    allocator of the textbook's process, which is timed afterwards, stays the system's."""
    monkeypatch.setattr("fastgat.profiling.sides.keep_freed_memory", lambda: pytest.fail("the allocator is fastgat's"))
    spec = Spec("fastgat", TrainConfig(method=name, batch_size=4, model=ModelConfig("wrn-10-1", generator_width=4)), 16)
    spec = replace(spec, config=replace(spec.config, method=GAT(schedule="paper"))) if name == "gat" else spec
    side = build(replace(spec, implementation="textbook"))
    exact = in_float64(side, spec)
    side.close()
    assert np.linalg.norm(exact.ours - exact.theirs) < 1e-6 * np.linalg.norm(exact.theirs)
    rounding = 1e-3 * np.linalg.norm(exact.here) * np.ones_like(exact.here) / len(exact.here) ** 0.5
    rounded = exact._replace(rounded=exact.here + 20 * rounding)
    check_parity(exact.here + 30 * rounding, exact.here, spec, lambda: rounded)
    with pytest.raises(FastgatError, match=r"relative error 0\.05, allowed 0\.04"):
        check_parity(exact.here + 50 * rounding, exact.here, spec, lambda: rounded)
    with pytest.raises(FastgatError, match=r"relative error 0\.01, allowed 1e-06"):
        check_parity(exact.here * 2, exact.here, spec, lambda: rounded._replace(ours=1.01 * exact.theirs))


def test_an_inner_phase_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    now = iter(range(100))
    monkeypatch.setattr("fastgat.profiling.phases.time.perf_counter", lambda: float(next(now)))
    clock = Clock(torch.device("cpu"))
    with listening(clock.span):
        with phase("generator backward"), phase("joints"):
            pass
        with phase("joints"):
            pass
    clock.turn()
    assert sum(clock.totals.values()) == 7
    assert (clock.totals["generator backward"], clock.totals["joints"], clock.totals["other"]) == (2, 2, 3)
    with phase("joints"):
        pass
    assert clock.totals["joints"] == 2, "nobody listens any more"
