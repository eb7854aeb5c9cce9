"""fastgat evaluate."""

import contextlib
import os
import zlib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fastgat.cli.options import check_alone, given_to, settings_options
from fastgat.engine.device import keep_freed_memory
from fastgat.evaluation import Cache, EvaluationSettings, RunSettings, evaluate_run, write_report
from fastgat.evaluation.results import Robustness
from fastgat.evaluation.run import DEFAULT_SAMPLES
from fastgat.options import convert
from fastgat.reporting.transfer import TransferBar

CARD_FAILED = 3
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
FULL = {"samples": None, "generator_images": 10_000, "generator_epochs": 20}
"""What --full asks for in place of the defaults."""

CLEAN_OPTIONS = {
    *("clean", "run", "classifiers", "output", "weights", "dataset", "mean", "std", "image_size"),
    *("checkpoint", "split", "data_dir", "device", "on_bad_sample", "changed_data", "batch_size"),
}
"""Parameters that mean something with --clean."""
AUTOATTACK_OPTIONS = CLEAN_OPTIONS - {"clean"} | {
    *("only_autoattack", "samples", "norm", "epsilon", "seed", "quick", "full", "fresh", "no_generator")
}
"""Those that mean something with --only-autoattack."""

GENERATOR = ("generator_images", "generator_epochs")  # settings of a fresh generator


@click.command()
@click.argument("run", type=Path, required=False)
@click.option("--clean", is_flag=True, help="the accuracy on clean images, and nothing else")
@click.option("--quick", is_flag=True, help="attack 100 images: minutes on two cores (the default)")
@click.option("--full", is_flag=True, help="attack every image of the split")
@settings_options(RunSettings, EvaluationSettings)
@click.option(
    "--source", "sources", type=Path, multiple=True, metavar="RUN", help="another run, to make transfer attacks on"
)
@click.option(
    "--network", "networks", type=Path, multiple=True, metavar="RUN", help="another run, to show its curves too"
)
@click.option(
    "--classifier",
    "classifiers",
    multiple=True,
    metavar="NAME",
    help="package.module:factory of a run's classifier, to be imported; may be repeated. For --weights, first the "
    "classifier that they are of, as fastgat train takes it",
)
@click.option(
    "--cg",
    "cgs",
    multiple=True,
    metavar="X",
    help="c_g of a fresh generator to attack with; may be repeated  [default: 1]",
)
@click.option("--no-generator", is_flag=True, help="leave out the generator attack, which takes the longest")
@click.option("--output", type=Path, metavar="PATH", help="folder of the report  [default: the run's, or one in runs/]")
@click.option("--fresh", is_flag=True, help="use no results that an earlier evaluation has kept")
def evaluate(
    run: Path | None,
    clean: bool,
    quick: bool,
    full: bool,
    sources: tuple[Path, ...],
    networks: tuple[Path, ...],
    classifiers: tuple[str, ...],
    cgs: tuple[str, ...],
    no_generator: bool,
    output: Path | None,
    fresh: bool,
    **given: Any,
) -> None:
    """Evaluate a classifier in eager float32: that of RUN (a run folder or a checkpoint), or --weights.

    Clean accuracy, fast-gradient curves over epsilon, attacks (noise, fast gradient, PGD, APGD, Square, transfer, a
    fresh generator) at one epsilon, and a report card that checks whether they can be believed; with --only-autoattack,
    AutoAttack and the lines of the card that need nothing else. Writes evaluation.json, report.html and plots into the
    run folder or --output (with --clean, evaluation-clean.json alone). What is done is kept in evaluation-cache/ there,
    so that a second call continues.

    Exit code 3 where the card has a FAIL.
    """
    check_alone("an evaluation runs")
    _check_combination(quick, clean, full, given["only_autoattack"])
    weights = given["weights"]
    settings = RunSettings(**((FULL if full else {}) | given_to(RunSettings, given)))
    attacks = EvaluationSettings(**given_to(EvaluationSettings, given))
    cg_values = (
        () if no_generator or attacks.only_autoattack else tuple(convert("cg", value, float) for value in cgs or ("1",))
    )
    if output is None:
        output = run if run and run.is_dir() else run.parent if run else _folder_for(Path(weights))
    keep_freed_memory()
    console = Console(highlight=False)
    with contextlib.closing(TransferBar(console, transient=True)) as bar:
        result = evaluate_run(
            run,
            settings,
            attacks,
            sources=sources,
            networks=networks,
            classifiers=classifiers,
            cgs=cg_values,
            clean_only=clean,
            cache=None if clean else Cache(output / "evaluation-cache", fresh=fresh),
            progress=bar,
        )
    if (c := result.clean) is not None:
        scores = f"accuracy {c.accuracy:.2%}, cross entropy {c.loss:.4f}"
        for line in c.weights:
            click.echo(f"{c.checkpoint}: {line}")
        click.echo(f"{c.checkpoint}: {c.split} {scores}, {c.samples:,} images of {c.dataset}")
    written = write_report(output, result)
    if result.robustness is None:
        return
    _show(console, result.robustness)
    click.echo(f"\n{next(path for path in written if path.suffix == '.html')}")
    if result.robustness.verdict == "FAIL":
        click.get_current_context().exit(CARD_FAILED)


def _folder_for(weights: Path) -> Path:
    """The folder for what is found of a file of weights; files of the same name elsewhere have others."""
    return Path("runs") / f"evaluate-{weights.stem}-{zlib.crc32(os.fsencode(weights.resolve())):08x}"


def _check_combination(quick: bool, clean: bool, full: bool, only_autoattack: bool | None) -> None:
    """Raises UsageError where the parameters that were given contradict each other."""
    context = click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    if ("run" in given) == ("weights" in given):
        raise click.UsageError("name a RUN, or --weights FILE with --classifier and --dataset")
    for asked, says, allowed in (
        (clean, "--clean runs no attack", CLEAN_OPTIONS),
        (only_autoattack, "--only-autoattack runs nothing else", AUTOATTACK_OPTIONS),
        (full, "--full attacks every image", given.keys() - {"quick", "samples"}),
        (quick, f"--quick attacks {DEFAULT_SAMPLES} images", given.keys() - {"samples"}),
        ("no_generator" in given, "--no-generator trains no generator", given.keys() - {"cgs", *GENERATOR}),
    ):
        if asked and (others := [flag for name, flag in given.items() if name not in allowed]):
            raise click.UsageError(f"{says}: leave out {', '.join(others)}")


def _show(console: Console, result: Robustness) -> None:
    s = result.settings
    console.print(f"\n{s.norm}, epsilon {s.bound:.4g}, {result.attacked_samples:,} images")
    table = Table("attack", Column("accuracy left", justify="right"), box=None, pad_edge=False)
    attacked = [(attack.name, attack.accuracy) for attack in result.attacks]
    worst = ("worst case, sample by sample", result.worst_case_accuracy)
    for name, accuracy in [("none", result.clean_accuracy_of_attacked), *attacked, worst]:
        table.add_row(escape(name), f"{accuracy:.1%}")
    console.print(table)
    console.print("\nreport card")
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in result.card:
        figures = ", ".join(f"{k} {f'{v:.1%}' if isinstance(v, float) else v}" for k, v in check.figures.items())
        colour = COLOURS[check.verdict]
        table.add_row(f"[{colour}]{check.verdict}[/]", check.name, escape(figures))
    console.print(table)
