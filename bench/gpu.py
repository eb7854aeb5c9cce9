"""Everything that wants a GPU, in under ten minutes: tests, steps, kernels, seeds. One table, one JSON file.

    python bench/gpu.py --json build/gpu.json

Each part is a process with a time limit, killed with all that it started where that is over. The figures of the others
are kept, as they come.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table

from fastgat.data import dali
from fastgat.reporting.environment import environment


class Part(NamedTuple):
    """A command for this Python, the seconds that are planned for it, and who writes its JSON file."""

    name: str
    command: tuple[str, ...]
    seconds: int
    prints: bool = False


STEPS = [
    ("fixed", "simultaneous", 128, "dali"),
    ("through", "simultaneous", 128, "resident"),
    ("fixed", "simultaneous", 1024, "dali"),
    ("fixed", "simultaneous", 128, "resident"),
    ("fixed", "simultaneous", 1024, "resident"),
    ("fixed", "alternating", 128, "resident"),
]
"""Delta, schedule, batch size and loader, most valuable first: what does not fit into the time is left out."""
LEAST = 120
"""Seconds that each part has, where they are left."""
COLD, WARM = 60, 35
"""Seconds of a profile, the second where another loader has had the same step compiled."""
PROFILE = ("-m", "fastgat", "profile", "--amp", "--channels-last", "--rounds", "15", "--json")
FAMILIES = {
    "kernels of the step": ("input_gradient", "perturbation", "dual_loss"),
    "other kernels": ("projected_step", "image_batch", "relu_gradient", "convolution_relu"),
}
KERNELS = {name: [f"bench/bench_{family}.py" for family in families] for name, families in FAMILIES.items()}
"""The benchmarks of kernels, in two parts: a part that is stopped has no figures."""
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


def parts(folder: Path, tests: bool) -> Iterator[Part]:
    """All parts, in their order; the JSON file of each is NAME.json in the folder."""
    if tests:
        # Side by side: most of their time goes to compiling.
        workers = ("--numprocesses", str(max(1, min(8, (os.cpu_count() or 1) // 2))), "--dist", "worksteal")
        options = ("--benchmark-disable", "--import-mode=importlib", "-W", "default")
        yield Part("tests", ("-m", "pytest", "tests", "-m", "gpu", "-q", *workers, *options), 115)
    compiled = set()
    for delta, schedule, batch_size, loader in STEPS:
        step = "--delta", delta, "--schedule", schedule, "--batch-size", str(batch_size)
        seconds = WARM if step in compiled else COLD
        name = f"{delta} {schedule} {batch_size} {loader}"
        yield Part(name, (*PROFILE, *step, "--loader", loader), seconds, prints=True)
        if loader != "dali" or not dali.missing():
            compiled.add(step)
    for name, files in KERNELS.items():
        output = f"--benchmark-json={folder / file_name(name)}"
        yield Part(name, ("-m", "pytest", *files, "--benchmark-only", "-q", output, "--import-mode=importlib"), 40)
    output = str(folder / file_name("seeds"))
    yield Part("seeds", ("bench/seeds.py", "--amp", "--rounds", "3", "--steps", "50", "--json", output), 60)


def file_name(part: str) -> str:
    return f"{part.replace(' ', '-')}.json"


@click.command()
@click.option("--json", "output", type=Path, default=Path("build/gpu.json"), show_default=True)
@click.option("--minutes", type=float, default=9.5, show_default=True, help="all that it takes at most")
@click.option("--tests/--no-tests", default=True, help="begin with the GPU tests")
def main(output: Path, minutes: float, tests: bool) -> None:
    """Run the GPU tests, profile the steps, time the kernels and several seeds; exits with 1 if a part fails."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU here")
    began = time.monotonic()
    folder = output.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment(), "steps": {}, "failed": {}, "left_out": []}
    for part in parts(folder, tests):
        left = began + 60 * minutes - time.monotonic()
        if part.name.endswith("dali") and (reason := dali.missing()):
            result["left_out"].append(f"{part.name} ({reason})")
        elif left < part.seconds:
            result["left_out"].append(f"{part.name} (no time)")
        else:
            click.echo(part.name)
            file = folder / file_name(part.name)
            file.unlink(missing_ok=True)
            if (problem := run(part, file, min(left, max(2 * part.seconds, LEAST)))) is not None:
                result["failed"][part.name] = problem
            if file.exists():
                keep(result, part.name, file.read_text())
        output.write_text(json.dumps(result, indent=2) + "\n")
    show(Console(), result)
    click.echo(f"{(time.monotonic() - began) / 60:.1f} minutes; figures in {output}")
    sys.exit(bool(result["failed"]))


def run(part: Part, file: Path, limit: float) -> str | None:
    """Run a part, killed with all that it started after `limit` seconds; what went wrong, if anything did."""
    with file.open("w") if part.prints else nullcontext() as printed:
        process = subprocess.Popen([sys.executable, *part.command], stdout=printed, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            workers = descendants(process.pid)  # in sessions of their own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    return None if code == 0 else f"exit code {code}"


def descendants(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have, in whatever session they are."""
    children: dict[int, list[int]] = defaultdict(list)
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children[int(status.read_text().rpartition(")")[2].split()[1])].append(int(status.parent.name))
    found = [pid]
    for one in found:
        found += children[one]
    return found[1:]


def keep(result: dict[str, Any], name: str, text: str) -> None:
    """Put what a part wrote into the result; it may have been stopped in the middle."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return
    if name in KERNELS:
        result.setdefault("kernels", []).extend(
            {"name": one["name"], "median_us": one["stats"]["median"] * 1e6, **one["extra_info"]}
            for one in found["benchmarks"]
        )
    elif name == "seeds":
        result["seeds"] = found["images_per_second"]
    else:
        result["steps"][name] = found


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, step in result["steps"].items():
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
    for name, problem in result["failed"].items():
        console.print(f"failed: {name}, {problem}", highlight=False)
    for name in result["left_out"]:
        console.print(f"left out: {name}", highlight=False)


if __name__ == "__main__":
    main()
