"""fastgat search."""

import itertools
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown

from fastgat.cli.options import SectionedCommand, check_alone, check_effective, overrides, run_options, settings
from fastgat.cli.reproduce import run_experiments
from fastgat.config import TrainConfig, merge
from fastgat.errors import ConfigError
from fastgat.experiments import Plan, RunStore
from fastgat.experiments.cell import Cell
from fastgat.experiments.search import GRIDS, PARAMETERS, Search
from fastgat.options import convert, suggestion, value_type

LEFT_OUT = ("output", "resume", "dataset", "image_size", "max_pixels", "changed_data", "on_bad_sample")
UNSEARCHED = (*LEFT_OUT, "seed", "device")  # settings that are no subject of a search


@click.command(cls=SectionedCommand)
@click.option("--dataset", metavar="NAME", help="cifar10, cifar100 or digits  [default: cifar10]")
@run_options(without=LEFT_OUT)
@click.option(
    "--over",
    multiple=True,
    metavar="NAME=X,...",
    help="an option of training and the values to try; repeat it for every combination  [default: the method's own "
    "hyperparameter, five values on a logarithmic scale]",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="initialisations of each, from --seed on"
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes that train side by side")
@click.option("--json", "as_json", is_flag=True, help="the result as one JSON object; `complete` tells whether all ran")
@click.option("--out", type=Path, metavar="PATH", help="folder of the runs  [default: runs/search-DATASET]")
def search(over: tuple[str, ...], seeds: int, jobs: int, as_json: bool, out: Path | None, **given: Any) -> None:
    """Train a method with several values of its hyperparameter, or of any options, and compare validation accuracy.

    Test images play no part. Runs are kept in --out, where `fastgat reproduce` finds them too: a command that was
    stopped goes on, and several at once do nothing twice.
    """
    check_alone("a search trains each run")
    common = merge({"data": {"dataset": "cifar10"}}, overrides(given))
    base = TrainConfig.from_dict(common)
    given_over = [_values(text) for text in over]
    choices = dict(given_over) or _hyperparameter(base.to_dict()["method"]["name"])
    if given_over and len(choices) < len(given_over):
        raise ConfigError("--over: an option is given twice")
    for name in choices:
        if given.get(name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is what the search is over: its values are those of --over {name}=X,...")
    combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    variants = tuple((values, TrainConfig.from_dict(merge(common, overrides(values)))) for values in combinations)
    check_effective([config for _, config in variants], given | {name: values[0] for name, values in choices.items()})
    if len({Cell(config).name for _, config in variants}) < len(variants):
        raise ConfigError(f"not all of {', '.join(choices)} make a difference to the result of a run")
    plan, sweep = Plan(seeds=seeds, base=base), Search(variants)
    folder = out or Path("runs") / f"search-{plan.dataset}"
    store, console = RunStore(folder), Console(stderr=as_json)
    complete = run_experiments([sweep], plan, store, console, jobs)
    if not complete:
        console.print(f"interrupted; the same command goes on from here ({folder})", markup=False, soft_wrap=True)
    figures = sweep.collect(plan, store)
    if as_json:
        click.echo(json.dumps({"complete": complete, **(figures or {"rows": []})}, indent=2))
    elif complete:
        assert figures is not None
        console.print(Markdown(sweep.section(plan, figures)))


def _values(text: str) -> tuple[str, list[Any]]:
    """An option's name and the values to try, as the option's type has them."""
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    known = {setting.field.name: setting for setting in settings() if setting.field.name not in UNSEARCHED}
    if not equals or not values:
        raise ConfigError(f"--over takes NAME=X,..., such as cg=0.3,1,3; got {text!r}")
    if name not in known:
        raise ConfigError(f"--over: no option {name!r}{suggestion(name, known)}")
    plain, _ = value_type(known[name].owner, name)
    converted = [_value(name, value, plain) for value in values.split(",")]
    if len(set(converted)) != len(converted):
        raise ConfigError(f"--over: a value of {name} appears twice: {values}")
    return name, converted


def _value(name: str, text: str, plain: type) -> Any:
    """A value of the option `name`, of type `plain`, from its text."""
    if plain is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"--over: {name} takes whole numbers, got {text!r}") from None
    if plain is bool:
        if text not in ("true", "false"):
            raise ConfigError(f"--over: {name} takes true or false, got {text!r}")
        return text == "true"
    return convert(name, text, plain)


def _hyperparameter(method: str) -> dict[str, list[Any]]:
    """The method's own hyperparameter and the values to try. Raises ConfigError where it has none."""
    if method not in PARAMETERS:
        raise ConfigError(f"{method} has no hyperparameter of its own: say what to search --over")
    return {PARAMETERS[method]: list(GRIDS[method])}
