"""fastgat profile."""

import json
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Column, Table

from fastgat.cli.options import SectionedCommand, check_effective, given_to, overrides, run_options, settings_options
from fastgat.config import TrainConfig
from fastgat.profiling import Settings
from fastgat.profiling import profile as measure
from fastgat.profiling.profile import SIDES

SHOWN = {
    *("batch_size", "seed", "classifier", "generator_width", "batch_norm", "device"),
    *("compile", "cuda_graph", "convolutions", "winograd", "amp", "amp_dtype", "tf32", "channels_last"),
    *("loader", "workers", "flip", "padded_crop", "random_resized_crop", "cutout"),
}
"""The settings of a run that decide what a step costs."""
KERNELS = 15  # how many kernels of a step are named


@click.command(cls=SectionedCommand)
@run_options(SHOWN)
@settings_options(Settings)
@click.option("--json", "as_json", is_flag=True, help="as one JSON object")
def profile(as_json: bool, **given: Any) -> None:
    """Time a training step on random images: the textbook in plain PyTorch against fastgat, in turns.

    The textbook is Algorithm 1 as the paper writes it, eager, in float32 and channels first unless --like-for-like.
    Each side has a process of its own, with PyTorch's and the system's own settings for the textbook. Both sides must
    compute the same gradient before anything is timed.
    """
    measured = given_to(Settings, given)
    run = {name: value for name, value in given.items() if name not in measured}
    config = TrainConfig.from_dict(overrides(run))
    check_effective([config], given)
    settings = Settings(config, **measured)
    with Console(stderr=True).status("starting") as status:
        result = measure(settings, lambda line: status.update(line))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _show(Console(highlight=False), result)


def _show(console: Console, result: dict[str, Any]) -> None:
    config = result["config"]
    console.print(f"{config['method']['name']}, batch {config['batch_size']}, on {result['device']}")
    columns = (Column(side, justify="right") for side in SIDES)
    table = Table("", *columns, box=None, pad_edge=False)
    shown = [_column(result[side]) for side in SIDES]
    for name in shown[0]:
        table.add_row(name, *(column[name] for column in shown))
    console.print(table)
    console.print(f"speed-up {result['speedup']:.2f}")
    if "overhead" in result:
        console.print(
            f"GAT over fast gradient: textbook {result['overhead']['textbook']:.2f} (the paper: 3 to 4), "
            f"fastgat {result['overhead']['fastgat']:.2f}; "
            f"fastgat's GAT over the textbook's fast gradient {result['fastgat_over_textbook_fast_gradient']:.2f}"
        )
    loader = result["fastgat"]["loader"]
    console.print(
        f"with its loader ({loader['name']}) {loader['step_ms']:.2f} ms, {loader['over_step']:.3f} times the step on a "
        f"preloaded batch; {loader['data_wait']:.1%} of it waiting for data"
    )
    phases = result["phases_ms"]
    total = sum(phases.values())
    console.print("\nwhere the time of a full step of fastgat's goes, uncompiled:")
    table = _list("left", "right", "right")
    for name, milliseconds in phases.items():
        table.add_row(name, f"{milliseconds:.2f} ms", f"{milliseconds / total:.0%}")
    console.print(table)
    if launches := result["fastgat"]["launches"]:
        _show_kernels(console, launches["by_kernel"])


def _show_kernels(console: Console, kernels: list[dict[str, Any]]) -> None:
    console.print("\nand compiled, kernel by kernel:")
    total = sum(kernel["us"] for kernel in kernels)
    shown = [(k["name"], k["calls"], k["us"]) for k in kernels[:KERNELS]]
    if rest := kernels[KERNELS:]:
        shown.append((f"{len(rest)} others", sum(k["calls"] for k in rest), sum(k["us"] for k in rest)))
    table = _list("right", "right", "right", "left")
    for name, calls, us in shown:
        table.add_row(f"{us:.1f} us", f"{us / total:.0%}", f"{calls:.0f} x", name)
    console.print(table)


def _list(*columns: Literal["left", "right"]) -> Table:
    """A table without a head, its columns aligned so; long names are cut, and numbers are not."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in columns:
        width = 9 if justify == "right" else None
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis", min_width=width)
    return table


def _column(side: dict[str, Any]) -> dict[str, str]:
    """What is shown of a side, by the name of its row."""
    shown = {
        "ms a step (median)": f"{side['step_ms']:.2f}",
        "  20 % to 80 %": f"{side['step_ms_p20']:.2f} to {side['step_ms_p80']:.2f}",
        "images/s": f"{side['images_per_second']:,.0f}",
        "cold start": f"{side['cold_start_seconds']:.1f} s",
        "peak memory": f"{(side['peak_memory_bytes'] or 0) / 2**20:,.0f} MiB",
        "GFLOP a step": f"{side['flops'] / 1e9:.1f}",
        "matrix product, TFLOP/s": f"{side['ceilings']['flops_per_second'] / 1e12:.2f}",
        "copy, GB/s": f"{side['ceilings']['bytes_per_second'] / 1e9:.0f}",
        "floor": f"{side['floor_ms']:.2f} ms",
        "fraction of the floor": f"{side['fraction_of_floor']:.0%}",
    }
    if side["launches"]:
        shown |= {name: f"{side['launches'][name]:.0f}" for name in ("kernels", "launches")}
    return shown
