"""fastgat export."""

from pathlib import Path
from typing import Any

import click

from fastgat.cli.options import check_alone
from fastgat.engine.load import CHECKPOINTS
from fastgat.export import SUFFIXES
from fastgat.export import export as write


def _sides(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """Height and width from N or HxW."""
    sides = text.lower().split("x") if text is not None else []
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):  # dimensions, digits
        raise click.BadParameter(f"{text!r} is neither N nor HxW")
    if not sides:
        return None
    height, width = sides if len(sides) == 2 else sides * 2
    return int(height), int(width)


@click.command()
@click.argument("run", type=Path)
@click.option("--format", "format_", type=click.Choice(list(SUFFIXES)), default="safetensors", show_default=True)
@click.option("--checkpoint", type=click.Choice(list(CHECKPOINTS)), default="best", show_default=True)
@click.option(
    "--image-size",
    callback=_sides,
    metavar="N",
    help="pixels a side, or height and width as HxW, for programs  [default: as in training]",
)
@click.option("--classifier", metavar="NAME", help="package.module:factory of the run's classifier, to be imported")
@click.option("--output", type=Path, metavar="FILE", help="the file  [default: classifier.* in the run folder]")
def export(
    run: Path, format_: str, checkpoint: str, image_size: Any, classifier: str | None, output: Path | None
) -> None:
    """Write the classifier of RUN, a run folder or a checkpoint, for other programs.

    safetensors holds its weights; torch-export and onnx hold a program that takes images (B, C, H, W) in [0, 1],
    float32, and returns logits. Each is read back and must give the classifier's own logits before it is written.
    """
    check_alone("an export runs")
    click.echo(write(run, format_, output, checkpoint=checkpoint, image_size=image_size, classifier=classifier))
