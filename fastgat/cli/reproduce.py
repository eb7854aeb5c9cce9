"""fastgat reproduce."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown

from fastgat.cli.options import SectionedCommand, check_effective, given_to, overrides, run_options, settings_options
from fastgat.config import TrainConfig, merge
from fastgat.engine.device import keep_freed_memory
from fastgat.errors import ConfigError, FastgatError
from fastgat.experiments import EXPERIMENTS, PAPER, Experiment, Plan, RunStore
from fastgat.experiments.archive import RESULTS
from fastgat.experiments.cell import DATASETS
from fastgat.experiments.images import load_images
from fastgat.experiments.longer import check_keeps_whole
from fastgat.experiments.page import check_page, collect, sections, usable_figures, write_page
from fastgat.experiments.search import check_grids
from fastgat.experiments.work import work_together
from fastgat.methods import METHODS
from fastgat.models import create_classifier
from fastgat.models.registry import is_factory
from fastgat.options import convert, suggestion
from fastgat.processes import launched
from fastgat.reporting.jobs import JobsDisplay
from fastgat.reporting.transfer import TransferBar

RUNS = {
    *("epochs", "batch_size", "seed", "data_dir", "train_images", "split_seed", "loader"),
    *("schedule", "generator_steps", "generator_interval", "delta"),
    *("classifier", "generator_width", "batch_norm"),
    *("lr", "generator_lr", "lr_schedule", "clip_grad", "ema", "early_stopping"),
    *("amp", "amp_dtype", "tf32", "channels_last", "device", "compile", "cuda_graph", "deterministic"),
    *("flip", "padded_crop", "cutout"),
}
"""The settings of a run that experiments share."""
DEFAULTS: dict[str, Any] = {"epochs": 60, "data": {"dataset": "cifar10"}}
QUICK_RUNS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "data": {"dataset": "digits", "train_images": 64},
    "model": {"generator_width": 8},
    "run": {"compile": False},
}
QUICK: dict[str, Any] = {
    "seeds": 2,
    "samples": 64,
    "generator_images": 64,
    "generator_epochs": 1,
    "rounds": 1,
    "timed": "gat",
    "points": "8/1,8/2,48/1",
}
QUICK_GRIDS = {
    "dropout": (0.2,),
    "random": (0.5,),
    "fg-linf": (4 / 255,),
    "fg-l2": (0.5,),
    "gat": (1.0, 4.0),
    "dropout-gat": (1.0,),
    "gat-fixed": (1.0,),
    "gradient-penalty": (0.1,),
}
"""What --quick asks for, where nothing else is: enough to see everything work, not to learn anything."""


@click.command(cls=SectionedCommand)
@click.argument("what", nargs=-1, required=True, metavar="WHAT...")
@click.option("--dataset", metavar="NAME", help="cifar10, cifar100 or digits  [default: cifar10]")
@click.option(
    "--quick", is_flag=True, help="all of it in minutes on two cores, on so few images that its accuracies mean nothing"
)
@settings_options(Plan)
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="METHOD=X,...",
    help="values that the method's hyperparameter is chosen from; a single one is not searched",
)
@run_options(RUNS, method=False, defaults=DEFAULTS)
@click.option("--out", type=Path, metavar="PATH", help="folder of the runs  [default: runs/reproduce-DATASET]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes that train side by side")
@click.option("--page", type=Path, metavar="FILE", help="the result page  [default: results.md in --out]")
@click.option(
    "--keep-whole", is_flag=True, help="keep whole checkpoints: the same runs with more --epochs then go on from them"
)
@click.option("--collect-only", is_flag=True, help="train nothing: write the page from what is there")
def reproduce(
    what: tuple[str, ...],
    quick: bool,
    grids: tuple[str, ...],
    out: Path | None,
    jobs: int,
    page: Path | None,
    keep_whole: bool,
    collect_only: bool,
    **given: Any,
) -> None:
    """Run the paper's experiments, and show its figures beside ours.

    WHAT is table2, figure2, figure3, figure4, time, or all of these; or a question that the paper leaves open: readings
    (of the derivative through Delta, with a gradient penalty beside them), capacity (of the generator), inputs (of the
    generator), larger (a ResNet-18, or another --classifier). Hyperparameters are chosen on validation images.

    Every run and figure is kept in --out when it is done; a command that was stopped goes on, and several at once, on
    machines that share the folder too, do nothing twice. --jobs trains several runs side by side.
    """
    if launched():
        raise click.UsageError("each run is trained in one process: start this by itself, with --jobs, not by torchrun")
    experiments = [EXPERIMENTS[name] for name in _names(what)]
    plan = plan_from(quick, grids, given)
    check_used(experiments, plan, grids, given)
    if keep_whole:
        check_keeps_whole(plan.base)
    folder = out or Path("runs") / f"reproduce-{plan.dataset}"
    store, console, page = RunStore(folder, whole=keep_whole), Console(), page or folder / "results.md"
    check_page(page, folder)
    failure, complete = None, True
    if not collect_only:
        try:
            check_factory(experiments, plan)
            complete = run_experiments(experiments, plan, store, console, jobs)
        except FastgatError as error:  # what is done is shown all the same
            failure = error
    with usable_figures(folder):
        results = collect(experiments, plan, store)
        if complete and results["figures"]:
            for title, section in sections(experiments, plan, results).items():
                console.print(Markdown(f"## {title}\n\n{section}"))
            known = len(store.archived)
            store.write_archive()
            written = write_page(page, experiments, plan, results, _command(sys.argv[1:]))
            if known:
                click.echo(f"{known} of these runs and measurements are known from {folder / RESULTS} alone")
            click.echo(f"{written[0]}")
    if failure is not None:
        raise failure
    if not complete:
        click.echo(f"interrupted; the same command goes on from here ({folder})")
    elif not results["figures"]:
        raise ConfigError(f"{folder} holds no figures of {', '.join(what)} with these settings")


def check_used(experiments: Sequence[Experiment], plan: Plan, grids: Sequence[str], given: dict[str, Any]) -> None:
    """Raises ConfigError for what was given and plays no part in any of the experiments, or must not in one."""
    names = ", ".join(each.name for each in experiments)
    extent = {option for each in experiments for option in each.extent}
    ignored = set.intersection(*({*each.ignored} for each in experiments))
    for name in [*(given_to(Plan, given).keys() - extent), *(name for name in ignored if given[name] is not None)]:
        raise ConfigError(f"--{name.replace('_', '-')} has no effect on {names}")
    for method in (_grid(text)[0] for text in grids):
        if not any(method in each.chosen for each in experiments):
            raise ConfigError(f"--grid {method} has no effect on {names}")
    for each in experiments:
        each.check(plan, given)


def check_factory(experiments: Sequence[Experiment], plan: Plan) -> None:
    """Raises ConfigError where a factory does not make the networks of every method, before anything is trained."""
    name, classes = plan.base.model.classifier, DATASETS[plan.dataset].classes
    if is_factory(name):
        for method in {METHODS[method] for each in experiments for method in each.chosen if method in METHODS}:
            create_classifier(name, classes, dropout=method().classifier_dropout)


def run_experiments(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, console: Console, jobs: int
) -> bool:
    """Do all that is left to do, shown on the terminal; False where a signal came first."""
    keep_freed_memory()
    if any(each.images for each in experiments):
        with contextlib.closing(TransferBar(console)) as transfer:
            load_images(plan, transfer)  # once, before several processes want it
    with contextlib.closing(JobsDisplay(console)) as display:
        return work_together(experiments, plan, store, display, jobs)


def plan_from(quick: bool, grids: tuple[str, ...], given: dict[str, Any]) -> Plan:
    """The plan that the options describe: they go over those of --quick, and these over the defaults."""
    runs = merge(DEFAULTS, QUICK_RUNS) if quick else DEFAULTS
    given_grids: dict[str, tuple[float, ...]] = {}
    for method, values in map(_grid, grids):
        if method in given_grids:
            raise ConfigError(f"--grid: the values for {method} are given twice")
        given_grids[method] = values
    chosen = (QUICK_GRIDS if quick else {}) | given_grids
    check_grids(chosen)
    base = TrainConfig.from_dict(merge(runs, overrides(given)))
    theirs = {name: value for name, value in given.items() if not (quick and name == "data_dir")}  # quick: digits
    check_effective([replace(base, method=method()) for method in METHODS.values()], theirs)
    return Plan(**{**(QUICK if quick else {}), **given_to(Plan, given)}, base=base, grids=chosen)


def _names(what: tuple[str, ...]) -> list[str]:
    names = [name for word in what for name in (PAPER if word == "all" else (word,))]
    for name in names:
        if name not in EXPERIMENTS:
            raise click.UsageError(f"no experiment {name!r}{suggestion(name, [*EXPERIMENTS, 'all'])}")
    return list(dict.fromkeys(names))


def _grid(text: str) -> tuple[str, tuple[float, ...]]:
    method, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"--grid takes METHOD=X,..., such as gat=0.3,1,3; got {text!r}")
    return method, tuple(convert(f"a value for {method}", value, float) for value in values.split(","))


UNTOLD = {"--out": 1, "--jobs": 1, "--page": 1, "--keep-whole": 0, "--collect-only": 0, "--data-dir": 1, "--device": 1}
"""Options that decide nothing of the figures, and how many values they take."""


def _command(arguments: list[str]) -> str:
    kept, rest = [], iter(arguments)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in UNTOLD:
            kept.append(word)
        elif UNTOLD[name] and not equals:
            next(rest, None)
    return shlex.join(["fastgat", *kept])
