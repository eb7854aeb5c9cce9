"""Time: a step and an epoch of every method, the textbook in plain PyTorch beside fastgat."""

import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch

from fastgat.config import OptimizerConfig, TrainConfig
from fastgat.engine.device import device_name, pick_device
from fastgat.engine.step import missing_compiler
from fastgat.experiments import paper
from fastgat.experiments.archive import Measured
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import DATASETS, deciding
from fastgat.experiments.front import Cost
from fastgat.experiments.jobs import Advance, Measurement, checked_figures
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.methods import FastGradientL2, create_method
from fastgat.profiling import Settings, profile
from fastgat.profiling.profile import SIDES, turns_at_once
from fastgat.profiling.sides import Spec
from fastgat.profiling.worker import Worker, prepare, steps
from fastgat.reporting.environment import version

SIZE = 32  # pixels a side of the data sets' images


class _Side(TypedDict):
    step_ms: float
    step_ms_p20: float
    step_ms_p80: float


class _Times(TypedDict):
    """What is read of a timing."""

    textbook: _Side
    fastgat: _Side
    speedup: float
    rounds: int
    batch_size: int


class _Costs(TypedDict):
    """Of each configuration that was timed."""

    costs: list[Cost]
    rounds: int
    batch_size: int


class Time(Experiment):
    name = "time"
    title = "Training time"
    images = False
    extent = ("rounds", "timed")

    def measurements(self, plan: Plan, store: RunStore) -> list[Measurement]:
        return [timing(plan, config) for config in _configs(plan).values()]

    def measured(self, plan: Plan, store: RunStore) -> dict[str, Measured]:
        return kept(store, "time", _configs(plan).values())

    def collect(self, plan: Plan, store: RunStore) -> dict[str, Any] | None:
        rows = [
            {"method": name, **figures}
            for name, config in _configs(plan).items()
            for figures in timings(store, config).values()
        ]
        numbers = "mixed precision" if plan.base.precision.amp else "float32"
        layout = "channels last" if plan.base.precision.channels_last else "channels first"
        return {"rows": rows, "images": plan.train_images, "fastgat_in": f"{numbers}, {layout}"} if rows else None


def timing(plan: Plan, config: TrainConfig) -> Measurement:
    """The job that times a step of `config` on this machine."""
    config = _bare(config)
    key = {"settings": _settings(config), **_here(config), "rounds": plan.rounds}
    return Measurement("time", key, partial(_compute, plan, config), _Times, config.run.device, alone=True)


def costing(plan: Plan, configs: Sequence[TrainConfig]) -> Measurement:
    """The job that times a step of each of `configs` against one of fast gradient L2, in turns within one run."""
    configs = [_bare(config) for config in configs]
    key = {"settings": [_settings(config) for config in configs], **_here(configs[0]), "rounds": plan.rounds}
    return Measurement("cost", key, partial(_compare, plan, configs), _Costs, configs[0].run.device, alone=True)


def timings(store: RunStore, config: TrainConfig) -> dict[str, dict[str, Any]]:
    """What this version of fastgat was timed to take for `config`, by machine: of several timings on one, that of the
    most rounds."""
    devices = _by_machine(kept(store, "time", [config]))
    figures = {device: checked_figures(store, content, _Times) for device, content in devices.items()}
    return {device: {**times, "device": device} for device, times in figures.items() if times is not None}


def costs(store: RunStore, config: TrainConfig, jobs: Iterable[Measurement]) -> dict[str, Cost]:
    """What this version of fastgat was timed to take for `config` over fast gradient L2, likewise.

    A timing of one of these `jobs` goes before one in which other configurations took turns.
    """
    found, wanted, together = {}, _settings(_bare(config)), [job.key["settings"] for job in jobs]
    for device, content in _by_machine(kept(store, "cost", [config]), together).items():
        figures = checked_figures(store, content, _Costs)
        assert figures is not None
        found[device] = figures["costs"][_timed(content).index(wanted)]
    return found


def kept(store: RunStore, what: str, configs: Iterable[TrainConfig]) -> dict[str, Measured]:
    """The timings of any of `configs` by this version of fastgat, on any machine, by name.

    `what` is "time", or "cost" for those over fast gradient L2.
    """
    wanted, ours = [_settings(_bare(config)) for config in configs], version("fastgat-trainer")
    return {
        name: content
        for name, content in store.all_measured(f"{what}-").items()
        if content["key"].get("fastgat") == ours and content["figures"] is not None
        if any(settings in wanted for settings in _timed(content))
    }


def _timed(content: Measured) -> list[Any]:
    """The settings of what was timed: of several in one run, or of one."""
    settings = content["key"].get("settings")
    return settings if isinstance(settings, list) else [settings]


def _by_machine(contents: dict[str, Measured], together: Sequence[Any] = ()) -> dict[str, Measured]:
    """Of several timings on one machine, that of the most rounds; one of what is timed `together` before others."""

    def rank(content: Measured) -> tuple[bool, int]:
        return content["key"].get("settings") in together, content["key"].get("rounds", 0)

    best_last = sorted(contents.values(), key=rank)
    return {f"{content['key']['device']}, torch {content['key']['torch']}": content for content in best_last}


def _here(config: TrainConfig) -> dict[str, str | None]:
    """The machine and versions of a timing that is made now."""
    device = device_name(pick_device(config.run.device))
    return {"device": device, "torch": torch.__version__, "fastgat": version("fastgat-trainer")}


def _configs(plan: Plan) -> dict[str, TrainConfig]:
    """What is timed, by method."""
    names = paper.METHODS if plan.timed == "all" else (plan.timed,)
    options = {name: plan.gat_options() if name in ("gat", "dropout-gat") else {} for name in names}
    return {name: replace(plan.base, method=create_method(name, **options[name])) for name in names}


def _bare(config: TrainConfig) -> TrainConfig:
    """What is timed of a run: the step as the textbook has it too, without clipping or averages; compiled only where it
    can be."""
    compiled = config.run.compile is not False and missing_compiler(pick_device(config.run.device)) is None
    run = replace(config.run, compile=compiled, early_stopping=None)
    return replace(config, seed=0, epochs=1, optimizer=OptimizerConfig(), run=run)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide how long a step takes, on the same machine."""
    idle = ("data.dataset", "data.split_seed", "data.train_images", "epochs", "seed")
    sizes = ("method.cg", "method.epsilon", "method.alpha", "method.dropout")
    settings = {key: value for key, value in deciding(config).items() if key not in (*idle, *sizes)}
    classes = DATASETS[config.data.dataset].classes
    return settings | {"compiled": config.run.compile, "cuda_graph": config.run.cuda_graph, "classes": classes}


def _compute(plan: Plan, config: TrainConfig, store: RunStore, advance: Advance) -> dict[str, Any]:
    settings = Settings(config, SIZE, DATASETS[plan.dataset].classes, rounds=plan.rounds, details=False)
    result = profile(settings, lambda line: advance(0.5))
    ratios = ("speedup", "overhead", "fast_gradient", "rounds")
    figures = ("step_ms", "peak", "flops", "floor")
    sides = {side: {k: v for k, v in result[side].items() if k.startswith(figures)} for side in SIDES}
    return {**{key: result[key] for key in ratios if key in result}, **sides, "batch_size": config.batch_size}


def _compare(plan: Plan, configs: Sequence[TrainConfig], store: RunStore, advance: Advance) -> dict[str, Any]:
    """Every side takes as many steps in a round as the longest of them has in a turn."""
    reference = replace(configs[0], method=FastGradientL2())
    classes = DATASETS[plan.dataset].classes
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(Spec("fastgat", c, SIZE, classes))) for c in (reference, *configs)]
        for number, worker in enumerate(workers, 1):
            worker.ask(prepare)
            advance(number / len(workers) / 2)
        count = math.lcm(*(config.chosen_method.period for config in configs))
        if pick_device(reference.run.device).type == "cuda":
            count *= turns_at_once(count * workers[-1].ask(steps, count))
        rounds = []
        for number in range(plan.rounds):
            rounds.append([worker.ask(steps, count) for worker in workers])
            advance(0.5 + (number + 1) / plan.rounds / 2)
    _, *sides = zip(*rounds, strict=True)
    ratios = [[ms / row[0] for ms, row in zip(side, rounds, strict=True)] for side in sides]
    figures = [
        {
            "step_ms": statistics.median(side),
            "ratio": statistics.median(ratio),
            "ratio_p20": float(np.percentile(ratio, 20)),
            "ratio_p80": float(np.percentile(ratio, 80)),
        }
        for side, ratio in zip(sides, ratios, strict=True)
    ]
    return {"costs": figures, "rounds": plan.rounds, "batch_size": reference.batch_size}
