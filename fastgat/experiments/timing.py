"""Time: a step and an epoch of every method, the textbook in plain PyTorch beside fastgat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from fastgat.config import TrainConfig
from fastgat.engine.device import device_name, pick_device
from fastgat.experiments import paper
from fastgat.experiments.base import Experiment
from fastgat.experiments.cell import deciding
from fastgat.experiments.jobs import Job, Timing
from fastgat.experiments.markdown import table
from fastgat.experiments.plan import DATASETS, Plan
from fastgat.experiments.store import Store
from fastgat.methods import create_method
from fastgat.profiling import Settings, profile

SIZE = 32
"""Pixels a side of the data sets' images."""


class Time(Experiment):
    name: ClassVar[str] = "time"
    title: ClassVar[str] = "Training time"

    def jobs(self, plan: Plan, store: Store) -> list[Job]:
        return [timing(plan, _config(plan, name)) for name in _methods(plan)]

    def collect(self, plan: Plan, store: Store) -> dict[str, Any] | None:
        rows = [
            {"method": name, **figures}
            for name in _methods(plan)
            for figures in timings(plan, store, _config(plan, name))
        ]
        return {"rows": rows, "images": plan.base.data.train_images or paper.TRAIN_IMAGES} if rows else None

    def section(self, plan: Plan, figures: dict[str, Any]) -> str:
        devices = dict.fromkeys(row["device"] for row in figures["rows"])
        images = figures["images"]
        return "\n".join(
            _on_device(device, [row for row in figures["rows"] if row["device"] == device], images)
            for device in devices
        )


def _on_device(device: str, rows: list[dict[str, Any]], images: int) -> str:
    lines = []
    for row in rows:
        sides, steps = (row["textbook"], row["fastgat"]), images // row["batch_size"]
        lines.append(
            [
                row["method"],
                *(f"{s['step_ms']:.1f} ({s['step_ms_p20']:.1f} to {s['step_ms_p80']:.1f})" for s in sides),
                *(f"{steps * s['step_ms'] / 1e3:.1f}" for s in sides),
                f"{row['speedup']:.2f}",
            ]
        )
    header = ("method", "textbook, ms a step", "fastgat, ms", "textbook, s an epoch", "fastgat, s", "speed-up")
    text = (
        f"{device}, batch {rows[0]['batch_size']}, an epoch of {images:,} images; medians, 20 % to 80 % in brackets."
        "\n\n" + table(header, lines)
    )
    ratios = next((row["overhead"] for row in rows if row["method"] == "gat" and "overhead" in row), None)
    if ratios is None:
        return text
    return text + (
        f"\nGAT over fast gradient L2, in turns within one run: textbook {ratios['textbook']:.2f}, fastgat "
        f"{ratios['fastgat']:.2f}; the paper: {paper.OVERHEAD}.\n"
    )


def _methods(plan: Plan) -> tuple[str, ...]:
    return paper.METHODS if plan.timed == "all" else (plan.timed,)


def timing(plan: Plan, config: TrainConfig) -> Timing:
    """The job that times a step of `config` on this machine."""
    return Timing("time", _key(plan, config), partial(_compute, plan, config))


def timings(plan: Plan, store: Store, config: TrainConfig) -> list[dict[str, Any]]:
    """What has been timed of `config`, on whatever machine."""
    wanted = _settings(config)
    return [found["figures"] for found in store.all_measured("time-") if found["key"]["settings"] == wanted]


def _config(plan: Plan, name: str) -> TrainConfig:
    options = plan.gat_options() if name in ("gat", "dropout-gat") else {}
    return replace(plan.base, method=create_method(name, **options), seed=0)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide how long a step takes, on the same machine."""
    idle = ("seed", "epochs", "data.split_seed", "data.train_images", "run.early_stopping")
    settings = {key: value for key, value in deciding(config).items() if key not in idle}
    return settings | {"compiled": config.run.compile is not False}


def _key(plan: Plan, config: TrainConfig) -> dict[str, Any]:
    return {"settings": _settings(config), "device": device_name(pick_device(config.run.device)), "rounds": plan.rounds}


def _compute(plan: Plan, config: TrainConfig, store: Store, progress: Callable[[float], None]) -> dict[str, Any]:
    result = profile(Settings(config, SIZE, DATASETS[plan.dataset], rounds=plan.rounds))
    kept = ("speedup", "overhead", "fast_gradient", "device", "rounds")
    steps = {
        side: {
            key: value for key, value in result[side].items() if key.startswith(("step_ms", "peak", "flops", "floor"))
        }
        for side in ("textbook", "fastgat")
    }
    return {**{key: result[key] for key in kept if key in result}, **steps, "batch_size": config.batch_size}
