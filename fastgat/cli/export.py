"""fastgat export."""

from __future__ import annotations

from pathlib import Path

import click

from fastgat.engine.load import CHECKPOINTS
from fastgat.export import SUFFIXES
from fastgat.export import export as write


@click.command()
@click.argument("run", type=Path)
@click.option("--format", "format_", type=click.Choice(list(SUFFIXES)), default="safetensors", show_default=True)
@click.option("--checkpoint", type=click.Choice(list(CHECKPOINTS)), default="best", show_default=True)
@click.option(
    "--image-size", type=click.IntRange(1), metavar="N", help="pixels a side, for programs  [default: the run's]"
)
@click.option("--classifier", metavar="NAME", help="package.module:factory of the run's classifier, to be imported")
@click.option("--output", type=Path, metavar="FILE", help="the file  [default: classifier.* in the run folder]")
def export(
    run: Path, format_: str, checkpoint: str, image_size: int, classifier: str | None, output: Path | None
) -> None:
    """Write the classifier of RUN, a run folder or a checkpoint, for other programs.

    safetensors holds its weights; torch-export and onnx hold a program that takes images (B, C, H, W) in [0, 1],
    float32, and returns logits. Each is read back and must give the classifier's own logits before it is written.
    """
    click.echo(write(run, format_, output, checkpoint=checkpoint, image_size=image_size, classifier=classifier))
