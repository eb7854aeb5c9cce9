"""The comparison of textbook and fastgat: parity first, then timing in turns, then what limits each."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from fastgat.config import TrainConfig
from fastgat.engine.device import device_name, pick_device
from fastgat.errors import FastgatError
from fastgat.files import writing
from fastgat.methods import GAT, FastGradientL2
from fastgat.options import Options, option
from fastgat.profiling.phases import phase_times, trace
from fastgat.profiling.roofline import ceilings, launches, work
from fastgat.profiling.sides import InFloat64, Spec, in_float64
from fastgat.profiling.worker import Fed, Worker, fed_steps, peak_memory, prepare, steps
from fastgat.reporting.environment import environment

SIDES = ("textbook", "fastgat")
FLOAT64_ERROR, FLOAT32_ERROR, TF32_ERROR, LOW_PRECISION_ERROR = 1e-6, 1e-3, 1e-2, 0.05
"""The largest relative error of the first gradient by which the sides may differ. Under `simultaneous` the classifier
meets the generator as it was before its step, in Algorithm 1 as it is after it."""

AT_ONCE_MS = 200.0  # about how long a side is timed at once on a GPU, at most
FED = 8  # how many blocks of steps with a loader are timed at once, once its buffers are drained
FED_SECONDS = 10.0  # about how long that may take: of slow steps fewer are timed
FED_ROUNDS = 3  # how often they are timed


@dataclass(frozen=True)
class Settings(Options):
    """What is profiled: `config` is fastgat's side.

    Without `details` the step is not timed with its loader, nor its phases: there is no `loader` and no `phases_ms`.
    """

    config: TrainConfig
    image_size: int = option(32, "pixels a side", at_least=8)
    num_classes: int = option(10, "classes", at_least=2)
    like_for_like: bool = option(False, "the textbook in fastgat's number format and layout")
    rounds: int = option(9, "how often the sides take turns", at_least=1)
    trace: Path | None = option(None, "write a Chrome trace of the uncompiled step, phase by phase")
    details: bool = True


def profile(settings: Settings, announce: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Figures of one training step on this machine, as `fastgat profile --json` prints them.

    By side: `step_ms`, the median, with its 20 % and 80 %, images a second, seconds of the cold start, peak memory in
    bytes, operations and bytes a step, the machine's best rates (`ceilings`), and the least time that these allow
    (`floor_ms`). Then the speed-up, milliseconds by phase, what GAT costs over fast gradient, settings and machine.

    Raises FastgatError where the sides do not compute the same thing: there is no speed-up of a wrong result.
    """
    device = pick_device(settings.config.run.device)
    settings.config.augmentation.check(settings.image_size, settings.image_size)
    if settings.trace is not None:
        with writing(settings.trace):  # torch only logs what goes wrong when it writes, minutes from now
            settings.trace.open("ab").close()
    ours = Spec("fastgat", settings.config, settings.image_size, settings.num_classes)
    specs = {"fastgat": ours, "textbook": _textbook(ours, settings.like_for_like)}
    if isinstance(ours.method, GAT):
        fast_gradient = replace(ours, config=replace(ours.config, method=FastGradientL2()))
        specs["fastgat fast gradient"] = fast_gradient
        specs["textbook fast gradient"] = _textbook(fast_gradient, settings.like_for_like)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(spec)) for name, spec in specs.items()}
        first = {}
        for name, worker in workers.items():
            announce(f"{name}: networks, compilation and first step")
            first[name] = worker.ask(prepare)
        exact = partial(workers["textbook"].ask, in_float64, ours)
        check_parity(first["fastgat"]["moments"], first["textbook"]["moments"], ours, exact)
        period, blocks = ours.method.period, dict.fromkeys(workers, ours.method.period)
        if device.type == "cuda":
            turns = {name: turns_at_once(period * worker.ask(steps, period)) for name, worker in workers.items()}
            blocks = {name: period * count for name, count in turns.items()}
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(settings.rounds):
            announce(f"round {number + 1} of {settings.rounds}")
            for name, worker in workers.items():
                times[name].append(worker.ask(steps, blocks[name]))
        worker, phases = workers["fastgat"], {}
        if settings.details:
            announce("the step with its loader")
            count = fed_count(statistics.median(times["fastgat"]), blocks["fastgat"])
            fed = [worker.ask(fed_steps, count) for _ in range(FED_ROUNDS)]
        announce("what limits it")
        sides = {name: _side(workers[name], times[name], first[name], settings.config.batch_size) for name in SIDES}
        if settings.details:
            sides["fastgat"]["loader"] = {"name": worker.ask(attrgetter("feeder.name")), **feeding(fed)}
            phases = {"phases_ms": worker.ask(phase_times)}
        if settings.trace is not None:
            worker.ask(trace, settings.trace)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **sides,
        "speedup": medians["textbook"] / medians["fastgat"],
        **phases,
        **(_over_fast_gradient(medians) if isinstance(ours.method, GAT) else {}),
        "rounds": settings.rounds,
        "device": device_name(device),
        "like_for_like": settings.like_for_like,
        "config": settings.config.to_dict(),
        "environment": environment(),
    }


def _textbook(spec: Spec, like_for_like: bool) -> Spec:
    return replace(spec if like_for_like else spec.in_plain_precision(), implementation="textbook")


def check_parity(ours: Any, theirs: Any, spec: Spec, recompute: Callable[[], InFloat64] | None = None) -> None:
    """Raises FastgatError unless the sides' first moments are one gradient to the rounding of `spec`'s precision.

    Deep networks, and steps by a gradient's sign, amplify rounding. So where the gradients differ by more than is
    allowed, both sides must agree in float64, uncompiled, and ours may be at most twice as far from that as the
    textbook's in `spec`'s precision.
    """
    error = _relative_error(ours, theirs)
    allowed = FLOAT32_ERROR
    if pick_device(spec.config.run.device).type == "cuda":  # where PyTorch as it comes convolves in TF32
        allowed = TF32_ERROR
    if spec.config.precision.amp:
        allowed = LOW_PRECISION_ERROR
    if not error <= allowed and recompute is not None:  # NaN is not allowed either
        exact = recompute()
        error, allowed = _relative_error(exact.ours, exact.theirs), FLOAT64_ERROR
        if error <= allowed:
            error, allowed = _relative_error(ours, exact.here), 2 * _relative_error(exact.rounded, exact.here)
    if not error <= allowed:
        raise FastgatError(
            f"the two sides do not compute the same gradient (relative error {error:.3g}, allowed {allowed:.3g}); "
            "no speed-up is reported"
        )


def _relative_error(gradient: Any, exact: Any) -> float:
    return float(np.linalg.norm(gradient - exact)) / max(float(np.linalg.norm(exact)), 1e-30)


def turns_at_once(turn_ms: float) -> int:
    """The number of turns to time at once on a GPU, where reading the clock waits: 20, fewer of slow ones."""
    return min(max(int(AT_ONCE_MS / turn_ms), 1), 20)


def fed_count(step_ms: float, block: int) -> int:
    """The number of steps with a loader to time at once: 1 to FED blocks, as time allows."""
    in_time = int(FED_SECONDS * 1e3 / step_ms)
    return block * min(max(in_time // block, 1), FED)


def floor_ms(limits: dict[str, float], amount: dict[str, int]) -> float:
    """The least a step can take: its arithmetic, or its traffic, at the best measured rate."""
    return 1e3 * max(amount["flops"] / limits["flops_per_second"], amount["bytes"] / limits["bytes_per_second"])


def _side(worker: Worker, times: list[float], first: dict[str, Any], batch_size: int) -> dict[str, Any]:
    median = statistics.median(times)
    peak = worker.ask(peak_memory)  # before anything else needs memory
    limits, amount = worker.ask(ceilings), worker.ask(work)
    floor = floor_ms(limits, amount)
    return {
        "step_ms": median,
        "step_ms_p20": float(np.percentile(times, 20)),
        "step_ms_p80": float(np.percentile(times, 80)),
        "images_per_second": batch_size / median * 1e3,
        "cold_start_seconds": first["cold_start_seconds"],
        "peak_memory_bytes": peak,
        "launches": worker.ask(launches),
        "ceilings": limits,
        **amount,
        "floor_ms": floor,
        "fraction_of_floor": floor / median,
    }


def feeding(rounds: list[Fed]) -> dict[str, float]:
    """The step with its loader: its time, that over the bare step's, and the share of it spent waiting for data."""
    bare, fed, waited = (statistics.median(values) for values in zip(*rounds, strict=True))
    return {"step_ms": fed, "bare_step_ms": bare, "over_step": fed / bare, "data_wait": waited / fed}


def _over_fast_gradient(medians: dict[str, float]) -> dict[str, Any]:
    """GAT's step beside that of fast gradient L2, of each implementation and across."""
    fast = {side: medians[f"{side} fast gradient"] for side in SIDES}
    return {
        "fast_gradient": {f"{side}_step_ms": milliseconds for side, milliseconds in fast.items()},
        "overhead": {side: medians[side] / milliseconds for side, milliseconds in fast.items()},
        "fastgat_over_textbook_fast_gradient": medians["fastgat"] / fast["textbook"],
    }
