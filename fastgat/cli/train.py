"""fastgat train."""

import contextlib
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fastgat.cli.options import SectionedCommand, check_effective, overrides, run_options
from fastgat.cli.recipes import load_recipe
from fastgat.config import TrainConfig, load_toml, merge, of_run
from fastgat.data.registry import users_images
from fastgat.engine.device import keep_freed_memory
from fastgat.engine.run_checkpoints import Checkpoint, after_restart, find_checkpoint, settings_of
from fastgat.errors import ConfigError
from fastgat.models import is_factory
from fastgat.options import convert
from fastgat.processes import is_first, restarted
from fastgat.reporting.progress import ConsoleProgress
from fastgat.reporting.transfer import TransferBar
from fastgat.trainer import Trainer


@click.command(cls=SectionedCommand)
@run_options()
@click.option("--config", "file", metavar="FILE", type=Path, help="settings in TOML; options given here override them")
@click.option(
    "--recipe",
    metavar="NAME",
    help="a published recipe, which --config and options override; `fastgat recipes` lists them",
)
@click.option("--print-config", is_flag=True, help="print the settings as TOML and stop")
@click.option("--dry-run", is_flag=True, help="find data, device and networks, say what would run, and stop")
def train(file: Path | None, recipe: str | None, print_config: bool, dry_run: bool, **given: Any) -> None:
    """Train a classifier, by default by the paper's generative adversarial training.

    Without a data set named, CIFAR-10 is taken where it is on disk or can be downloaded, otherwise a set of handwritten
    digits that needs no download.
    """
    config, checkpoint = _config(file, recipe, given)
    check_effective([config], given)
    if print_config:
        click.echo(config.to_toml(), nl=False)
        return
    name = config.model.classifier
    trusted = f"--classifier {shlex.quote(name)}" if is_factory(name) else ""
    if trusted and given["classifier"] != name:
        where = _naming(name, file, checkpoint)
        raise ConfigError(
            f"{where}: asks to import and call {name!r}, which may run any code; if you trust it, say so: {trusted}"
        )
    del checkpoint  # the trainer reads it again, once nobody else can change it
    keep_freed_memory()
    console = Console(quiet=not is_first())
    display = ConsoleProgress(console, again=trusted)
    with contextlib.closing(TransferBar(console)) as transfer, contextlib.closing(display):
        trainer = Trainer(config, callbacks=[display], progress=transfer)
        if dry_run:
            loop = trainer.prepare()
            display.describe(loop.facts, loop.folder)
            if is_first():
                left = loop.total_steps - loop.position.step
                click.echo(f"would run   {left:,} steps, {loop.steps_per_epoch:,} an epoch")
        else:
            trainer.fit()


def _naming(classifier: str, file: Path | None, checkpoint: Checkpoint | None) -> Path | str:
    """Where the settings name this classifier: in the run that is continued, or else in a file."""
    if checkpoint is not None and settings_of(checkpoint).model.classifier == classifier:
        return checkpoint.path
    return file or "the recipe"


def _config(file: Path | None, recipe: str | None, given: dict[str, Any]) -> tuple[TrainConfig, Checkpoint | None]:
    """Defaults, below the settings of the run that is continued, below the recipe, the file and the command line; and
    the checkpoint of that run."""
    asked = load_recipe(recipe) if recipe is not None else {}
    if file is None:
        return _over_run(merge(asked, overrides(given)))
    in_file = load_toml(file)
    try:
        return _over_run(merge(merge(asked, in_file), overrides(given)))
    except ConfigError as error:
        # Where the file by itself is what is wrong, the message names it; it need not be whole by itself.
        try:
            TrainConfig.from_dict({key: value for key, value in in_file.items() if key != "resume"})
        except ConfigError as alone:
            if str(alone) == str(error):
                raise ConfigError(f"{file}: {error}") from None
        raise


def _over_run(asked: dict[str, Any]) -> tuple[TrainConfig, Checkpoint | None]:
    """These settings over those of the run that they continue, where they do, and its checkpoint."""
    output = asked.get("output")
    if output is not None:
        output = convert("output", output, Path)
    resume = after_restart(asked.get("resume"), output, restarted())
    if resume is None or (resume == "auto" and not output):
        return TrainConfig.from_dict(asked), None
    checkpoint = find_checkpoint(str(resume), output)
    if checkpoint is None:
        return TrainConfig.from_dict(asked), None
    before = {key: value for key, value in of_run(checkpoint.header["config"]).items() if key != "output"}
    TrainConfig.from_dict(before, str(checkpoint.path))
    if users_images(before.get("data", {}).get("dataset", "")) is not None:  # earlier versions ignored their data_dir
        before["data"] = {key: value for key, value in before["data"].items() if key != "data_dir"}
    return TrainConfig.from_dict(merge(before, asked)), checkpoint
