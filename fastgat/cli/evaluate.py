"""fastgat evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from fastgat.data.bad_samples import POLICIES
from fastgat.evaluation.run import evaluate_run, write_evaluation


@click.command()
@click.argument("run", type=Path)
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="which of the run's checkpoints",
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="which images",
)
@click.option("--data-dir", type=Path, metavar="PATH", help="folder of the data set  [default: as in training]")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="images at a time")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto")
@click.option(
    "--on-bad-sample",
    type=click.Choice(POLICIES),
    default="error",
    show_default=True,
    help="what becomes of an image that cannot be read",
)
def evaluate(
    run: Path, checkpoint: str, split: str, data_dir: Path | None, batch_size: int, device: str, on_bad_sample: str
) -> None:
    """Accuracy of the classifier in RUN, a run folder or a checkpoint, on clean images, in float32.

    The figures also go to evaluation.json in the run folder.
    """
    result = evaluate_run(
        run,
        checkpoint,
        split,
        data_dir=data_dir,
        batch_size=batch_size,
        device=device,
        on_bad_sample=on_bad_sample,
    )
    click.echo(
        f"{result['checkpoint']}: {split} accuracy {result['accuracy']:.2%}, cross entropy {result['loss']:.4f}, "
        f"{result['samples']:,} images of {result['dataset']}"
    )
    write_evaluation(run, result)
