"""Everything that wants a GPU, in under ten minutes: tests, steps, kernels, seeds. One table, one JSON file.

python bench/gpu.py --json build/gpu.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from fastgat.config import DataConfig, PrecisionConfig, TrainConfig
from fastgat.data import dali
from fastgat.methods import GAT
from fastgat.profiling import Settings, profile
from fastgat.reporting.environment import environment

STEPS = [
    ("simultaneous", 128, "dali"),
    ("simultaneous", 1024, "dali"),
    ("simultaneous", 128, "resident"),
    ("simultaneous", 1024, "resident"),
    ("alternating", 128, "resident"),
    ("paper", 128, "resident"),
]
"""Schedule, batch size and loader, most valuable first: what does not fit into the time is left out, and named."""

FAMILIES = ("input_gradient", "perturbation", "dual_loss", "projected_step", "image_batch")
KERNELS = [f"bench/bench_{family}.py" for family in FAMILIES]


COLUMNS = (
    "step",
    "textbook ms",
    "fastgat ms",
    "speed-up",
    "over textbook FG",
    "of the floor",
    "with loader",
    "kernels",
)


@click.command()
@click.option("--json", "output", type=Path, default=Path("build/gpu.json"), show_default=True)
@click.option("--minutes", type=float, default=9.0, show_default=True, help="start nothing new after this time")
@click.option("--tests/--no-tests", default=True, help="begin with the GPU tests")
def main(output: Path, minutes: float, tests: bool) -> None:
    """Run the GPU tests, profile the steps, time the kernels and several seeds; exits with 1 if a test fails."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU here")
    began, failed = time.monotonic(), False
    output.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment(), "steps": {}, "left_out": []}

    def save() -> None:
        output.write_text(json.dumps(result, indent=2) + "\n")

    def late(what: str) -> bool:
        if time.monotonic() - began > 60 * minutes:
            result["left_out"].append(what)
            return True
        return False

    if tests:
        # Side by side: most of their time goes to compiling.
        workers = ("--numprocesses", str(max(1, min(8, (os.cpu_count() or 1) // 2))), "--dist", "worksteal")
        options = ("--benchmark-disable", "--import-mode=importlib", "-W", "default")
        failed = pytest_run("tests", "-m", "gpu", "-q", *workers, *options) != 0
        result["tests"] = "failed" if failed else "passed"
        save()
    for schedule, batch_size, loader in STEPS:
        name = f"{schedule} {batch_size} {loader}"
        if loader == "dali" and (reason := dali.missing()):
            result["left_out"].append(f"{name} ({reason})")
            continue
        if late(f"{name} (no time)"):
            continue
        click.echo(f"profiling {name}")
        try:
            result["steps"][name] = profile(settings(schedule, batch_size, loader))
        except Exception as error:  # noqa: BLE001  # the other steps, and the kernels, are still worth having
            failed, result["steps"][name] = True, {"error": str(error)}
        save()
    if not late("kernels (no time)"):
        kernels = output.with_suffix(".kernels.json")
        arguments = ("--benchmark-only", "-q", f"--benchmark-json={kernels}", "--import-mode=importlib")
        failed |= pytest_run(*KERNELS, *arguments) != 0
        if kernels.exists():
            result["kernels"] = [
                {"name": one["name"], "median_us": one["stats"]["median"] * 1e6, **one["extra_info"]}
                for one in json.loads(kernels.read_text())["benchmarks"]
            ]
    if not late("seeds (no time)"):
        seeds = output.with_suffix(".seeds.json")
        failed |= run("bench/seeds.py", "--amp", "--rounds", "3", "--steps", "50", "--json", str(seeds)) != 0
        if seeds.exists():
            result["seeds"] = json.loads(seeds.read_text())["images_per_second"]
    save()
    show(Console(), result)
    click.echo(f"{(time.monotonic() - began) / 60:.1f} minutes; figures in {output}")
    sys.exit(failed)


def settings(schedule: str, batch_size: int, loader: str) -> Settings:
    config = TrainConfig(
        method=GAT(schedule=schedule),
        batch_size=batch_size,
        data=DataConfig(loader=loader),
        precision=PrecisionConfig(amp=True, channels_last=True),
    )
    return Settings(config, rounds=15)


def pytest_run(*arguments: str) -> int:
    return run("-m", "pytest", *arguments)


def run(*arguments: str) -> int:
    """python's exit code; 124 if it takes more than four minutes."""
    try:
        return subprocess.run([sys.executable, *arguments], check=False, timeout=240).returncode
    except subprocess.TimeoutExpired:
        return 124


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, step in result["steps"].items():
        if "error" in step:
            table.add_row(name, step["error"])
            continue
        ours, theirs = step["fastgat"], step["textbook"]
        table.add_row(
            name,
            f"{theirs['step_ms']:.3f}",
            f"{ours['step_ms']:.3f}",
            f"{step['speedup']:.2f}",
            f"{step['fastgat_over_textbook_fast_gradient']:.2f}",
            f"{ours['fraction_of_floor']:.0%}",
            f"{ours['loader']['over_step']:.3f}",
            f"{ours['launches']['kernels']:.0f}" if ours["launches"] else "-",
        )
    console.print(table)
    for one in result.get("kernels", []):
        console.print(f"{one['name']:70} {one['median_us']:10.1f} us {one['GB/s']:8.0f} GB/s", highlight=False)
    for way, rates in result.get("seeds", {}).items():
        console.print(f"four seeds, {way}: {statistics.median(rates):,.0f} images/s", highlight=False)
    for name in result["left_out"]:
        console.print(f"left out: {name}", highlight=False)


if __name__ == "__main__":
    main()
